"""Which checkpoints stay: the last ones, one for each stretch of epochs, the best."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Saved(NamedTuple):
    """What decides whether a checkpoint stays."""

    step: int
    epoch: float
    worth: float | None  # its score, turned so that more is better; None: not evaluated at its step


class Retention(NamedTuple):
    last: int = 2
    every_epochs: float | None = None
    best: int = 0


def staying(saved: Iterable[Saved], keep: Retention) -> set[int]:
    """The steps of those that stay.

    The ``last`` of all; of each stretch of ``every_epochs`` the first at or after its begin (not of that from zero on);
    the ``best`` by their scores, of equal ones the later.
    """
    in_order = sorted(saved)
    steps = {one.step for one in in_order[-keep.last :]}
    if keep.every_epochs is not None:
        first: dict[int, int] = {}
        for one in in_order:
            first.setdefault(math.floor(one.epoch / keep.every_epochs + 1e-9), one.step)
        steps |= {step for stretch, step in first.items() if stretch > 0}
    judged = [one for one in in_order if one.worth is not None]
    judged.sort(key=lambda one: (one.worth, one.step), reverse=True)
    return steps | {one.step for one in judged[: keep.best]}
