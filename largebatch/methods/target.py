"""A target: the run ends, finished, when an evaluation has reached a score, and records what that took.

    s = (score − y₀) / (y₁ − y₀)        x = x₀ + s · (x₁ − x₀)        x: steps, examples, epochs, seconds

y₀ is the score of the last evaluation short of the target, y₁ that of the first at it or beyond. With a ``patience``
above one the run ends with the last of so many evaluations in a row at it or beyond, and it was reached with the first
of them. What is compared is the score that the run would end with: the median of the last ``evaluate.median_of``
evaluations, or of as many as there are. The evaluation at the end counts. Schedules are those of the whole budget.
With ``give_up_epochs`` a run whose evaluation is still short of it then ends as one that did not reach it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from largebatch.errors import UserError
from largebatch.methods import Built, Method, Part
from largebatch.recipes.decided import Marks
from largebatch.recipes.keys import Finite, PositiveFloat, PositiveInt
from largebatch.records.target import AtScore, TargetRecord

if TYPE_CHECKING:
    from largebatch.checkpoint.pieces import State
    from largebatch.plan.batch import BatchPlan
    from largebatch.plan.score import Score
    from largebatch.recipes.config import Run
    from largebatch.steps.evaluate import Evaluation

TAKEN = ("steps", "examples", "epochs", "seconds", "device_seconds")


class Target(Method):
    """The run ends when its score is reached, by ``patience`` evaluations in a row."""

    KEY = "evaluate.stop_at"
    ROW = "target"
    CHANGES = False

    score: Finite  # in the task's unit and direction
    patience: PositiveInt = 1  # evaluations in a row that must be at it or beyond
    give_up_epochs: PositiveFloat | None = None  # not reached by the first evaluation after so many: it ends, censored

    @property
    def words(self) -> str:
        who = "an evaluation reaches" if self.patience == 1 else f"{self.patience} evaluations in a row reach"
        given_up = f", or is given up after {self.give_up_epochs:g} epochs" if self.give_up_epochs else ""
        return f"ends when {who} {self.score:g}{given_up}"

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        for other in run.methods.values():
            if other.ALONE == "at the end":
                yield (
                    f"{self.KEY} ends the steps of a run, and {other.where} goes on after them with workers whose "
                    "average is what is judged; choose one"
                )

    def check_score(self, score: Score) -> Iterator[str]:
        if score.unit == "%" and not 0 <= self.score <= 100:
            yield f"{self.KEY}.score = {self.score:g} is no {score.name} in percent; valid: 0 to 100"

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> Target:
        every, epoch = run.evaluate.every_epochs, plan.dataset_size * run.stretch
        marks = Marks(plan, every * run.stretch).steps()
        if marks == {plan.steps}:
            most = math.floor(1e4 * plan.examples_before(plan.steps - 1) / epoch) / 1e4
            raise UserError(
                f"{self.KEY} has nothing to end: with evaluate.every_epochs = {every:g} the only evaluation of the "
                f"run's {plan.budget_examples / epoch:.4g} epochs is the one at its end; valid: "
                + (f"evaluate.every_epochs up to {most:g}" if most else "more steps than one")
            )
        if self.patience > len(marks):
            raise UserError(
                f"{self.KEY}.patience = {self.patience} is more than the {len(marks)} evaluations of the run, with "
                f"evaluate.every_epochs = {every:g}; at most {len(marks)}"
            )
        return self

    def part(self, job: Built) -> TargetOfRun:
        return TargetOfRun(self, job.decided.evaluating.on, job.task.score)


class TargetOfRun(Part):
    """Ends the steps of a run when its target is reached."""

    def __init__(self, target: Target, evaluated_on: str, score: Score) -> None:
        self.target, self.evaluated_on, self.score = target, evaluated_on, score
        self.short: AtScore | None = None  # the last evaluation short of the target
        self.in_a_row: list[AtScore] = []  # those since then
        self.last: AtScore | None = None
        self.best: float | None = None

    @property
    def reached(self) -> bool:
        return len(self.in_a_row) >= self.target.patience

    @property
    def over(self) -> bool:
        most = self.target.give_up_epochs
        late = most is not None and self.last is not None and self.last.epochs >= most
        return self.reached or (late and not self.in_a_row)

    def evaluated(self, name: str, evaluation: Evaluation, at: AtScore) -> None:
        if name != self.evaluated_on or (self.last is not None and at.steps == self.last.steps):
            return
        self.last = at
        worth = self.score.worth(math.nan if at.score is None else at.score)
        if worth > (-math.inf if self.best is None else self.score.worth(self.best)):
            self.best = at.score
        if worth >= self.score.worth(self.target.score):
            self.in_a_row.append(at)
        else:
            self.short, self.in_a_row = at, []

    def results(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        before, mark = (self.short, self.in_a_row[0]) if self.reached else (None, None)
        return {
            "target": TargetRecord(
                score=self.target.score,
                patience=self.target.patience,
                reached=self.reached,
                best=self.best,
                before=before,
                mark=mark,
                interpolated=crossing(before, mark, self.target.score) if mark is not None else None,
                last=self.last,
            )
        }

    def save(self) -> State:
        return {
            "short": _plain(self.short),
            "in_a_row": [_plain(at) for at in self.in_a_row],
            "last": _plain(self.last),
            "best": self.best,
        }

    def load(self, state: State, of_ranks: list[State]) -> None:
        self.short, self.last, self.best = _at(state["short"]), _at(state["last"]), state["best"]
        self.in_a_row = [AtScore(**at) for at in state["in_a_row"]]


def crossing(before: AtScore | None, mark: AtScore, score: float) -> AtScore:
    """Where the line from ``before``, short of the ``score``, to ``mark``, at it or beyond, has it.

    ``mark`` where there is no such line: nothing came before, or nothing that is a number.
    """
    if before is None or before.score is None or mark.score is None or not math.isfinite(mark.score - before.score):
        return mark
    share = (score - before.score) / (mark.score - before.score)
    line = {key: (getattr(before, key), getattr(mark, key)) for key in TAKEN}
    return AtScore(score=score, **{key: start + share * (end - start) for key, (start, end) in line.items()})


def _plain(at: AtScore | None) -> dict[str, Any] | None:
    return at and dataclasses.asdict(at)


def _at(saved: Mapping[str, Any] | None) -> AtScore | None:
    return None if saved is None else AtScore(**saved)
