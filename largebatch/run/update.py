"""One update of the weights: the gradient of a global batch, its learning rate, the optimizer's step.

plain      every micro-batch forward and backward; the last one's backward sums over ranks; one step
sam        the gradient is that at w + ε: of the global batch, or of each m examples (optim/sam.py)
adascale   the lr follows the gain measured from this step's own gradients (optim/adascale.py)
local      every worker steps on its own part of the batch; now and then they are averaged (averaging.py)
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.machine import distributed, watchdog
from largebatch.models import batch_norm
from largebatch.optim.adascale import AdaScale
from largebatch.optim.sam import Perturbation
from largebatch.plan.batch import Stage
from largebatch.recipes.decided import LocalSteps
from largebatch.run.assemble import Job
from largebatch.run.averaging import Workers
from largebatch.run.evaluate import Tally

Batches = Iterable[Batch]


class Update:
    """What a step needs beside the engine, and remembers between steps."""

    def __init__(self, job: Job) -> None:
        self.job, self.decided, self.plan, self.engine, self.task = job, job.decided, job.plan, job.engine, job.task
        self.lr = self.decided.lr.schedule(0)  # of the last step
        self.highest_lr = 0.0  # of all steps, under AdaScale, where no rule says it beforehand
        self.norm: Tensor | None = None  # of the last measured gradient, before clipping
        self.squares: Tensor | None = None  # of parts, as engines/ddp.py gives them, where the engine measured any
        self.look: Callable[[int], None] = lambda step: None  # called between the gradient and the optimizer's step
        self.lap: Callable[[str], None] = lambda part: None  # called as a step goes from one part to the next: ranks.py
        self.tally = Tally()  # of training since somebody asked, if somebody will
        self.tallies = self.decided.swap is not None
        parts = self.decided.adascale_parts
        self.adascale = AdaScale(parts) if parts else None
        self.gain = 1.0
        self.now = 0  # the step in progress
        self.skipped: list[int] = []  # steps whose gradient was not finite
        self.before: dict[str, Tensor] = {}  # buffers, where a step may be skipped
        self.sized_norms = any(isinstance(m, batch_norm.SizedNorm) for m in self.engine.model.modules())
        self.weights: list[Tensor] = [p for p in self.engine.model.parameters() if p.requires_grad]
        self.sam = self.decided.sam
        self.perturbation = Perturbation(self.weights, self.sam.rho) if self.sam is not None else None
        self.local = self.decided.local
        self.workers: Workers | None = None
        self.together = True  # whether all workers have the same weights

    @property
    def complete(self) -> bool:
        """AdaScale's clock has reached the steps that the small batch would have taken."""
        if self.adascale is None:
            return False
        return self.adascale.progress >= self.plan.steps - 1e-9

    def is_local(self, step: int) -> bool:
        """Whether every worker steps alone."""
        return self.local is not None and self.plan.examples_before(step) >= self.local.from_examples

    def step(self, step: int, micro_batches: Batches, measure: bool) -> Tensor:
        """Train on the global batch of ``step``; this rank's part of its mean loss."""
        stage = self.plan.at(step)
        self.now = step
        if self.local is not None and self.is_local(step):
            return self._local_step(step, micro_batches, stage, self.local)
        self._set_rates(step)
        return self.take(micro_batches, stage.global_batch_size, last=stage.accumulation_steps, measure=measure)

    def take(self, micro_batches: Batches, examples: int, last: int | None, measure: bool = False) -> Tensor:
        """One step: the gradient of the mean loss over the units of ``examples``, and the optimizer's step with it.

        The ``last`` micro-batch's backward sums over ranks; None: this rank is alone with its weights. Gives the loss,
        this rank's part of it.
        """
        engine, task, alone = self.engine, self.task, last is None
        self._remember_statistics()
        micro_batches, units = self.units_of(micro_batches, examples, alone)
        if self.perturbation is not None:
            micro_batches = self._uphill(micro_batches, units, alone)
        loss: Tensor | None = None
        for number, batch in enumerate(micro_batches, start=1):
            self.lap("forward")
            with self._second_look():
                outputs = engine.predict(task, batch) if alone else engine.forward(task, batch, number == last)
            part = task.loss(outputs, batch) / units
            self._note(outputs, batch)
            self.lap("last_backward" if number == last else "backward")
            if alone:
                part.backward()
            else:
                engine.backward(part)
            loss = part.detach() if loss is None else loss + part.detach()
            watchdog.alive()
        self.lap("other")
        if not alone:
            self._with_gradient()
        self.lap("optimizer")
        self.norm = engine.step(measure=measure)
        self._after_step()
        self.lap("other")
        assert loss is not None
        return loss

    def _with_gradient(self) -> None:
        """The gradient of all ranks is there, and the weights are those that it was taken at."""
        parts = getattr(self.engine, "parts", None)
        self.squares = self.engine.squares_of_parts() if parts is not None and parts.active else None  # type: ignore[attr-defined]  # only ddp has them
        if self.adascale is not None:
            self._follow_gain(self.now)
        self.look(self.now)

    def _after_step(self) -> None:
        """Batch norm's statistics move with the optimizer's step; of one that was skipped nothing stays."""
        if self.engine.skipped:
            self._forget_forward_pass()
        elif self.sized_norms:
            batch_norm.commit(self.engine.model)

    def _remember_statistics(self) -> None:
        if self.engine.skips_nonfinite:
            self.before = {name: buffer.clone() for name, buffer in self.engine.model.named_buffers()}

    def _forget_forward_pass(self) -> None:
        """What made the gradient infinite went through batch norm, too."""
        batch_norm.discard(self.engine.model)
        with torch.no_grad():
            for name, buffer in self.engine.model.named_buffers():
                buffer.copy_(self.before[name])
        self.skipped.append(self.now)

    def _note(self, outputs: Any, batch: Batch) -> None:
        if self.tallies:
            with torch.no_grad():
                self.tally.count(self.task, outputs, batch)

    def units_of(self, micro_batches: Batches, examples: int, alone: bool) -> tuple[Batches, int | Tensor]:
        """What the sum of the losses over ``examples`` is divided by, and the micro-batches again.

        Units that vary are counted, over all ranks unless this one is ``alone``: a collective before the first forward.
        """
        if not self.task.units_vary:
            return micro_batches, examples
        micro_batches = list(micro_batches)
        counts = [torch.as_tensor(self.task.units(batch), dtype=torch.int64) for batch in micro_batches]
        own = torch.stack([count.to(self.job.device) for count in counts]).sum()
        return micro_batches, (own if alone else distributed.sum_(own)).clamp(min=1)

    def _uphill(self, micro_batches: Batches, units: int | Tensor, alone: bool) -> Iterator[Batch]:
        """The micro-batches, each while the weights are at w + ε: that of the global batch, or of each m examples."""
        assert self.perturbation is not None
        assert self.sam is not None
        if self.sam.m is None:
            micro_batches = list(micro_batches)
            self._go_uphill(micro_batches, units, alone)
            yield from micro_batches
            self.perturbation.undo()
            return
        for batch in micro_batches:
            self._go_uphill(*self.units_of([batch], self.sam.m, alone=True), alone=True)
            yield batch
            self.perturbation.undo()

    def _second_look(self) -> contextlib.AbstractContextManager[Any]:
        """SAM's second pass over the same images leaves batch norm's statistics as the first left them."""
        if self.perturbation is None:
            return contextlib.nullcontext()
        return batch_norm.frozen_statistics(self.engine.model)

    def _go_uphill(self, batches: Batches, units: int | Tensor, alone: bool) -> None:
        """To w + ε, with the gradient of the mean loss over ``units``: of all ranks, or of this one alone."""
        assert self.perturbation is not None
        total: list[Tensor] | None = None
        for batch in batches:
            self.lap("forward")
            loss = self.task.loss(self.engine.predict(self.task, batch), batch) / units
            self.lap("backward")
            found = list(torch.autograd.grad(loss, self.weights, materialize_grads=True))
            total = found if total is None else list(torch._foreach_add(total, found))
            watchdog.alive()
        assert total is not None
        if not alone:
            self.lap("communication")
            distributed.sum_all_(total)
            self.lap("backward")
        self.perturbation.apply(total)

    def _follow_gain(self, step: int) -> None:
        assert self.adascale is not None
        assert self.squares is not None
        self.lap("communication")
        sums, square = distributed.sum_(self.squares[0].clone()).item(), self.squares[1].item()
        self.lap("other")
        self.gain = self.adascale.observe(sums * self.adascale.parts**2, square)
        self._set_rates(step, self.gain)
        self.highest_lr = max(self.highest_lr, self.lr)
        self.adascale.advance(self.gain)

    def _set_rates(self, step: int, gain: float = 1.0) -> None:
        seen = self.plan.examples_before(step)
        if self.adascale is not None:
            seen = math.floor(self.adascale.progress) * (self.plan.global_batch_size // self.adascale.parts)
        self.lr = gain * self.decided.lr.schedule(seen)
        settings = self.decided.optimizer.settings_at(self.decided.epoch_of_schedule(seen))
        for group in self.engine.optimizer.param_groups:
            group.update(settings, lr=self.lr)

    def _local_step(self, step: int, micro_batches: Batches, stage: Stage, rule: LocalSteps) -> Tensor:
        """Each of this rank's workers steps on its own consecutive part of the rank's examples."""
        if self.workers is None:
            self.workers = Workers(self.engine, rule.workers)
        each = stage.global_batch_size // rule.workers
        stream = iter(micro_batches)
        loss: Tensor | None = None
        for worker in range(self.workers.here):
            self.workers.enter(worker)
            self._set_rates(step)
            own = self.take(itertools.islice(stream, each // stage.micro_batch_size), each, last=None)
            loss = own / rule.workers if loss is None else loss + own / rule.workers
        self.norm = None  # each worker has a gradient of its own
        first = self.plan.first_step_at(rule.from_examples)
        self.together = (step + 1 - first) % rule.period == 0 or step + 1 == self.plan.steps
        if self.together:
            self.lap("communication")
            self.workers.average()
            self.lap("other")
        assert loss is not None
        return loss

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the model has the mean of all workers, where there are several. Collective."""
        with self.workers.shown() if self.workers else contextlib.nullcontext():
            yield

    def take_numbers(self) -> dict[str, float]:
        """The task's numbers over what was trained on since the last call, by all ranks. Collective."""
        sums, self.tally = self.tally.over_ranks(self.job.device), Tally()
        return self.task.numbers({key: tensor.cpu() for key, tensor in sums.items()})

    def save(self) -> dict[str, Any]:
        return {
            "adascale": self.adascale.state_dict() if self.adascale else None,
            "highest_lr": self.highest_lr,
            "skipped": self.skipped,
        }

    def save_own(self) -> dict[str, Any]:
        return {"workers": self.workers.save_own() if self.workers else [], "tally": self.tally.sums}

    def load(self, state: dict[str, Any], of_ranks: list[dict[str, Any]]) -> None:
        self.highest_lr, self.skipped = state["highest_lr"], state["skipped"]
        if self.adascale is not None:
            self.adascale.load_state_dict(state["adascale"])
        if workers := [worker for own in of_ranks for worker in own["workers"]]:
            assert self.local is not None
            self.workers = Workers(self.engine, self.local.workers)
            self.workers.load(workers)
        if distributed.is_first():
            for own in of_ranks:
                self.tally.add({key: part.to(self.job.device) for key, part in own.get("tally", {}).items()})
