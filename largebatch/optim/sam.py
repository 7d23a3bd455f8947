"""Sharpness-aware minimisation: the gradient is taken a little uphill (Foret et al. 2021, 2010.01412).

    ε = ρ·g/‖g‖      ‖g‖ over all tensors together      the step uses the gradient at w + ε

Where g is the gradient of the global batch, ε is one for all (the definition). Where it is that of m examples, each m
examples have an ε of their own: m-sharpness, which the paper takes per accelerator. Any optimizer makes the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.optim.shards import squares


class Perturbation:
    """Moves ``weights`` to w + ε and back to exactly w."""

    def __init__(self, weights: list[Tensor], rho: float) -> None:
        self.weights, self.rho = weights, rho
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def apply(self, gradients: list[Tensor]) -> None:
        assert not self.kept, "the weights are perturbed already"
        norm = squares(gradients).sum().sqrt()
        scale = torch.where(norm > 0, self.rho / norm, torch.zeros_like(norm)).to(gradients[0])
        self.kept = [weight.clone() for weight in self.weights]
        torch._foreach_add_(self.weights, torch._foreach_mul(gradients, scale))

    @torch.no_grad()
    def undo(self) -> None:
        torch._foreach_copy_(self.weights, self.kept)
        self.kept = []
