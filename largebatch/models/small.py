"""Networks for small images: the quickstart's CNN, a perceptron, and residual networks for 32×32.

    tiny_cnn    three 3×3 convolutions of stride 2, batch norm, ReLU, one linear layer
    mlp         hidden layers of one width, optionally with batch norm (F1 of Keskar et al. 2017: 5 × 512)
    resnet20    He et al. 2016 (1512.03385), §4.2: 16-32-64 channels, 6n + 2 layers, here with projections
    resnet18    the same paper's 18 layers with the stem of 3×3 convolution that 32×32 images are given
    resnet9     the narrow residual net of Page 2018 (DAWNBench), two residual blocks
    wide_resnet Zagoruyko & Komodakis 2016 (1605.07146): pre-activation blocks, 16k-32k-64k channels, 6n + 4 layers

Convolutions start from He's normal initialisation (fan out), as in torchvision. ``zero_init_residual`` sets the
last batch norm's γ of every residual block to 0 (Goyal et al. 2017, §5.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def tiny_cnn(
    num_classes: int,
    image_shape: tuple[int, int, int],
    channels: Sequence[int] = (16, 32, 64),
    norm: bool = True,
    dropout: float = 0.0,
    pool: int | None = None,
) -> nn.Module:
    """``pool``: the side to which the last maps are averaged before the linear layer; None leaves them as they are."""
    at_least_1(pool=1 if pool is None else pool, channels=min(channels, default=0))
    inputs, height, width = image_shape
    layers: list[nn.Module] = []
    for outputs in channels:
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.ReLU(inplace=True))
        inputs, height, width = outputs, (height + 1) // 2, (width + 1) // 2
    if pool is not None:
        layers.append(nn.AdaptiveAvgPool2d(pool))
        height = width = pool
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs * height * width, num_classes)]
    return he_initialised(nn.Sequential(*layers))


def mlp(
    num_classes: int,
    image_shape: tuple[int, ...],
    width: int = 512,
    depth: int = 2,
    norm: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """``depth`` hidden layers of ``width``, over inputs of any shape."""
    at_least_1(width=width)
    inputs = math.prod(image_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers.append(nn.Linear(inputs, width, bias=not norm))
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


def at_least_1(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} = {size} must be at least 1")


class Residual(nn.Module):
    """x + F(x), F two 3×3 convolutions; the shortcut is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.last_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last_norm(self.body(x)) + self.shortcut(x))


def residual_network(
    num_classes: int,
    image_shape: tuple[int, int, int],
    blocks: Sequence[int],
    channels: Sequence[int],
    zero_init_residual: bool,
) -> nn.Module:
    inputs = channels[0]
    layers: list[nn.Module] = [*convolution(image_shape[0], inputs)]
    for stage, (count, outputs) in enumerate(zip(blocks, channels, strict=True)):
        for block in range(count):
            layers.append(Residual(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return he_initialised(nn.Sequential(*layers), zero_init_residual)


def resnet20(
    num_classes: int,
    image_shape: tuple[int, int, int],
    depth: int = 20,
    width: int = 1,
    zero_init_residual: bool = False,
) -> nn.Module:
    """``depth`` = 6n + 2; ``width`` multiplies the 16-32-64 channels."""
    at_least_1(width=width)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth = {depth} is not 6n + 2; nearest: {max(8, (depth - 2) // 6 * 6 + 2)}")
    n = (depth - 2) // 6
    return residual_network(
        num_classes, image_shape, (n, n, n), (16 * width, 32 * width, 64 * width), zero_init_residual
    )


def resnet18(
    num_classes: int, image_shape: tuple[int, int, int], width: int = 64, zero_init_residual: bool = False
) -> nn.Module:
    at_least_1(width=width)
    channels = [width, 2 * width, 4 * width, 8 * width]
    return residual_network(num_classes, image_shape, (2, 2, 2, 2), channels, zero_init_residual)


def resnet9(
    num_classes: int, image_shape: tuple[int, int, int], width: int = 64, zero_init_residual: bool = False
) -> nn.Module:
    at_least_1(width=width)
    w = width
    layers: list[nn.Module] = [
        *convolution(image_shape[0], w),
        *convolution(w, 2 * w),
        nn.MaxPool2d(2),
        Residual(2 * w, 2 * w, 1),
        *convolution(2 * w, 4 * w),
        nn.MaxPool2d(2),
        *convolution(4 * w, 8 * w),
        nn.MaxPool2d(2),
        Residual(8 * w, 8 * w, 1),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * w, num_classes),
    ]
    return he_initialised(nn.Sequential(*layers), zero_init_residual)


class PreActivation(nn.Module):
    """x + F(a), a = ReLU(BN(x)) and F two 3×3 convolutions; where the shape changes, a projection of a instead of x."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(x)
        return self.body(active) + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(
    num_classes: int, image_shape: tuple[int, int, int], depth: int = 28, width: int = 10, dropout: float = 0.0
) -> nn.Module:
    """WRN-``depth``-``width``; ``depth`` = 6n + 4. ``dropout`` lies between the two convolutions of a block."""
    at_least_1(width=width)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth = {depth} is not 6n + 4; nearest: {max(10, (depth - 4) // 6 * 6 + 4)}")
    inputs = 16
    layers: list[nn.Module] = [nn.Conv2d(image_shape[0], inputs, 3, padding=1, bias=False)]
    for stage, outputs in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            layers.append(PreActivation(inputs, outputs, 2 if stage > 0 and block == 0 else 1, dropout))
            inputs = outputs
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return he_initialised(nn.Sequential(*layers, nn.Linear(inputs, num_classes)))


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def he_initialised(model: nn.Module, zero_init_residual: bool = False) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Residual) and zero_init_residual:
            nn.init.zeros_(module.last_norm.weight)
    return model
