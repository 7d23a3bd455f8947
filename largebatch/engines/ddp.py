"""Data parallelism on torch's DistributedDataParallel: alone it is the bare model.

The gradient all-reduce overlaps with the last micro-batch's backward.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from largebatch import distributed
from largebatch.batch import BatchPlan
from largebatch.engines.engine import Engine

# The word for "each rank keeps its own buffers" changed after torch 2.11.
OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


class Ddp(Engine):
    NAME = "ddp"

    def wrap(self, plan: BatchPlan) -> nn.Module:
        if distributed.world_size() == 1:
            return self.model
        return DistributedDataParallel(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **OWN_BUFFERS,
        )

    def communicate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last or distributed.world_size() == 1:
            return contextlib.nullcontext()
        wrapper = getattr(self.parallel, "_orig_mod", self.parallel)
        assert isinstance(wrapper, DistributedDataParallel)
        return wrapper.no_sync()
