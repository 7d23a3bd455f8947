"""What a run measures of itself: the model as it is to be judged, on the test set and at the end on the training set.

Judged are the mean of all workers, where there are several; batch norm with the statistics that the recipe asks for
(running means averaged over ranks, or recomputed over training examples); and beside the trained weights their moving
average. Afterwards everything is as it was: training does not depend on when somebody looked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import nn

from largebatch.data import Placement, Split
from largebatch.data.finishing import as_read
from largebatch.data.nested import Batch
from largebatch.data.resident import TensorSplit
from largebatch.machine import distributed, watchdog
from largebatch.models import batch_norm
from largebatch.plan.batch import BatchPlan
from largebatch.run.assemble import Job
from largebatch.run.parts import Parts
from largebatch.steps.evaluate import Evaluation, evaluate

OTHER_ORDER = 0x5EED  # batch norm's statistics are recomputed in an order of their own

Evaluations = Generator[tuple[str, Evaluation], None, None]


class Measure:
    """The evaluations of one run, each given with its name as soon as it is there. All are collective."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts, self.engine = job, parts, job.engine
        self.scores: dict[int, float] = {}  # by step; saved
        self.step = 0  # of the evaluation in progress
        self.last: dict[str, Evaluation] = {}

    @property
    def evaluated_on(self) -> str:
        return self.job.decided.evaluating.on

    @property
    def score(self) -> float:
        """The result: the median of the last ``evaluate.median_of`` evaluations."""
        return statistics.median(list(self.scores.values())[-self.job.decided.evaluating.median_of :])

    def knows(self, step: int) -> bool:
        """Whether the weights of this step were evaluated, be it before a resume."""
        return step in self.scores

    def during(self, step: int) -> Evaluations:
        """At a mark of the training, after ``step`` steps."""
        self.step = step
        with self._shown():
            yield self._evaluated(self.evaluated_on, self.job.dataset.test)
        yield from self._views()

    def at_the_end(self, step: int) -> Evaluations:
        """On the training set as well; what was recomputed for it stays, to be saved with the weights it belongs to."""
        evaluated = self.step == step and self.knows(step)  # at a mark, which ended the run
        self.step = step
        asked, split = self.job.decided.evaluating.training_set, self.job.dataset.train
        kept: dict[str, torch.Tensor] = {}
        with self._shown():
            if not evaluated:
                yield self._evaluated(self.evaluated_on, self.job.dataset.test)
            if asked or (asked is None and isinstance(as_read(split), TensorSplit)):
                yield self._evaluated("train", split)
            if self._recomputes():
                kept = {name: buffer.clone() for name, buffer in self.engine.statistics().items()}
        for name, value in kept.items():
            self.engine.statistics()[name].copy_(value)
        if not evaluated:
            yield from self._views()

    def _views(self) -> Evaluations:
        """Of other weights that a part keeps."""
        for part in self.parts.values():
            for name, weights in part.views().items():
                with weights, self._shown(workers=False, stale=part.stale_views):
                    yield self._evaluated(name, self.job.dataset.test)

    def _evaluated(self, name: str, split: Split) -> tuple[str, Evaluation]:
        rank, world = distributed.rank(), distributed.world_size()
        evaluating, model = self.job.decided.evaluating, self.engine.model
        batches = split.batches(rank, world, evaluating.batch_size, self.job.placement)
        forward = functools.partial(self.engine.predict, self.job.task)
        evaluation = evaluate(model, self.job.task, forward, batches, self.job.device, views=evaluating.views)
        assert evaluation.examples == len(split), "an example was missed or counted twice"
        self.last[name] = evaluation
        if name == self.evaluated_on:
            self.scores[self.step] = evaluation.numbers[self.job.task.score.key]
        return name, evaluation

    @contextlib.contextmanager
    def _shown(self, workers: bool = True, stale: bool = False) -> Iterator[None]:
        """Inside, the model is as it is to be judged: the mean of all ``workers``, or the weights that are in it, whose
        batch-norm statistics may be ``stale``."""
        with contextlib.ExitStack() as stack:
            for part in self.parts.values() if workers else ():
                stack.enter_context(part.shown())
            stack.enter_context(self.engine.whole_model())
            if not self._recomputes(stale):
                yield
                return
            before = {name: buffer.clone() for name, buffer in self.engine.statistics().items()}
            self._recompute()
            try:
                yield
            finally:
                for name, value in before.items():
                    self.engine.statistics()[name].copy_(value)

    def _recomputes(self, stale: bool = False) -> bool:
        asked = self.job.decided.evaluating.recomputes or self.parts.stale_statistics or stale
        return asked and bool(self.engine.statistics())

    def _recompute(self) -> None:
        decided, job = self.job.decided, self.job
        examples, predict = decided.evaluating.recomputed_examples, functools.partial(self.engine.predict, job.task)
        recompute(self.engine.model, predict, job.dataset.train, decided.plan, examples, job.placement, decided.seed)


def recompute(
    model: nn.Module,
    predict: Callable[[Batch], Any],
    split: Split,
    plan: BatchPlan,
    examples: int,
    placement: Placement,
    seed: int,
) -> None:
    """Batch norm's statistics over ``examples`` of a run's training set, in whole global batches. Collective."""
    passes = dataclasses.replace(
        plan,
        steps=math.ceil(examples / plan.global_batch_size),
        stages=plan.stages[:1],
        seed=plan.seed ^ OTHER_ORDER,
    )
    stream = split.steps(passes, distributed.rank(), 0, placement, seed)
    with torch.no_grad(), batch_norm.recomputed_statistics(model, distributed.sum_):
        for micro_batches in stream:
            for batch in micro_batches:
                predict(batch)
                watchdog.alive()
