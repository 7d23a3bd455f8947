"""SOAP by pytorch_optimizer: Adam in the eigenbases of Shampoo's factors (Vyas et al. 2024, 2409.11321, Algorithm 3).

Of a matrix G, with the columns of P and Q the eigenvectors of L and R:

    G' = Pᵀ G Q                     M ← β1·M + (1 − β1)·G            V ← β2·V + (1 − β2)·G'²
    θ ← (1 − η·λ)·(θ − η·[√(1 − β2^t)/(1 − β1^t)] · P (Pᵀ M Q / (√V + ε)) Qᵀ)
    L ← β·L + (1 − β)·G Gᵀ          R ← β·R + (1 − β)·Gᵀ G           β: ``shampoo_beta``, unset β2
    P ← qr(L P)                     Q ← qr(R Q)                      every ``precondition_frequency`` steps

P and Q begin as the eigenvectors of the first step's L and R, which moves nothing and does not count in t. The columns
of P and Q are put in the order of pᵀ L p before they are renewed, and V with them. A tensor of more axes has a factor
for each, a convolution's weight four. An axis longer than ``max_preconditioner_dim`` stays as it is, which is the
paper's one-sided SOAP for embeddings and heads; so do vectors, which are Adam's, unless ``precondition_1d``.

As in the authors' code ε is beside √V and not beside its corrected root, and the weight decay comes after the step.
The bases are renewed in float32 whatever the precision. Left out of the package: ``merge_dims``, which fails on tensors
that merge into one axis, and ``normalize_gradient``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import Optimizer, Surroundings
from largebatch.optimizers._kronecker import KroneckerSection, check_installed, of_factors
from largebatch.recipes.keys import Fraction, PositiveFloat, PositiveInt, Switch

if TYPE_CHECKING:
    import torch


class SoapSection(KroneckerSection):
    FIXED: ClassVar[frozenset[str]] = Optimizer.FIXED | {
        "beta2", "shampoo_beta", "precondition_frequency", "max_preconditioner_dim", "precondition_1d",
    }  # fmt: skip

    name: Literal["soap"]
    beta1: Fraction = 0.95
    beta2: Fraction = 0.95
    shampoo_beta: Fraction | None = None  # of the factors; unset: beta2
    eps: PositiveFloat = 1e-8
    bias_correction: Switch = True
    precondition_frequency: PositiveInt = 10
    max_preconditioner_dim: PositiveInt = 10_000
    precondition_1d: Switch = False

    def kept(self, shape: Sequence[int]) -> int:
        has_factors = len(shape) > 1 or (len(shape) == 1 and self.precondition_1d)
        sides = [side for side in shape if side <= self.max_preconditioner_dim] if has_factors else []
        return self.STATES * math.prod(shape) + of_factors(sides)

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        check_installed(self.name)
        from largebatch.optimizers._pytorch_optimizer import Soap

        return Soap(
            groups,
            lr=lr,
            betas=(self.beta1, self.beta2),
            shampoo_beta=self.shampoo_beta,
            eps=self.eps,
            correct_bias=self.bias_correction,
            precondition_frequency=self.precondition_frequency,
            max_precondition_dim=self.max_preconditioner_dim,
            precondition_1d=self.precondition_1d,
        )
