"""How the averages of Adam's kind follow the batch: β1, β2 and ε of an optimizer at a global batch. No torch.

With κ = B/B0:

    beta2_half_life   β2 ← β2^κ                     Marek et al. 2025 (2507.07101): after as many examples as at B0,
                                                    half of a gradient is left in v; β1 stays
    lr.scaling        1 − β1 ← κ·(1 − β1)           Malladi et al. 2022 (2205.10287): with the lr times √κ, the
      = adam_sqrt     1 − β2 ← κ·(1 − β2)           square-root scaling rule, which keeps the limit of small steps
                      ε ← ε/√κ

The first is exact at any batch; the second is the first to first order in κ·(1 − β), and ends where κ·(1 − β) is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.optimizers import Moments, Optimizer

RULE = "adam_sqrt"


class AtBatch(NamedTuple):
    """An optimizer at a global batch."""

    optimizer: Optimizer
    key: str | None = None  # that asks for another than the one that is stated
    words: str = ""  # the arithmetic


def at_batch(run: config.Run, size: int) -> AtBatch:
    """``run``: as it is in the phase of that batch. Raises UserError where a rule leads beyond the range."""
    moments, half_life = run.optimizer.moments, run.optimizer.half_life
    if half_life is not None and moments is not None:
        reference = half_life.reference_batch_size
        found = moments._replace(beta2=moments.beta2 ** (size / reference))
        words = f"beta2 {moments.beta2:g}^({size}/{reference}) = {found.beta2:.6g}"
        return AtBatch(run.optimizer.with_moments(found), "optimizer.beta2_half_life", words)
    if run.lr.scaling == RULE and moments is not None and run.lr.reference_batch_size is not None:
        found, words = scaled(moments, size, run.lr.reference_batch_size)
        return AtBatch(run.optimizer.with_moments(found), "lr.scaling", words)
    return AtBatch(run.optimizer)


def scaled(moments: Moments, size: int, reference: int) -> tuple[Moments, str]:
    """By the whole square-root rule, and its arithmetic in words."""
    kappa = size / reference
    for key in ("beta1", "beta2"):
        beta = getattr(moments, key)
        if kappa * (1 - beta) > 1 - 1e-9:
            raise UserError(
                f"lr.scaling = {RULE} at batch {size} asks for {key} = 1 - {size}/{reference} × (1 - {beta:g}), which "
                f"is not above 0; the rule ends below batch {math.ceil(reference / (1 - beta) - 1e-9)}"
            )
    beta1, beta2 = (1 - kappa * (1 - beta) for beta in (moments.beta1, moments.beta2))
    eps = None if moments.eps is None else moments.eps / math.sqrt(kappa)
    words = [
        f"{key} 1 - {size}/{reference} × (1 - {was:g}) = {now:.6g}"
        for key, was, now in (("beta1", moments.beta1, beta1), ("beta2", moments.beta2, beta2))
    ]
    if moments.eps is not None:
        words.append(f"eps {moments.eps:g}/√({size}/{reference}) = {eps:.6g}")
    return Moments(beta1, beta2, eps), ", ".join(words)


def refusals(run: config.Run) -> Iterator[str]:
    """Where a rule has nothing to change, or not all that it should; each is a sentence."""
    half_life, name = run.optimizer.half_life, run.optimizer.name
    yield from run.lr.misfits(run.optimizer)
    if run.lr.scaling == RULE:
        if run.optimizer.moments is None or run.optimizer.moments.eps is None:
            yield (
                f"lr.scaling = {RULE} changes beta1, beta2 and eps of Adam's kind, and optimizer.name = {name} does "
                "not have all of them here; valid: linear, sqrt, none"
            )
        if half_life is not None:
            yield f"lr.scaling = {RULE} and optimizer.beta2_half_life both say what beta2 is at a batch; choose one"
        if run.batch.ramp is not None:
            yield f"lr.scaling = {RULE} is the lr, beta1, beta2 and eps of one batch; write batch.ramp as phases"
    asked = "optimizer.beta2_half_life" if half_life is not None else f"lr.scaling = {RULE}"
    if half_life is not None or run.lr.scaling == RULE:
        for method in run.methods.values():
            if method.ALONE:
                yield f"{method.where} has workers with batches of their own, which {asked} does not follow; choose one"
