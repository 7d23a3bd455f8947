"""What one step did to every layer: trust ratio, weight norm, update norm.

The trust ratio is the one the optimizer used (its last step left the norms on the device), the weight norm that before
the step, the update norm the length of the step itself, ‖w_after − w_before‖, momentum and all. Whole layers, whatever
cuts them. Nothing is read back until somebody asks: :meth:`LayerNumbers.read`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from largebatch.errors import UserError
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.shards import add_up, elements, sharding_groups, squares

QUANTILES = {"min": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "max": 1.0}


class LayerNumbers(NamedTuple):
    """On the device; rows are the layers of ``names``, ``ratios`` those of ``adapted``."""

    names: list[str]
    norms: Tensor  # (layers, 2): of the weight before the step, of the step
    adapted: list[str]
    ratios: Tensor  # (adapted, 3): trust ratio, 1 where it was bounded, 1 where it was the fallback

    def read(self) -> LayerValues:
        """One copy to the host."""
        flat = torch.cat([self.norms.flatten().double(), self.ratios.flatten().double()]).tolist()
        norms, ratios = flat[: 2 * len(self.names)], flat[2 * len(self.names) :]
        return LayerValues(
            dict(zip(self.names, norms[0::2], strict=True)),
            dict(zip(self.names, norms[1::2], strict=True)),
            dict(zip(self.adapted, ratios[0::3], strict=True)),
            sum(ratios[1::3]) / len(self.adapted) if self.adapted else None,
            sum(ratios[2::3]) / len(self.adapted) if self.adapted else None,
        )


class LayerValues(NamedTuple):
    """By layer; the shares are of the adapted layers."""

    weight_norm: dict[str, float]
    update_norm: dict[str, float]
    trust_ratio: dict[str, float]
    share_bounded: float | None
    share_fallback: float | None

    def by_layer(self) -> dict[str, dict[str, float]]:
        return {"trust_ratio": self.trust_ratio, "weight_norm": self.weight_norm, "update_norm": self.update_norm}

    def summary(self) -> dict[str, float]:
        """Quantiles over the layers of the trust ratio and of the relative update, and the shares."""
        relative = [self.update_norm[n] / w for n, w in self.weight_norm.items() if w > 0]
        found = {
            **quantiles("trust_ratio", list(self.trust_ratio.values())),
            **quantiles("relative_update", relative),
        }
        if self.share_bounded is not None and self.share_fallback is not None:
            found |= {"share_bounded": self.share_bounded, "share_fallback": self.share_fallback}
        return found


def quantiles(name: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor(list(QUANTILES.values())).double())
    return {f"{name}_{word}": value for word, value in zip(QUANTILES, found.tolist(), strict=True)}


class Watch:
    """Stands beside one step: :meth:`before` it, :meth:`after` it. Both are collective where layers are sharded."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.groups = [sharding_groups(parameter) for parameter in self.parameters]
        self.optimizer = optimizer
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def before(self) -> None:
        """Keeps a copy of the weights."""
        self.kept = [elements(parameter).clone() for parameter in self.parameters]

    @torch.no_grad()
    def after(self) -> LayerNumbers:
        """What happened since :meth:`before`."""
        if len(self.kept) != len(self.parameters):
            raise UserError("Watch.after() without Watch.before(): call before() just before the step")
        steps = [elements(now) - before for now, before in zip(self.parameters, self.kept, strict=True)]
        [sums] = add_up([torch.stack([squares(self.kept), squares(steps)], dim=1)], [self.groups])
        self.kept = []
        adapted, ratios = trust_ratios(self.optimizer)
        return LayerNumbers(self.names, sums.sqrt(), adapted, ratios.to(sums.device))


def trust_ratios(optimizer: Any) -> tuple[list[str], Tensor]:
    """The adapted layers of the last step, and (layers, 3): ratio, bounded, fallback."""
    if not isinstance(optimizer, LayerwiseOptimizer) or not optimizer.measured:
        return [], torch.zeros(0, 3, dtype=torch.float64)
    names: list[str] = []
    rows = []
    for group, layers, sums in optimizer.measured:
        weight, proposal = sums.sqrt().unbind(1)
        ratio = optimizer.ratios(weight, proposal, group)
        fallback = (weight == 0) | (proposal == 0)
        bounded = optimizer.bounded(weight, proposal, group) & ~fallback
        names += layers
        rows.append(torch.stack([ratio, bounded.to(ratio.dtype), fallback.to(ratio.dtype)], dim=1))
    return names, torch.cat(rows)
