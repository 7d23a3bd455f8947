"""What a run measures of itself: the model as it is to be judged, on the test set and at the end on the training set.

Judged are the mean of all workers, where there are several; batch norm with the statistics that the recipe asks for
(running means averaged over ranks, or recomputed over training examples); and beside the trained weights their moving
average. Afterwards everything is as it was: training does not depend on when somebody looked.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from largebatch.data.resident import TensorSplit
from largebatch.machine import distributed, watchdog
from largebatch.models import batch_norm
from largebatch.run.assemble import Job
from largebatch.run.averaging import Ema
from largebatch.run.evaluate import Evaluation, evaluate
from largebatch.run.swap import Swap
from largebatch.run.update import Update

OTHER_ORDER = 0x5EED  # batch norm's statistics are recomputed in an order of their own


class Measure:
    """The evaluations of one run; ``tell`` is called with the name and the numbers of each. All are collective."""

    def __init__(self, job: Job, update: Update, ema: Ema | None, swap: Swap | None) -> None:
        self.job, self.update, self.ema, self.swap = job, update, ema, swap
        self.engine = job.engine
        self.tell: Callable[[str, Evaluation], None] = lambda name, evaluation: None
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

    def during(self, step: int) -> None:
        """At a mark of the training, after ``step`` steps."""
        self.step = step
        with self._shown():
            self._evaluate(self.evaluated_on, self.job.dataset.test)
        self._evaluate_average()

    def at_the_end(self, step: int) -> None:
        """On the training set as well; what was recomputed for it stays, to be saved with the weights it belongs to."""
        self.step = step
        asked, split = self.job.decided.evaluating.training_set, self.job.dataset.train
        kept: dict[str, torch.Tensor] = {}
        with self._shown():
            self._evaluate(self.evaluated_on, self.job.dataset.test)
            if asked or (asked is None and isinstance(split, TensorSplit)):
                self._evaluate("train", split)
            if self._recomputes:
                kept = {name: buffer.clone() for name, buffer in self.engine.statistics().items()}
        for name, value in kept.items():
            self.engine.statistics()[name].copy_(value)
        self._evaluate_average()

    def _evaluate_average(self) -> None:
        if self.ema is not None:
            with self.ema.applied(), self._shown(workers=False):
                self._evaluate("ema", self.job.dataset.test)

    def _evaluate(self, name: str, split: Any) -> None:
        rank, world = distributed.rank(), distributed.world_size()
        batches = split.batches(rank, world, self.job.decided.evaluating.batch_size, self.job.placement)
        forward = functools.partial(self.engine.predict, self.job.task)
        evaluation = evaluate(self.engine.model, self.job.task, forward, batches, self.job.device)
        assert evaluation.examples == len(split), "an example was missed or counted twice"
        self.last[name] = evaluation
        if name == self.evaluated_on:
            self.scores[self.step] = evaluation.numbers[self.job.task.score.key]
        self.tell(name, evaluation)

    @contextmanager
    def _shown(self, workers: bool = True) -> Iterator[None]:
        """Inside, the model is as it is to be judged: the mean of all ``workers``, or the weights that are in it."""
        with self.update.shown() if workers else nullcontext(), self.engine.whole_model():
            if not self._recomputes:
                yield
                return
            before = {name: buffer.clone() for name, buffer in self.engine.statistics().items()}
            self._recompute()
            try:
                yield
            finally:
                for name, value in before.items():
                    self.engine.statistics()[name].copy_(value)

    @property
    def _recomputes(self) -> bool:
        averaged = self.swap is not None and self.swap.averaged
        return (averaged or self.job.decided.evaluating.recomputes) and bool(self.engine.statistics())

    def _recompute(self) -> None:
        """Over the training set, or ``batch_norm.examples`` of it, in whole global batches."""
        plan, seed = self.job.plan, self.job.decided.seed
        examples = self.job.decided.evaluating.recomputed_examples
        passes = dataclasses.replace(
            plan,
            steps=math.ceil(examples / plan.global_batch_size),
            stages=plan.stages[:1],
            seed=plan.seed ^ OTHER_ORDER,
        )
        stream = self.job.dataset.train.steps(passes, distributed.rank(), 0, self.job.placement, seed)
        with torch.no_grad(), batch_norm.recomputed_statistics(self.engine.model, distributed.sum_):
            for micro_batches in stream:
                for batch in micro_batches:
                    self.engine.predict(self.job.task, batch)
                    watchdog.alive()
