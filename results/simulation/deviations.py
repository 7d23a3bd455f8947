"""How far devices can lie apart on published clusters: ``python results/simulation/deviations.py > deviations.md``.

Rows of one family with the same examples for each device differ by the network and by the wait for the slowest of more
devices. The deviation by which the wait alone would explain all of the growth is the largest that they allow.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from scipy.optimize import brentq

from largebatch.studies.cluster import rows as measured
from largebatch.studies.cluster.rows import StepRow
from largebatch.studies.cluster.stragglers import Stragglers

ROWS = Path(__file__).parent.parent / "plan" / "rows.csv"


def families() -> list[list[StepRow]]:
    """Rows of one family, workload and share, at least two, by rising devices."""
    groups: dict[tuple[object, ...], list[StepRow]] = defaultdict(list)
    for row in measured.read(ROWS).rows:
        groups[row.family, row.workload, row.accumulation, round(row.share, 6)].append(row)
    ordered = [sorted(group, key=lambda row: row.devices) for group in groups.values()]
    return [group for group in ordered if group[0].devices < group[-1].devices]


def largest_deviation(first: StepRow, last: StepRow) -> float | None:
    """None where the step did not grow."""
    growth = last.seconds / first.seconds
    if growth <= 1:
        return None

    def beyond(deviation: float) -> float:
        law = Stragglers(deviation)
        return law.expected(last.devices) / law.expected(first.devices) - growth

    return float(brentq(beyond, 0.0, 2.0)) if beyond(2.0) > 0 else None


def main() -> None:
    print("| family | workload | examples a device | devices | step, ms | growth | deviation at most |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for group in families():
        first, last = group[0], group[-1]
        deviation = largest_deviation(first, last)
        growth = 100 * (last.seconds / first.seconds - 1)
        print(
            f"| {first.family} | {first.workload} | {first.share:g} | {first.devices:,} → {last.devices:,} "
            f"| {1000 * first.seconds:.1f} → {1000 * last.seconds:.1f} | {growth:+.1f} % "
            f"| {'–' if deviation is None else f'{deviation:.3f}'} |"
        )


if __name__ == "__main__":
    main()
