"""Who is orthogonalised: the hidden weight matrices of a model.

A matrix is a weight of at least two dimensions that maps what one layer gives to the next. None are: the first weight
of the model, which sees the example (a stem or an embedding); every embedding table; the last, the head; norms, biases,
and vectors in disguise (a class token (1, 1, D), a layer scale (C, 1, 1)). Who is none is the second rule's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from largebatch.errors import UserError, suggestion
from largebatch.optim.groups import is_norm, matches
from largebatch.optim.loading import Group


def hidden_weights(model: nn.Module, skip: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """In the order of ``model.named_parameters()``; ``skip`` are patterns of names that are the second rule's, too."""
    check_here(model)
    weights = [
        (name, parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)  # a tied head stands where it stands
        if parameter.dim() >= 2
        and 1 < parameter.shape[0] < parameter.numel()
        and not name.endswith("bias")
        and not is_norm(owner(model, name))
    ]
    tables = {id(parameter) for name, parameter in weights if isinstance(owner(model, name), nn.Embedding)}
    ends = {id(weights[place][1]) for place in (0, -1) if weights}
    found: dict[str, nn.Parameter] = {}
    for name, parameter in weights:
        if id(parameter) not in tables | ends | {id(known) for known in found.values()}:
            found[name] = parameter
    if not found:
        raise UserError(
            f"Muon needs a model with hidden weights; {type(model).__name__} has {len(weights)} weight matrices, and "
            "the first, the last and embeddings are not Muon's"
        )
    check_skip(skip, list(found), type(model).__name__)
    return {name: parameter for name, parameter in found.items() if not matches(name, skip)}


def check_skip(skip: Collection[str], known: list[str], model: str) -> None:
    for pattern in skip:
        if not any(matches(name, [pattern]) for name in known):
            raise UserError(
                f"optimizer.skip_orthogonalisation: no hidden weight of the model has a name like {pattern!r}"
                f"{suggestion(pattern, known)}"
            )
    if all(matches(name, skip) for name in known):
        raise UserError(
            f"optimizer.skip_orthogonalisation = {list(skip)} leaves Muon none of the {len(known)} hidden weights of "
            f"{model}; choose another optimizer"
        )


def owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def check_here(model: nn.Module) -> None:
    """Refuse a model whose weights are elsewhere: ZeRO 3's zero.Init leaves empty tensors in their places."""
    for name, parameter in model.named_parameters():
        elsewhere = getattr(parameter, "ds_shape", None)
        if elsewhere is not None and parameter.numel() == 0:
            raise UserError(
                f"Muon cannot tell the matrices of a model made under deepspeed.zero.Init, where {name} of shape "
                f"{tuple(elsewhere)} is an empty tensor: make the groups with muon_groups before "
                "deepspeed.initialize, of a model made outside of it"
            )


def muon_groups(groups: list[Group], model: nn.Module, skip: Collection[str] = ()) -> list[Group]:
    """The groups of :func:`largebatch.optim.parameter_groups`, each split in two by ``muon``: hidden weights or not."""
    hidden = {id(parameter) for parameter in hidden_weights(model, skip).values()}
    known = {id(parameter) for parameter in model.parameters()}
    split: list[Group] = []
    for group in groups:
        members = list(zip(group["names"], group["params"], strict=True))
        if strangers := [name for name, parameter in members if id(parameter) not in known]:
            raise UserError(f"the parameter groups are of another model: this one does not hold their {strangers[0]}")
        for is_hidden in (True, False):
            chosen = [(name, parameter) for name, parameter in members if (id(parameter) in hidden) is is_hidden]
            if chosen:
                names, parameters = map(list, zip(*chosen, strict=True))
                split.append({**group, "params": parameters, "names": names, "muon": is_hidden})
    if not any(group["muon"] for group in split):
        raise UserError(
            f"Muon needs hidden weights to train; none of the {len(hidden)} of {type(model).__name__} is in the "
            "parameter groups: choose another optimizer"
        )
    return split


def orthogonalised_names(optimizer: Any) -> set[str]:
    """Of an optimizer's tensors those that it orthogonalises; none unless it is Muon."""
    return {name for group in optimizer.param_groups if group.get("muon") for name in group["names"]}
