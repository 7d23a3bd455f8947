"""Who is decayed and who is adapted, on real models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch import models
from largebatch.errors import UserError
from largebatch.optim import parameter_groups, treatments


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18", "timm/convnext_atto", "resnet20"])
def test_norm_layers_and_biases_are_neither_decayed_nor_adapted(name):
    model = models.build(name, 10, (3, 32, 32))
    norms = {
        f"{prefix}.{key}"
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))
        for key, _ in module.named_parameters(recurse=False)
    }
    table = treatments(model, ("norm", "bias"), ("norm", "bias"))
    assert [row.name for row in table] == [name for name, _ in model.named_parameters()]
    for row in table:
        spared = row.name in norms or row.name.endswith("bias")
        assert row.decayed == (not spared), row
        assert row.adapted == (not spared), row
        assert (row.kind == "norm") == (row.name in norms), row


def test_groups_hold_every_parameter_once_with_its_own_decay():
    model = models.build("tiny_cnn", 10, (1, 28, 28))
    groups = parameter_groups(model, 5e-4, treatments(model, ("norm",), ("norm", "bias")))
    assert len({id(p) for g in groups for p in g["params"]}) == len(list(model.parameters()))
    found = {name: (g["weight_decay"], g["adapt"]) for g in groups for name in g["names"]}
    assert found["0.weight"] == (5e-4, True)
    assert found["1.weight"] == (0.0, False)
    assert found["11.bias"] == (5e-4, False)


SKIPPED = ("norm", "bias")


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("timm/vit_tiny_patch16_224", {"cls_token", "pos_embed"}),
        ("timm/xcit_nano_12_p8_224", {"cls_token", "pos_embed.token_projection.weight"}),
        ("timm/twins_svt_small", {f"pos_block.{stage}.proj.0.weight" for stage in range(4)}),
        ("torchvision/squeezenet1_1", set()),  # torchvision's models say nothing
    ],
)
def test_what_a_model_says_itself_is_neither_decayed_nor_adapted(name, own):
    """timm's no_weight_decay(), of which some versions name tensors, some patterns, and some modules."""
    model = models.build(name, 10, (3, 224, 224))
    table = treatments(model, SKIPPED, SKIPPED)
    assert {row.name for row in table if row.kind == "own"} == own
    assert not any(row.decayed or row.adapted for row in table if row.kind == "own")
    others = [row for row in table if row.kind == "weight"]
    assert others
    assert all(row.decayed and row.adapted for row in others)
    assert all(row.decayed and row.adapted for row in treatments(model, (), ())), "an empty list skips nothing"
    assert {row.name for row in treatments(model, ("own",), None) if not row.decayed} == own


def test_patterns_name_more_that_is_skipped():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(3))

    model = nn.ModuleDict({"first": nn.Sequential(nn.Linear(3, 3), Scale()), "head": nn.Linear(3, 2)})
    for skip, spared in (
        (["*.gamma"], {"first.1.gamma"}),
        (["first.?.gamma", "bias"], {"first.1.gamma", "first.0.bias", "head.bias"}),
        (["first"], {"first.0.weight", "first.0.bias", "first.1.gamma"}),
        (["head.weight"], {"head.weight"}),
    ):
        assert {row.name for row in treatments(model, skip, None) if not row.decayed} == spared
        assert {row.name for row in treatments(model, (), skip) if not row.adapted} == spared
    for skip, hint in (["head.wieght"], "did you mean head.weight"), (["*.gama"], "no tensor of the model has a name"):
        with pytest.raises(UserError, match=hint):
            treatments(model, skip, None)
    treatments(model, SKIPPED, SKIPPED)  # words are right whether the model has such tensors or not


def test_a_shared_parameter_is_counted_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

    assert [row.name for row in treatments(Tied(), (), ())] == ["first.weight"]


def test_a_zero_initialised_bias_moves_under_lars():
    from largebatch.optim import Lars

    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[1].bias)
    table = treatments(model, ("norm", "bias"), ("norm", "bias"))
    optimizer = Lars(parameter_groups(model, 1e-4, table), lr=1.0)
    model(torch.ones(5, 4)).sum().backward()
    optimizer.step()
    assert (model[1].bias != 0).all()
