"""The layers that give a model's outputs: what is begun anew where it is to tell other classes apart."""

from __future__ import annotations

from typing import Any

from torch import nn

from largebatch.errors import UserError


def head_of(model: nn.Module) -> list[str]:
    """The names of timm's classifier, which may be two layers, else of the last linear layer; none where there is
    neither."""
    of_timm = getattr(model, "pretrained_cfg", None)
    stated = (of_timm.get("classifier") if isinstance(of_timm, dict) else None) or ()
    layers = dict(model.named_modules())
    named = [name for name in ([stated] if isinstance(stated, str) else stated) if name in layers]
    return named or [name for name, layer in layers.items() if isinstance(layer, nn.Linear)][-1:]


def initialise_head(model: nn.Module, name: str, std: Any) -> None:
    """The last linear layer starts as N(0, std²) with a bias of 0 (Goyal et al. 2017, §5.1: 0.01)."""
    if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 <= std < float("inf"):
        raise UserError(f"model.head_init_std = {std} should be a standard deviation of at least 0, such as 0.01")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"model.head_init_std has nothing to act on: model.name = {name} has no linear layer")
    nn.init.normal_(linear[-1].weight, std=std)
    if linear[-1].bias is not None:
        nn.init.zeros_(linear[-1].bias)
