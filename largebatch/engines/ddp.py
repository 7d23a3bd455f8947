"""Data parallelism on torch's DistributedDataParallel: alone it is the bare model.

The gradient all-reduce overlaps with the last micro-batch's backward. ``all_reduce: fp16`` or ``bf16`` sends gradients
in half precision (torch's communication hooks; Akiba et al. 2017, Jia et al. 2018): half the bytes, and a rounding.
``cuda_graphs`` replays forward and backward: those of torch.compile where ``compile`` asks for it, else :mod:`.graphs`.

Asked to (:meth:`Ddp.measure_parts`), it sums the squared norms of the gradients of parts of the global batch, each
taken before it is added to the others: a rank's last part as DDP's buckets are about to be summed, those before it
after their own backward. Nothing is communicated for it but, when it is read, one number. Steps whose parts nobody asks
for are not touched: ``parts.active``.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from largebatch.data.nested import Batch, examples_of
from largebatch.engines import graphs
from largebatch.engines.engine import Engine
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.optim.muon import Muon
from largebatch.optim.shards import is_dense, squares
from largebatch.plan.batch import BatchPlan
from largebatch.tasks.task import Task

# The word for "each rank keeps its own buffers" changed after torch 2.11.
OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
HOOKS = {
    "fp32": default_hooks.allreduce_hook,
    "fp16": default_hooks.fp16_compress_hook,
    "bf16": default_hooks.bf16_compress_hook,
}


class Ddp(Engine):
    NAME = "ddp"
    SEPARABLE = True

    def __init__(
        self,
        device: torch.device,
        precision: str,
        channels_last: bool,
        compile: bool,
        all_reduce: str = "fp32",
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(device, precision, channels_last, compile)
        self.all_reduce = all_reduce
        self.cuda_graphs = cuda_graphs and device.type == "cuda"  # elsewhere there are none, and nothing depends on it
        self.compile_mode = "reduce-overhead" if self.cuda_graphs else "default"
        self._graphs_asked, self._captured = cuda_graphs, False
        self.parts: PartSquares | None = None

    @property
    def description(self) -> str:
        summed = "" if self.all_reduce == "fp32" else f", gradients summed in {self.all_reduce}"
        graphs = ", CUDA graphs" if self.cuda_graphs else ", CUDA graphs not here" if self._graphs_asked else ""
        return f"{self.NAME}{summed}{graphs}"

    def measure_parts(self, examples: int) -> None:
        """Call before :meth:`prepare`: measure the gradients of parts of so many examples."""
        self.parts = PartSquares(examples)

    def wrap(self, plan: BatchPlan) -> nn.Module:
        if self.cuda_graphs and (most := max(stage.accumulation_steps for stage in plan.stages)) > 1:
            raise UserError(
                f"engine.cuda_graphs = true needs a single micro-batch in a step, and here there are {most}; set "
                "batch.micro_batch_size to a rank's share, or leave engine.cuda_graphs out"
            )
        if distributed.world_size() == 1:
            return self.model
        parallel = DistributedDataParallel(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **OWN_BUFFERS,
        )
        if self.parts is not None or self.all_reduce != "fp32":
            parallel.register_comm_hook(None, self._summed)
        return parallel

    def _summed(self, state, bucket):  # torch reads annotations and knows no postponed ones
        if self.parts is not None:
            self.parts.meet(bucket)  # of a step that is not measured it takes no notice
        everyone = torch.distributed.group.WORLD
        assert everyone is not None
        return HOOKS[self.all_reduce](everyone, bucket)

    def communicate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self._last = last
        if last or distributed.world_size() == 1:
            return contextlib.nullcontext()
        wrapper = getattr(self.parallel, "_orig_mod", self.parallel)
        assert isinstance(wrapper, DistributedDataParallel)
        return wrapper.no_sync()

    def forward(self, task: Task, batch: Batch, last: bool = True) -> Any:
        if self.cuda_graphs and not self.compile and not self._captured:
            graphs.capture(self.model, graphs.arguments_of(self.model, task, batch), self.half)
            self._captured = True
        if self.parts is not None and self.parts.active:
            self.parts.see(task, batch)
        return super().forward(task, batch, last)

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self.parts is not None and self.parts.active and self.parts.seen == self.parts.examples:
            alone = distributed.world_size() == 1
            self.parts.end(list(self.model.parameters()), self._last, alone)

    def deal(self, alone: bool) -> None:
        if isinstance(self.optimizer, Muon):
            self.optimizer.deal_among(None if alone or distributed.world_size() == 1 else torch.distributed.group.WORLD)

    def squares_of_parts(self) -> Tensor | None:
        """After the last backward, on the device: (Σ over this rank's parts of ‖gᵢ/S‖², ‖ḡ‖²), gᵢ the mean gradient
        of part i of S. The first is to be summed over ranks. Where units vary it is Σ ‖Gᵢ/U‖²/uᵢ, Gᵢ the gradient of
        the sum of a part's losses and uᵢ its units, U those of all."""
        if self.parts is None or not self.parts.active:
            return None
        return self.parts.squares_of(list(self.model.parameters()))


def unwrapped(model: nn.Module) -> nn.Module:
    """What torch.compile and DistributedDataParallel were given."""
    within = model.module if isinstance(model, DistributedDataParallel) else model._modules.get("_orig_mod")
    return model if within is None else unwrapped(within)


class PartSquares:
    """Squared norms of parts as they are: of summed losses over the global batch, times the world size."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.active = True
        self.seen = 0  # of the part in progress
        self.units: Tensor | None = None  # where they vary: of the part in progress, and of the last one
        self.earlier: dict[Tensor, Tensor] = {}  # gradients of this rank's parts that are complete
        self.met: dict[Tensor, Tensor] = {}  # squares of the last part's gradients, by parameter, as DDP sums them
        self.total: Tensor | None = None

    def see(self, task: Task, batch: Batch) -> None:
        """A micro-batch of the part in progress."""
        first, self.seen = self.seen == 0, self.seen + examples_of(batch)
        if task.units_vary:
            units = torch.as_tensor(task.units(batch))
            self.units = units if first or self.units is None else self.units + units

    def add(self, of_gradients: Tensor) -> None:
        found = of_gradients.sum().double()
        if self.units is not None:
            found = found / self.units.to(found.device).clamp(min=1)  # a part without any has no gradient either
        self.total = found if self.total is None else self.total + found

    def end(self, parameters: list[nn.Parameter], last: bool, alone: bool) -> None:
        """A part's backward is over; where it was the last and DDP is there, :meth:`meet` has seen it already."""
        self.seen = 0
        if last and not alone:
            self.earlier = {}
            return
        having = [p for p in parameters if p.grad is not None]
        self.add(squares([p.grad for p in having if p.grad is not None]))
        for parameter in having:
            assert parameter.grad is not None
            if last:
                if parameter in self.earlier:
                    parameter.grad.add_(self.earlier[parameter])
            elif parameter in self.earlier:
                self.earlier[parameter].add_(parameter.grad)
            else:
                self.earlier[parameter] = parameter.grad.clone()
            if not last:
                parameter.grad = None
        if last:
            self.earlier = {}

    def meet(self, bucket: Any) -> None:
        """A bucket of the last part, about to be summed over ranks: it is measured, and the earlier parts join it.

        DDP lays its buckets out anew after the first step of a process, so nothing is added up in their order: a run
        that is resumed has the same sums.
        """
        if not self.active:
            return
        self.met |= dict(zip(bucket.parameters(), squares(bucket.gradients()), strict=True))
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if parameter in self.earlier:
                in_memory_order(gradient, parameter).add_(self.earlier[parameter])

    def squares_of(self, parameters: list[nn.Parameter]) -> Tensor:
        """After the last backward: see :meth:`Ddp.squares_of_parts`."""
        whole = squares([p.grad for p in parameters if p.grad is not None]).sum().double()
        return torch.stack([self.take(parameters).to(whole.device) / distributed.world_size() ** 2, whole])

    def take(self, parameters: list[nn.Parameter]) -> Tensor:
        if self.met:
            self.add(torch.stack([self.met[p] for p in parameters if p in self.met]))
            self.met = {}
        assert self.total is not None
        total, self.total = self.total, None
        return total


def over_ranks(squares_of_steps: list[Tensor]) -> list[tuple[float, float]]:
    """The squares of each step with those of all ranks' parts. Collective."""
    sums, wholes = torch.stack(squares_of_steps).unbind(1)
    return list(zip(distributed.sum_(sums.clone()).tolist(), wholes.tolist(), strict=True))


def in_memory_order(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A bucket's gradient as DDP lays it out: with the parameter's strides, of which the bucket says nothing."""
    if not is_dense(parameter):
        return gradient
    return gradient.as_strided(parameter.shape, parameter.stride(), gradient.storage_offset())
