"""LAWA: the mean of the latest k snapshots of the weights, evaluated beside the trained ones (optim/averages.py).

Kaddour 2022 (2209.14981) takes a snapshot after every epoch, Sanyal et al. 2023 (2306.03241) after every so many
steps. Batch norm's statistics of the mean are nobody's: they are recomputed over training examples for each evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pydantic

from largebatch.errors import UserError
from largebatch.methods import Built, Decision, Method, Part, in_steps
from largebatch.plan.batch import BatchPlan
from largebatch.recipes.decided import Marks
from largebatch.recipes.keys import PositiveFloat, PositiveInt, Several

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.checkpoint.pieces import State
    from largebatch.recipes.config import Run
    from largebatch.records.target import AtScore
    from largebatch.steps.evaluate import Evaluation
    from largebatch.steps.step import Step

NAME = "lawa"
VIEW = NAME  # what its evaluations are called


class Lawa(Method):
    """The mean of the ``latest`` snapshots of the weights, evaluated beside the trained ones (Kaddour 2022)."""

    KEY = "lawa"
    ROW = "LAWA"
    CHANGES = False
    BESIDE = "the mean of their latest snapshots"
    RECOMPUTES = True

    latest: Several = 5
    every_epochs: PositiveFloat | None = None  # unset, like the next: 1
    every_steps: PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def one_distance(self) -> Lawa:
        if self.every_epochs and self.every_steps:
            raise ValueError("lawa.every_epochs and lawa.every_steps both say when a snapshot is taken; leave one out")
        return self

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        from largebatch.recipes import config

        for other in run.methods.values():
            if other.ALONE:
                yield f"lawa takes snapshots of one set of weights, and {other.where} has many; choose one"
        if getattr(run.engine, "weights", "fp32") == "bf16":
            yield "lawa cannot average weights that are kept in bf16; valid: engine.weights = fp32"
        sizes = run.data.image_size
        sides = {laid.data.side for laid in config.of_phases(run)}
        if (sizes is not None and sizes.first != sizes.last) or len(sides) > 1:
            yield (
                "lawa recomputes batch norm's statistics over images of one side, and data.image_size has several; "
                "choose one"
            )

    def saved(self, states: float) -> float:
        return self.latest

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> Snapshots:
        epochs = None if self.every_steps else (self.every_epochs or 1.0) * run.stretch
        if self.every_steps:
            steps, when = set(range(self.every_steps, plan.steps + 1, self.every_steps)), in_steps(self.every_steps)
        else:
            stated = self.every_epochs or 1.0
            steps, when = Marks(plan, epochs or 0).steps(), "epoch" if stated == 1 else f"{stated:g} epochs"
        if len(steps) < 2:
            raise UserError(
                f"lawa takes a snapshot every {when}, which is {'once' if steps else 'never'} in the {plan.steps:,} "
                "steps of the run; set lawa.every_steps so that there are two at least"
            )
        return Snapshots(self.latest, frozenset(steps), when, epochs)


@dataclasses.dataclass(frozen=True)
class Snapshots(Decision):
    latest: int
    steps: frozenset[int]  # after which one is taken
    when: str
    every_epochs: float | None = None  # of the plan, where it is counted in them

    def grown(self, plan: BatchPlan) -> Snapshots:
        if self.every_epochs is None:
            return self
        return dataclasses.replace(self, steps=frozenset(Marks(plan, self.every_epochs).steps()))

    @property
    def words(self) -> str:
        few = f", of which the run takes {len(self.steps)}" if len(self.steps) < self.latest else ""
        copies = f"{min(self.latest, len(self.steps))} copies of the weights in host memory"
        return f"LAWA: the mean of the latest {self.latest} snapshots{few}, one every {self.when}; {copies}"

    def first_difference(self, now: Snapshots, steps: int) -> str | None:
        taken, wanted = ({step for step in of.steps if step <= steps} for of in (self, now))
        if not (others := taken ^ wanted):
            return None
        first = min(others)
        took, would = ("took a", "take none") if first in taken else ("took no", "take one")
        return f"{took} snapshot after step {first:,} and would {would}"

    def part(self, job: Built) -> SnapshotsOfRun:
        return SnapshotsOfRun(self, job)


class SnapshotsOfRun(Part):
    """Of whatever this rank holds of the weights: as sharded as they are."""

    stale_views = True

    def __init__(self, decision: Snapshots, job: Built) -> None:
        from largebatch.methods._trained import TrainedWeights
        from largebatch.optim.averages import LatestAverage

        self.job, self.engine, self.key = job, job.engine, job.task.score.key
        self.trained = TrainedWeights(job.engine)
        self.statistics: dict[str, Tensor] = {}  # of the mean, if it was evaluated since the latest snapshot

        self.average = LatestAverage(self.trained.live, decision.latest)

    def after(self, step: Step) -> None:
        decision: Any = self.job.decided.methods[NAME]  # the batch may have grown since the run began
        if step.number + 1 in decision.steps:
            self.average.take()
            self.statistics = {}

    def views(self) -> Mapping[str, AbstractContextManager[Any]]:
        return {VIEW: self.average.applied()} if self.average.snapshots else {}

    def evaluated(self, name: str, evaluation: Evaluation, at: AtScore) -> None:
        if name == VIEW:  # the model has the mean, and its statistics
            self.statistics = {key: buffer.detach().cpu().clone() for key, buffer in self.engine.statistics().items()}

    def results(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        averaged = evaluations.get(VIEW)
        return {f"lawa_test_{self.key}": averaged and averaged.numbers[self.key]}

    def save(self) -> State:
        snapshots = [self.trained.saved(snapshot) for snapshot in self.average.snapshots]
        return {"snapshots": snapshots, "statistics": self.statistics}

    def load(self, state: State, of_ranks: list[State]) -> None:
        self.statistics = dict(state["statistics"])
        self.average.snapshots = [self.average.blank() for _ in state["snapshots"]]
        for kept, saved in zip(self.average.snapshots, state["snapshots"], strict=True):
            self.trained.take(kept, saved)


def in_checkpoint(state: State) -> tuple[dict[str, Tensor], bool] | None:
    """The mean of a checkpoint's snapshots by name, with its statistics, and whether any that move are missing.

    None: there is no snapshot.
    """
    from largebatch.checkpoint import pieces
    from largebatch.optim.averages import mean_of

    found = state.get("parts", {}).get("lawa")
    if found is None or not (snapshots := found["snapshots"]):
        return None
    first = {name: pieces.whole(saved) for name, saved in snapshots[0].items()}
    mean = {name: mean_of([pieces.whole(of[name]) for of in snapshots]).to(first[name].dtype) for name in first}
    missing = bool(state["ranks"][0]["statistics"]) and not found["statistics"]
    return mean | found["statistics"], missing
