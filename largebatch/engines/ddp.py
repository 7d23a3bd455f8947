"""Data parallelism on torch's DistributedDataParallel: alone it is the bare model.

The gradient is the mean over the global batch. The loop hands ``backward`` a loss already divided by the
global batch size; DDP averages over ranks, so the loss is multiplied by the world size once more. Only the last
micro-batch of a step communicates, overlapped with its backward. Buffers (running batch-norm statistics)
stay each rank's own until somebody looks at them: :meth:`Ddp.averaged_statistics`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from largebatch import distributed
from largebatch.errors import UserError

# The word for "each rank keeps its own buffers" changed after torch 2.11.
OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Ddp:
    """``model`` is always the plain module: its names are those of checkpoints and tables."""

    def __init__(self, device: torch.device, precision: str, channels_last: bool, compile: bool) -> None:
        self.device = device
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.channels_last = channels_last
        self.compile = compile
        self.autocast = torch.autocast(
            device.type, AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def place(self, model: nn.Module) -> nn.Module:
        """The model where and how it will be trained; the optimizer is made of its parameters."""
        model = model.to(device=self.device, dtype=self.dtype)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.parallel: nn.Module = model
        if distributed.world_size() > 1:
            self.parallel = DistributedDataParallel(
                model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **OWN_BUFFERS,
            )
        if self.compile:
            self.parallel = torch.compile(self.parallel)  # type: ignore[assignment]

    def forward(self, images: Tensor, last: bool = True) -> Tensor:
        """Outputs of one micro-batch, never in half precision; its gradients are summed over ranks only if it
        is the step's ``last``."""
        silent = distributed.world_size() > 1 and not last
        hold = self._wrapper().no_sync() if silent else contextlib.nullcontext()
        with hold, self.autocast:
            outputs = self.parallel(images)
        return outputs.to(self.dtype)

    def predict(self, images: Tensor) -> Tensor:
        """Outputs for evaluation: no gradient, no communication."""
        with self.autocast:
            outputs = self.model(images)
        return outputs.to(self.dtype)

    def backward(self, loss: Tensor) -> None:
        """``loss``: this micro-batch's summed loss over the *global* batch size."""
        self.scaler.scale(loss * distributed.world_size() if distributed.world_size() > 1 else loss).backward()

    def step(self, max_grad_norm: float | None = None, measure: bool = False) -> Tensor | None:
        """Clip, update, clear. The global gradient norm before clipping, on the device, if it was measured."""
        norm = None
        if max_grad_norm is not None or measure:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for p in self.model.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @contextlib.contextmanager
    def averaged_statistics(self) -> Iterator[None]:
        """Inside, every rank's floating-point buffers are the mean over ranks; afterwards its own again.

        Training thus does not depend on when somebody evaluated.
        """
        if distributed.world_size() == 1:
            yield
            return
        own = [(buffer, buffer.clone()) for buffer in self._statistics()]
        for buffer, _ in own:
            distributed.mean_(buffer)
        try:
            yield
        finally:
            for buffer, value in own:
                buffer.copy_(value)

    def save(self) -> dict[str, Any]:
        """Everything that decides what comes next. Collective; the model's weights are in rank zero's alone."""
        named = {name: buffer for name, buffer in self.model.named_buffers() if buffer.is_floating_point()}
        with self.averaged_statistics():
            weights = self.model.state_dict().items() if distributed.is_first() else ()
            model = {name: tensor.detach().cpu().clone() for name, tensor in weights}
        return {
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "statistics_of_ranks": distributed.gather({n: b.detach().cpu() for n, b in named.items()})
            if distributed.world_size() > 1
            else [],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`save`; in the same world each rank gets back its own statistics."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the checkpoint belongs to another model or optimizer: {reason}") from error
        self.scaler.load_state_dict(state["scaler"])
        own = state["statistics_of_ranks"]
        if len(own) == distributed.world_size():
            buffers = dict(self.model.named_buffers())
            for name, value in own[distributed.rank()].items():
                buffers[name].copy_(value)

    def _statistics(self) -> list[Tensor]:
        return [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]

    def _wrapper(self) -> DistributedDataParallel:
        wrapper = getattr(self.parallel, "_orig_mod", self.parallel)
        assert isinstance(wrapper, DistributedDataParallel)
        return wrapper
