"""What is frozen: by the patterns of names, weights and running statistics alike."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from largebatch import models, optim
from largebatch.errors import UserError
from largebatch.models import batch_norm, frozen

RGB = (3, 16, 16)


def cnn(*patterns: str, name: str = "tiny_cnn") -> nn.Module:
    model = models.build(name, 5, RGB)
    models.freeze(model, name, patterns)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "weights", "norms"),
    [
        ((), set(), set()),
        (("0",), {"0.weight"}, set()),
        (("[01].*",), {"0.weight", "1.weight", "1.bias"}, {"1"}),
        (("[01]", "4"), {"0.weight", "1.weight", "1.bias", "4.weight", "4.bias"}, {"1", "4"}),
        (("*.bias",), {"1.bias", "4.bias", "7.bias", "11.bias"}, set()),
        (("*.running_*",), set(), {"1", "4", "7"}),
        (("4.running_var",), set(), {"4"}),
    ],
)
def test_patterns_are_those_of_weight_decay(patterns, weights, norms):
    model = cnn(*patterns)
    assert set(dict(model.named_parameters())) - trained(model) == weights
    assert {name for name, module in model.named_modules() if isinstance(module, frozen.FrozenNorm)} == norms
    assert {row.name for row in optim.treatments(model, ("norm", "0", "[01]"), ())} == trained(model)


def test_a_frozen_norm_keeps_its_statistics_in_training(one_thread):
    model, images = cnn("1", "4.*"), torch.randn(6, *RGB)
    before = copy.deepcopy(model.state_dict())
    model.train()(images).sum().backward()
    assert model.training
    assert model[7].training
    assert not model[1].training
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"7.running_mean", "7.running_var", "7.num_batches_tracked"}
    assert model[1].weight.grad is None
    assert model[0].weight.grad is not None, "what lies below is trained through it"
    assert torch.equal(
        model[1](images[:, :1].expand(6, 16, 16, 16)), copy.deepcopy(model)[1](images[:, :1].expand(6, 16, 16, 16))
    )
    assert model.state_dict().keys() == before.keys()


def test_of_frozen_norms_nothing_else_takes_notice():
    model = cnn("1", "4.*")
    assert list(batch_norm.batch_norms(model)) == [model[7]]
    batch_norm.sized(model, 2, 4)
    batch_norm.set_momentum(model, 0.5)
    assert model[1].momentum == 0.1
    assert isinstance(model[7], batch_norm.SizedNorm)
    before = {key: value.clone() for key, value in model.named_buffers()}
    with batch_norm.recomputed_statistics(model):
        model(torch.randn(4, *RGB) + 3)
    changed = {key for key, value in model.named_buffers() if not torch.equal(value, before[key])}
    assert changed == {"7.running_mean", "7.running_var"}


def test_activations_and_dropout_inside_a_frozen_norm_go_on():
    model = cnn("norm", "stages.0", name="timm/resnetv2_18")
    norms = [module for module in model.modules() if isinstance(module, frozen.FrozenNorm)]
    model.train()
    assert norms
    assert all(not norm.training and norm.act.training for norm in norms)


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        (("0", "stem.*"), "model.frozen: no tensor of model.name = tiny_cnn has a name like 'stem.*'"),
        (("norm",), "has a name like 'norm'"),
        (("1.num_batches_tracked",), "has a name like '1.num_batches_tracked'"),
        (("7.wieght",), "did you mean 7.weight?"),
        (("*",), "model.frozen = [*] freezes all of model.name = tiny_cnn; leave something to train"),
        (("*.weight", "*.bias"), "model.frozen = [*.weight, *.bias] freezes all of"),
    ],
)
def test_a_pattern_of_nothing_or_of_everything_is_a_sentence(patterns, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        cnn(*patterns)
    assert "\n" not in str(caught.value)
