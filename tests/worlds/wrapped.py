"""Optimizers inside torch's wrappers that divide states or flatten weights, on two ranks."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.optim import HeavyBall, Lamb, Lars

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lars": (Lars, {"lr": 0.5, "trust_coefficient": 0.02}),
    "lamb": (Lamb, {"lr": 0.01}),
    "heavy_ball": (HeavyBall, {"lr": 0.1}),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 3))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    named = dict(model.named_parameters())
    weights = [name for name in named if name.endswith("weight")]
    return [
        {"params": [named[name] for name in weights], "names": weights, "weight_decay": 0.1},
        {"params": [p for name, p in named.items() if name not in weights], "adapt": False},
    ]


def step(model: nn.Module, optimizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def divided_states() -> None:
    """ZeroRedundancyOptimizer, saved after two steps and loaded into another one, ends where one process does."""
    with distributed.group(torch.device("cpu")):
        for make, settings in OPTIMIZERS.values():
            alone, model = network(), network()
            peer = make(groups(alone), **settings)
            optimizer = ZeroRedundancyOptimizer(groups(model), optimizer_class=make, **settings)
            for seed in range(4):
                if seed == 2:
                    saved = of_first(optimizer)
                    optimizer = ZeroRedundancyOptimizer(groups(model), optimizer_class=make, **settings)
                    optimizer.load_state_dict(saved)
                step(alone, peer, seed)
                step(model, optimizer, seed)
            for this, that in zip(weights(model), weights(alone), strict=True):
                torch.testing.assert_close(this, that, rtol=0, atol=0)


def of_first(optimizer: ZeroRedundancyOptimizer) -> dict[str, Any]:
    """The whole state, which rank 0 puts together, on every rank."""
    optimizer.consolidate_state_dict(to=0)
    here: list[Any] = [None]
    if distributed.is_first():
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        here = [file.getvalue()]
    torch.distributed.broadcast_object_list(here, src=0)
    return copy.deepcopy(torch.load(io.BytesIO(here[0]), weights_only=True))


def flattened() -> None:
    """FSDP1: what needs norms is refused when it is made, before any step."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with distributed.group(torch.device("cpu")):
        for original in (True, False):
            model = FullyShardedDataParallel(network(), use_orig_params=original, device_id=torch.device("cpu"))
            for make, settings in (OPTIMIZERS["lars"], OPTIMIZERS["lamb"]):
                with pytest.raises(UserError, match="fully_shard"):
                    make(model.parameters(), **settings)
        model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
        optimizer = HeavyBall(model.parameters(), 0.1)
        before = weights(model)
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
        assert any(moved)
