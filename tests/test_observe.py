"""What is recorded beside the training, against the same training written out by hand in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from programs import Killed, killed_at, torchrun, weights_at_end
from torch import Tensor

from largebatch.diagnostics.noise import Averages, Squares
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.methods.noise_scale import NoiseScale
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train

CPU = torch.device("cpu")


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def alike(line: dict[str, Any]) -> dict[str, Any]:
    """To rounding of float64."""
    return {k: pytest.approx(v, rel=1e-8) if isinstance(v, float) else v for k, v in line.items()}


def run_of(path: Path, *overrides: str) -> config.Run:
    return config.load(path, overrides)


def same_weights(*directories: Path) -> bool:
    """Bit by bit."""
    one, other = (weights_at_end(folder) for folder in directories)
    return all(torch.equal(one[name], other[name]) for name in one)


def by_hand(run: config.Run) -> tuple[list[Squares], list[list[Tensor]], list[Tensor]]:
    """Plain SGD with momentum: (squares of every step, weights before every step and at the end, gradients)."""
    job = assemble(run.model_copy(update={"record": run.record.model_copy(update={"noise_scale": None})}), CPU)
    weights = list(job.engine.model.parameters())
    buffers = [torch.zeros_like(weight) for weight in weights]
    squares, path, taken = [], [[w.detach().clone() for w in weights]], []
    for step, micro_batches in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, run.seed)):
        gradients = []
        for images, labels in micro_batches:
            loss = F.cross_entropy(job.engine.model(images), labels)
            gradients.append(torch.autograd.grad(loss, weights))
        flat = [torch.cat([g.reshape(-1) for g in part]) for part in gradients]
        mean = torch.stack(flat).mean(0)
        small = torch.stack([part.square().sum() for part in flat]).mean().item()
        sizes = job.plan.micro_batch_size, job.plan.global_batch_size
        squares.append(Squares(*sizes, small, mean.square().sum().item()))
        taken.append(mean)
        with torch.no_grad():
            lr = job.decided.lr.schedule(job.plan.examples_before(step))
            for weight, buffer, gradient in zip(weights, buffers, split(mean, weights), strict=True):
                buffer.mul_(run.optimizer.momentum).add_(gradient)
                weight.sub_(lr * buffer)
        path.append([w.detach().clone() for w in weights])
    return squares, path, taken


def split(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    return [part.view(w.shape) for part, w in zip(flat.split([w.numel() for w in like]), like, strict=True)]


@pytest.fixture
def small_run(recipe) -> Path:
    return recipe(
        precision="fp64", batch__micro_batch_size=25, steps=12, epochs=None,
        record__every_steps=4, record__noise_scale={"every_steps": 1, "smoothing": 0.9},
    )  # fmt: skip


@pytest.mark.worlds
def test_the_noise_scale_is_that_of_the_steps_own_gradients(small_run):
    run = run_of(small_run)
    assert train(run, quiet=True).status == "finished"
    averages = Averages(0.9)
    expected = []
    for number, squares in enumerate(by_hand(run)[0], start=1):
        averages.add(squares)
        if number % 4 == 0:
            expected.append((number, averages.estimate()))
    found = events(run.directory, "noise_scale")
    assert [line["step"] for line in found] == [number for number, _ in expected]
    for line, (number, estimate) in zip(found, expected, strict=True):
        assert (line["small_batch_size"], line["big_batch_size"]) == (25, 100)
        assert line["examples_seen"] == 100 * number
        for key, value in (
            ("gradient_square", estimate.gradient_square), ("variance_trace", estimate.variance_trace),
            ("noise_scale", estimate.noise_scale), ("noise_scale_low", estimate.low),
            ("noise_scale_high", estimate.high),
        ):  # fmt: skip
            assert line[key] == pytest.approx(value, rel=1e-9), key


@pytest.mark.worlds
def test_ranks_measure_what_micro_batches_measure(small_run, tmp_path):
    """Two ranks, a micro-batch of 50 each before the all-reduce, beside one process with two of them."""
    keys = ["batch.micro_batch_size=50", "record.directions_every_steps=2"]
    alone = run_of(small_run, *keys)
    assert train(alone, quiet=True).status == "finished"
    ended = torchrun(2, "-m", "largebatch", "train", small_run, *keys, f"record.dir={tmp_path / 'two'}")
    assert ended.returncode == 0, ended.stderr
    for kind in ("noise_scale", "directions"):
        for one, two in zip(events(alone.directory, kind), events(tmp_path / "two", kind), strict=True):
            assert one == alike(two)


@pytest.mark.worlds
def test_only_some_steps_are_measured(small_run, tmp_path):
    run = run_of(small_run, "record.noise_scale.every_steps=3", f"record.dir={tmp_path / 'third'}")
    train(run, quiet=True)
    averages = Averages(0.9)
    for number, squares in enumerate(by_hand(run)[0], start=1):
        if number % 3 == 0:
            averages.add(squares)
    assert events(run.directory, "noise_scale")[-1]["noise_scale"] == pytest.approx(averages.estimate().noise_scale)


@pytest.mark.worlds
def test_parts_of_several_micro_batches(small_run, tmp_path):
    """b = 50 in micro-batches of 25 is what b = 50 in micro-batches of 50 is."""
    found = []
    for micro in (25, 50):
        run = run_of(
            small_run, f"batch.micro_batch_size={micro}", "record.noise_scale.small_batch_size=50",
            f"record.dir={tmp_path / str(micro)}",
        )  # fmt: skip
        train(run, quiet=True)
        found.append(events(run.directory, "noise_scale"))
    for one, other in zip(*found, strict=True):
        assert one == alike(other)


@pytest.mark.worlds
def test_measuring_changes_no_bit_of_the_training(recipe, tmp_path):
    path = recipe(batch__micro_batch_size=25)
    for name, *more in (
        ("plain",),
        ("watched", "record.noise_scale=true", "record.directions_every_steps=3", "record.layers_every_steps=2"),
    ):
        train(run_of(path, f"record.dir={tmp_path / name}", *more), quiet=True)
    assert same_weights(tmp_path / "plain", tmp_path / "watched")


@pytest.mark.worlds
def test_the_averages_survive_a_kill(small_run, tmp_path):
    keys = ("checkpoint.every_epochs=0.2", "epochs=0.8", "record.directions_every_steps=1")
    whole = run_of(small_run, *keys, f"record.dir={tmp_path / 'whole'}")
    train(whole, quiet=True)
    killed = run_of(small_run, *keys, f"record.dir={tmp_path / 'killed'}")
    with killed_at(7), pytest.raises(Killed):
        train(killed, quiet=True)
    assert train(killed, quiet=True).status == "finished"
    expected = events(whole.directory, "noise_scale")[-1]
    assert events(killed.directory, "noise_scale")[-1] == expected
    assert events(killed.directory, "directions")[-1] == events(whole.directory, "directions")[-1]


@pytest.mark.worlds
@pytest.mark.parametrize("every", [1, 3])
def test_directions_by_hand(recipe, tmp_path, every):
    path = recipe(
        precision="fp64", steps=9, epochs=None, optimizer={"name": "sgd", "momentum": 0.7},
        record__every_steps=4, record__directions_every_steps=every,
    )  # fmt: skip
    run = run_of(path)
    train(run, quiet=True)
    _, walked, gradients = by_hand(run)
    at = [torch.cat([w.reshape(-1) for w in weights]) for weights in walked]
    found = events(run.directory, "directions")
    assert [line["step"] for line in found] == list(range(every, 10, every))
    for line in found:
        t = line["step"]
        now = at[t] - at[t - 1]
        expected: dict[str, Any] = {
            "distance_from_start": (at[t] - at[0]).norm(),
            "weight_norm": at[t].norm(),
            "update_norm": now.norm(),
            "relative_update": now.norm() / at[t].norm(),
            "gradient_alignment": None,
            "update_alignment": None,
            "secant_curvature": None,
        }
        if t > 1:
            before, g, g_before = at[t - 1] - at[t - 2], gradients[t - 1], gradients[t - 2]
            expected["gradient_alignment"] = F.cosine_similarity(g, g_before, dim=0)
            expected["update_alignment"] = F.cosine_similarity(now, before, dim=0)
            expected["secant_curvature"] = torch.dot(g - g_before, before) / before.square().sum()
        for key, value in expected.items():
            assert line[key] == (None if value is None else pytest.approx(value.item(), rel=1e-8)), key


@pytest.mark.worlds
def test_gradient_descent_at_a_rate_too_high_turns_back(recipe, tmp_path, one_thread):
    """The whole training set in each step: at a low rate one gradient is the next, at a high one they point apart."""
    least = {}
    for lr in (0.3, 1.5):
        path = recipe(
            f"at-{lr}", batch__global_batch_size=1500, steps=150, epochs=None, precision="fp64", lr={"base": lr},
            optimizer={"name": "sgd", "momentum": 0.0}, record__directions_every_steps=1,
        )  # fmt: skip
        train(run_of(path), quiet=True)
        lines = events(run_of(path).directory, "directions")[-20:]
        least[lr] = min(line["gradient_alignment"] for line in lines)
        assert (max(line["secant_curvature"] for line in lines) > 1 / lr) == (lr > 1)
    assert least[0.3] > 0.9
    assert least[1.5] < -0.5


@pytest.mark.worlds
def test_sharded_weights_have_the_same_directions(recipe, tmp_path):
    path = recipe(
        precision="fp64", steps=6, epochs=None, record__directions_every_steps=2, optimizer={"name": "heavy_ball"}
    )
    train(run_of(path), quiet=True)
    ended = torchrun(2, "-m", "largebatch", "train", path, "engine.name=fsdp", f"record.dir={tmp_path / 'fsdp'}")
    assert ended.returncode == 0, ended.stderr
    here, there = (events(folder, "directions") for folder in (run_of(path).directory, tmp_path / "fsdp"))
    assert here == [alike(line) for line in there]


@pytest.mark.worlds
def test_adascale_and_the_noise_scale_measure_the_same_parts(recipe, tmp_path):
    path = recipe(
        precision="fp64", batch__global_batch_size=100, steps=20, epochs=None,
        lr={"base": 0.05, "reference_batch_size": 25, "scaling": "adascale"}, record__every_steps=4,
        record__noise_scale={"every_steps": 2},
    )  # fmt: skip
    run = run_of(path)
    assert train(run, quiet=True).status == "finished"
    found = events(run.directory, "noise_scale")
    assert found
    assert {line["small_batch_size"] for line in found} == {25}
    plain = run_of(path, "record.noise_scale=null", f"record.dir={tmp_path / 'plain'}")
    train(plain, quiet=True)
    assert same_weights(run.directory, plain.directory)


def test_a_ramp_changes_the_big_batch(recipe):
    path = recipe(
        epochs=1, batch={"global_batch_size": 50, "micro_batch_size": 25, "ramp": {"at_epochs": [0.5], "factor": 2}},
        record__every_steps=1, record__noise_scale={"every_steps": 1},
    )  # fmt: skip
    run = run_of(path)
    assert train(run, quiet=True).status == "finished"
    assert [line["big_batch_size"] for line in events(run.directory, "noise_scale")] == [50] * 15 + [100] * 8


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["batch.micro_batch_size=100"], "noise_scale needs gradients of two .*micro_batch_size.*50"),
        (["batch.global_batch_size=1", "batch.micro_batch_size=1"], "batch.global_batch_size = 1 has one"),
        (["record.noise_scale.small_batch_size=100"], "small_batch_size = 100 must be smaller than .* = 100"),
        (["record.noise_scale.small_batch_size=200"], "small_batch_size = 200 must be smaller than .* = 100"),
        (["record.noise_scale.small_batch_size=30"], "small_batch_size = 30 must divide .* and be a multiple"),
        (["record.noise_scale.small_batch_size=5"], "multiple of the micro-batch of 25; .*micro_batch_size = 5"),
        (["sam={rho: 0.05}"], "record.noise_scale measures gradients at the weights, sam"),
        (["precision=fp16"], "record.noise_scale does not go with precision = fp16"),
        (
            ["precision=fp16", "record.noise_scale=null", "record.directions_every_steps=1"],
            "directions_every_steps .*fp16",
        ),
        (["engine.name=fsdp"], "record.noise_scale needs engine.name = ddp"),
        (
            ["data.repeats=2"],
            "record.noise_scale takes .* data.repeats = 2 .*; valid: data.repeats = 1, or no record.n",
        ),
        (["averaging={name: post_local_sgd, workers: 2, from_epoch: 0}"], "gradients and directions as workers"),
        (["record.noise_scale.smoothing=1"], "record.noise_scale.smoothing"),
    ],
)
def test_what_cannot_be_measured_is_refused(small_run, overrides, sentence):
    with distributed.group(CPU, alone=True), pytest.raises(UserError, match=sentence):
        train(run_of(small_run, *overrides), quiet=True)


def test_a_key_below_true(small_run):
    """The short form of the file, one key of it from the command line."""
    path = small_run.with_name("short.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(small_run.read_text()), "record": {"noise_scale": True}}))
    assert run_of(path, "record.noise_scale.every_steps=2").record.noise_scale == NoiseScale(every_steps=2)


def test_true_and_false_switch_it(small_run):
    written = yaml.safe_load(small_run.read_text())
    for value, expected in ((True, NoiseScale()), (False, None), ({}, NoiseScale())):
        written["record"]["noise_scale"] = value
        assert config.from_dict({**written, "name": "x"}).record.noise_scale == expected
    assert math.isclose(NoiseScale().smoothing, 0.99)
