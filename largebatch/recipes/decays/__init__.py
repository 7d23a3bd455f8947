"""What becomes of the learning rate after its warm-up: one file for each kind, found by :func:`table`.

A file holds the keys with their ranges, the formula and the words. Pure functions; no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from largebatch.recipes import kinds
from largebatch.recipes.keys import Section


class Decay(Section):
    """A shape of the learning rate, from its peak on."""

    CHANGES: ClassVar[bool] = True  # whether the lr is ever another one than the peak
    JUMPS: ClassVar[bool] = False  # whether it has :attr:`epochs`

    name: str

    def lr(self, peak: float, progress: float, passed: int) -> float:
        """After the warm-up.

        ``progress``: 0 where :meth:`span` begins to 1 where it ends, and more beyond. ``passed``: how many of
        :attr:`epochs` lie behind.
        """
        raise NotImplementedError

    def span(self, warmup: float, total: float, examples_of: Callable[[int], float]) -> tuple[float, float]:
        """Where it begins and ends, in examples; ``examples_of``: those of so many steps from the first on."""
        return warmup, total

    def summit(self, peak: float) -> float:
        """Where the warm-up ends."""
        return peak

    def check(self, peak: float) -> None:
        """Refuse a peak that does not go with the keys."""

    @property
    def epochs(self) -> tuple[float, ...]:
        """From the start of the run, before any regime adaptation: where the lr jumps."""
        return ()

    @property
    def in_steps(self) -> bool:
        """Whether its span is stated in steps."""
        return False

    @property
    def end(self) -> float:
        """The lower bound that is stated."""
        return 0.0

    @property
    def polynomial(self) -> float | None:
        """The power, of a decay that MLPerf's log calls a polynomial."""
        return None

    def words(self, epochs: Sequence[float]) -> str:
        """What is printed before time is spent; ``epochs`` are :attr:`epochs` as the run has them."""
        raise NotImplementedError


@functools.cache
def table() -> dict[str, type[Decay]]:
    """Every kind by its name."""
    return kinds.sections_by_name(__name__, __path__, Decay)


def listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
