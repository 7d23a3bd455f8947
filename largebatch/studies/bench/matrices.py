"""Muon in ``bench optimizer --muon``: torch's and ours on the same weights and gradients.

Hidden weight matrices are orthogonalised, with five iterations in bfloat16 for both; everything else takes torch's SGD.
torch.optim.Muon takes matrices alone: a convolution's weight is shown to it as one, in the same memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from largebatch.errors import UserError
from largebatch.optim import Muon, muon_groups
from largebatch.optim.matrices import hidden_weights
from largebatch.studies.bench.contestants import MOMENTUM, Family

TORCHS = "torch Muon"


class TorchMuon(Optimizer):
    """torch's Muon on matrices and torch's SGD on the rest, as one optimizer."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        matrices, rest = ([group for group in groups if group["muon"] is muon] for muon in (True, False))
        seen = [{**group, "params": [as_matrix(p) for p in group["params"]], "names": None} for group in matrices]
        self.parts: list[Optimizer] = [torch.optim.Muon([kept(g) for g in seen], lr, momentum=MOMENTUM)]
        if rest:
            self.parts.append(torch.optim.SGD([kept(g) for g in rest], lr, MOMENTUM, nesterov=True, fused=True))
        super().__init__([p for group in groups for p in group["params"]], {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def kept(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in ("params", "weight_decay")}


def as_matrix(weight: torch.Tensor) -> nn.Parameter:
    """A view of its memory, and of its gradient's."""
    matrix = nn.Parameter(weight.detach().view(weight.shape[0], -1))
    assert weight.grad is not None
    matrix.grad = weight.grad.view(weight.shape[0], -1)
    return matrix


def families_of_muon(model: nn.Module, name: str) -> list[Family]:
    """Of the hidden matrices of one model."""

    def torchs(groups: list[dict[str, Any]], lr: float) -> Optimizer:
        return TorchMuon(muon_groups(groups, model), lr)

    def ours(groups: list[dict[str, Any]], lr: float) -> Optimizer:
        return Muon(muon_groups(groups, model), lr, momentum=MOMENTUM, others_momentum=MOMENTUM)

    def stays(optimizer: Optimizer, form: str) -> None: ...

    def switch(optimizer: Any, form: str) -> None:
        optimizer.form = form

    try:
        hidden_weights(model)
    except UserError as error:
        raise UserError(f"--muon --model {name}: {error}") from None
    return [
        Family(TORCHS, "Muon", ("plain",), torchs, stays, 1, 1, TORCHS, "plain"),
        Family("Muon", "Muon", ("plain", "batched", "gram"), ours, switch, 1, 2, TORCHS),
    ]
