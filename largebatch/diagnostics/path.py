"""Points between and beyond two solutions.

    line     (1 − α)·x_A + α·x_B                      α from −1 to 2 (Goodfellow et al. 2015, 1412.6544)
    curve    cos(απ/2)·x_A + sin(απ/2)·x_B            α from 0 to 1

Keskar et al. 2017 (1609.04836), figures 3 and 8, with the small batch's solution as A (α = 0) and the large batch's
as B (α = 1): a minimum is flat or sharp by how fast the loss rises away from it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def evenly(low: float, high: float, points: int) -> list[float]:
    """``points`` numbers from ``low`` to ``high``, both included; and 0 and 1, the solutions, if they are not met."""
    found = [low + (high - low) * i / (points - 1) for i in range(points)]
    met = [float(round(alpha)) if abs(alpha - round(alpha)) < 1e-12 else alpha for alpha in found]
    return sorted({*met, 0.0, 1.0})


def on_line(a: Weights, b: Weights, alpha: float) -> Weights:
    return {name: combined(a[name], b[name], 1.0 - alpha, alpha) for name in a}


def on_curve(a: Weights, b: Weights, alpha: float) -> Weights:
    angle = alpha * math.pi / 2
    of_a, of_b = (0.0 if alpha == 1 else math.cos(angle)), math.sin(angle)
    return {name: combined(a[name], b[name], of_a, of_b) for name in a}


def combined(x: Tensor, y: Tensor, of_x: float, of_y: float) -> Tensor:
    """In float64, in the type of ``x``; an end is the end itself."""
    return torch.add(x.double() * of_x, y.double(), alpha=of_y).to(x.dtype)


def distance(a: Weights, b: Weights) -> float:
    """‖x_A − x_B‖ over all layers."""
    return math.sqrt(sum((a[name].double() - b[name].double()).square().sum().item() for name in a))
