"""Randomness of one example: a generator of its own, or the global random states set for it and put back.

The key of an example is made of the run's seed and its place in the stream of epochs, so that what is drawn for it is
the same in any world, with any number of workers and after a resume.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

_STREAM = 0x17E3 << 40  # apart from every other use of a seed
_EVALUATION = 0xE7A1 << 40
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
GLOBAL = ("torch", "numpy", "random")  # whose random states belong to the process


def keys_of(seed: int, positions: np.ndarray | None, indices: np.ndarray) -> np.ndarray:
    """63 bits each: of the examples at ``positions`` of the stream of epochs, or of an evaluation's at ``indices``.

    key = mix(mix(stream + seed) + (place + 1) · golden) / 2; mix: splitmix64's finalizer (Steele, Lea, Flood 2014)
    """
    stream, places = (_EVALUATION, indices) if positions is None else (_STREAM + seed, positions)
    begun = _mixed(np.array([stream], dtype=np.uint64))
    return _mixed(begun + (places.astype(np.uint64) + np.uint64(1)) * _GOLDEN) >> np.uint64(1)


def key_of(seed: int, position: int | None, index: int) -> int:
    """The same of one example."""
    return int(keys_of(seed, None if position is None else np.array([position]), np.array([index]))[0])


def _mixed(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class GlobalStates(NamedTuple):
    """Of the generators that code draws from which names none; of the CPU."""

    torch: torch.Tensor
    numpy: Any
    python: Any

    def differing(self, other: GlobalStates) -> list[str]:
        """Whose of them are not the same."""
        same = {
            "torch": torch.equal(self.torch, other.torch),
            "numpy": self.numpy[2:] == other.numpy[2:] and bool((self.numpy[1] == other.numpy[1]).all()),
            "random": self.python == other.python,
        }
        return [name for name, is_same in same.items() if not is_same]


def states() -> GlobalStates:
    legacy: Any = np.random.get_state()  # noqa: NPY002  # the global one is what others draw from
    return GlobalStates(torch.default_generator.get_state(), legacy, random.getstate())


def put_back(before: GlobalStates) -> None:
    torch.default_generator.set_state(before.torch)
    np.random.set_state(before.numpy)  # noqa: NPY002
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
