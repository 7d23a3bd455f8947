"""The network of airbench (Jordan 2024, arXiv:2404.00498): images of 32 × 32, and a first layer that whitens patches.

    x ← gelu(w * x + b)        a convolution without padding, whose filters w are set from training images and frozen
    x ← gelu(norm(conv(gelu(norm(pool(conv(x)))))))        three blocks; with three convolutions the last two are
                                                           a residual: gelu(x + norm(conv(gelu(norm(conv(x))))))
    y = s · W·(max of each channel)                        s: ``logit_scale``

Convolutions are 3 × 3 without bias and begin as identities on as many channels as come in (Dirac), the rest of their
filters as torch's. Norms have ε = 1e-12, a bias that is trained and a factor that stays 1. b begins at 0.

The filters (Page 2019, How to train your ResNet 8): of the c·k² eigenvectors v_i of the patches' second moments,

    C = 1/n · Σ p·pᵀ = Σ λ_i·v_i·v_iᵀ        w = ±v_i/√(λ_i + ε),  ε = 5e-4

twice each, with both signs: 2·c·k² filters. Patches lie at every place of the first 5,000 training images, normalised
and not augmented. What is computed of them is the same on every rank, and is not done anew at a resume: the filters
are weights of the model like others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from largebatch.models.small import at_least_1

EPS = 5e-4
BLOCKS = 3


def airbench(
    num_classes: int,
    image_shape: tuple[int, int, int],
    channels: Sequence[int] = (64, 256, 256),
    convolutions: int = 2,
    whiten_size: int = 2,
    logit_scale: float = 1 / 9,
) -> nn.Module:
    """That of airbench94; of airbench96 with ``channels`` 128, 384, 512 and three ``convolutions`` in a block."""
    at_least_1(channels=min(channels, default=0), whiten_size=whiten_size)
    if len(channels) != BLOCKS:
        raise ValueError(f"channels = {list(channels)} should be those of {BLOCKS} blocks")
    if convolutions not in (2, 3):
        raise ValueError(f"convolutions = {convolutions} of a block should be 2 or 3")
    least = whiten_size - 1 + 2**BLOCKS
    if min(image_shape[1:]) < least:
        raise ValueError(f"images should have at least {least} pixels a side")
    return AirbenchNet(num_classes, image_shape, channels, convolutions, whiten_size, logit_scale)


class AirbenchNet(nn.Module):
    first_examples = 5000  # of the training set, which it is shown before it begins: run/first_examples.py

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        channels: Sequence[int],
        convolutions: int,
        whiten_size: int,
        logit_scale: float,
    ) -> None:
        super().__init__()
        inputs, height, side = image_shape
        width = 2 * inputs * whiten_size**2
        self.whiten = nn.Conv2d(inputs, width, whiten_size)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.blocks = nn.Sequential()
        for outputs in channels:
            self.blocks.append(ConvolutionBlock(width, outputs, convolutions))
            width = outputs
        self.pool = nn.MaxPool2d(((height - whiten_size + 1) // 2**BLOCKS, (side - whiten_size + 1) // 2**BLOCKS))
        self.head = nn.Linear(width, num_classes, bias=False)
        self.activation = nn.GELU()
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(self.activation(self.whiten(images)))
        return self.head(self.pool(maps).flatten(1)) * self.logit_scale

    @torch.no_grad()
    def begin_with(self, images: Tensor) -> None:
        """The filters from ``images`` (n, C, H, W), as the model is given them."""
        self.whiten.weight.copy_(whitening_filters(images, self.whiten.kernel_size[0]))


class ConvolutionBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, convolutions: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = identity_convolution(inputs, outputs), bias_norm(outputs)
        self.conv2, self.norm2 = identity_convolution(outputs, outputs), bias_norm(outputs)
        self.residual = convolutions == 3
        if self.residual:
            self.conv3, self.norm3 = identity_convolution(outputs, outputs), bias_norm(outputs)
        self.pool, self.activation = nn.MaxPool2d(2), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        y = self.norm2(self.conv2(x))
        if self.residual:
            y = x + self.norm3(self.conv3(self.activation(y)))
        return self.activation(y)


def identity_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def bias_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12)
    norm.weight.requires_grad_(False)
    return norm


def whitening_filters(images: Tensor, size: int) -> Tensor:
    """±v_i/√(λ_i + ε), those of the largest λ first: (2·C·size², C, size, size), computed in float64.

    Of a vector's two signs that comes first which makes its largest element positive.
    """
    channels = images.shape[1]
    moments = torch.zeros(channels * size**2, channels * size**2, dtype=torch.float64)
    count = 0
    for some in images.split(500):  # a patch is a row of size² times as many numbers as its pixels
        patches = torch.nn.functional.unfold(some.double(), size).transpose(1, 2).flatten(0, 1)
        moments += patches.T @ patches
        count += len(patches)
    values, vectors = torch.linalg.eigh(moments / count)
    rows = vectors.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    rows = rows * largest.sign() / (values.flip(0)[:, None] + EPS).sqrt()
    return torch.cat([rows, -rows]).view(-1, channels, size, size)
