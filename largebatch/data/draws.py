"""Randomness of one example: a generator of its own, or the global random states set for it and put back.

The key of an example is made of the run's seed and its place in the stream of epochs, so that what is drawn for it is
the same in any world, with any number of workers and after a resume.
"""

from __future__ import annotations

import contextlib
import operator
import random
import struct
from collections.abc import Collection, Iterator
from ctypes import string_at
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from largebatch.plan.order import mixed, numbered

_STREAM = 0x17E3 << 40  # apart from every other use of a seed
_EVALUATION = 0xE7A1 << 40
GLOBAL = ("torch", "numpy", "random")  # whose random states belong to the process


def keys_of(seed: int, positions: np.ndarray | None, indices: np.ndarray) -> np.ndarray:
    """63 bits each: of the examples at ``positions`` of the stream of epochs, or of an evaluation's at ``indices``.

    key = mix(mix(stream + seed) + (place + 1) · golden) / 2; mix: splitmix64's finalizer (Steele, Lea, Flood 2014)
    """
    stream, places = (_EVALUATION, indices) if positions is None else (_STREAM + seed, positions)
    begun = mixed(np.array([stream], dtype=np.uint64))
    return numbered(begun, places) >> np.uint64(1)


def key_of(seed: int, position: int | None, index: int) -> int:
    """The same of one example."""
    return int(keys_of(seed, None if position is None else np.array([position]), np.array([index]))[0])


class GlobalStates(NamedTuple):
    """Of the generators that code draws from which names none; of the CPU."""

    torch: torch.Tensor
    numpy: Any
    python: Any

    def differing(self, other: GlobalStates) -> list[str]:
        """Whose of them are not the same."""
        pairs = zip(self, other, strict=True)
        return [
            name
            for name, (one, two), same in zip(GLOBAL, pairs, _SAME, strict=True)
            if one is not two and not same(one, two)
        ]


def _same_numpy(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=False)
    return one["bit_generator"] == other["bit_generator"] and all(np.array_equal(*pair) for pair in pairs)


_SAME = (torch.equal, _same_numpy, operator.eq)


class _LegacyNumpy:
    """NumPy's global state, looked at for every micro-batch: asked for, in 30 to 60 us, only where its words moved.

    The words of the Mersenne twister, and the place in them, are copied from where they stand. They are trusted where
    they were seen to be what the state says, and no normal number is kept for the next call.
    """

    def __init__(self) -> None:
        self.seen: bytes | None = None
        self.state: Any = None

    def now(self) -> Any:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if not isinstance(generator, np.random.MT19937):  # somebody has set another
            return np.random.get_state(legacy=False)  # noqa: NPY002  # the global one is what others draw from
        words = string_at(generator.ctypes.state_address, _WORDS)
        if words != self.seen:
            self.state = np.random.get_state(legacy=False)  # noqa: NPY002
            said = self.state["state"]["key"].tobytes() + struct.pack("i", self.state["state"]["pos"])
            self.seen = words if words == said and not self.state["has_gauss"] else None
        return self.state

    def put_back(self, state: Any) -> None:
        np.random.set_state(state)  # noqa: NPY002
        self.seen = None  # a normal number may have come back without a word moved


_WORDS = 4 * 625  # bytes: 624 words and the place in them
_numpys = _LegacyNumpy()


def states() -> GlobalStates:
    return GlobalStates(torch.default_generator.get_state(), _numpys.now(), random.getstate())


def put_back(before: GlobalStates) -> None:
    torch.default_generator.set_state(before.torch)
    _numpys.put_back(before.numpy)
    random.setstate(before.python)


def seed_with(key: int, whose: Collection[str] = GLOBAL) -> None:
    """The global generators of these begin with the key."""
    if "torch" in whose:
        torch.default_generator.manual_seed(key)
    if "numpy" in whose:
        np.random.seed(key % 2**32)  # noqa: NPY002
    if "random" in whose:
        random.seed(key)


@contextlib.contextmanager
def seeded(key: int) -> Iterator[None]:
    """Inside, the global generators are those of the key; afterwards as they were."""
    before = states()
    seed_with(key)
    try:
        yield
    finally:
        put_back(before)
