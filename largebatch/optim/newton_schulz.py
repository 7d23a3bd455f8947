"""The orthogonal factor of a matrix, nearly: a quintic Newton-Schulz iteration (Jordan et al. 2024).

    X ← G / ‖G‖_F                                 of a tall matrix its transpose, so that X has A ≤ B rows
    X ← a·X + (b·R + c·R²)·X,   R = X·Xᵀ          ``steps`` times
    a, b, c = 3.4445, −4.7750, 2.0315             chosen for the slope at 0; p does not come to rest at 1

G = U·S·Vᵀ becomes U·p(…p(S/‖G‖_F))·Vᵀ with p(s) = a·s + b·s³ + c·s⁵: after five steps singular values above 0.005
of ‖G‖_F lie between 0.68 and 1.15. Bernstein & Newhouse 2024 (2409.20325) derive the iteration.

    form      what it is
    plain     one matrix after another: the specification, and torch.optim.Muon's operations
    batched   matrices of one shape, or of its transpose, in one stack
    gram      the same polynomial on the A×A Gram matrix: Q, R ← 1, X·Xᵀ, then ``steps`` times
              Z = a + b·R + c·R²,  Q ← Z·Q,  R ← Z·R·Z,  and X ← Q·X once. All are polynomials of X·Xᵀ, so they
              commute. Rounding leaves R eigenvalues below 0, which grow with a² a step; so after two steps, and then
              after every three, X ← Q·X, Q ← 1 and R is computed anew. Dao-AILab's Gram Newton-Schulz (2026)
              does it so in float16

The iteration's type is the caller's: bfloat16 as published, float32 or float64. In ``gram`` bfloat16's products are
taken in float16, whose three more bits R needs. Five steps are 10·A²·B + 5·A³ multiply-adds, by the Gram matrix
4·A²·B + 16·A³: ``gram`` takes matrices of B ≥ 2·A and leaves the others to ``batched``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FORMS = ("auto", "plain", "batched", "gram")
A, B, C = 3.4445, -4.7750, 2.0315
SMALLEST_NORM = 1e-7  # that G is divided by; torch's
BEFORE_RESTART, AT_ONCE = 2, 3  # steps by the first Gram matrix, and by every further one
SMALL = 1 << 16  # elements
LONG = 2  # times as many columns as rows has a matrix whose Gram matrix saves anything
PRODUCTS = {torch.bfloat16: torch.float16}  # the type of those of ``gram``; else the iteration's own


def orthogonalised(matrices: list[Tensor], steps: int, form: str) -> list[Tensor]:
    """Of each of the ``matrices``, which are all of the iteration's type; in new memory.

    The form ``auto`` stacks them on CUDA, and on the CPU those that are small: of large ones one at a time is faster.
    """
    if form == "plain":
        return [newton_schulz(matrix, steps) for matrix in matrices]
    if form == "auto":
        small = [n for n, m in enumerate(matrices) if m.is_cuda or m.numel() <= SMALL]
        stacked = dict(zip(small, in_stacks([matrices[n] for n in small], steps, iterated), strict=True))
        return [stacked[n] if n in stacked else newton_schulz(m, steps) for n, m in enumerate(matrices)]
    return in_stacks(matrices, steps, gram_or_iterated if form == "gram" else iterated)


def in_stacks(matrices: list[Tensor], steps: int, iterate: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """Those of one shape together."""
    ends: dict[int, Tensor] = {}
    alike: dict[tuple[int, int], list[int]] = {}
    for number, matrix in enumerate(matrices):
        alike.setdefault((min(matrix.shape), max(matrix.shape)), []).append(number)
    for numbers in alike.values():
        stack = torch.stack([normalised(wide(matrices[number])) for number in numbers])
        stack = iterate(stack if len(numbers) > 1 else stack[0], steps)
        ends |= dict(zip(numbers, stack.unbind() if len(numbers) > 1 else [stack], strict=True))
    return [ends[number] if is_wide(matrix) else ends[number].mT for number, matrix in enumerate(matrices)]


def gram_or_iterated(x: Tensor, steps: int) -> Tensor:
    """By the Gram matrix where the columns are many."""
    rows, columns = x.shape[-2:]
    return by_gram(x, steps) if columns >= LONG * rows else iterated(x, steps)


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    end = iterated(normalised(wide(matrix)), steps)
    return end if is_wide(matrix) else end.mT


def is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def wide(matrix: Tensor) -> Tensor:
    return matrix if is_wide(matrix) else matrix.mT


def normalised(matrix: Tensor) -> Tensor:
    """Of Frobenius norm 1, so that no singular value is above it."""
    exact = None if matrix.dtype is torch.bfloat16 else torch.float64  # torch's norm of a long float32 is off by 4e-5
    norm = torch.linalg.vector_norm(matrix, dtype=exact).to(matrix.dtype)
    return matrix / norm.clamp(min=SMALLEST_NORM)


def iterated(x: Tensor, steps: int) -> Tensor:
    """Of one matrix or of a stack."""
    for _ in range(steps):
        gram = x @ x.mT
        x = plus_product(A, x, 1.0, plus_product(B, gram, C, gram, gram), x)
    return x


def by_gram(x: Tensor, steps: int) -> Tensor:
    """:func:`iterated`, by the Gram matrix; one matrix or a stack."""
    kind, x = x.dtype, x.to(PRODUCTS.get(x.dtype, x.dtype))
    done = 0
    while done < steps:
        count = min(AT_ONCE if done else BEFORE_RESTART, steps - done)
        x = gram_steps(x, count)
        done += count
    return x.to(kind)


def gram_steps(x: Tensor, steps: int) -> Tensor:
    """Q·X of so many steps, at least one."""
    gram, factor = x @ x.mT, None
    for number in range(steps):
        z = plus_product(B, gram, C, gram, gram)
        z.diagonal(dim1=-2, dim2=-1).add_(A)
        factor = z if factor is None else z @ factor
        if number + 1 < steps:
            gram = z @ gram @ z
    return x if factor is None else factor @ x


def plus_product(scale: float, addend: Tensor, factor: float, first: Tensor, second: Tensor) -> Tensor:
    """scale·addend + factor·first·second."""
    multiply = torch.addmm if addend.dim() == 2 else torch.baddbmm
    return multiply(addend, first, second, beta=scale, alpha=factor)
