"""Models by name: they fit their data, start the same for the same seed, and refuse what does not fit."""

from __future__ import annotations

import re

import blanks
import pytest
import torch
from torch import nn

from largebatch import models
from largebatch.errors import UserError

RGB = (3, 32, 32)


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("name", "shape", "arguments", "parameters"),
    [
        ("tiny_cnn", (1, 28, 28), {}, 33_658),
        ("tiny_cnn", (1, 28, 28), {"norm": False, "dropout": 0.1}, 33_658 + 112 - 224),
        ("tiny_cnn", (1, 28, 28), {"pool": 2}, 33_658 - 640 * 12),
        ("mlp", (1, 28, 28), {"width": 512, "depth": 5, "norm": True}, 784 * 512 + 4 * 512**2 + 5 * 2 * 512 + 5_130),
        ("resnet20", RGB, {}, 269_722 + 576 + 2_176),  # He et al.'s 0.27 M, and two projections with norm
        ("resnet18_small", RGB, {}, 11_173_962),
        ("resnet9", RGB, {}, 6_563_520 + 4_480 + 5_130),
        ("wide_resnet", RGB, {"depth": 16, "width": 4, "dropout": 0.3}, 2_748_890),
        ("wide_resnet", RGB, {}, 36_479_194),  # Zagoruyko & Komodakis' 36.5 M for WRN-28-10
        ("resnet50", RGB, {"zero_init_residual": True}, 23_528_522),
        ("timm/resnet18", (1, 28, 28), {}, 11_175_370),
    ],
)
def test_a_model_has_the_size_and_output_it_should(name, shape, arguments, parameters):
    model = models.build(name, 10, shape, 0, arguments)
    blanks.check(model, name, 10, shape)
    assert model(torch.randn(3, *shape)).shape == (3, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_seed_decides_the_weights_and_nothing_else_is_disturbed():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (models.build("tiny_cnn", 10, (1, 28, 28), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["resnet20", "resnet9", "resnet18_small", "torchvision/resnet18", "timm/resnet18"])
@pytest.mark.parametrize("zero", [True, False])
def test_the_last_norm_of_a_block_starts_at_zero_if_asked(name, zero):
    model = models.build(name, 10, RGB, 0, {"zero_init_residual": zero})
    last = [
        module
        for key, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and re.search(r"last_norm$|layer\d\.\d\.bn2$", key)
    ]
    assert len(last) >= 2
    assert all((module.weight == 0).all() == zero for module in last)
    others = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m not in last]
    assert all((module.weight == 1).all() for module in others)


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["tiny_cnn", "wide_resnet", "torchvision/resnet18", "timm/resnet18"])
def test_the_head_starts_as_small_as_asked_and_nothing_else_changes(name):
    arguments = {"depth": 10, "width": 1} if name == "wide_resnet" else {}
    usual = models.build(name, 1000, RGB, 0, arguments)
    small = models.build(name, 1000, RGB, 0, {**arguments, "head_init_std": 0.01})
    head = [key for key, module in small.named_modules() if isinstance(module, nn.Linear)][-1]
    assert small.get_submodule(head).weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(small.get_submodule(head).weight.mean().item()) < 2e-4
    assert not small.get_submodule(head).bias.any()
    others = {key: value for key, value in usual.state_dict().items() if not key.startswith(head + ".")}
    assert others
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in others.items())
    again = models.build(name, 1000, RGB, 0, {**arguments, "head_init_std": 0.01})
    assert torch.equal(again.get_submodule(head).weight, small.get_submodule(head).weight)


def test_a_wide_residual_net_is_pre_activated():
    """Where its convolutions give nothing, a block hands its input on, or a projection of what it activated."""
    net = models.build("wide_resnet", 10, RGB, 0, {"depth": 16, "width": 1})
    blocks = [module for module in net if isinstance(module, models.small.PreActivation)]
    assert [block.shortcut is None for block in blocks] == [True, True, False, True, False, True]
    same, changing = blocks[1].eval(), blocks[2].eval()
    images = torch.randn(2, 16, 8, 8)
    nn.init.zeros_(same.body[-1].weight), nn.init.zeros_(changing.body[-1].weight)
    assert torch.equal(same(images), images)
    assert torch.allclose(changing(images), changing.shortcut(changing.activation(images)))
    assert changing(images).shape == (2, 32, 4, 4)


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "sentence"),
    [
        ("tiny_cn", RGB, {}, "model.name = tiny_cn is not known; did you mean tiny_cnn?"),
        ("tinn/resnet50", RGB, {}, "tinn is no source of models"),
        ("timm/resnet5O", RGB, {}, "is not known; did you mean resnet50"),
        ("tiny_cnn", RGB, {"chanels": [3]}, "unknown key model.chanels for tiny_cnn; did you mean channels?"),
        ("resnet20", RGB, {"depth": 21}, "depth = 21 is not 6n + 2; nearest: 20"),
        ("wide_resnet", RGB, {"depth": 20}, "depth = 20 is not 6n + 4; nearest: 16"),
        ("squeezenet1_1", RGB, {"head_init_std": 0.01}, "model.name = squeezenet1_1 has no linear layer"),
        ("tiny_cnn", RGB, {"head_init_std": "small"}, "model.head_init_std = small should be a standard deviation"),
        ("resnet50", (1, 28, 28), {}, "takes 3 channels, the images have 1; timm/resnet50"),
        ("timm/resnet18", RGB, {"pretrained": True}, "training starts from fresh weights"),
        ("resnet18", RGB, {"widht": 3}, "model.widht is not among the arguments that resnet18 is given"),
        ("resnet18", RGB, {"width": 3}, "model resnet18 cannot be built with {'width': 3}"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(name, shape, arguments, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        models.build(name, 10, shape, 0, arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.worlds
def test_a_model_that_does_not_fit_its_data_is_refused():
    with pytest.raises(UserError, match=r"gives \(7,\) per example; the data set has 10 classes"):
        blanks.check(models.build("mlp", 7, RGB), "mlp", 10, RGB)
    with pytest.raises(UserError, match="does not take images of 3×8×8"):
        blanks.check(models.build("torchvision/alexnet", 10, RGB), "alexnet", 10, (3, 8, 8))
