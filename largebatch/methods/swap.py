"""SWAP: stochastic weight averaging in parallel (Gupta, Serrano, DeCoste 2020, arXiv:2001.02312).

    1  one large batch at a high lr, until the train accuracy over an epoch reaches a target
    2  from there every worker goes on alone: a small batch, its own order of the examples, its own schedule, a fresh
       optimizer
    3  the mean of all workers' weights, with batch-norm statistics recomputed over the training set

Phase 1 is the steps of the run. Workers are dealt to the ranks and trained one after another where there are more of
them than ranks, so the result does not depend on how many devices there are. A stop or a crash in phase 2 loses the
worker in progress at most.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from largebatch.errors import UserError
from largebatch.methods import Beyond, Built, Decision, Diverged, Method, Part, PartRecorder, Running
from largebatch.plan import batch
from largebatch.plan.batch import PAIR, BatchPlan, MicroBatch
from largebatch.plan.score import ACCURACY
from largebatch.recipes import derive, moments
from largebatch.recipes.config.learning_rate import LearningRate
from largebatch.recipes.decided import Marks
from largebatch.recipes.keys import Number, PositiveFloat, PositiveInt, Several
from largebatch.recipes.optimizers import Surroundings
from largebatch.records.run import WorkerResult

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.checkpoint.pieces import State
    from largebatch.recipes.config import Run
    from largebatch.steps.evaluate import Evaluation
    from largebatch.steps.step import Step


class Swap(Method):
    """One large batch until a train accuracy, then independent small-batch workers, then their mean (Gupta 2020)."""

    KEY = "averaging"
    ROW = "averaging"
    WHOLE = True
    REPLAYED = False
    ALONE = "at the end"
    RECOMPUTES = True
    ENDS_EARLY = True

    name: Literal["swap"]
    stop_at_train_accuracy: Annotated[float, Field(gt=0, le=100), Number]  # percent, over one epoch of training
    workers: Several
    worker_batch_size: PositiveInt
    epochs: PositiveFloat  # of each worker
    lr: LearningRate

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        if run.regime_adaptation is not None:
            yield f"{self.where} and regime_adaptation: its workers' epochs are stated as they are meant; choose one"
        if self.lr.scaling == moments.RULE:
            yield f"averaging.lr.scaling = {self.lr.scaling} changes betas and eps as well; valid: linear, sqrt, none"
        yield from self.lr.misfits(run.optimizer, "averaging.lr")
        if derive.follows_gains(self.lr):
            yield (
                f"averaging.lr.scaling = {self.lr.scaling}: a worker has one batch and no gain to measure; valid: "
                "linear, sqrt, none"
            )

    def check_task(self, name: str, numbers: list[str]) -> Iterator[str]:
        if ACCURACY.key not in numbers:
            yield f"{self.where} waits for a train accuracy, and {name} has none"

    def saved(self, states: float) -> float:
        return 2  # the sum over workers, in float64

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> SwapRule:
        workers = self.worker_plan(run, plan, largest_micro_batch)
        schedule = derive.schedule_of(self.lr, workers)
        return SwapRule(self.workers, self.stop_at_train_accuracy, self.epochs, workers, schedule)

    def worker_plan(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> BatchPlan:
        """Of the first worker, alone with the whole training set; the others have orders of their own."""
        bn = run.batch.bn_batch_size or 1
        wishes = [wish for other in run.methods.values() if (wish := other.micro_batch(run, 1)) and wish.size]
        size = wishes[0].size if wishes else None
        if self.workers % plan.world_size:
            raise UserError(
                f"averaging.workers = {self.workers} does not fit {plan.world_size} ranks; it should be a multiple of "
                "them"
            )
        pairs = PAIR if run.data.mix is not None else 1
        units = {f"batch.bn_batch_size = {bn}": bn, f"{PAIR}, as data.mix mixes two by two": pairs}
        units |= {wish.why: wish.size or 1 for wish in wishes}
        if self.worker_batch_size > plan.dataset_size or any(self.worker_batch_size % unit for unit in units.values()):
            of = "".join(f" and a multiple of {words}" for words, unit in units.items() if unit > 1)
            raise UserError(
                f"averaging.worker_batch_size = {self.worker_batch_size} should be at most the {plan.dataset_size} "
                f"training examples{of}"
            )
        largest = min(largest_micro_batch, run.batch.stated_micro_batch_size or largest_micro_batch)
        found = batch.resolve(
            dataset_size=plan.dataset_size,
            global_batch_size=self.worker_batch_size,
            epochs=self.epochs,
            seed=(run.seed + 1) * 1_000_003 % 2**32,
            micro=MicroBatch(size, largest, math.lcm(bn, pairs)),
        )
        return batch.repeated(found, plan.repeats, run.data.mix is not None, "averaging.worker_batch_size")


@dataclasses.dataclass(frozen=True)
class SwapRule(Decision):
    workers: int
    stop_at_train_accuracy: float
    epochs: float
    plan: BatchPlan  # of the first worker
    lr: Any  # of each, as decided

    @property
    def words(self) -> str:
        return (
            f"SWAP: at {self.stop_at_train_accuracy:g} % train accuracy {self.workers} workers go on alone, batch "
            f"{self.plan.global_batch_size}, {self.epochs:g} epochs each, peak lr {self.lr.schedule.peak:g} "
            f"({self.lr.rule})"
        )

    @property
    def micro_batches(self) -> tuple[int, ...]:
        return (self.plan.micro_batch_size,)

    def plan_of(self, worker: int) -> BatchPlan:
        """The same in an order of its own."""
        return dataclasses.replace(self.plan, seed=(self.plan.seed + worker * 7919) % 2**32)

    def part(self, job: Built) -> SwapOfRun:
        return SwapOfRun(self, job)


class SwapOfRun(Part):
    """Ends the steps of a run when their accuracy is reached, and goes on with its workers."""

    def __init__(self, rule: SwapRule, job: Built) -> None:
        from largebatch.steps.evaluate import Tally

        self.rule, self.job, self.engine = rule, job, job.engine
        self.epoch_marks = Marks(job.plan, 1.0).steps()
        self.tally = Tally()  # of training in the epoch in progress
        self.reached: list[tuple[int, float]] = []  # steps done, and the accuracy of the epoch: not recorded yet
        self.over = False
        self.begun = self.averaged = self.target_reached = False
        self.results_of_workers: list[WorkerResult] = []
        self.start: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self.sums: list[Tensor] = []

    # Phase 1

    def before(self, step: Step) -> None:
        step.tally = self.tally

    def after(self, step: Step) -> None:
        """At the end of each epoch the share of right answers in its training is looked at."""
        if step.number + 1 not in self.epoch_marks:
            return
        accuracy = self.take_accuracy()
        self.reached.append((step.number + 1, accuracy))
        self.over = self.target_reached = accuracy >= self.rule.stop_at_train_accuracy

    def take_accuracy(self) -> float:
        """Over what was trained on since the last call, by all ranks. Collective."""
        sums = self.tally.over_ranks(self.job.device)
        self.tally.sums.clear()
        return self.job.task.numbers({key: tensor.cpu() for key, tensor in sums.items()})[ACCURACY.key]

    def read(self, recorder: PartRecorder) -> None:
        for step, accuracy in self.reached:
            examples = self.job.plan.examples_before(step)
            recorder.event("train_accuracy", step=step, examples_seen=examples, accuracy_percent=accuracy)
            if step == self.job.plan.steps and not self.target_reached:
                recorder.say(
                    f"SWAP: the train accuracy is {accuracy:.2f} % at the end of phase 1, below the "
                    f"{self.rule.stop_at_train_accuracy:g} % at which it was to stop"
                )
        self.reached.clear()

    # Phases 2 and 3

    @property
    def stale_statistics(self) -> bool:
        return self.averaged

    @property
    def beyond(self) -> Beyond:
        from largebatch.machine import distributed

        each = self.rule.plan.steps
        executed = each * (len(self.results_of_workers) // distributed.world_size())
        if not self.averaged:
            return Beyond(executed)
        return Beyond(executed, each, self.rule.workers * each * self.rule.plan.global_batch_size)

    def afterwards(self, run: Running) -> None:
        """Saved after every round of workers."""
        from largebatch.machine import distributed

        if not self.begun:
            run.recorder.say(
                f"SWAP: phase 1 ends at step {run.step}; {self.rule.workers} workers go on, {self.rule.plan.steps} "
                "steps each"
            )
            self.begin()
            run.new_weights()
            run.save()
        world = distributed.world_size()
        with run.stoppable("the workers' steps") as stop_if_asked:
            for number in range(len(self.results_of_workers) // world, self.rule.workers // world):
                for result in self.run_round(run, number, stop_if_asked):
                    if not math.isfinite(result.train_loss):
                        raise Diverged(f"the loss of SWAP's worker {result.worker + 1} is {result.train_loss}")
                    run.recorder.event("worker", step=run.step, **dataclasses.asdict(result))
                    run.recorder.say(
                        f"worker {result.worker + 1} of {self.rule.workers}: loss {result.train_loss:.4f}, test "
                        f"accuracy {result.test_accuracy_percent:.2f} % before averaging"
                    )
                run.save()
        self.average()

    def tensors(self) -> list[Tensor]:
        return [p.detach() for p in self.engine.model.parameters() if p.requires_grad]

    def begin(self) -> None:
        import torch

        from largebatch.machine import distributed

        self.begun = self.over = True
        self.tally.sums.clear()
        self.start = [tensor.clone() for tensor in self.tensors()]
        for buffer in self.engine.statistics().values():
            distributed.mean_(buffer)
        self.buffers = [buffer.clone() for buffer in self.engine.model.buffers()]
        self.sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in self.start]

    def run_round(self, run: Running, number: int, stop_if_asked: Callable[[], None]) -> list[WorkerResult]:
        """Every rank trains one worker."""
        import torch

        from largebatch.machine import distributed
        from largebatch.optim.groups import as_given
        from largebatch.steps.evaluate import evaluate

        worker = number * distributed.world_size() + distributed.rank()
        self.back_to_start()
        plan, engine, job = self.rule.plan_of(worker), self.engine, self.job
        around = Surroundings(job.decided.precision, engine.NAME, engine.model)
        engine.take_optimizer(job.decided.optimizer.build(as_given(engine.optimizer.param_groups), 0.0, around))
        engine.model.train()
        losses: list[Tensor] = []
        clock = time.perf_counter()
        stream = job.dataset.train.steps(plan, 0, 0, job.placement, plan.seed)
        for step, micro_batches in enumerate(stream):
            losses.append(self.step(run, plan, step, micro_batches))
            stop_if_asked()
        run.spent(time.perf_counter() - clock)
        last = torch.stack(losses[-math.ceil(len(losses) / 10) :]).mean().item()
        evaluating = job.decided.evaluating
        batches = job.dataset.test.batches(0, 1, evaluating.batch_size, job.placement)
        forward, views = functools.partial(engine.predict, job.task), evaluating.views
        alone = evaluate(engine.model, job.task, forward, batches, job.device, views=views, over_ranks=False)
        of_ranks = distributed.gather((worker, plan.steps, last, alone.numbers[ACCURACY.key]))
        results = [WorkerResult(*of_rank) for of_rank in of_ranks]
        self.results_of_workers += results
        with torch.no_grad():
            for total, tensor in zip(self.sums, self.tensors(), strict=True):
                total.add_(distributed.sum_(tensor.double()))
        self.back_to_start()
        return results

    def step(self, run: Running, plan: BatchPlan, number: int, micro_batches: Any) -> Tensor:
        from largebatch.steps.step import Step

        lr = self.rule.lr.schedule(plan.examples_before(number))
        return run.take(Step(number, plan.global_batch_size, micro_batches, last=None, lr=lr))

    def back_to_start(self) -> None:
        import torch

        with torch.no_grad():
            torch._foreach_copy_(self.tensors(), self.start)
            for buffer, at_start in zip(self.engine.model.buffers(), self.buffers, strict=True):
                buffer.copy_(at_start)

    def average(self) -> None:
        """The mean of all workers is in the model; its batch-norm statistics are still to be recomputed."""
        for tensor, total in zip(self.tensors(), self.sums, strict=True):
            tensor.copy_(total / self.rule.workers)
        self.averaged = True

    def results(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        workers = [dataclasses.asdict(result) for result in self.results_of_workers]
        return {"workers": workers, "reached_train_accuracy": self.target_reached}

    def save(self) -> State:
        return {
            "begun": self.begun,
            "results": [dataclasses.asdict(result) for result in self.results_of_workers],
            "target_reached": self.target_reached,
            "sums": self.sums,
        }

    def save_own(self) -> State:
        return {"tally": self.tally.sums}

    def load(self, state: State, of_ranks: list[State]) -> str | None:
        """Phase 2 goes on after the workers that are done, where those left can be dealt to this world's ranks."""
        from largebatch.machine import distributed

        self.over = self.target_reached = state["target_reached"]
        if not state["begun"]:
            if distributed.is_first():
                for rank in of_ranks:
                    self.tally.add({key: part.to(self.job.device) for key, part in rank.get("tally", {}).items()})
            return None
        self.begin()
        results = [WorkerResult(**result) for result in state["results"]]
        if len(results) % distributed.world_size():
            return f"{len(results)} finished workers do not fit {distributed.world_size()} ranks: phase 2 begins anew"
        self.results_of_workers = results
        for mine, total in zip(self.sums, state["sums"], strict=True):
            mine.copy_(total)
        return None
