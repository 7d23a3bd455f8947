"""Who is decayed and who is adapted.

Norm layers and biases have no scale to preserve: decaying them, or giving them a trust ratio, is what broke
LARS at large batches for most who tried it. A parameter is ``norm`` if the module that owns it normalises
(by its class), ``bias`` if it is called so, else ``weight``; a norm layer's bias counts as norm.

Some models say themselves which of their tensors are not to be decayed (timm's ``no_weight_decay()``: class tokens,
position embeddings, tables of relative positions). Those are ``own``, and are skipped wherever anything is; an empty
list skips nothing. A recipe may name more by patterns (``*.gamma``), which match a tensor's name or a module above it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from largebatch.errors import UserError, suggestion
from largebatch.optim.loading import Group

OWN = "own"
KINDS = ("norm", "bias", OWN, "weight")
SCALE = "lr_scale"  # of a group: what the run's learning rate is multiplied by


class Treatment(NamedTuple):
    """What happens to one parameter; the rows of the table a run prints."""

    name: str
    kind: str  # weight, norm, bias, own
    shape: tuple[int, ...]
    decayed: bool
    adapted: bool
    orthogonalised: bool = False  # as a hidden weight matrix, by Muon


def treatments(
    model: nn.Module, skip_decay: Collection[str], skip_adaptation: Collection[str] | None
) -> list[Treatment]:
    """One row per trainable parameter; ``skip_adaptation`` None means nobody is adapted.

    Both hold kinds and patterns of names; one that is neither a kind nor the pattern of any tensor is refused.
    """
    rows = list(kinds(model))
    for argument, skipped in (("weight_decay.skip", skip_decay), ("optimizer.skip_adaptation", skip_adaptation or ())):
        check_skipped(argument, skipped, [name for name, _ in model.named_parameters()])
    return [
        Treatment(
            name,
            kind,
            tuple(parameter.shape),
            decayed=not is_skipped(name, kind, skip_decay),
            adapted=skip_adaptation is not None and not is_skipped(name, kind, skip_adaptation),
        )
        for name, kind, parameter in rows
    ]


def is_skipped(name: str, kind: str, skip: Collection[str]) -> bool:
    return kind in skip or (kind == OWN and bool(skip)) or matches(name, skip)


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a tensor's name, or that of a module it belongs to, is like one of the patterns."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def check_skipped(argument: str, skipped: Collection[str], names: list[str]) -> None:
    if isinstance(skipped, str):
        raise UserError(f"{argument} = {skipped!r} is one word; write a list: [{skipped!r}]")
    for pattern in skipped:
        if pattern not in KINDS and not any(matches(name, [pattern]) for name in names):
            raise UserError(
                f"{argument}: {pattern!r} is none of {', '.join(KINDS)} and no tensor of the model has a name like it"
                f"{suggestion(pattern, [*KINDS, *names])}"
            )


def as_given(groups: Iterable[Group]) -> list[Group]:
    """Parameter groups as they are given to an optimizer: settings that it fills in itself are left out."""
    keep = ("params", "names", "weight_decay", "adapt", SCALE)
    return [{key: group[key] for key in keep if key in group} for group in groups]


def parameter_groups(
    model: nn.Module, weight_decay: float, table: list[Treatment], scales: Mapping[str, float] | None = None
) -> list[Group]:
    """One group for each combination that occurs, for any torch optimizer: four, times how many ``scales`` there are.

    ``scales``: of the lr, by tensor, which a group has as ``lr_scale``.
    """
    parameters = dict(model.named_parameters())
    if missing := [row.name for row in table if row.name not in parameters]:
        raise UserError(f"the table is of another model: this one has no {missing[0]}")
    groups: dict[tuple[bool, bool, float | None], list[str]] = {}
    for row in table:
        scale = None if scales is None else scales[row.name]
        groups.setdefault((row.decayed, row.adapted, scale), []).append(row.name)
    return [
        {
            "params": [parameters[name] for name in names],
            "names": names,
            "weight_decay": weight_decay if decayed else 0.0,
            "adapt": adapted,
            **({} if scale is None else {SCALE: scale}),
        }
        for (decayed, adapted, scale), names in groups.items()
    ]


def kinds(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    states_own = getattr(model, "no_weight_decay", None)
    of_model: Any = states_own() if callable(states_own) else ()
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                name = f"{prefix}.{name}" if prefix else name
                kind = "norm" if is_norm(module) else "bias" if name.endswith("bias") else "weight"
                yield name, OWN if kind == "weight" and matches(name, of_model) else kind, parameter


def is_norm(module: nn.Module) -> bool:
    """Batch, layer, group, instance, RMS norms of torch, timm and torchvision: all say so in their class name."""
    return "norm" in type(module).__name__.lower()
