"""A learning rate for each layer: the nearer to the images, the smaller (Bao et al. 2021, BEiT, arXiv:2106.08254).

    lr of a layer = lr · decay^(L − 1 − l)        l = 0 for the embedding, L − 1 for the head

Which tensors are layer l, a model says itself: timm's ``group_matcher``, as timm's own layer decay has it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from largebatch.errors import UserError


def layer_scales(model: nn.Module, name: str, decay: float) -> dict[str, float]:
    """By tensor. Refused for a model that does not say its layers, or has one."""
    matcher: Any = getattr(model, "group_matcher", None)
    if not callable(matcher):
        raise UserError(
            f"lr.layer_decay = {decay:g} needs a model that says its layers, as timm's do, and model.name = {name} "
            "says none; valid: model.name = timm/..."
        )
    from timm.models import group_parameters

    layer_of: Any = group_parameters(model, matcher(coarse=False), reverse=True)  # timm's stub says lists, too
    last = max(layer_of.values())
    if last == 0:
        raise UserError(f"lr.layer_decay = {decay:g} has no effect: model.name = {name} is one layer")
    return {tensor: decay ** (last - layer) for tensor, layer in layer_of.items()}
