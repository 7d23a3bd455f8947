"""What Shampoo and SOAP share: a factor for every axis of a layer, and the package that steps them.

With G_(i), axis i of the gradient laid against all others, the factor of axis i is an average or a sum of G_(i) G_(i)ᵀ.
A layer is seen whole, so engines that cut layers are refused; where weights and gradients are alike on all ranks, each
computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from largebatch.errors import UserError
from largebatch.optimizers import Optimizer
from largebatch.recipes.keys import PositiveInt


class KroneckerSection(Optimizer):
    SHARD_SAFE: ClassVar[bool] = False

    precondition_frequency: PositiveInt  # steps from one root, or basis, to the next
    max_preconditioner_dim: PositiveInt

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        yield from super().refusals(run, precision)
        if cut := engine_that_cuts(run.engine):
            yield (
                f"optimizer.name = {self.name} needs whole layers on every rank, and {cut} cuts them; valid: "
                "engine.name = ddp, or deepspeed with engine.zero = 0"
            )


def engine_that_cuts(engine: Any) -> str | None:
    """In words; None: every rank holds all weights and all optimizer states."""
    if engine.name == "fsdp":
        return "engine.name = fsdp"
    zero = getattr(engine, "zero", 0)
    return f"engine.name = {engine.name} with engine.zero = {zero}" if zero else None


def check_installed(name: str) -> None:
    try:
        import pytorch_optimizer  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"optimizer.name = {name} is stepped by the package pytorch_optimizer ({error}); valid: pip install "
            "'largebatch[preconditioned]', or another optimizer"
        ) from None


def of_factors(sides: Sequence[int]) -> int:
    """Numbers of a square matrix for each side, and of what is computed of it: a root, or a basis."""
    return 2 * sum(side * side for side in sides)
