"""What ``result.json`` tells of a target (``evaluate.stop_at``): whether it was reached, when, and what that took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from largebatch.plan.score import Score
from largebatch.records.typed import Amount, Flag, Number, Whole, lenient_part


@dataclass(frozen=True, kw_only=True)
class AtScore:
    """A score of a run, and what had been trained up to it."""

    score: Amount
    steps: Number
    examples: Number  # [examples]
    epochs: Number  # the same, in passes over the data
    seconds: Number  # [s] of training, without evaluations and saving
    device_seconds: Number  # [s] the same, times the ranks that trained


Point = Annotated[AtScore | None, lenient_part(AtScore)]


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """A target (``evaluate.stop_at``), and what it took to reach it.

    A finished run that did not reach it is censored: ``last`` is then the whole of its budget, which was not enough.
    Scores are those that the run is judged by: the median of the last ``evaluate.median_of`` evaluations.
    ``interpolated`` lies on the straight line from ``before`` to ``mark``, where its score is the target: with s =
    (score − before.score) / (mark.score − before.score) each of its other numbers is before + s · (mark − before).
    Where no evaluation came before, it is ``mark``, which is an upper bound then.
    """

    score: Number  # the target
    patience: Whole  # so many evaluations in a row had to be at it or beyond
    reached: Flag  # whether they were
    best: Amount  # score of all evaluations, those after a reached target included
    before: Point  # the last evaluation short of it; null: none, or it was not reached
    mark: Point  # the evaluation that reached it, the first of those in a row; null: it was not reached
    interpolated: Point  # where it was crossed between both; null: it was not reached
    last: Point  # the last evaluation; null: there was none

    def words(self, score: Score) -> str:
        """In a clause; ``score``: what it is one of."""
        target = f"target {score.of(self.score)}"
        if (at := self.interpolated) is not None:
            when = "after about" if self.before is not None else "by the first evaluation, after"
            taken = f"{at.steps:,.0f} steps ({at.epochs:.4g} epochs, {at.seconds:.1f} s of training)"
            return f"{target} reached {when} {taken}"
        best = f", best {score.of(self.best)}" if self.best is not None else ""
        return f"{target} not reached{best}"
