"""The Hessian's eigenvalues: those at both ends, their density, how many are positive, and the trace.

    tr H ≈ mean of vᵀHv over vectors v of random signs      Hutchinson 1990; exact for a diagonal H
    ρ(λ) ≈ mean over the same v of Σ_i τ_i·N(λ; θ_i, σ²)    stochastic Lanczos quadrature, nodes θ and weights τ seen
                                                            from v: Ghorbani et al. 2019 (1901.10159); Yao et al. 2020
                                                            (1912.07145, PyHessian)
    minimum ratio = positive eigenvalues / all              the lecture's measure of how much a point is a minimum

ρ integrates to 1; σ is √1e-5 of the width of the spectrum, as in Ghorbani et al. A small model's H is made whole and
nothing is estimated. Otherwise the ends come from Lanczos, which stops when each of the wanted Ritz values θ has a
residual of at most 1e-3·|θ|, or one that counts as zero: there is an eigenvalue within a residual of θ, and as a rule
far nearer. An eigenvalue counts as zero where |λ| ≤ 1e-5·max|λ|, below which float32 products leave noise, and a node
of a quadrature where |θ| is no larger than its residual, too, because its sign is not known then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.diagnostics.lanczos import Tridiagonal, lanczos
from largebatch.diagnostics.objective import Objective
from largebatch.errors import UserError

RESIDUAL = 1e-3  # of |θ|
SETTLED = 5  # iterations
ZERO = 1e-5  # of max|λ|
WIDTH = 1e-5**0.5  # σ over λ_max − λ_min
GRID = 1000  # points, about three to a σ
DOUBLE = float(np.finfo(float).eps)


def spectrum(
    objective: Objective,
    eigenvalues: int = 5,
    iterations: int = 100,
    vectors: int = 5,
    density_iterations: int = 40,
    dense_up_to: int = 3000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What is known of H at the objective's weights, by the keys of the facts ``spectrum``.

    A model of at most ``dense_up_to`` parameters takes one product per parameter. Others take at most ``iterations``
    for the ends (and at least ``density_iterations``, which the density's first vector shares), and
    ``density_iterations`` for each further one of ``vectors``.
    """
    for name, number in (("eigenvalues", eigenvalues), ("vectors", vectors)):
        if number < 1:
            raise UserError(f"{name} = {number} must be at least 1")
    if density_iterations < 2 or iterations < 2 * eigenvalues:
        raise UserError(
            f"iterations = {iterations} and density_iterations = {density_iterations} are too few; valid: at least "
            f"{2 * eigenvalues} for {eigenvalues} eigenvalues at either end, and at least 2"
        )
    began = time.perf_counter()
    loss, gradient = objective.check_deterministic()
    say = progress or (lambda line: None)
    if objective.parameters <= dense_up_to:
        facts = of_matrix(objective.hessian(say), eigenvalues, objective.eps)
    else:
        facts = of_products(
            objective.hessian_product,
            objective.weights(),
            eigenvalues,
            iterations,
            vectors,
            density_iterations,
            seed,
            objective.eps,
            say,
        )
    return {
        "parameters": objective.parameters,
        "loss": loss,
        "gradient_norm": float(gradient.norm()),
        **facts,
        "seconds": time.perf_counter() - began,
    }


def of_matrix(matrix: Tensor, eigenvalues: int, eps: float = DOUBLE) -> dict[str, Any]:
    """From H itself, known to ``eps`` of its size; the residuals are those of the eigenvectors found."""
    values, directions = torch.linalg.eigh(matrix)
    residuals = torch.linalg.vector_norm(matrix @ directions - directions * values, dim=0).cpu().numpy()
    found = values.cpu().numpy()
    n = len(found)
    return {
        **ends(found, residuals, eigenvalues, eps),
        "trace": float(matrix.trace()),
        "trace_std_error": 0.0,
        "density": {**density(found, np.full(n, 1 / n)), "vectors": None, "iterations": None},
        **shares(found, np.full(n, 1 / n), np.zeros(n)),
        "shares_exact": True,
        "products": n,
    }


