"""The gradient noise scale in a loop of one's own, from gradients that it takes anyway (diagnostics/noise.py).

meter = NoiseMeter(model, micro_batch_size=32, global_batch_size=256)
for number, (x, y) in enumerate(micro_batches, start=1):
    with meter.micro_batch(last=number == accumulation):
        (loss_function(model(x), y) / accumulation).backward()
optimizer.step()
meter.estimate().noise_scale                                    # examples, with the interval low to high
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from largebatch.diagnostics.noise import Averages, Estimate, Squares, check_sizes
from largebatch.engines.ddp import PartSquares, over_ranks, unwrapped
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.plan.batch import due


class NoiseMeter:
    """McCandlish's B_simple from a micro-batch's gradients, each by itself, and that of the global batch.

    ``model`` is a plain one in one process, or DistributedDataParallel, whose communication hook it becomes. The
    gradient of a step is to be the mean over its examples, as it is where every micro-batch's mean loss is divided by
    how many a rank has. One step of ``every_steps`` is measured; ``smoothing`` is what the averages keep of themselves
    at each, 1 for the plain mean of all.
    """

    def __init__(
        self,
        model: nn.Module,
        micro_batch_size: int,
        global_batch_size: int,
        every_steps: int = 1,
        smoothing: float = 0.99,
    ) -> None:
        check_sizes(micro_batch_size, global_batch_size, "micro_batch_size", "global_batch_size")
        self.ddp = model if isinstance(model, DistributedDataParallel) else None
        if self.ddp is None and distributed.world_size() > 1:
            raise UserError(
                f"the noise scale of {distributed.world_size()} ranks is measured as their gradients are summed; "
                "valid: a model in DistributedDataParallel"
            )
        self.sizes, self.every_steps = (micro_batch_size, global_batch_size), every_steps
        self.parameters = list(unwrapped(model).parameters())
        self.averages = Averages(smoothing)
        self.step = 0
        self._parts, self._waiting = PartSquares(micro_batch_size), list[Tensor]()
        if self.ddp is not None:
            self.ddp.register_comm_hook(None, self._summed)

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one; only the ``last`` of a step communicates."""
        self._parts.active = due(self.step, self.every_steps)
        with self.ddp.no_sync() if self.ddp is not None and not last else contextlib.nullcontext():
            yield
        if self._parts.active:
            self._parts.end(self.parameters, last, alone=self.ddp is None)
            if last:
                self._waiting.append(self._parts.squares_of(self.parameters))
        self.step += last

    def _summed(self, state, bucket):  # torch reads annotations and knows no postponed ones
        self._parts.meet(bucket)
        everyone = torch.distributed.group.WORLD
        assert everyone is not None
        return default_hooks.allreduce_hook(everyone, bucket)

    def estimate(self) -> Estimate:
        """Of all steps so far. Collective where any was measured since the last time."""
        if self._waiting:
            for of_step in over_ranks(self._waiting):
                self.averages.add(Squares.of_parts(*self.sizes, *of_step))
            self._waiting.clear()
        return self.averages.estimate()

    def state_dict(self) -> dict[str, Any]:
        """Collective, as :meth:`estimate` is."""
        self.estimate()
        return {"step": self.step, "averages": self.averages.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.averages.load_state_dict({**state["averages"], "smoothing": self.averages.smoothing})
