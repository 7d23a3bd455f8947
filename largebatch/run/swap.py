"""SWAP: stochastic weight averaging in parallel (Gupta, Serrano, DeCoste 2020, arXiv:2001.02312).

    1  one large batch at a high lr, until the train accuracy over an epoch reaches a target
    2  from there every worker goes on alone: a small batch, its own order of the examples, its own schedule, a fresh
       optimizer
    3  the mean of all workers' weights, with batch-norm statistics recomputed over the training set

Phase 1 is the ordinary loop. Workers are dealt to the ranks and trained one after another where there are more of them
than ranks, so the result does not depend on how many devices there are. A stop or a crash in phase 2 loses the worker
in progress at most.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from largebatch.machine import distributed
from largebatch.plan.batch import BatchPlan
from largebatch.plan.score import ACCURACY
from largebatch.recipes.decided import SwapRule
from largebatch.run.assemble import Job, optimizer_of
from largebatch.run.evaluate import Tally, evaluate
from largebatch.run.update import Update


@dataclasses.dataclass
class WorkerResult:
    worker: int
    steps: int
    train_loss: float  # mean of its last steps, those of a tenth of its training
    test_accuracy_percent: float  # before averaging


class Swap:
    """Phases 2 and 3 of a run whose phase 1 has ended, or will."""

    def __init__(self, job: Job, update: Update, rule: SwapRule) -> None:
        self.job, self.update, self.rule = job, update, rule
        self.engine = job.engine
        self.begun = False
        self.averaged = False
        self.target_reached = False
        self.seconds_of_round = 0.0  # spent training
        self.results: list[WorkerResult] = []
        self.start: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.steps = rule.plan.steps

    def tensors(self) -> list[Tensor]:
        return [p.detach() for p in self.engine.model.parameters()]

    @property
    def examples(self) -> int:
        """That all workers together see."""
        return self.rule.examples

    @property
    def steps_of_this_rank(self) -> int:
        """Its workers', one after another, of all rounds that are done."""
        return self.steps * (len(self.results) // distributed.world_size())

    def rounds_left(self) -> range:
        world = distributed.world_size()
        return range(len(self.results) // world, self.rule.workers // world)

    @torch.no_grad()
    def begin(self) -> None:
        self.begun = True
        self.update.tallies, self.update.tally = False, Tally()
        self.start = [tensor.clone() for tensor in self.tensors()]
        for buffer in self.engine.statistics().values():
            distributed.mean_(buffer)
        self.buffers = [buffer.clone() for buffer in self.engine.model.buffers()]
        self.sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in self.start]

    def run_round(self, number: int, stop: Callable[[], None]) -> list[WorkerResult]:
        """Every rank trains one worker. ``stop``, called after each step, raises if the run is to stop."""
        worker = number * distributed.world_size() + distributed.rank()
        self._back_to_start()
        plan, engine, job = self.rule.plan_of(worker), self.engine, self.job
        groups = fresh(engine.optimizer.param_groups)
        engine.optimizer = optimizer_of(job.decided.optimizer, groups, 0.0, job.decided.precision, "ddp", engine.model)
        engine.model.train()
        losses: list[Tensor] = []
        clock = time.perf_counter()
        stream = job.dataset.train.steps(plan, 0, 0, job.placement, plan.seed)
        for step, micro_batches in enumerate(stream):
            losses.append(self._step(plan, step, micro_batches))
            stop()
        self.seconds_of_round = time.perf_counter() - clock
        last = torch.stack(losses[-math.ceil(len(losses) / 10) :]).mean().item()
        batches = job.dataset.test.batches(0, 1, job.decided.evaluating.batch_size, job.placement)
        forward = functools.partial(engine.predict, job.task)
        own = evaluate(engine.model, job.task, forward, batches, job.device, over_ranks=False)
        found = distributed.gather((worker, plan.steps, last, own.numbers[ACCURACY.key]))
        results = [WorkerResult(*one) for one in found]
        self.results += results
        with torch.no_grad():
            for total, tensor in zip(self.sums, self.tensors(), strict=True):
                total.add_(distributed.sum_(tensor.double()))
        self._back_to_start()
        return results

    def _step(self, plan: BatchPlan, step: int, micro_batches: Any) -> Tensor:
        lr = self.rule.lr.schedule(plan.examples_before(step))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        return self.update.take(micro_batches, plan.global_batch_size, last=None)

    @torch.no_grad()
    def _back_to_start(self) -> None:
        torch._foreach_copy_(self.tensors(), self.start)
        for buffer, own in zip(self.engine.model.buffers(), self.buffers, strict=True):
            buffer.copy_(own)

    @torch.no_grad()
    def average(self) -> None:
        """The mean of all workers is in the model; its batch-norm statistics are still to be recomputed."""
        for tensor, total in zip(self.tensors(), self.sums, strict=True):
            tensor.copy_(total / self.rule.workers)
        self.averaged = True

    def save(self) -> dict[str, Any]:
        return {
            "begun": self.begun,
            "results": [dataclasses.asdict(result) for result in self.results],
            "target_reached": self.target_reached,
            "sums": self.sums,
        }

    def load(self, state: dict[str, Any]) -> str | None:
        """Phase 2 goes on after the workers that are done, where those left can be dealt to this world's ranks."""
        self.target_reached = state["target_reached"]
        if not state["begun"]:
            return None
        self.begin()
        results = [WorkerResult(**result) for result in state["results"]]
        if len(results) % distributed.world_size():
            return f"{len(results)} finished workers do not fit {distributed.world_size()} ranks: phase 2 begins anew"
        self.results = results
        self.sums = [total.to(mine.device) for total, mine in zip(state["sums"], self.sums, strict=True)]
        return None


def fresh(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups as they are given to an optimizer: settings that it fills in itself are left out."""
    keep = ("params", "names", "weight_decay", "adapt")
    return [{key: group[key] for key in keep if key in group} for group in groups]
