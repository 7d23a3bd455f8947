"""Activation checkpointing: a module keeps its inputs alone and computes its inside again in the backward pass.

Chen et al. 2016, arXiv:1604.06174, by torch's non-reentrant ``torch.utils.checkpoint``. The second pass is the first
once more, so gradients are the same to the last bit, and it leaves no trace:

    random numbers   of dropout and stochastic depth are the same: torch's global generators, and any generator that is
                     an attribute of a module, begin as in the first pass, and are afterwards where they were
    batch norm       the second pass moves copies of the running statistics; sized norms count no part twice, and one
                     that ranks share gathers a second time
    arguments        lists and mappings are those of the first pass, though the caller may have added to them; torch
                     refuses a tensor that has been changed in place since

:func:`recompute` makes a module of another class, as :mod:`.frozen` does, so the names of tensors and modules stay what
they are, and a checkpoint of a run knows nothing of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from largebatch.errors import UserError, suggestion
from largebatch.models.batch_norm import SizedNorm, batch_norms
from largebatch.optim.groups import matches

KEY = "engine.activation_checkpointing"
CONTAINERS = (nn.Sequential, nn.ModuleList)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Recomputed(nn.Module):
    """What :func:`recompute` makes of a module: the same function, of which a pass with gradients keeps the inputs."""

    def forward(self, *given: Any, **named: Any) -> Any:
        own = super().forward
        if not torch.is_grad_enabled():
            return own(*given, **named)
        if torch.compiler.is_compiling():  # the compiler sees to what moves, and draws the same numbers itself
            return checkpoint(functools.partial(_compiled, own), *given, use_reentrant=False, **named)
        given, named = tree_map(lambda leaf: leaf, (given, named))
        return checkpoint(own, *given, use_reentrant=False, context_fn=functools.partial(_passes, self), **named)


def _compiled(own: Any, *given: Any, **named: Any) -> Any:
    """Refuse what the compiler gave back uncompiled: the second pass would leave traces."""
    if not torch.compiler.is_compiling():
        raise UserError(f"compile = true cannot compile a module that {KEY} computes again; leave one of them out")
    return own(*given, **named)


def recompute(model: nn.Module, name: str, patterns: Collection[str] | None = None, every: int = 1) -> list[str]:
    """One in ``every`` of the modules that the ``patterns`` name, or of the model's :func:`blocks`, is recomputed.

    After batch norms have their kind (:func:`~largebatch.models.batch_norm.sized`), before an engine wraps the model.
    Their names, in the model's order; UserError where there are none.
    """
    found = blocks(model) if patterns is None else named(model, name, patterns)
    if not found:
        raise UserError(
            f"{KEY} = blocks: model.name = {name} has no blocks (entries of a Sequential or ModuleList that are made "
            f"of several layers); valid: {KEY} = none, or a list of its modules: {_few(model)}"
        )
    chosen = list(found.items())[::every]
    for _, module in chosen:
        if not isinstance(module, Recomputed):
            module.__class__ = _recomputed(type(module))
    return [module for module, _ in chosen]


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The entries of Sequentials and ModuleLists that are made of several layers, by name.

    The outermost of each branch; but of an entry that holds such a container itself, with two entries of one class or
    more, those: a stage of a hierarchical transformer is not one block. FSDP2 has blocks of its own
    (:func:`largebatch.engines.fsdp.blocks`), since what it gathers should be large, and what is kept here be small.
    """
    found: dict[str, nn.Module] = {}

    def walk(name: str, module: nn.Module) -> None:
        for own, child in module.named_children():
            full = f"{name}.{own}" if name else own
            if isinstance(module, CONTAINERS) and _is_block(child) and not _has_stages(child):
                found.setdefault(full, child)
            else:
                walk(full, child)

    walk("", model)
    return found


def named(model: nn.Module, name: str, patterns: Collection[str]) -> dict[str, nn.Module]:
    """The modules that the patterns name, each but for those within another."""
    modules = {own: module for own, module in model.named_modules() if own}
    for pattern in patterns:
        if not any(matches(own, [pattern]) for own in modules):
            raise UserError(
                f"{KEY}: no module of model.name = {name} has a name like {pattern!r}"
                f"{suggestion(pattern, list(modules))}"
            )
    found: dict[str, nn.Module] = {}
    for own, module in modules.items():
        if any(matches(own, [pattern]) for pattern in patterns) and not any(own.startswith(f"{o}.") for o in found):
            if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and type(module).forward is nn.Module.forward:
                raise UserError(
                    f"{KEY}: {own} of model.name = {name} is a {type(module).__name__}, which computes nothing itself; "
                    f"write {own}.* for its entries"
                )
            found[own] = module
    return found


