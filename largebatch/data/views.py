"""Views of whole batches of equal square images, uint8 (m, P, P, 3) as a pack holds them.

A view is a window of the image resized to S × S, mirrored where drawn: bilinear with antialiasing, torchvision's
``resized_crop(antialias=True)``. Interpolation is separable, so with one matrix of weights per image and direction

    view = Wy · image · Wxᵀ,    W[i, j] ∝ max(0, 1 − |(j − start + ½) − (i + ½)·s| / max(1, s)),    s = window / S

for the pixels j of the window, 0 elsewhere, every row summing to one; mirroring reverses the rows of Wx. Two forms:

``by_matmul``         on an accelerator, where two batched matmuls and a handful of kernels serve the whole batch
``by_interpolation``  on the CPU, one image at a time with torch's fixed-point kernel: ten times faster there

Both round to whole levels, as torchvision does with uint8 and as a decoded JPEG was, so that a run on either machine
trains on the same numbers but for a level here and there. Pixels and weights are float16 in matmuls, sums float32: the
pixels are exact, the weights and what lies between the matmuls are off by at most 2⁻¹¹ of themselves, which moves a
level of 255 by less than 0.4 before it is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from largebatch.data.augment import Box
from largebatch.data.sizes import CENTRE

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def centre_box(side: int, crop: float = CENTRE) -> Box:
    """What is seen of an image of ``side`` × ``side`` where nothing is drawn: ``crop`` of each side."""
    inner = round(crop * side)
    start = (side - inner) // 2
    return start, start, start + inner, start + inner


def by_matmul(images: Tensor, boxes: Tensor, flip: Tensor, size: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Views uint8 (m, 3, S, S) of ``images``; ``boxes`` (m, 4), ``flip`` (m,) on the same device. Nothing waits."""
    count, side, _, channels = images.shape
    edges = boxes.to(torch.float32).T.view(2, 2, count)  # (first, behind the last) of (columns, rows)
    mirrored = torch.stack((flip, torch.zeros_like(flip)))
    across, down = _weights(edges[0], edges[1] - edges[0], mirrored, side, size, dtype)
    levels = images.transpose(2, 3).to(dtype, memory_format=torch.contiguous_format)  # rows, channels, columns
    levels = torch.bmm(levels.view(count, side * channels, side), across.transpose(1, 2))
    levels = torch.bmm(down, levels.view(count, side, channels * size))
    return levels.round_().to(torch.uint8).view(count, size, channels, size).transpose(1, 2)


def _weights(start: Tensor, extent: Tensor, mirrored: Tensor, side: int, size: int, dtype: torch.dtype) -> Tensor:
    """W of the module's docstring, (..., S, P), for windows of ``extent`` pixels from ``start`` on."""
    scale = extent / size
    reach = scale.clamp(min=1)
    row = torch.arange(size, device=start.device)
    row = torch.where(mirrored.bool().unsqueeze(-1), size - 1 - row, row)
    centre = (row + 0.5) * (scale / reach).unsqueeze(-1)
    place = torch.arange(side, device=start.device) - start.unsqueeze(-1) + 0.5
    inside = (place > 0) & (place < extent.unsqueeze(-1))
    place = torch.where(inside, place / reach.unsqueeze(-1), torch.inf)
    weights = (place.unsqueeze(-2) - centre.unsqueeze(-1)).abs_().neg_().add_(1).clamp_(min=0)
    total = weights.sum(-1, keepdim=True)
    return torch.div(weights, total, out=torch.empty_like(weights, dtype=dtype))


def by_interpolation(
    images: Tensor, boxes: list[Box], flip: list[bool], size: int, out: Tensor | None = None
) -> Tensor:
    """Views uint8 (m, 3, S, S), channels last in memory, of ``images`` on the CPU; ``out`` (m, S, S, 3) is filled."""
    if out is None:
        out = torch.empty((len(images), size, size, images.shape[-1]), dtype=torch.uint8)
    sources, targets = images.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2)
    for row, ((left, upper, right, lower), mirrored) in enumerate(zip(boxes, flip, strict=True)):
        window = sources[row : row + 1, :, upper:lower, left:right]
        view = interpolate(window, size=(size, size), mode="bilinear", antialias=True)
        targets[row : row + 1] = view.flip(3) if mirrored else view
    return targets


def coloured(images: Tensor, factors: Tensor, orders: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels 0–255 in ``dtype`` of ``images`` (m, 3, H, W) after brightness, contrast and saturation, in order.

    torchvision's ColorJitter in floating point: with uint8 that rounds down after each of the three.

    Each is a blend, clamp(factor · image + (1 − factor) · other): ``other`` is black, the mean grey of the image, or
    the grey of the pixel. ``factors`` (m, 3) are those of the three, ``orders`` (m, 3) says which comes when.
    """
    levels = images.to(dtype, copy=True, memory_format=torch.contiguous_format)  # in planes, for the greys
    for turn in range(orders.shape[1]):
        kind = orders[:, turn : turn + 1]
        factor = factors.to(dtype).gather(1, kind).view(-1, 1, 1, 1)
        kind = kind.view(-1, 1, 1, 1)
        grey = (levels[:, :1] * _LUMA[0]).add_(levels[:, 1:2], alpha=_LUMA[1]).add_(levels[:, 2:], alpha=_LUMA[2])
        other = torch.where(kind == _CONTRAST, grey.mean((2, 3), keepdim=True), grey)
        other = other.mul_((1 - factor) * (kind != _BRIGHTNESS))
        levels.mul_(factor).add_(other).clamp_(0, 255)
    return levels
