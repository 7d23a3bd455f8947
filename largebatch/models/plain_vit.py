"""The plain vision transformer of Beyer, Zhai, Kolesnikov 2022 (arXiv:2205.01580), which AlgoPerf trains as well.

    x = patches·E + P          P[i, j] = (sin xω, cos xω, sin yω, cos yω) of the patch at row y = i, column x = j,
                               ω_k = 10000^(−k/(D/4 − 1)), k = 0 ... D/4 − 1; fixed, as MoCo v3 has it
    z = norm(blocks(x))        blocks normalise first; GELU by its tanh form
    y = W·tanh(V·mean of z over all patches)      or W·mean where there is no ``representation``

No class token and no dropout. Body, patches and attention are timm's. It begins as big_vision's: Xavier's uniform
weights in the blocks, query, key and value each by itself, biases of the MLPs N(0, 1e-12); patches and V normal, cut
off at two standard deviations, of variance 1/inputs; the head and all other biases 0.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

TEMPERATURE = 10_000.0
CUT = 0.87962566103423978  # the standard deviation of N(0, 1) cut off at ±2


def plain_vit(
    num_classes: int,
    image_shape: tuple[int, int, int],
    patch_size: int = 16,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    representation: bool = True,
) -> nn.Module:
    """ViT-S/16 unless said otherwise. ``representation``: a layer with tanh before the head, as wide as the body."""
    from timm.models.vision_transformer import VisionTransformer

    channels, height, sides = image_shape
    if height != sides:
        raise ValueError(f"images of {height}×{sides} are not square")
    if height % patch_size:
        raise ValueError(f"patch_size = {patch_size} does not divide images of {height} pixels a side")
    if width % 4 or width < 8 or width % heads:
        raise ValueError(f"width = {width} should be a multiple of 4 and of heads = {heads}, and at least 8")
    body: Any = VisionTransformer(
        img_size=height,
        patch_size=patch_size,
        in_chans=channels,
        num_classes=num_classes,
        global_pool="avg",
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        class_token=False,
        fc_norm=False,
        act_layer=functools.partial(nn.GELU, approximate="tanh"),
        weight_init="skip",
    )
    side = height // patch_size
    body.pos_embed = nn.Parameter(positions(side, side, width).float()[None], requires_grad=False)
    head = nn.Linear(width, num_classes)
    before = [("representation", nn.Linear(width, width)), ("tanh", nn.Tanh())] if representation else []
    body.head = nn.Sequential(OrderedDict([*before, ("classes", head)]))
    _initialise(body, head)
    return body


def positions(rows: int, columns: int, width: int) -> Tensor:
    """P of a grid in row-major order: (rows·columns, width), float64."""
    rates = TEMPERATURE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    along_x, along_y = x.reshape(-1, 1) * rates, y.reshape(-1, 1) * rates
    return torch.cat([along_x.sin(), along_x.cos(), along_y.sin(), along_y.cos()], dim=1)


def _initialise(body: nn.Module, head: nn.Linear) -> None:
    for name, layer in body.named_modules():
        if isinstance(layer, nn.Conv2d) or name.endswith("representation"):
            _cut_normal(layer)  # type: ignore[arg-type]
        elif isinstance(layer, nn.Linear):
            for part in layer.weight.chunk(3) if name.endswith("qkv") else (layer.weight,):
                nn.init.xavier_uniform_(part)
            nn.init.zeros_(layer.bias)
            if ".mlp." in name:
                nn.init.normal_(layer.bias, std=1e-6)
    nn.init.zeros_(head.weight)


def _cut_normal(layer: nn.Conv2d | nn.Linear) -> None:
    std = math.sqrt(1 / layer.weight[0].numel()) / CUT
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
