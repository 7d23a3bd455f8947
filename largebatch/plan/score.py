"""The number a run is judged by, as data: ``plan.json`` carries it, and whoever reads a run asks it, not the task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Score(NamedTuple):
    """Of a task: one of the numbers of its evaluations."""

    key: str  # its name among those numbers, and behind the split's in files: test_accuracy_percent
    name: str  # in sentences and on axes
    unit: str = ""  # "%", or whatever stands behind the number
    more_is_better: bool = True
    tolerance: float = 0.0  # what difference counts as nothing lost, in the unit

    def worth(self, value: float) -> float:
        """Higher is better, whichever way the score goes; what is no number is worst."""
        if math.isnan(value):
            return -math.inf
        return value if self.more_is_better else -value

    def of(self, value: float) -> str:
        """``91.23 %``: hundredths of percents, four digits of anything else."""
        return f"{value:.2f} %" if self.unit == "%" else f"{value:.4g} {self.unit}".rstrip()

    def same_measure(self, other: Score) -> bool:
        """Whether numbers of both may stand beside each other: what counts as nothing lost may differ."""
        return self._replace(name="", tolerance=0.0) == other._replace(name="", tolerance=0.0)

    @property
    def differences_in(self) -> str:
        """The unit of a difference: percentage points are no percents."""
        return "points" if self.unit == "%" else self.unit


def words_of(key: str) -> tuple[str, str]:
    """Name and unit of an evaluation's number of which only the key is known: ``("top5 accuracy", "%")``."""
    name = key.removesuffix("_percent")
    return name.replace("_", " "), "%" if name != key else ""


ACCURACY = Score("accuracy_percent", "accuracy", "%", more_is_better=True, tolerance=0.5)


def score_of(plan: Mapping[str, Any]) -> Score:
    """That of a ``plan.json``; runs of before scores were data were all judged by their accuracy."""
    written = plan.get("score")
    return Score(**written) if written else ACCURACY
