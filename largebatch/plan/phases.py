"""Phases: stretches of a run, each with its own global batch, and the clocks that their learning rates follow.

    phase            1                 2              3
    examples   0 ────────────── e₁ ─────────── e₂ ─────────── E·N
    steps      │ B₁ │ B₁ │ B₁ │ B₁ │  B₂  │  B₂  │ B₃ │ B₃ │ B₃ │

The stream of examples is one (:mod:`largebatch.plan.batch`): positions go on over the edges, so that none is dropped or
seen twice. A phase ends with the first step at whose end its examples have been seen, at most B − 1 more than stated;
what follows begins there and has that much less. The budget is the run's: phases divide it and do not add to it.

Each phase has a clock of its own, which begins with 0 examples at its first step; its schedule ends where the phase is
to end. A phase whose clock *goes on* keeps the schedule of the phase before, which then ends with the last such phase:
a batch ramp is phases of one clock.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from largebatch.errors import UserError
from largebatch.plan.batch import BatchPlan, MicroBatch, Stage, StageWish, cut


class PhaseWish(NamedTuple):
    """A phase as it is stated: at most one of the last three, and none of them in the last phase."""

    global_batch_size: int
    micro: MicroBatch
    until_epoch: float | None = None
    until_share: float | None = None  # of the run's budget
    steps: int | None = None  # of its own


class Span(NamedTuple):
    """Where a phase, or a clock, lies in the stream."""

    first_step: int
    steps: int
    first_example: int  # examples seen before it
    until: float  # examples seen when it is to end; its last step may go beyond

    @property
    def budget(self) -> float:
        """What its schedule calls the end, in examples of its own."""
        return self.until - self.first_example


def resolve(
    asked: Sequence[PhaseWish],
    *,
    dataset_size: int,
    world_size: int = 1,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> tuple[BatchPlan, tuple[Span, ...]]:
    """The plan of a run in phases, a stage for each, and where they lie. Exactly one of ``epochs`` and ``steps``.

    Refused is a phase that leaves no step: ends that do not ascend, or lie beyond the end of the run.
    """
    examples = None if epochs is None else max(1, round(epochs * dataset_size))
    last = len(asked) - 1
    wishes = [
        _wish(f"phases.{number + 1}: batch.global_batch_size", phase, dataset_size, examples, steps, number == last)
        for number, phase in enumerate(asked)
    ]
    spans, stages = [], []
    for number, (wish, (stage, count)) in enumerate(zip(wishes, cut(wishes, dataset_size, world_size), strict=True)):
        if not count:
            raise UserError(_nothing_left(number + 1, wish, stage, dataset_size, number == last))
        until = wish.until_examples
        if until is None:
            until = stage.first_example + count * stage.global_batch_size
        spans.append(Span(stage.first_step, count, stage.first_example, until))
        stages.append(stage)
    if examples is None:
        examples = sum(span.steps * stage.global_batch_size for span, stage in zip(spans, stages, strict=True))
    total = sum(span.steps for span in spans)
    return BatchPlan(dataset_size, world_size, total, examples, seed, tuple(stages)), tuple(spans)


def clocks(spans: Sequence[Span], goes_on: Sequence[bool]) -> list[Span]:
    """For each phase the span of the clock that it follows: its own, or one that began in a phase before."""
    begins = [number for number, continued in enumerate(goes_on) if not continued]
    found: list[Span] = []
    for begin, end in itertools.pairwise([*begins, len(spans)]):
        together = spans[begin:end]
        whole = Span(
            together[0].first_step, sum(span.steps for span in together), together[0].first_example, together[-1].until
        )
        found += [whole] * len(together)
    return found


def _wish(
    key: str, phase: PhaseWish, dataset_size: int, examples: int | None, steps: int | None, last: bool
) -> StageWish:
    """``examples`` or ``steps``: the run's budget."""
    until, until_step = None, None
    if phase.until_epoch is not None:
        until = round(phase.until_epoch * dataset_size, 6)
    elif last:
        until, until_step = examples, steps
    elif phase.until_share is not None and examples is not None:
        until = round(phase.until_share * examples, 6)
    elif phase.until_share is not None and steps is not None:
        until_step = math.ceil(phase.until_share * steps - 1e-9)
    return StageWish(key, phase.global_batch_size, phase.micro, until, until_step, phase.steps)


def _nothing_left(number: int, wish: StageWish, stage: Stage, dataset_size: int, last: bool) -> str:
    whose = "the run ends" if last else "it is to end"
    if wish.until_examples is not None:
        end = f"at epoch {wish.until_examples / dataset_size:.4g}"
    else:
        end = f"after {wish.until_step:,} steps"
    begin = f"at epoch {stage.first_example / dataset_size:.4g}, after {stage.first_step:,} steps"
    return f"phases.{number} leaves no step: it would begin {begin}, and {whose} {end}; phases end one after another"
