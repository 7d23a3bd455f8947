"""NAdamW of a recipe against AlgoPerf's equations in plain float64 numbers, and against AdamW where β1 is 0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn

from largebatch.optim import parameter_groups, treatments
from largebatch.optimizers import Surroundings
from largebatch.recipes import config

SETTINGS = {"beta1": 0.8895758153482813, "beta2": 0.9978504782314613, "eps": 1e-8}


def built(model: nn.Module, decay: float, **keys: Any) -> torch.optim.Optimizer:
    run = config.from_dict({"name": "n", **TINY, "optimizer": {"name": "nadamw", **SETTINGS, **keys}})
    groups = parameter_groups(model, decay, treatments(model, ("bias",), None))
    return run.optimizer.build(groups, 0.1, Surroundings("fp64", "ddp", model))


def one_step(theta: float, g: float, m: float, v: float, t: int, lr: float, decay: float) -> tuple[float, float, float]:
    """Decay; both moments; the first moment once more towards g; both corrected for t steps."""
    b1, b2, eps = SETTINGS["beta1"], SETTINGS["beta2"], SETTINGS["eps"]
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    ahead = (b1 * m + (1 - b1) * g) / (1 - b1**t)
    return theta * (1 - lr * decay) - lr * ahead / (math.sqrt(v / (1 - b2**t)) + eps), m, v


def test_the_equations_element_by_element():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    state = {
        (name, i): (x, 0.0, 0.0) for name, p in model.named_parameters() for i, x in enumerate(p.view(-1).tolist())
    }
    optimizer = built(model, 0.08)
    for t, lr in enumerate([0.0, 0.01, 0.1, 0.03], start=1):
        gradients = {name: torch.randn(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        for (name, i), (theta, m, v) in state.items():
            decay = 0.08 if name == "weight" else 0.0
            state[name, i] = one_step(theta, gradients[name].view(-1)[i].item(), m, v, t, lr, decay)
    for name, parameter in model.named_parameters():
        wanted = [state[name, i][0] for i in range(parameter.numel())]
        assert parameter.view(-1).tolist() == pytest.approx(wanted, rel=1e-12)


def test_without_momentum_it_is_torchs_adamw():
    torch.manual_seed(1)
    ours, theirs = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    theirs.load_state_dict(ours.state_dict())
    optimizer = built(ours, 0.0, beta1=0.0)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.0, SETTINGS["beta2"]), weight_decay=0.0)
    for _ in range(4):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        optimizer.step()
        adamw.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=0)
