"""Keskar's networks against the listing in their paper's repository: layers in order, shapes, parameters counted."""

from __future__ import annotations

import re

import blanks
import pytest
import torch
from torch import nn

from largebatch import models

RGB, GREY = (3, 32, 32), (1, 28, 28)
HIDDEN = ["Linear", "BatchNorm1d", "ReLU", "Dropout 0.5"]
C1 = [*2 * ["Conv2d 64 5", "BatchNorm2d", "ReLU", "MaxPool2d 3 2"], "Flatten", *2 * HIDDEN, "Linear"]


def c2() -> list[str]:
    """Spelt as the paper's figure lists it, a line for each block."""
    names: list[str] = []
    for block in ("64 .3 64", "128 .4 128", "256 .4 256 .4 256", "512 .4 512 .4 512", "512 .4 512 .4 512"):
        for word in block.split():
            is_dropout = word.startswith(".")
            names += [f"Dropout 0{word}"] if is_dropout else [f"Conv2d {word} 3", "BatchNorm2d", "ReLU"]
        names.append("MaxPool2d 2 2")
    return [*names, "Flatten", "Dropout 0.5", *HIDDEN, "Linear"]


def name_of(layer: nn.Module) -> str:
    match layer:
        case nn.Conv2d():
            return f"Conv2d {layer.out_channels} {layer.kernel_size[0]}"
        case nn.MaxPool2d():
            return f"MaxPool2d {layer.kernel_size} {layer.stride}"
        case nn.Dropout():
            return f"Dropout {layer.p}"
    return type(layer).__name__


@pytest.mark.worlds
@pytest.mark.parametrize(("name", "listed"), [("keskar_c1", C1), ("keskar_c2", c2())])
def test_the_layers_and_their_order(name, listed):
    model = models.build(name, 10, RGB)
    assert isinstance(model, nn.Sequential)
    assert [name_of(layer) for layer in model] == listed


def weights_c1(channels: int, last_maps: int, classes: int) -> int:
    convolutions = channels * 64 * 25 + 64 * 64 * 25 + 2 * 2 * 64
    return convolutions + 64 * last_maps * 384 + 2 * 384 + 384 * 192 + 2 * 192 + 192 * classes + classes


def weights_c2(channels: int, last_maps: int, classes: int) -> int:
    widths = [channels, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(9 * before * after + 2 * after for before, after in zip(widths, widths[1:], strict=False))
    return convolutions + 512 * last_maps * 512 + 2 * 512 + 512 * classes + classes


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("name", "classes", "shape", "parameters"),
    [
        ("keskar_c1", 10, RGB, 4_800 + 102_400 + 256 + 1_572_864 + 768 + 73_728 + 384 + 1_930),
        ("keskar_c1", 10, RGB, weights_c1(3, 8 * 8, 10)),
        ("keskar_c1", 100, RGB, weights_c1(3, 8 * 8, 100)),  # C3
        ("keskar_c1", 10, GREY, weights_c1(1, 7 * 7, 10)),
        ("keskar_c1", 10, (1, 8, 5), weights_c1(1, 2 * 2, 10)),
        # VGG-16's 14,714,688 in the convolutions without their 4,224 biases, with as many γ and β
        ("keskar_c2", 10, RGB, 14_714_688 - 4_224 + 2 * 4_224 + 262_144 + 1_024 + 5_130),
        ("keskar_c2", 100, RGB, weights_c2(3, 1, 100)),  # C4
        ("keskar_c2", 10, GREY, weights_c2(1, 1, 10)),  # 28, 14, 7, 4, 2, 1
        ("keskar_c2", 10, (3, 64, 33), weights_c2(3, 2 * 2, 10)),
    ],
)
def test_a_network_has_the_parameters_counted_by_hand(name, classes, shape, parameters):
    model = models.build(name, classes, shape)
    blanks.check(model, name, classes, shape)
    assert model(torch.randn(3, *shape)).shape == (3, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["keskar_c1", "keskar_c2"])
def test_the_gradient_reaches_all(name):
    torch.manual_seed(0)
    model = models.build(name, 10, RGB)
    nn.functional.cross_entropy(model(torch.randn(4, *RGB)), torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["keskar_c1", "keskar_c2"])
def test_weights_start_uniform_within_glorots_bound(name):
    """√(6 / (fan in + fan out)); a uniform distribution comes close to its bound and has its variance, bound²/3."""
    for layer in models.build(name, 10, RGB):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            field = layer.weight[0, 0].numel()
            bound = (6 / (field * (layer.weight.shape[0] + layer.weight.shape[1]))) ** 0.5
            assert 0.97 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.1)
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.worlds
def test_pooling_leaves_half_of_the_pixels_rounded_up():
    for name in ("keskar_c1", "keskar_c2"):
        model = models.build(name, 10, (3, 7, 6))
        pool = next(layer for layer in model if isinstance(layer, nn.MaxPool2d))
        assert pool(torch.zeros(1, 1, 7, 6)).shape == (1, 1, 4, 3)


def test_the_networks_take_no_arguments():
    with pytest.raises(Exception, match=re.escape("unknown key model.width for keskar_c1")):
        models.build("keskar_c1", 10, RGB, 0, {"width": 3})
