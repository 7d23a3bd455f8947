"""Randomness of one example: a generator of its own, or the global random states set for it and put back.

The key of an example is made of the run's seed and its place in the stream of epochs, so that what is drawn for it is
the same in any world, with any number of workers and after a resume.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

_STREAM = 0x17E3  # apart from every other use of a seed
_EVALUATION = 0xE7A1


def key_of(seed: int, position: int | None, index: int) -> int:
    """63 bits: of the example at ``position`` in the stream of epochs, or of an evaluation's example ``index``."""
    words = [index, _EVALUATION] if position is None else [seed, position, _STREAM]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


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


@contextlib.contextmanager
def seeded(key: int) -> Iterator[None]:
    """Inside, the global generators are those of the key; afterwards as they were."""
    before = states()
    torch.default_generator.manual_seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002
    random.seed(key)
    try:
        yield
    finally:
        put_back(before)
