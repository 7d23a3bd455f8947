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
UNTIL = "lr_until"  # of a group: examples, from which on its learning rate is 0


class TensorRate(NamedTuple):
    """What the learning rate of a tensor is multiplied by, before so many examples have been seen; afterwards 0."""

    scale: float = 1.0
    until: float | None = None


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
    keep = ("params", "names", "weight_decay", "adapt", SCALE, UNTIL)
    return [{key: group[key] for key in keep if key in group} for group in groups]


def rate_of(group: Group, lr: float, examples_seen: float) -> float:
    """The learning rate of a step of a group, where the run's is ``lr``."""
    over = UNTIL in group and examples_seen >= group[UNTIL]
    return 0.0 if over else lr * group.get(SCALE, 1.0)


def tensor_rates(
    model: nn.Module, stated: Mapping[str, TensorRate], layers: Mapping[str, float]
) -> dict[str, TensorRate]:
    """Of each tensor: what is ``stated`` of its name, or of its kind (see :func:`is_skipped`), times its layer's.

    One that two patterns name is refused, and so is a pattern of no tensor.
    """
    trained = list(kinds(model))
    check_skipped("lr.scales", list(stated), [name for name, _, _ in trained])
    found: dict[str, TensorRate] = {}
    for name, kind, _ in trained:
        of_it = [pattern for pattern in stated if pattern == kind or matches(name, [pattern])]
        if len(of_it) > 1:
            raise UserError(f"lr.scales: {of_it[0]!r} and {of_it[1]!r} both say the lr of {name}; let one of them")
        rate = stated[of_it[0]] if of_it else TensorRate()
        found[name] = rate._replace(scale=rate.scale * layers.get(name, 1.0))
    return found


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    table: list[Treatment],
    rates: Mapping[str, TensorRate | float] | None = None,
    even: bool = False,
) -> list[Group]:
    """One group for each combination that occurs, for any torch optimizer: four, times how many ``rates`` there are.

    ``rates``: of the lr, by tensor, which a group has as ``lr_scale`` and ``lr_until``; a number is a scale. ``even``:
    the weight decay of a group is divided by its scale, so that lr times weight decay is the same of all.
    """
    parameters = dict(model.named_parameters())
    if missing := [row.name for row in table if row.name not in parameters]:
        raise UserError(f"the table is of another model: this one has no {missing[0]}")
    groups: dict[tuple[bool, bool, TensorRate | None], list[str]] = {}
    for row in table:
        rate = None if rates is None else rates[row.name]
        rate = TensorRate(rate) if isinstance(rate, (int, float)) else rate
        groups.setdefault((row.decayed, row.adapted, rate), []).append(row.name)
    return [
        {
            "params": [parameters[name] for name in names],
            "names": names,
            "weight_decay": weight_decay / (rate.scale if even and rate else 1.0) if decayed else 0.0,
            "adapt": adapted,
            **({} if rate is None else {SCALE: rate.scale}),
            **({} if rate is None or rate.until is None else {UNTIL: rate.until}),
        }
        for (decayed, adapted, rate), names in groups.items()
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
