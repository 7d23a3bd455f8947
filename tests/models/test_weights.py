"""Weights to begin with: those of the file, or a sentence."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from largebatch import models
from largebatch.errors import UserError

SHAPE = (1, 8, 8)
ARGUMENTS = {"width": 8, "depth": 1, "norm": True}


def built(file=None, seed=0):
    return models.build("mlp", 10, SHAPE, seed, ARGUMENTS, file)


def test_the_model_has_the_weights_of_the_file(tmp_path):
    other = built(seed=7).state_dict()
    save_file(other, tmp_path / "weights.safetensors")
    found = built(str(tmp_path / "weights.safetensors")).state_dict()
    assert all(torch.equal(found[name], other[name]) for name in other)
    assert not torch.equal(found["1.weight"], built().state_dict()["1.weight"])


def test_what_does_not_fit_is_a_sentence(tmp_path):
    file = tmp_path / "weights.safetensors"
    weights = built().state_dict()
    head = next(name for name in reversed(weights) if name.endswith(".weight"))
    cases = [
        ({name: value for name, value in weights.items() if name != head}, f"it has no {head}"),
        ({**weights, "more": torch.zeros(1)}, "the model has no more"),
        ({**weights, head: torch.zeros(5, 8)}, f"{head} is (5, 8) there and (10, 8) in the model"),
    ]
    for tensors, sentence in cases:
        save_file(tensors, file)
        with pytest.raises(UserError, match=re.escape(f"{file} does not fit model.name = mlp: {sentence}")):
            built(str(file))
    torch.save(weights, tmp_path / "weights.pt")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-9])
    for name, sentence in [
        ("weights.pt", "is no safetensors file"),
        ("cut.safetensors", "is no safetensors file"),
        ("missing.safetensors", "there is no such file; it takes a safetensors file"),
        (".", "there is no such file"),
    ]:
        with pytest.raises(UserError, match=sentence) as caught:
            built(str(tmp_path / name))
        assert "\n" not in str(caught.value)
