"""Samples that BERT needs at each of the reference's batches, by what a plan may be told.

``python results/plan/examples.py`` writes examples.md. A plan takes the points of ``mlperf/bert``; beside it stand the
line through a batch's neighbours, without the batch itself, the fitted law, B_crit = 13,030 with the E_min that fits
best, and MLPerf's own law as its rules state it for the interval of evaluations, 230.23·B + 3,000,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from largebatch.studies.curves import published
from largebatch.studies.curves.law import ScalingLaw
from largebatch.studies.planning.target import points_target

CRITICAL = 13_030


def main() -> None:
    curve = published.load(published.located("mlperf/bert")).curve()
    middles = curve.middles()
    target = points_target("", middles, "mlperf/bert")
    ends = {point.batch: sorted(run.examples for run in point.runs) for point in curve.points}
    terms = [(1 + point.batch / CRITICAL) / point.examples for point in middles]
    least = math.fsum(terms) / math.fsum(term**2 for term in terms)  # of squared relative errors

    def beside(batch: int) -> float:
        left = [point for point in middles if point.batch != batch]
        return points_target("", left, "").needed(batch).examples

    ways: dict[str, Callable[[int], float]] = {
        "points": lambda batch: target.needed(batch).examples,
        "neighbours": beside,
        "fitted law": target.law.examples,
        f"13,030, E_min {least / 1e6:.2f} M": ScalingLaw(least, least / CRITICAL).examples,
        "MLPerf's own law": ScalingLaw(3e6, 230.23).examples,
    }
    lines = [
        "# BERT: samples to the target, millions",
        "Made by `python results/plan/examples.py`; a number outside of the reference's runs is bold.",
        "",
        f"| batch | runs, least to most | {' | '.join(ways)} |",
        f"|---:|---|{'---:|' * len(ways)}",
    ]
    inside = dict.fromkeys(ways, 0)
    for batch, runs in ends.items():
        cells = []
        for name, way in ways.items():
            within = runs[0] <= way(batch) <= runs[-1]
            inside[name] += within
            cells.append(f"{way(batch) / 1e6:.2f}" if within else f"**{way(batch) / 1e6:.2f}**")
        lines.append(f"| {batch:,} | {runs[0] / 1e6:.2f} to {runs[-1] / 1e6:.2f} | {' | '.join(cells)} |")
    lines.append(f"| within | | {' | '.join(f'{number} of {len(ends)}' for number in inside.values())} |")
    (Path(__file__).parent / "examples.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
