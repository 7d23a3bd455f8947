"""lb.layers: what a model is made of, of a recipe's model and of one that is handed over, which stays as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn
from worlds.own_parts import RECIPE, TwoInputs, dataset_of

import largebatch as lb
from largebatch.recipes import config
from largebatch.records.looking import ModelRecord
from largebatch.studies import layers
from largebatch.studies.dry_run import Cluster

PERCEPTRON = {**TINY, "batch": {"global_batch_size": 100, "micro_batch_size": 20}}


def flops(layer: nn.Linear) -> int:
    return 2 * layer.in_features * layer.out_features


def test_a_recipe_by_any_of_its_forms_is_what_the_command_measures(tmp_path, recipe):
    path = recipe(batch__micro_batch_size=20)
    measured = layers.measured(config.load(path, []), Cluster(1, "cpu"))
    for source in (path, str(path), lb.recipe(path)):
        assert lb.layers(source) == measured
    keys = lb.layers(PERCEPTRON)
    assert isinstance(keys, ModelRecord)
    assert keys.layers == measured.layers
    assert (keys.trainable, keys.forward_flops) == (64 * 16 + 16 + 16 * 10 + 10, 2 * (64 * 16 + 16 * 10))
    assert not list(tmp_path.glob("runs/**/*")), "nothing is written"


def test_a_module_that_is_handed_over_by_hand():
    """Two linear layers whose outputs stand side by side, a norm, a head; items are dicts."""
    model = TwoInputs()
    found = lb.layers(RECIPE, model=model, dataset=dataset_of())
    rows = {row.name: row for row in found.layers}
    assert list(rows) == ["", "left", "right", "norm", "head"]
    assert [row.trainable for row in rows.values()] == [
        sum(p.numel() for p in part.parameters()) for part in (model, model.left, model.right, model.norm, model.head)
    ]
    assert {name: row.forward_flops for name, row in rows.items()} == {
        "left": flops(model.left), "right": flops(model.right), "norm": 0, "head": flops(model.head),
        "": flops(model.left) + flops(model.right) + flops(model.head),
    }  # fmt: skip
    assert found.micro_batch_size == 48
    assert rows["head"].output_shape == [48, 2]
    assert (found.model, found.frozen, found.task) == ("own/TwoInputs", 0, "own/SameSide")


def test_ranks_decide_the_micro_batch_and_the_device_the_precision():
    parts = {"model": TwoInputs(), "dataset": dataset_of()}
    of_two = lb.layers({**RECIPE, "device": "auto"}, **parts, world_size=2, device="cuda")
    assert (of_two.micro_batch_size, of_two.device, of_two.precision) == (24, "cuda", "bf16")
    alone = lb.layers(RECIPE, **parts)
    assert (alone.device, alone.precision) == ("cpu", "fp32")
    assert of_two.forward_flops == alone.forward_flops


def test_a_builder_a_task_and_frozen_layers():
    def net(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
        first = nn.Linear(7, 4).requires_grad_(False)
        return nn.Sequential(nn.Flatten(), first, nn.Linear(4, num_classes))

    numbers, classes = np.zeros((50, 7), np.float32), np.arange(50) % 3
    found = lb.layers(RECIPE, model=net, dataset=lb.Dataset((numbers, classes), (numbers, classes), outputs=3),
                      task=lb.Classification(label_smoothing=0.1))  # fmt: skip
    assert (found.trainable, found.frozen) == (4 * 3 + 3, 7 * 4 + 4)
    assert found.forward_flops == 2 * (7 * 4 + 4 * 3)


def test_the_process_and_the_module_are_left_as_they_were(tmp_path, monkeypatch, capfd):
    def states() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002
            random.getstate(),
            torch.distributed.is_initialized(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
        )

    monkeypatch.chdir(tmp_path)
    model = TwoInputs().eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = states()
    lb.layers(RECIPE, model=model, dataset=dataset_of())
    assert states() == before
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, weights[name])
    answer = model(torch.zeros(2, 4), torch.zeros(2, 3))
    assert answer.shape == (2, 2)
    assert list(Path.cwd().iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"device": "tpu"}, "device = tpu is not known; valid: cuda, cpu"),
        ({"world_size": 0}, "world_size = 0 should be a whole number of ranks, at least 1"),
        ({"world_size": 7}, "batch.global_batch_size = 48"),
        ({"model": "resnet50"}, "model"),
        ({"dataset": [1, 2]}, "dataset is a list; it should be a largebatch.Dataset"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence):
    asked = {"model": TwoInputs(), "dataset": dataset_of(), **arguments}
    with pytest.raises(lb.UserError, match=sentence):
        lb.layers(RECIPE, **asked)
    assert not torch.distributed.is_initialized()
