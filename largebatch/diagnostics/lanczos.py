"""Lanczos (1950): a symmetric operator seen from one vector as a small tridiagonal matrix.

    H·Q = Q·T + β_m·q_{m+1}·e_mᵀ      QᵀQ = 1, q_1 = v/‖v‖ the start vector; T has α on and β beside its diagonal
    T = S·Θ·Sᵀ                        Ritz values θ_i with ‖H·y_i − θ_i·y_i‖ = |β_m·S_{m,i}|, y_i = Q·S_{:,i}
    vᵀφ(H)v ≈ ‖v‖²·Σ S_{1,i}²·φ(θ_i)  Gauss quadrature (Golub & Welsch 1969), exact for polynomials φ of degree < 2m

Every new vector is orthogonalised against all old ones, twice, so that no eigenvalue appears twice by rounding. Where
the space is exhausted (β = 0) it goes on from a random vector orthogonal to it; the start vector's weights stay as they
were, and of an eigenvalue with several eigenvectors the others are found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EXHAUSTED = 1e-12  # β over the largest |α| and |β|
LARGEST_BASIS = 2**30  # bytes; a larger one is kept in float32, and products with it are still float64


class Tridiagonal(NamedTuple):
    """T: ``alpha`` of m entries, ``beta`` of m, its last one β_m outside T."""

    alpha: list[float]
    beta: list[float]

    def first(self, m: int) -> Tridiagonal:
        """As it was after ``m`` iterations."""
        return Tridiagonal(self.alpha[:m], self.beta[:m])

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(θ ascending, the start vector's weight of each, the residual of each)."""
        between = np.array(self.beta[:-1])
        theta, vectors = np.linalg.eigh(np.diag(self.alpha) + np.diag(between, 1) + np.diag(between, -1))
        return theta, vectors[0] ** 2, np.abs(self.beta[-1] * vectors[-1])


def lanczos(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    generator: torch.Generator,
    enough: Callable[[Tridiagonal], bool] = lambda tridiagonal: False,
    storage: torch.dtype | None = None,
) -> Tridiagonal:
    """At most ``iterations`` products, fewer when it is ``enough`` or the whole space is known.

    ``start`` is in float64 and on the CPU or a device; ``storage`` is the type in which Q is kept. Everything is
    decided from ``product`` and ``generator`` alone, so ranks that see the same of both do the same.
    """
    n = start.numel()
    iterations = min(iterations, n)
    if storage is None:
        storage = torch.float64 if 8 * n * iterations <= LARGEST_BASIS else torch.float32
    basis = torch.empty(iterations, n, dtype=storage, device=start.device)
    found = Tridiagonal([], [])
    q = start / start.norm()
    for j in range(iterations):
        basis[j] = q
        w = product(q)
        found.alpha.append(float(q @ w))
        w = orthogonal(w, basis[: j + 1])
        beta = float(w.norm())
        exhausted = beta <= EXHAUSTED * max(map(abs, found.alpha + found.beta))
        found.beta.append(0.0 if exhausted else beta)
        if j + 1 == n or j + 1 == iterations or enough(found):
            break
        if exhausted:
            w = orthogonal(torch.randn(n, generator=generator, dtype=torch.float64).to(w.device), basis[: j + 1])
        q = w / w.norm()
    return found


def orthogonal(w: Tensor, basis: Tensor) -> Tensor:
    """``w`` without its part along the rows of ``basis``: Gram-Schmidt, twice, which is enough."""
    for _ in range(2):
        shadow = torch.zeros_like(w)
        for rows in basis.split(8):  # a few rows at a time are float64
            rows = rows.double()
            shadow += rows.T @ (rows @ w)
        w = w - shadow
    return w
