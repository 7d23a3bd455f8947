"""Shampoo by pytorch_optimizer, in two forms. With G_(i), axis i of G laid against all others, and k axes:

gupta2018 (Gupta et al. 2018, 1802.09568, Algorithm 2; the package's Shampoo)

    L_i ← L_i + G_(i) G_(i)ᵀ, from ε·I                θ ← (1 − η·λ)·θ − η·(G ×_1 L_1^(−1/2k) ... ×_k L_k^(−1/2k))

anil2020 (Anil et al. 2020, 2002.09018, and Google's distributed_shampoo.py; the package's ScalableShampoo)

    L_i ← β2·L_i + (1 − β2)·G_(i) G_(i)ᵀ, from ε·I    P_i = (L_i + ε·λmax(L_i)·I)^(−1/2k)
    U = G ×_1 P_1 ... ×_k P_k                         D = G (``grafting: sgd``), G/(√ΣG² + 1e-10) (``adagrad``),
    U ← U·‖D‖/(‖U‖ + 1e-16)                               G/(√EMA(G²; β2) + 1e-10) (``rmsprop``)
    M ← β1·M + U          N ← β1·N + D                θ ← (1 − η·λ)·θ − η·(U + β1·M), without Nesterov η·M

ε is ``matrix_eps``. ``exponent_override: p`` puts −1/p in the place of −1/2k; ``grafting: none`` leaves U its own
length. Before step ``start_preconditioning_step``, counted from 1, N and D stand for M and U. Roots are computed every
``precondition_frequency`` steps and before the first of them are I, in gupta2018 0: until then nothing moves there.

Every axis is preconditioned: a matrix has −1/4, a convolution's weight four factors with −1/8. anil2020 cuts an axis
into blocks of ``block_size``, each with factors of its own, and moves by D alone what has an axis longer than
``max_preconditioner_dim`` (embeddings, heads), and vectors and numbers (norms, biases). gupta2018 has no blocks, takes
vectors with −1/2 and refuses longer axes. ``roots: newton`` iterates (Guo & Higham 2006) until the residual is below
1e-3; ``svd`` is exact and leaves out ε·λmax, as gupta2018's are.

Not in the package, or left out: gupta2018's momentum (the package mixes the preconditioned gradient into the next one),
factors that are summed in anil2020 (β2 = 1), and the merging of small axes, by which the package would not precondition
a layer of at most ``block_size`` weights at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from largebatch.errors import UserError
from largebatch.optimizers import Optimizer, Surroundings
from largebatch.optimizers._kronecker import KroneckerSection, check_installed, of_factors
from largebatch.recipes.keys import Fraction, Number, PositiveFloat, PositiveInt, Switch

if TYPE_CHECKING:
    import torch


OF_ANIL = {  # the keys that gupta2018 has not, as they are unless set
    "beta1": 0.9,
    "beta2": 0.999,
    "nesterov": True,
    "grafting": "sgd",
    "start_preconditioning_step": 5,
    "block_size": 128,
    "roots": "newton",
}
GRAFTS = {"none": 0, "sgd": 1, "adagrad": 2, "rmsprop": 3}  # the package's numbers


class ShampooSection(KroneckerSection):
    FIXED: ClassVar[frozenset[str]] = Optimizer.FIXED | {
        "matrix_eps", "precondition_frequency", "max_preconditioner_dim", "exponent_override", *OF_ANIL,
    } - {"beta1", "nesterov"}  # fmt: skip

    name: Literal["shampoo"]
    variant: Literal["anil2020", "gupta2018"] = "anil2020"
    matrix_eps: PositiveFloat = 1e-6
    precondition_frequency: PositiveInt = 1
    max_preconditioner_dim: PositiveInt = 4096
    exponent_override: PositiveInt | None = None  # of anil2020, like all that follow; unset there: see OF_ANIL
    beta1: Fraction | None = None
    beta2: Annotated[float, Field(gt=0, lt=1), Number] | None = None
    nesterov: Switch | None = None
    grafting: Literal["none", "sgd", "adagrad", "rmsprop"] | None = None
    start_preconditioning_step: PositiveInt | None = None
    block_size: PositiveInt | None = None
    roots: Literal["newton", "svd"] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def of_the_variant(cls, keys: Any) -> Any:
        if not isinstance(keys, dict) or keys.get("variant", "anil2020") != "anil2020":
            return keys
        return {**keys, **{key: value for key, value in OF_ANIL.items() if keys.get(key) is None}}

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> ShampooSection:
        if self.variant == "gupta2018":
            for key in ("exponent_override", *OF_ANIL):
                if getattr(self, key) is not None:
                    raise ValueError(f"optimizer.{key} belongs to optimizer.variant = anil2020; gupta2018 has none")
        return self

    def kept(self, shape: Sequence[int]) -> int:
        size = math.prod(shape)
        if self.variant == "gupta2018":
            return size + of_factors(shape)  # the package keeps the last step
        blocks = itertools.product(*(self.cut(side) for side in shape)) if self.has_factors(shape) else ()
        graft = 2 if self.grafting in ("adagrad", "rmsprop") else 1
        return (1 + graft) * size + sum(of_factors(sides) for sides in blocks)

    def has_factors(self, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and max(shape) <= self.max_preconditioner_dim

    def cut(self, side: int) -> Iterator[int]:
        """The sides of its blocks."""
        size = self.block_size or side
        return (min(size, side - begin) for begin in range(0, side, size))

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        check_installed(self.name)
        return self.gupta(groups, lr) if self.variant == "gupta2018" else self.anil(groups, lr)

    def gupta(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        from largebatch.optimizers._pytorch_optimizer import GuptaShampoo

        for group in groups:
            for name, weight in zip(group["names"], group["params"], strict=True):
                if longer := [side for side in weight.shape if side > self.max_preconditioner_dim]:
                    raise UserError(
                        f"optimizer.variant = gupta2018 has a factor of {longer[0]} × {longer[0]} for {name}, and "
                        f"optimizer.max_preconditioner_dim is {self.max_preconditioner_dim}; valid: optimizer.variant "
                        "= anil2020, which leaves such layers to the graft, or a higher limit"
                    )
        return GuptaShampoo(
            groups,
            lr=lr,
            weight_decouple=True,
            matrix_eps=self.matrix_eps,
            preconditioning_compute_steps=self.precondition_frequency,
        )

    def anil(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        from largebatch.optimizers._pytorch_optimizer import AnilShampoo

        return AnilShampoo(
            groups,
            lr=lr,
            betas=(self.beta1, self.beta2),
            nesterov=self.nesterov,
            graft_type=GRAFTS[self.grafting or "none"],
            matrix_eps=self.matrix_eps,
            inverse_exponent_override=self.exponent_override or 0,
            use_svd=self.roots == "svd",
            preconditioning_compute_steps=self.precondition_frequency,
            start_preconditioning_step=self.start_preconditioning_step,
            block_size=self.block_size,
            no_preconditioning_for_layers_with_dim_gt=self.max_preconditioner_dim,
            shape_interpretation=False,
            decoupled_weight_decay=True,
        )
