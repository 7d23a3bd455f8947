"""Points of rows for the tests of curves: middles without runs, and runs of a world whose law is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from largebatch.studies.curves.measured import MiddleOfRuns, MiddleValue, TargetCurve, TargetPoint, TargetRun

BATCHES = (32, 128, 512, 2048, 8192)


def middle(batch: int, examples: float, exact: bool = True) -> MiddleOfRuns:
    return MiddleOfRuns(batch, MiddleValue(examples, exact, None, None), None, None, 1, int(exact))


def middles(batches: Sequence[int], examples: Sequence[float], budget: float = np.inf) -> list[MiddleOfRuns]:
    """What is above the budget is known up to it."""
    return [middle(b, min(float(e), budget), bool(e <= budget)) for b, e in zip(batches, examples, strict=True)]


def row(
    label: str, examples: Callable[[int, int], float], batches=BATCHES, seeds: int = 3, budget=np.inf
) -> TargetCurve:
    """``examples(batch, seed)`` are needed; what is above the budget is not reached."""
    points = tuple(
        TargetPoint(
            batch,
            tuple(
                TargetRun(seed, min(needed, budget), bool(needed <= budget))
                for seed in range(seeds)
                for needed in [float(examples(batch, seed))]
            ),
        )
        for batch in batches
    )
    return TargetCurve(label, points)
