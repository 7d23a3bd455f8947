"""Orthogonalised momentum: :mod:`largebatch.optim.muon`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from largebatch.optimizers import HalfLife, Moments, Optimizer, Surroundings
from largebatch.recipes.keys import Fraction, Pattern, PositiveFloat, PositiveInt, Switch

if TYPE_CHECKING:
    import torch


OWN = {  # of the variants: match, nesterov; largebatch.optim.muon has the same table
    "jordan2024": ("spectral", True),
    "moonlight2025": ("rms", True),
    "normuon": ("rms", False),
    "orscale": ("none", True),
    "orscale_lm": ("rms", True),
}
OLDER = {"original": "spectral", "match_rms_adamw": "rms"}  # optimizer.adjust_lr was torch's adjust_lr_fn


class MuonSection(Optimizer):
    """Orthogonalised momentum for hidden weights; SGD or AdamW for the stem, embeddings, the head, norms and biases."""

    SHARD_SAFE: ClassVar[bool] = True
    FIXED: ClassVar[frozenset[str]] = Optimizer.FIXED | {
        "iteration", "form", "others", "skip_orthogonalisation", "row_beta", "normalised",
        "min_trust_ratio", "max_trust_ratio",
    }  # fmt: skip
    REFERENCE: ClassVar[dict[str, Any]] = {"nesterov": False}

    name: Literal["muon"]
    variant: Literal["jordan2024", "moonlight2025", "normuon", "orscale", "orscale_lm"] = "jordan2024"
    momentum: Fraction = 0.95
    nesterov: Switch | None = None  # unset, like match: the variant's own
    match: Literal["none", "rms", "spectral"] | None = None  # what the size of an update is matched to
    ns_steps: PositiveInt = 5
    iteration: Literal["bf16", "fp32", "fp64"] = "bf16"  # the type of Newton-Schulz
    form: Literal["auto", "plain", "batched", "gram"] = "auto"
    row_beta: Fraction = 0.95  # of NorMuon's second moment of rows
    normalised: Switch = False  # before each step a matrix of A rows is scaled to a Frobenius norm of √A
    min_trust_ratio: PositiveFloat | None = None  # unset, like the next: the variant's own; orscale 0.5 and 1.5,
    max_trust_ratio: PositiveFloat | None = None  # orscale_lm 0.1 and 5; the others have no ratio
    skip_orthogonalisation: tuple[Pattern, ...] = ()  # patterns of hidden weights that are the others', too
    others: Literal["sgd", "adamw"] = "sgd"
    others_lr_scale: PositiveFloat = 1.0  # the others' lr over Muon's
    others_momentum: Fraction = 0.9
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    beta2_half_life: HalfLife | None = None
    eps: PositiveFloat = 1e-8

    @pydantic.model_validator(mode="before")
    @classmethod
    def of_today(cls, keys: Any) -> Any:
        """Recipes of before ``match`` and ``variant`` have adjust_lr; keys that are not set are the variant's."""
        if not isinstance(keys, dict):
            return keys
        keys = dict(keys)
        if "adjust_lr" in keys:
            older = keys.pop("adjust_lr")
            if older not in OLDER:
                raise ValueError(
                    f"optimizer.adjust_lr = {older} is not known; today it is optimizer.match: rms, spectral"
                )
            if keys.get("match", OLDER[older]) != OLDER[older]:
                raise ValueError("optimizer.adjust_lr is optimizer.match by its former name; leave it out")
            keys["match"] = OLDER[older]
        match, nesterov = OWN.get(keys.get("variant", "jordan2024"), (None, None))
        if keys.get("match") is None:
            keys["match"] = match
        if keys.get("nesterov") is None:
            keys["nesterov"] = nesterov
        return keys

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> MuonSection:
        if self.variant != "normuon" and self.row_beta != type(self).model_fields["row_beta"].default:
            raise ValueError("optimizer.row_beta belongs to optimizer.variant = normuon")
        bounds = {"min_trust_ratio": self.min_trust_ratio, "max_trust_ratio": self.max_trust_ratio}
        said = [key for key, value in bounds.items() if value is not None]
        if said and not self.variant.startswith("orscale"):
            raise ValueError(f"optimizer.{said[0]} belongs to optimizer.variant = orscale or orscale_lm")
        if self.beta2_half_life is not None and self.others != "adamw":
            raise ValueError("optimizer.beta2_half_life belongs to optimizer.others = adamw; sgd has no beta2")
        return self

    @property
    def half_life(self) -> HalfLife | None:
        return self.beta2_half_life

    @property
    def moments(self) -> Moments:
        """Of the others; Muon's own momentum has no ε that a rule of Adam's could scale."""
        return Moments(self.beta1, self.beta2, None)

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        settings = self.model_dump(exclude={"name", "beta2_half_life", "skip_orthogonalisation"})
        return optim.Muon(optim.muon_groups(groups, around.model, self.skip_orthogonalisation), lr=lr, **settings)
