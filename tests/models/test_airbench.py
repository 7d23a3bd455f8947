"""airbench's network: its first layer by loops and an SVD, its passes by torch's functions, what a run makes of it."""

from __future__ import annotations

import math
import re

import numpy as np
import pool
import pytest
import torch
import torch.nn.functional as F
import yaml
from programs import weights_at_end
from torch import nn

from largebatch import models
from largebatch.data import Placement
from largebatch.errors import UserError
from largebatch.models import airbench, batch_norm
from largebatch.recipes import config
from largebatch.run.assemble import assemble, dataset_of
from largebatch.run.train import train

CIFAR = (3, 32, 32)
SMALL = {"name": "airbench", "channels": [4, 6, 8]}
RECIPE = {
    "name": "airbench", "model": SMALL, "device": "cpu", "precision": "fp32", "epochs": 1,
    "data": {"name": "synthetic", "examples": 96, "num_classes": 10, "image_shape": [3, 16, 16]},
    "batch": {"global_batch_size": 16, "bn_batch_size": 8}, "optimizer": {"name": "sgd", "momentum": 0.85},
    "lr": {"base": 0.01}, "record": {"to": []}, "checkpoint": {"every_epochs": 0.5},
}  # fmt: skip


def numbers_of(model: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def test_the_number_of_parameters():
    """1.97 million, as the paper has it (§3.1); layer by layer, a norm's factor and bias counted both."""
    whiten, head = 24 * 3 * 2 * 2 + 24, 256 * 10
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    norms = 2 * 2 * (64 + 256 + 256)
    model = models.build("airbench", 10, CIFAR)
    assert numbers_of(model) == whiten + filters + norms + head == 1_972_792
    assert round(numbers_of(model) / 1e6, 2) == 1.97
    assert numbers_of(model) - numbers_of(model, trained=True) == 288 + norms // 2


def test_the_number_of_parameters_of_airbench96():
    whiten, head = 312, 512 * 10
    filters = 9 * (24 * 128 + 2 * 128**2 + 128 * 384 + 2 * 384**2 + 384 * 512 + 2 * 512**2)
    norms = 2 * 3 * (128 + 384 + 512)
    model = models.build("airbench", 10, CIFAR, arguments={"channels": [128, 384, 512], "convolutions": 3})
    assert numbers_of(model) == whiten + filters + norms + head


@pytest.mark.parametrize(("size", "channels"), [(2, 3), (3, 1)])
def test_the_filters_by_loops_and_a_singular_value_decomposition(size, channels):
    """P/√n = U·S·Vᵀ of the matrix of all patches: the eigenvalues of its second moments are S², the vectors V."""
    images = np.random.default_rng(3).normal(size=(9, channels, 6, 7))
    images[:, :, 1:] += images[:, :, :-1]  # neighbours are alike, as in photographs
    rows = []
    for image in images:
        for top in range(6 - size + 1):
            for left in range(7 - size + 1):
                rows.append(image[:, top : top + size, left : left + size].reshape(-1))
    patches = np.array(rows)
    _, singular, vectors = np.linalg.svd(patches / math.sqrt(len(patches)), full_matrices=False)
    found = airbench.whitening_filters(torch.from_numpy(images), size).numpy()
    half = channels * size**2
    assert found.shape == (2 * half, channels, size, size)
    np.testing.assert_array_equal(found[:half], -found[half:])
    for filter_, value, vector in zip(found[:half].reshape(half, -1), singular, vectors, strict=True):
        wanted = vector * np.sign(vector[np.abs(vector).argmax()]) / math.sqrt(value**2 + 5e-4)
        np.testing.assert_allclose(filter_, wanted, rtol=1e-9, atol=1e-11)
        assert filter_[np.abs(filter_).argmax()] > 0
    answers = patches @ found[:half].reshape(half, -1).T  # white: uncorrelated, each of size λ/(λ + ε)
    moments = answers.T @ answers / len(patches)
    np.testing.assert_allclose(moments, np.diag(singular**2 / (singular**2 + 5e-4)), rtol=0, atol=1e-10)


def test_the_filters_are_told_whatever_the_pieces_of_the_images():
    images = torch.randn(1100, 3, 4, 4, dtype=torch.float64)
    whole = torch.nn.functional.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    values, _ = torch.linalg.eigh(whole.T @ whole / len(whole))
    norms = airbench.whitening_filters(images, 2)[:12].flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, (values.flip(0) + 5e-4).rsqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("convolutions", [2, 3])
def test_a_pass_by_torchs_functions(convolutions):
    model = models.build("airbench", 10, CIFAR, arguments={**_arguments(), "convolutions": convolutions}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.randn(5, *CIFAR, dtype=torch.float64)
    w = dict(model.named_parameters())

    def norm(x, name):
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        factor, bias = (w[f"{name}.{which}"].view(1, -1, 1, 1) for which in ("weight", "bias"))
        return factor * (x - mean) / (variance + 1e-12).sqrt() + bias

    x = F.gelu(F.conv2d(images, w["whiten.weight"], w["whiten.bias"]))
    for block in range(3):
        at = f"blocks.{block}"
        x = F.gelu(norm(F.max_pool2d(F.conv2d(x, w[f"{at}.conv1.weight"], padding=1), 2), f"{at}.norm1"))
        y = norm(F.conv2d(x, w[f"{at}.conv2.weight"], padding=1), f"{at}.norm2")
        if convolutions == 3:
            y = x + norm(F.conv2d(F.gelu(y), w[f"{at}.conv3.weight"], padding=1), f"{at}.norm3")
        x = F.gelu(y)
    assert x.shape[2:] == (3, 3)
    wanted = x.amax((2, 3)) @ w["head.weight"].T / 9
    torch.testing.assert_close(model.train()(images), wanted, rtol=1e-9, atol=1e-11)


def _arguments():
    return {key: value for key, value in SMALL.items() if key != "name"}


def test_what_it_begins_with():
    model = models.build("airbench", 10, CIFAR)
    for block, inputs in zip(model.blocks, (24, 64, 256), strict=True):
        maps = torch.randn(2, inputs, 8, 8)
        torch.testing.assert_close(block.conv1(maps)[:, :inputs], maps, rtol=0, atol=1e-6)
        torch.testing.assert_close(block.conv2(out := torch.randn(2, block.conv2.in_channels, 4, 4)), out)
        assert (block.norm1.weight == 1).all()
        assert block.norm1.eps == 1e-12
    assert not model.whiten.bias.any()
    assert not model.whiten.weight.requires_grad
    assert model.whiten.bias.requires_grad
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"whiten.weight", *(f"blocks.{b}.norm{n}.weight" for b in range(3) for n in (1, 2))}


def test_a_sized_norm_stays_without_a_trained_factor():
    model = models.build("airbench", 10, CIFAR, arguments=_arguments())
    sized = batch_norm.sized(model, 4, 8)
    sized.train()(torch.randn(8, *CIFAR)).sum().backward()
    assert isinstance(sized.blocks[0].norm1, batch_norm.SizedNorm)
    assert sized.blocks[0].norm1.weight.grad is None
    assert sized.blocks[0].norm1.bias.grad is not None


@pytest.mark.parametrize(
    ("arguments", "shape", "sentence"),
    [
        ({"channels": [4, 4]}, CIFAR, "channels = [4, 4] should be those of 3 blocks"),
        ({"convolutions": 4}, CIFAR, "convolutions = 4 of a block should be 2 or 3"),
        ({"whiten_size": 0}, CIFAR, "whiten_size = 0 must be at least 1"),
        ({}, (3, 8, 8), "images should have at least 9 pixels a side"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(arguments, shape, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        models.build("airbench", 10, shape, arguments=arguments)


# ---- the first layer in a run ----


def of_first_examples(run: config.Run, count: int) -> torch.Tensor:
    split = dataset_of(run).train
    [(images, _)] = split.batches(0, 1, len(split), Placement(torch.device("cpu"), torch.float64))
    return airbench.whitening_filters(images[:count], 2).float()


def test_a_run_begins_with_the_filters_of_its_first_examples(monkeypatch):
    monkeypatch.setattr(airbench.AirbenchNet, "first_examples", 40)
    run = config.from_dict({**RECIPE, "data": {**RECIPE["data"], "erase": {}, "mix": {"mixup": 1}}})
    found = assemble(run, torch.device("cpu")).engine.model.whiten.weight
    torch.testing.assert_close(found, of_first_examples(run, 40), rtol=0, atol=0)
    other_seed = assemble(run.model_copy(update={"seed": 5}), torch.device("cpu")).engine.model
    assert torch.equal(found, other_seed.whiten.weight)
    assert not torch.equal(other_seed.head.weight, assemble(run, torch.device("cpu")).engine.model.head.weight)


def test_fewer_examples_than_it_asks_for_are_all_of_them():
    run = config.from_dict(RECIPE)
    found = assemble(run, torch.device("cpu")).engine.model.whiten.weight
    torch.testing.assert_close(found, of_first_examples(run, 96), rtol=0, atol=0)


def test_who_has_weights_already_is_shown_nothing(monkeypatch):
    def never(*_):
        raise AssertionError("was shown examples")

    monkeypatch.setattr(airbench.AirbenchNet, "begin_with", never)
    run = config.from_dict(RECIPE)
    for how in ({"begun": True}, {"unread": True}):
        assemble(run, torch.device("cpu"), **how)
    with pytest.raises(AssertionError, match="was shown"):
        assemble(run, torch.device("cpu"))


@pytest.mark.worlds
def test_a_resumed_run_has_the_filters_it_began_with(tmp_path, monkeypatch):
    run = config.from_dict({**RECIPE, "epochs": 2, "record": {"dir": str(tmp_path / "run"), "tensorboard": False}})
    whole = config.from_dict({**RECIPE, "epochs": 2, "record": {"dir": str(tmp_path / "whole"), "tensorboard": False}})
    half = run.model_copy(update={"epochs": 1.0})
    train(half, quiet=True)
    monkeypatch.setattr(airbench, "whitening_filters", lambda images, size: 1 / 0)
    train(run, quiet=True)
    monkeypatch.undo()
    train(whole, quiet=True)
    resumed, undisturbed = weights_at_end(tmp_path / "run"), weights_at_end(tmp_path / "whole")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in undisturbed.items())
    torch.testing.assert_close(resumed["whiten.weight"], of_first_examples(run, 96), rtol=0, atol=0)


@pytest.mark.worlds
def test_two_ranks_begin_with_the_same_filters(tmp_path):
    written = {**RECIPE, "precision": "fp64", "batch": {**RECIPE["batch"], "micro_batch_size": 8}}
    alone = config.from_dict({**written, "record": {"dir": str(tmp_path / "alone"), "to": []}})
    train(alone, quiet=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**written, "record": {"dir": str(tmp_path / "two"), "to": []}}))
    ended = pool.ranks(2, "-m", "largebatch", "train", recipe)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = weights_at_end(tmp_path / "alone"), weights_at_end(tmp_path / "two")
    assert torch.equal(one["whiten.weight"], two["whiten.weight"])
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-9, atol=1e-12)