def of_products(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    eigenvalues: int,
    iterations: int,
    vectors: int,
    density_iterations: int,
    seed: int,
    eps: float = DOUBLE,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """From products with H alone, known to ``eps`` of its size, of vectors ``like`` this one."""
    n = like.numel()
    generator = torch.Generator().manual_seed(seed)
    runs: list[Tridiagonal] = []

    def enough(tridiagonal: Tridiagonal) -> bool:
        done = len(tridiagonal.alpha)
        if done % 10 == 0:
            progress(f"vector {len(runs) + 1} of {vectors}: {done} products, {extremes_in_words(tridiagonal)}")
        if runs:  # the density alone
            return done >= density_iterations or tridiagonal.beta[-1] == 0.0
        return done >= density_iterations and converged(tridiagonal, eigenvalues)

    for number in range(vectors):
        signs = (2 * torch.randint(2, (n,), generator=generator) - 1).to(like)
        limit = density_iterations if number else max(iterations, density_iterations)
        runs.append(lanczos(product, signs, limit, generator, enough))
    theta, _, residuals = runs[0].ritz()
    rules = [run.first(density_iterations).ritz() for run in runs]
    nodes = np.concatenate([rule[0] for rule in rules])
    weights = np.concatenate([rule[1] for rule in rules]) / vectors
    doubts = np.concatenate([rule[2] for rule in rules])
    traces = [n * run.alpha[0] for run in runs]  # ‖v‖² = n
    return {
        **ends(theta, residuals, eigenvalues, eps),
        "trace": float(np.mean(traces)),
        "trace_std_error": float(np.std(traces, ddof=1)) / vectors**0.5 if vectors > 1 else None,
        "density": {**density(nodes, weights), "vectors": vectors, "iterations": min(density_iterations, n)},
        **shares(nodes, weights, doubts),
        "shares_exact": False,
        "products": sum(len(run.alpha) for run in runs),
    }


def converged(tridiagonal: Tridiagonal, eigenvalues: int) -> bool:
    """Whether the wanted Ritz values are near eigenvalues, and have been the wanted ones for a while.

    A Ritz value of small residual may be an eigenvalue further inside, while a cluster beyond it is still one value.
    """
    if len(tridiagonal.alpha) < 2 * eigenvalues + SETTLED:
        return False
    wanted = np.r_[:eigenvalues, -eigenvalues:0]
    theta, _, residuals = tridiagonal.ritz()
    before = tridiagonal.first(len(tridiagonal.alpha) - SETTLED).ritz()[0]
    allowed = np.maximum(RESIDUAL * np.abs(theta), ZERO * np.abs(theta).max())[wanted]
    return bool((residuals[wanted] <= allowed).all() and (np.abs(theta[wanted] - before[wanted]) <= allowed).all())


def extremes_in_words(tridiagonal: Tridiagonal) -> str:
    theta, _, residuals = tridiagonal.ritz()
    return f"largest {theta[-1]:.4g} (residual {residuals[-1]:.1e}), smallest {theta[0]:.4g} ({residuals[0]:.1e})"


def ends(theta: np.ndarray, residuals: np.ndarray, eigenvalues: int, eps: float) -> dict[str, Any]:
    """The ``eigenvalues`` largest, descending, and the smallest, ascending; no residual below what rounding leaves."""
    residuals = np.maximum(residuals, eps * np.abs(theta).max())
    pairs = [{"value": float(t), "residual": float(r)} for t, r in zip(theta, residuals, strict=True)]
    return {"largest": pairs[: -eigenvalues - 1 : -1], "smallest": pairs[:eigenvalues]}


def density(nodes: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Σ weights·N(λ; nodes, σ²) on an even grid, made to integrate to 1 there by the trapezoidal rule."""
    spread = float(np.ptp(nodes)) or float(np.abs(nodes).max()) or 1.0
    width = WIDTH * spread
    grid = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, GRID)
    height = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) @ weights
    area = (height.sum() - (height[0] + height[-1]) / 2) * (grid[1] - grid[0])
    return {"eigenvalue": grid.tolist(), "density": (height / area).tolist(), "width": width}


def shares(values: np.ndarray, weights: np.ndarray, doubts: np.ndarray) -> dict[str, float]:
    """Of all ``weights``, those of positive, zero and negative values, and the largest |value| that may be a zero."""
    sizes = np.abs(values)
    least = ZERO * sizes.max()
    zero = sizes <= np.maximum(least, doubts)
    of = {"positive": ~zero & (values > 0), "zero": zero, "negative": ~zero & (values < 0)}
    found = {f"{sign}_share": float(weights[those].sum() / weights.sum()) for sign, those in of.items()}
    return {**found, "zero_below": float(max(least, sizes[zero].max(initial=0.0)))}
