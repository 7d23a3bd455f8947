"""The convolutional networks of Keskar et al. 2017 (1609.04836), as their repository's ``network_zoo.py`` has them.

    keskar_c1   C1 on CIFAR-10, C3 on CIFAR-100   two 5×5 convolutions as AlexNet's, two hidden layers
    keskar_c2   C2 and C4                         the thirteen 3×3 convolutions of VGG, one hidden layer

Pooling is "same" there: n pixels become ceil(n/2), but frameworks differ in which of them a window sees. Here the 3×3
windows reach one pixel beyond every edge, and the 2×2 windows begin at the first pixel. Convolutions and hidden layers
have no bias, since each is followed by batch norm, which takes it out again. Weights start from Glorot and Bengio's
uniform distribution (2010), which was the default of the framework they used; the paper only says "uniform random".

Their batch norm normalises by the batch in testing, too. Here it is torch's, with running statistics.
"""

from __future__ import annotations

from torch import nn


def keskar_c1(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """[64 of 5×5, max pool 3×3 stride 2] twice, 384, 192; dropout 0.5 after the hidden layers."""
    inputs, height, width = image_shape
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [*convolution(inputs, 64, 5), nn.MaxPool2d(3, stride=2, padding=1)]
        inputs, height, width = 64, -(-height // 2), -(-width // 2)
    layers.append(nn.Flatten())
    layers += [*hidden(inputs * height * width, 384), nn.Dropout(0.5), *hidden(384, 192), nn.Dropout(0.5)]
    return glorot_initialised(nn.Sequential(*layers, nn.Linear(192, num_classes)))


def keskar_c2(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """[64, 64] [128, 128] [256 × 3] [512 × 3] [512 × 3] of 3×3, a max pool after each, 512.

    Dropout 0.3 after the very first convolution and 0.4 after all others but the last of a block; 0.5 on both sides of
    the hidden layer.
    """
    inputs, height, width = image_shape
    layers: list[nn.Module] = []
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for number in range(1, count + 1):
            layers += convolution(inputs, outputs, 3)
            if number < count:
                layers.append(nn.Dropout(0.3 if outputs == 64 else 0.4))
            inputs = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        height, width = -(-height // 2), -(-width // 2)
    layers += [nn.Flatten(), nn.Dropout(0.5), *hidden(inputs * height * width, 512), nn.Dropout(0.5)]
    return glorot_initialised(nn.Sequential(*layers, nn.Linear(512, num_classes)))


def convolution(inputs: int, outputs: int, side: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def hidden(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]


def glorot_initialised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