def words_of(model: nn.Module) -> str:
    """Of how many modules the inside is computed again, and what they are; empty where it is of none."""
    found = [_kind(module).__name__ for module in model.modules() if isinstance(module, Recomputed)]
    if not found:
        return ""
    kinds = ", ".join(dict.fromkeys(found))
    return f"activations inside of {len(found):,} module{'s' * (len(found) > 1)} ({kinds}) are computed again"


def check_moving(model: nn.Module, name: str, moving: Collection[str]) -> None:
    """Refuse recomputed modules with buffers that every training pass moves, other than batch norms' statistics: a
    second pass would begin with other values, and move them again. ``moving``: the names of the model's."""
    of_norms = {
        f"{prefix}.{own}"
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for own in STATISTICS
    }
    for prefix, module in model.named_modules():
        for own, _ in module.named_buffers() if isinstance(module, Recomputed) else ():
            if f"{prefix}.{own}" in moving and f"{prefix}.{own}" not in of_norms:
                raise UserError(
                    f"{KEY}: {prefix}.{own} of model.name = {name} moves with every pass, and a second one would begin "
                    f"with other values; valid: {KEY} = none, or a list of modules without it"
                )


class _Norm(NamedTuple):
    """A batch norm as it is when a pass begins."""

    module: _BatchNorm
    tracks: bool


def _passes(module: nn.Module) -> tuple[Any, Any]:
    """What the first pass runs in, and the second one."""
    norms = [_Norm(norm, norm.track_running_stats) for norm in batch_norms(module)]
    generators = [
        (value, value.get_state())
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Generator)
    ]
    return contextlib.nullcontext(), _without_a_trace(norms, generators)


@contextlib.contextmanager
def _without_a_trace(norms: list[_Norm], generators: list[tuple[torch.Generator, Tensor]]) -> Iterator[None]:
    """Inside, a pass computes what it did, and moves copies. The number of tensors that it saves must stay, so that
    norms are not simply told to track nothing."""
    with contextlib.ExitStack() as stack:
        for norm in norms:
            stack.enter_context(_norm_as_it_was(*norm))
        for generator, state in generators:
            stack.callback(generator.set_state, generator.get_state())
            generator.set_state(state)
        yield


@contextlib.contextmanager
def _norm_as_it_was(norm: _BatchNorm, tracks: bool) -> Iterator[None]:
    """Tracking as in the first pass, into copies."""
    buffers = {name: buffer for name in STATISTICS if (buffer := norm._buffers.get(name)) is not None}
    tracked, sums = norm.track_running_stats, norm.sums if isinstance(norm, SizedNorm) else None
    norm.track_running_stats = tracks
    for name, buffer in buffers.items():
        norm._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        norm.track_running_stats = tracked
        norm._buffers.update(buffers)
        if isinstance(norm, SizedNorm):
            norm.sums = sums


def _is_block(module: nn.Module) -> bool:
    """Made of several layers, and not a layer with an activation of its own, as timm's norms are."""
    layers = sum(not list(part.children()) for part in module.modules())
    alone = any(True for _ in module.parameters(recurse=False)) and not any(
        True for child in module.children() for _ in child.parameters()
    )
    return not isinstance(module, CONTAINERS) and layers > 1 and not alone


def _has_stages(module: nn.Module) -> bool:
    """Whether a container in it holds two blocks of one class."""
    for part in module.modules():
        if isinstance(part, CONTAINERS):
            kinds = [type(child) for child in part if _is_block(child)]
            if len(kinds) > len(set(kinds)):
                return True
    return False


def _few(model: nn.Module, most: int = 6) -> str:
    names = [name for name, child in model.named_children() if sum(1 for _ in child.modules()) > 1] or [
        name for name, _ in model.named_children()
    ]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _kind(module: nn.Module) -> type:
    """What it was before."""
    kinds = type(module).__mro__
    return kinds[kinds.index(Recomputed) + 1]


@functools.cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})
