"""The plain vision transformer: its parts stated a second time in float64, its size layer by layer."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from largebatch import models
from largebatch.errors import UserError
from largebatch.models.plain_vit import positions

SMALL = {"width": 24, "depth": 2, "heads": 3, "patch_size": 4}


def small(representation: bool = True) -> nn.Module:
    return models.build("plain_vit", 7, (3, 16, 16), arguments={**SMALL, "representation": representation})


@pytest.mark.parametrize("representation", [True, False])
def test_the_number_of_parameters(representation):
    """ViT-S/16: 22 million in the paper and in AlgoPerf; positions are fixed."""
    d = 384
    patches, norm = 16 * 16 * 3 * d + d, 2 * d
    block = 2 * norm + 4 * (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d)
    wanted = patches + 12 * block + norm + (d * d + d) * representation + 1000 * d + 1000
    model = models.build("plain_vit", 1000, (3, 224, 224), arguments={"representation": representation})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == wanted
    assert 21.9e6 < wanted < 22.2e6
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"pos_embed"}


def test_positions_one_by_one():
    """Columns first: sines and cosines of x, then of y, at D/4 rates from 1 to 1/10000."""
    found = positions(3, 5, 16)
    for row in range(3):
        for column in range(5):
            rates = [10_000 ** (-k / 3) for k in range(4)]
            wanted = [f(at * rate) for at in (column, row) for f in (math.sin, math.cos) for rate in rates]
            assert found[row * 5 + column].tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("representation", [True, False])
def test_a_pass_written_out(representation):
    model = small(representation).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    images, w = torch.randn(5, 3, 16, 16, dtype=torch.float64), dict(model.named_parameters())

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def tanh_gelu(x):
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    cut = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(5, 16, -1)  # row-major patches
    x = cut @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = x + positions(4, 4, 24).float().double()
    for number in range(2):
        at = f"blocks.{number}"
        q, k, v = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").chunk(3, dim=-1)
        heads = []
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            heads.append(torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(8), -1) @ v[..., part])
        x = x + linear(torch.cat(heads, -1), f"{at}.attn.proj")
        x = x + linear(tanh_gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    x = norm(x, "norm").mean(1)
    x = torch.tanh(linear(x, "head.representation")) if representation else x
    torch.testing.assert_close(model(images), linear(x, "head.classes"), rtol=1e-9, atol=1e-11)


def test_what_it_begins_with():
    model = models.build("plain_vit", 1000, (3, 224, 224))
    w = dict(model.named_parameters())
    assert not w["head.classes.weight"].any()
    assert not w["head.classes.bias"].any()
    bound = math.sqrt(6 / (384 + 384))
    for part in w["blocks.3.attn.qkv.weight"].chunk(3):
        assert part.abs().max() <= bound
        assert part.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    bound = math.sqrt(6 / (384 + 1536))
    assert bound * 0.99 < w["blocks.3.mlp.fc1.weight"].abs().max() <= bound
    assert w["blocks.3.mlp.fc1.bias"].std().item() == pytest.approx(1e-6, rel=0.1)
    assert not w["blocks.3.attn.qkv.bias"].any()
    for name, inputs in (("patch_embed.proj", 768), ("head.representation", 384)):
        weight = w[f"{name}.weight"]
        assert weight.std().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.02)
        assert weight.abs().max().item() <= 2 / math.sqrt(inputs) / 0.8796 + 1e-6
        assert not w[f"{name}.bias"].any()
    assert F.cross_entropy(small()(torch.randn(4, 3, 16, 16)), torch.arange(4)).item() == pytest.approx(math.log(7))


@pytest.mark.parametrize(
    ("shape", "arguments", "sentence"),
    [
        ((3, 16, 12), SMALL, "images of 16×12 are not square"),
        ((3, 18, 18), SMALL, "patch_size = 4 does not divide images of 18 pixels a side"),
        ((3, 16, 16), {**SMALL, "heads": 5}, "width = 24 should be a multiple of 4 and of heads = 5"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(shape, arguments, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        models.build("plain_vit", 7, shape, arguments=arguments)
