"""How much the loss can rise near the weights x: Keskar's sharpness and the rise along one step of SAM.

    C_ε = {z : |z_i| ≤ ε·(|(A⁺x)_i| + 1)}        Keskar et al. 2017 (1609.04836), Metric 2.1, eq. 3
    φ(x) = 100·(max_{z ∈ C_ε} f(x + A·z) − f(x)) / (1 + f(x))
    f(x + ρ·g/‖g‖) − f(x),  g = ∇f(x)            Foret et al. 2021 (2010.01412)

A is the identity ("full") or a matrix of 100 random columns ("random"). The paper does not print their distribution:
here every entry is N(0, 1) and nothing is normalised, so a weight moves by up to about ε·√100. The maximum is sought
as there by 10 iterations of L-BFGS-B from z = 0, in float64, and is the largest f of all points evaluated. SciPy's
tests on progress are switched off: near a good minimum f rises by less than they look for. Only a gradient of exactly
zero, or a line search that finds nothing, ends it sooner.

On several ranks each runs the same search: f and its gradient are the same bits on all, and so is all that follows on
machines of one kind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from largebatch.diagnostics.objective import Objective
from largebatch.errors import UserError

ROWS = 1024  # of A that are float64 at a time: they stay in the cache


def sharpness(
    objective: Objective,
    epsilons: Sequence[float] = (1e-3, 5e-4),
    dimensions: Sequence[int | None] = (None, 100),
    rhos: Sequence[float] = (0.05,),
    iterations: int = 10,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Every epsilon in every space (None: the full one), then every rho, by the keys of the facts ``sharpness``.

    The random matrix is the same for every epsilon. The objective's weights are put back at the end.
    """
    for name, numbers in (("epsilon", epsilons), ("rho", rhos)):
        for number in numbers:
            if not 0 < number < math.inf:
                raise UserError(f"{name} = {number} must be a number above 0")
    for size in dimensions:
        if size is not None and not 1 <= size <= objective.parameters:
            raise UserError(
                f"dimensions = {size} of the random subspace must be at least 1 and at most {objective.parameters}, "
                "the number of the model's parameters"
            )
    if iterations < 1:
        raise UserError(f"iterations = {iterations} must be at least 1")
    say = progress or (lambda line: None)
    x = objective.weights()
    try:
        loss, gradient = objective.check_deterministic()
        found = []
        for size in dimensions:
            space = Full(x) if size is None else Random(x, size, seed)
            for epsilon in epsilons:
                found.append(keskar(objective, space, x, loss, epsilon, iterations))
                say(f"{found[-1]['space']} space, epsilon {epsilon:g}: sharpness {found[-1]['sharpness']:.4g} %")
        return {"loss": loss, "keskar": found, "sam": [sam(objective, x, loss, gradient, rho) for rho in rhos]}
    finally:
        objective.set(x)


class Full:
    """A = I."""

    name, dimensions = "full", None

    def __init__(self, x: Tensor) -> None:
        self.coordinates = x  # A⁺x

    def step(self, z: Tensor) -> Tensor:
        return z

    def gradient(self, g: Tensor) -> Tensor:
        return g


class Random:
    """A of independent N(0, 1), in float32 and the same on every rank; products with it in float64."""

    name = "random"

    def __init__(self, x: Tensor, dimensions: int, seed: int) -> None:
        self.dimensions = dimensions
        generator = torch.Generator().manual_seed(seed)
        self.matrix = torch.randn(len(x), dimensions, generator=generator).to(x.device)
        gram = sum(rows.T @ rows for rows in self._rows())
        self.coordinates = torch.linalg.solve(gram, self.gradient(x))  # A⁺x = (AᵀA)⁻¹Aᵀx: the columns are independent

    def step(self, z: Tensor) -> Tensor:
        """A·z"""
        return torch.cat([rows @ z for rows in self._rows()])

    def gradient(self, g: Tensor) -> Tensor:
        """Aᵀ·g"""
        return torch.stack([rows.T @ part for rows, part in zip(self._rows(), g.split(ROWS), strict=True)]).sum(0)

    def _rows(self) -> Any:
        return (rows.double() for rows in self.matrix.split(ROWS))


def keskar(
    objective: Objective, space: Full | Random, x: Tensor, loss: float, epsilon: float, iterations: int
) -> dict[str, Any]:
    """φ of one space and one box; ``loss`` is f(x)."""
    began = time.perf_counter()
    largest = loss

    def descend(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal largest
        value, gradient = objective.value_and_gradient(x + space.step(torch.from_numpy(z).to(x)))
        if not math.isfinite(value) or not bool(gradient.isfinite().all()):
            raise UserError(
                f"epsilon = {epsilon:g} reaches weights where the loss or its gradient is not finite (loss {value}); "
                "valid: a smaller epsilon"
            )
        largest = max(largest, value)
        return -value, -space.gradient(gradient).cpu().numpy()

    box = (epsilon * (space.coordinates.abs() + 1)).cpu().numpy()
    ended = optimize.minimize(
        descend,
        np.zeros(len(box)),
        method="L-BFGS-B",
        jac=True,
        bounds=optimize.Bounds(-box, box),  # pyright: ignore[reportArgumentType]
        options={"maxiter": iterations, "ftol": 0.0, "gtol": 0.0},
    )
    return {
        "space": space.name,
        "dimensions": space.dimensions,
        "epsilon": epsilon,
        "sharpness": 100 * (largest - loss) / (1 + loss),
        "max_loss": largest,
        "iterations": int(ended.nit),
        "evaluations": int(ended.nfev),
        "seconds": time.perf_counter() - began,
    }


def sam(objective: Objective, x: Tensor, loss: float, gradient: Tensor, rho: float) -> dict[str, float]:
    """The rise along the gradient; none where it is zero."""
    norm = float(gradient.norm())
    there = objective.value(x + rho / norm * gradient) if norm else loss
    return {"rho": rho, "loss": there, "increase": there - loss}
