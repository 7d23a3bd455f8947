"""The settings of Muon's parameter groups: variants, words and ranges. The equations are in :mod:`.muon`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.errors import UserError, suggestion
from largebatch.optim.loading import Group
from largebatch.optim.muon_trust import Trust


class MuonVariant(NamedTuple):
    match: str
    nesterov: bool
    equal_rows: bool = False
    trust: Trust | None = None


VARIANTS = {
    "jordan2024": MuonVariant("spectral", nesterov=True),
    "moonlight2025": MuonVariant("rms", nesterov=True),
    "normuon": MuonVariant("rms", nesterov=False, equal_rows=True),
    "orscale": MuonVariant("none", nesterov=True, trust=Trust(0.5, 1.5)),
    "orscale_lm": MuonVariant("rms", nesterov=True, trust=Trust(0.1, 5.0, calibrated=True)),
}
MATCHES = ("none", "rms", "spectral")
OTHERS = ("sgd", "adamw")
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
OLDER = {"original": "spectral", "match_rms_adamw": "rms"}  # what adjust_lr was, torch's adjust_lr_fn
AT_LEAST_ZERO = (
    "lr",
    "others_lr_scale",
    "weight_decay",
    "momentum",
    "others_momentum",
    "row_beta",
    "beta1",
    "beta2",
    "eps",
)
BELOW_ONE = ("momentum", "others_momentum", "row_beta", "beta1", "beta2")
MOST_ITERATIONS = 99  # as torch's


def of_today(group: Group) -> Group:
    """Groups of before ``match`` have torch's word for it."""
    if "adjust_lr" not in group:
        return group
    kept = {key: value for key, value in group.items() if key != "adjust_lr"}
    return {"match": OLDER.get(group["adjust_lr"], group["adjust_lr"]), **kept}


def check_group(number: int, group: Group) -> None:
    if not isinstance(group.get("muon"), bool):
        raise UserError(
            f"parameter group {number} must say whether it is Muon's by muon = true or false, it says "
            f"{group.get('muon')!r}: make the groups with muon_groups"
        )
    for key, known in (("others", OTHERS), ("match", MATCHES), ("variant", tuple(VARIANTS))):
        if group[key] not in known:
            raise UserError(f"{key} = {group[key]!r} is not known{suggestion(str(group[key]), list(known))}")
    for key in AT_LEAST_ZERO:
        if not group[key] >= 0:
            raise UserError(f"{key} = {group[key]} in parameter group {number}; it must be at least 0")
        if key in BELOW_ONE and group[key] >= 1:
            raise UserError(f"{key} = {group[key]} in parameter group {number}; it must be below 1")
    check_bounds(number, group)
    if not isinstance(group["normalised"], bool):
        raise UserError(f"normalised = {group['normalised']!r} in parameter group {number}; it must be true or false")
    if not (isinstance(group["ns_steps"], int) and 1 <= group["ns_steps"] <= MOST_ITERATIONS):
        raise UserError(
            f"ns_steps = {group['ns_steps']} in parameter group {number}; it must be a whole number from 1 to "
            f"{MOST_ITERATIONS}"
        )
    if group["muon"]:
        names = group.get("names") or [f"tensor {i} of parameter group {number}" for i in range(len(group["params"]))]
        for name, weight in zip(names, group["params"], strict=True):
            check_matrix(weight, name)


def check_bounds(number: int, group: Group) -> None:
    """Of the trust ratio, where the variant has one."""
    trust, bounds = VARIANTS[group["variant"]].trust, (group["min_trust_ratio"], group["max_trust_ratio"])
    if trust is None:
        if bounds != (None, None):
            having = ", ".join(name for name, one in VARIANTS.items() if one.trust is not None)
            raise UserError(
                f"variant = {group['variant']} has no trust ratio that min_trust_ratio or max_trust_ratio in parameter "
                f"group {number} could bound; those with one: {having}"
            )
        return
    smallest, largest = trust.bounds(group)
    if smallest > largest:
        raise UserError(
            f"min_trust_ratio = {smallest:g} in parameter group {number} is above max_trust_ratio = {largest:g}"
        )


def check_matrix(weight: Tensor, name: str) -> None:
    if weight.dim() < 2:
        raise UserError(
            f"Muon takes weights of at least two dimensions; {name} has shape {tuple(weight.shape)}: leave it to the "
            "others (muon = false), and let no engine flatten the weights before the optimizer is made"
        )
    if weight.is_complex():
        raise UserError(f"Muon orthogonalises real weights; {name} is complex: leave it to the others (muon = false)")
