"""Where successive steps lead: distance from the start, lengths, angles, and the curvature between them.

    distance    ‖θ_t − θ_0‖                       Hoffer et al. 2017 (1705.08741) see it grow as log t
    relative    ‖Δ_t‖ / ‖θ_t‖,  Δ_t = θ_t − θ_{t−1}
    alignment   cos(g_t, g_{t−1}), cos(Δ_t, Δ_{t−1})     below 0 the steps swing across a valley; with momentum the
                                                         second stays high where the first is negative
    secant      Δ_{t−1}·(g_t − g_{t−1}) / ‖Δ_{t−1}‖²     the curvature along the step just made, batch by batch

g_t is the gradient that step t takes, Δ_t what the optimizer makes of it. Every number is a sum over layers of dot
products, completed over ranks where layers are sharded, and stays on the device until :meth:`StepNumbers.read`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.optim.shards import add_up, elements, sharding_groups

NAMES = (
    "gradient", "gradient_before", "gradients", "step_before", "secant",  # with the gradient at hand
    "distance", "weight", "step", "steps",  # after the step
)  # fmt: skip


class StepNumbers(NamedTuple):
    """Dot products by NAMES, float64, on the device; NaN where there was nothing to multiply."""

    dots: Tensor

    def read(self) -> dict[str, float | None]:
        """One copy to the host."""
        found = dict(zip(NAMES, self.dots.tolist(), strict=True))
        return {
            "distance_from_start": root(found["distance"]),
            "weight_norm": root(found["weight"]),
            "update_norm": root(found["step"]),
            "relative_update": ratio(root(found["step"]), root(found["weight"])),
            "gradient_alignment": cosine(found["gradients"], found["gradient"], found["gradient_before"]),
            "update_alignment": cosine(found["steps"], found["step"], found["step_before"]),
            "secant_curvature": ratio(found["secant"], found["step_before"]),
        }


def root(square: float) -> float | None:
    return math.sqrt(square) if square >= 0 else None  # NaN is not >= 0


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below and math.isfinite(above / below) else None


def cosine(product: float, square: float, other: float) -> float | None:
    return ratio(product, root(square * other))


class Directions:
    """Stands beside a step and the one before it: :meth:`before`, :meth:`with_gradient`, :meth:`after` each of both.

    The start is where the parameters are when this is made. On request four copies of the weights are kept. Steps
    may be left out; the angle is then to nothing. All calls are collective where layers are sharded.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.groups = [sharding_groups(parameter) for parameter in self.parameters]
        self.start = self._weights()
        self.weights: list[Tensor] = []  # before the step in progress
        self.gradients: list[Tensor] | None = None  # of the step before
        self.step: list[Tensor] | None = None  # the step before
        self.dots: dict[str, Tensor] = {}

    @torch.no_grad()
    def _weights(self) -> list[Tensor]:
        return [elements(parameter).clone() for parameter in self.parameters]

    def forget(self) -> None:
        """The step before is not the one before any more."""
        self.gradients = self.step = None

    def before(self) -> None:
        self.weights = self._weights()
        self.dots = {}

    @torch.no_grad()
    def with_gradient(self, measure: bool) -> None:
        """After the last backward. Engines that keep gradients elsewhere have none here: those numbers are missing."""
        if any(parameter.grad is None for parameter in self.parameters):
            self.gradients = None
            return
        now = [elements(parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        if measure:
            self.dots["gradient"] = self._dot(now, now)
            if self.gradients is not None:
                self.dots["gradient_before"] = self._dot(self.gradients, self.gradients)
                self.dots["gradients"] = self._dot(now, self.gradients)
                if self.step is not None:
                    self.dots["secant"] = self._dot(torch._foreach_sub(now, self.gradients), self.step)
        self.gradients = [gradient.clone() for gradient in now]

    @torch.no_grad()
    def after(self, measure: bool) -> StepNumbers | None:
        now = [elements(parameter) for parameter in self.parameters]
        step = list(torch._foreach_sub(now, self.weights))
        if measure:
            away = torch._foreach_sub(now, self.start)
            self.dots |= {"distance": self._dot(away, away), "weight": self._dot(now, now)}
            self.dots["step"] = self._dot(step, step)
            if self.step is not None:
                self.dots["step_before"] = self._dot(self.step, self.step)
                self.dots["steps"] = self._dot(step, self.step)
        self.step, self.weights = step, []
        return self._added_up() if measure else None

    def _dot(self, xs: Iterable[Tensor], ys: Iterable[Tensor]) -> Tensor:
        """(layers,): of what lies on this rank."""
        return torch.stack([(x.double() * y.double()).sum() for x, y in zip(xs, ys, strict=True)])

    def _added_up(self) -> StepNumbers:
        nothing = torch.full_like(self.dots["weight"], math.nan)
        table = torch.stack([self.dots.get(name, nothing) for name in NAMES], dim=1)
        [sums] = add_up([table], [self.groups])
        return StepNumbers(sums.sum(0))
