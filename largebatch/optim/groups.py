"""Who is decayed and who is adapted.

Norm layers and biases have no scale to preserve: decaying them, or giving them a trust ratio, is what broke
LARS at large batches for most who tried it. A parameter is ``norm`` if the module that owns it normalises
(by its class), ``bias`` if it is called so, else ``weight``; a norm layer's bias counts as norm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from torch import nn

from largebatch.errors import UserError, suggestion

KINDS = ("norm", "bias", "weight")


class Treatment(NamedTuple):
    """What happens to one parameter; the rows of the table a run prints."""

    name: str
    kind: str  # weight, norm, bias
    shape: tuple[int, ...]
    decayed: bool
    adapted: bool


def treatments(
    model: nn.Module, skip_decay: Collection[str], skip_adaptation: Collection[str] | None
) -> list[Treatment]:
    """One row per trainable parameter; ``skip_adaptation`` None means nobody is adapted."""
    for argument, skipped in (("skip_decay", skip_decay), ("skip_adaptation", skip_adaptation or ())):
        if isinstance(skipped, str):
            raise UserError(f"{argument} = {skipped!r} is one word; write a list: [{skipped!r}]")
        if unknown := sorted(set(skipped) - set(KINDS)):
            raise UserError(f"{argument}: {unknown[0]!r} is not known{suggestion(unknown[0], list(KINDS))}")
    return [
        Treatment(
            name,
            kind,
            tuple(parameter.shape),
            decayed=kind not in skip_decay,
            adapted=skip_adaptation is not None and kind not in skip_adaptation,
        )
        for name, kind, parameter in kinds(model)
    ]


def parameter_groups(model: nn.Module, weight_decay: float, table: list[Treatment]) -> list[dict[str, Any]]:
    """At most four groups, one per combination that occurs, for any torch optimizer."""
    parameters = dict(model.named_parameters())
    if missing := [row.name for row in table if row.name not in parameters]:
        raise UserError(f"the table is of another model: this one has no {missing[0]}")
    groups: dict[tuple[bool, bool], list[str]] = {}
    for row in table:
        groups.setdefault((row.decayed, row.adapted), []).append(row.name)
    return [
        {
            "params": [parameters[name] for name in names],
            "names": names,
            "weight_decay": weight_decay if decayed else 0.0,
            "adapt": adapted,
        }
        for (decayed, adapted), names in groups.items()
    ]


def kinds(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                kind = "norm" if is_norm(module) else "bias" if name.endswith("bias") else "weight"
                yield f"{prefix}.{name}" if prefix else name, kind, parameter


def is_norm(module: nn.Module) -> bool:
    """Batch, layer, group, instance, RMS norms of torch, timm and torchvision: all say so in their class name."""
    return "norm" in type(module).__name__.lower()
