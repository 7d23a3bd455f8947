"""Weights to begin with: those of the file, all or all but the head's, or a sentence."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vision_transformer import MLPBlock

from largebatch import models
from largebatch.errors import UserError
from largebatch.models.heads import head_of
from largebatch.models.weights import words_of
from largebatch.recipes.config.model import FirstWeights

SHAPE = (1, 8, 8)
ARGUMENTS = {"width": 8, "depth": 1, "norm": True}


def built(file=None, seed=0, classes=10, head="taken"):
    model = models.build("mlp", classes, SHAPE, seed, ARGUMENTS)
    if file is not None:
        models.begin_with(model, "mlp", FirstWeights(file=str(file), head=head))
    return model


def test_the_model_has_the_weights_of_the_file(tmp_path):
    other = built(seed=7).state_dict()
    save_file(other, tmp_path / "weights.safetensors")
    found = built(tmp_path / "weights.safetensors").state_dict()
    assert all(torch.equal(found[name], other[name]) for name in other)
    assert not torch.equal(found["1.weight"], built().state_dict()["1.weight"])


@pytest.mark.parametrize("classes", [3, 10])
def test_a_fresh_head_is_that_of_the_seed(tmp_path, classes):
    """Whatever the file holds in its place."""
    file, head = tmp_path / "weights.safetensors", {"5.weight", "5.bias"}
    other, plain = built(seed=7).state_dict(), built(classes=classes).state_dict()
    for kept in (other, {name: value for name, value in other.items() if name not in head}):
        save_file(kept, file)
        model = built(file, classes=classes, head="fresh")
        found = model.state_dict()
        assert head_of(model) == ["5"]
        assert all(torch.equal(found[name], (plain if name in head else other)[name]) for name in found)
        assert (
            words_of(model, "mlp", FirstWeights(file=str(file), head="fresh"), {}) == f"{file}; fresh: 5.weight, 5.bias"
        )
        assert words_of(model, "mlp", FirstWeights(file=str(file)), {}) == str(file)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("tiny_cnn", ["11"]),
        ("torchvision/resnet18", ["fc"]),
        ("torchvision/mobilenet_v3_small", ["classifier.3"]),
        ("timm/resnet18", ["fc"]),
        ("timm/convnext_atto", ["head.fc"]),
    ],
)
def test_the_head_is_what_gives_the_outputs(name, head):
    model = models.build(name, 7, (3, 32, 32))
    assert head_of(model) == head
    assert model.get_submodule(head[0]).weight.shape[0] == 7


def test_timms_distilled_models_have_two_heads():
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1, img_size=32)
    assert head_of(model) == ["head", "head_dist"]


def test_older_names_of_a_layers_tensors_are_known_as_to_torch(tmp_path):
    """torchvision's transformers: files of before call the two layers of an MLP otherwise."""
    kept, model = nn.Sequential(MLPBlock(3, 4, 0.0)), nn.Sequential(MLPBlock(3, 4, 0.0))
    weights = {
        key.replace("0.0", "0.linear_1").replace("0.3", "0.linear_2"): value for key, value in kept.state_dict().items()
    }
    assert not weights.keys() & model.state_dict().keys()
    save_file(weights, tmp_path / "weights.safetensors")
    models.begin_with(model, "own", FirstWeights(file=str(tmp_path / "weights.safetensors")))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.state_dict().items())
    save_file({**weights, "0.linear_1.bias": torch.zeros(9)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="does not fit model.name = own: size mismatch for 0.0.bias"):
        models.begin_with(model, "own", FirstWeights(file=str(tmp_path / "weights.safetensors")))


def test_what_does_not_fit_is_a_sentence(tmp_path):
    file = tmp_path / "weights.safetensors"
    weights = built().state_dict()
    fresh = "; model.weights.head = fresh takes all but the head"
    cases = [
        ({name: value for name, value in weights.items() if name != "5.weight"}, "taken", f"it has no 5.weight{fresh}"),
        ({name: value for name, value in weights.items() if name != "1.weight"}, "fresh", "it has no 1.weight"),
        ({**weights, "more": torch.zeros(1)}, "taken", "the model has no more"),
        ({**weights, "more": torch.zeros(1), "5.weight": torch.zeros(2)}, "fresh", "the model has no more"),
        (
            {**weights, "5.weight": torch.zeros(5, 8)},
            "taken",
            "5.weight is (5, 8) there and (10, 8) in the model" + fresh,
        ),
        ({**weights, "2.bias": torch.zeros(5), "0.x": torch.zeros(1)}, "fresh", "the model has no 0.x"),
        ({**weights, "2.bias": torch.zeros(5)}, "fresh", "2.bias is (5,) there and (8,) in the model"),
    ]
    for tensors, head, sentence in cases:
        save_file(tensors, file)
        with pytest.raises(UserError, match=re.escape(f"{file} does not fit model.name = mlp: {sentence}") + "$"):
            built(file, head=head)
    torch.save(weights, tmp_path / "weights.pt")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-9])
    for name, sentence in [
        ("weights.pt", "is no safetensors file"),
        ("cut.safetensors", "is no safetensors file"),
        ("missing.safetensors", "there is no such file; it takes a safetensors file"),
        (".", "there is no such file"),
    ]:
        with pytest.raises(UserError, match=sentence) as caught:
            built(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="head = fresh: model.name = own has no linear layer"):
        models.begin_with(nn.Conv2d(1, 1, 1), "own", FirstWeights(file=str(file), head="fresh"))
