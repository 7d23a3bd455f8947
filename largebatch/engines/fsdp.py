"""Fully sharded data parallelism: torch's FSDP2 (``fully_shard``), every parameter a DTensor cut along its first axis.

Weights, gradients and optimizer states are divided among the ranks; a block's weights are gathered for its forward and
backward. Blocks are the entries of the model's Sequentials and ModuleLists, as residual networks and transformers have
them; what is in none belongs to the root.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from largebatch.engines.engine import Engine, check_cut, check_exact, whole
from largebatch.machine import distributed
from largebatch.plan.batch import BatchPlan

SMALLEST_BLOCK = 100_000  # parameters: gathering less at a time costs more in latency than it saves in memory


class Fsdp(Engine):
    NAME = "fsdp"
    STRIDED_WEIGHTS = False

    def place(self, model: nn.Module) -> nn.Module:
        check_cut(model, self.NAME)
        model = super().place(model)
        mesh = init_device_mesh(self.device.type, (distributed.world_size(),))
        for part in (*blocks(model), model):
            fully_shard(part, mesh=mesh)
        return model

    def wrap(self, plan: BatchPlan) -> nn.Module:
        check_exact(self.optimizer, self.NAME, self.shard_safe)
        return self.model

    def communicate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def step(self, measure: bool = False, alone: bool = False) -> Tensor | None:
        norm = super().step(measure, alone)
        return None if norm is None else whole(norm)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[None]:
        with unsharded(self.model), super().whole_model():
            yield


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, a forward pass communicates nothing, whether anything of the model is sharded or not. Collective."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def blocks(model: nn.Module) -> list[nn.Module]:
    """Entries of Sequentials and ModuleLists that are large enough, the outermost of each branch."""
    found: list[nn.Module] = []
    containers = (nn.Sequential, nn.ModuleList)

    def walk(module: nn.Module) -> None:
        for child in module.children():
            entry = isinstance(module, containers) and not isinstance(child, containers)
            if entry and sum(p.numel() for p in child.parameters()) >= SMALLEST_BLOCK:
                found.append(child)
            else:
                walk(child)

    walk(model)
    return found
