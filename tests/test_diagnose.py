"""``largebatch diagnose`` on runs that were really trained, on one rank and on two, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pool
import pytest
import torch
import torch.nn.functional as F
import yaml
from programs import damage, largebatch, saved, weights_at_end
from worlds.diagnose import MEASURES

from largebatch.cli import app
from largebatch.data import Placement
from largebatch.errors import UserError
from largebatch.plan import batch
from largebatch.recipes import config
from largebatch.records.diagnoses import DIAGNOSES
from largebatch.records.typed import content, read
from largebatch.run.assemble import dataset_of, model_of, task_of
from largebatch.run.train import train
from largebatch.studies.diagnose import noise, path, plateau, sharpness, spectrum
from largebatch.studies.diagnose.opened import opened

pytestmark = pytest.mark.worlds
CPU = torch.device("cpu")
DOUBLE = Placement(CPU, torch.float64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Small runs on the digits: two seeds of a network with batch norm, one without, one that stands still."""
    folder = tmp_path_factory.mktemp("trained")
    runs = {
        "a": {"seed": 0},
        "b": {"seed": 1, "batch": {"global_batch_size": 500}},
        "plain": {"model": {"name": "mlp", "width": 8, "depth": 1}},
        "dropout": {"model": {"name": "mlp", "width": 8, "depth": 1, "dropout": 0.5}},
        "unsaved": {"checkpoint": {"every_epochs": 0}, "steps": 5},
        "wide": {"model": {"name": "mlp", "width": 12, "depth": 1, "norm": True}, "steps": 5},
    }
    found = {}
    for name, own in runs.items():
        written: dict[str, Any] = {
            "name": name,
            "title": f"run {name}",
            "model": {"name": "mlp", "width": 8, "depth": 1, "norm": True},
            "data": {"name": "digits"},
            "batch": {"global_batch_size": 50},
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "lr": {"base": 0.05},
            "record": {"to": [], "dir": str(folder / name), "every_steps": 5},
            **own,
        }
        if "steps" not in written:
            written["epochs"] = 4
        run = config.from_dict(written)
        assert train(run, quiet=True).status == "finished"
        found[name] = folder / name
    return found


def facts_of(directory: Path, kind: str) -> dict[str, Any]:
    return json.loads((directory / "diagnostics" / f"{kind}.json").read_text())


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return weights_at_end(directory)


def model_at(directory: Path) -> tuple[torch.nn.Module, Any]:
    """The model once more, from the checkpoint and by hand; in float64, in evaluation mode."""
    run = config.load(directory / "run.yaml")
    dataset = dataset_of(run)
    model = model_of(run, task_of(run, dataset), dataset)
    model.load_state_dict(weights_of(directory))
    return model.double().eval(), dataset


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """The same numbers, wherever they stand; but for where and when they were measured."""
    if isinstance(expected, dict):
        for key in expected:
            if key not in ("seconds", "ranks", "command", "machine", "versions", "commit"):
                close(found[key], expected[key], tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-12)
    else:
        assert found == expected


def test_a_run_is_opened_as_it_was_judged(trained):
    """Loss and accuracy on the test set are those of ``result.json``."""
    run = opened(trained["a"], CPU, "fp32")
    result = json.loads((trained["a"] / "result.json").read_text())
    images, labels = next(iter(run.dataset.test.batches(0, 1, 10_000, run.placement)))
    outputs = run.model(images)
    assert F.cross_entropy(outputs, labels).item() == pytest.approx(result["test_loss"], rel=1e-5)
    assert 100 * (outputs.argmax(1) == labels).float().mean().item() == pytest.approx(result["test_accuracy_percent"])


def test_the_sample_is_the_same_in_any_world(trained, monkeypatch):
    run = opened(trained["a"], CPU)
    sample = run.sample(600, 100)
    assert (sample.examples, sample.batch_size) == (600, 100)
    whole = [images for images, _ in sample.all()]
    parts: list[list[torch.Tensor]] = []
    for rank in range(2):
        monkeypatch.setattr("largebatch.machine.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("largebatch.machine.distributed.world_size", lambda: 2)
        parts.append([images for images, _ in sample.mine()])
    woven = [parts[i % 2][i // 2] for i in range(6)]
    assert all(torch.equal(one, other) for one, other in zip(woven, whole, strict=True))
    assert len({tuple(image.flatten().tolist()) for images in whole for image in images}) > 590


def test_the_noise_scale_by_hand(trained):
    """Every part's gradient by plain autograd, the two averages and their quotient with plain numbers."""
    facts = noise.measure(trained["a"], CPU, small=10, big=50, batches=6, precision="fp64")
    model, dataset = model_at(trained["a"])
    plan = batch.resolve(dataset_size=1500, global_batch_size=50, micro_batch_size=10, steps=6, seed=0x0153)
    squares, traces = [], []
    model.train()
    for step in dataset.train.steps(plan, 0, 0, DOUBLE, plan.seed):
        parts = []
        for images, labels in step:
            loss = F.cross_entropy(model(images), labels)
            parts.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        small = sum(part.square().sum().item() for part in parts) / 5
        big = torch.stack(parts).mean(0).square().sum().item()
        squares.append((50 * big - 10 * small) / 40)
        traces.append((small - big) / (1 / 10 - 1 / 50))
    assert facts.gradient_square == pytest.approx(sum(squares) / 6)
    assert facts.variance_trace == pytest.approx(sum(traces) / 6)
    assert facts.noise_scale == pytest.approx(sum(traces) / sum(squares))
    assert facts.noise_scale_low < facts.noise_scale
    assert facts_of(trained["a"], "noise")["noise_scale"] == facts.noise_scale


def test_looking_leaves_the_run_as_it_was(trained):
    before = {name: value.clone() for name, value in weights_of(trained["a"]).items()}
    noise.measure(trained["a"], CPU, small=10, big=50, batches=2)
    run = opened(trained["a"], CPU)
    with run.training():
        run.model(torch.randn(20, 1, 8, 8))
    with run.normalised_by("batch"):
        run.model(torch.randn(20, 1, 8, 8))
    assert not run.model.training
    state = run.model.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_the_hessians_noise_scale_by_hand(trained):
    """tr(HΣ)/(GᵀHG) with the dense Hessian, for a model without batch norm."""
    facts = noise.measure(trained["plain"], CPU, small=10, big=200, batches=2, hessian=True, precision="fp64")
    run = opened(trained["plain"], CPU, "fp64")
    sample = run.sample(200, 10)
    parts = list(sample.all())
    weights = list(run.model.parameters())
    names = [name for name, _ in run.model.named_parameters()]
    shapes = [weight.shape for weight in weights]
    flat = torch.cat([weight.detach().flatten() for weight in weights])

    def loss(w, images, labels):
        split = w.split([shape.numel() for shape in shapes])
        given = {name: part.view(shape) for name, part, shape in zip(names, split, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(run.model, given, (images,)), labels)

    images, labels = (torch.cat(both) for both in zip(*parts, strict=True))
    hessian = torch.autograd.functional.hessian(lambda w: loss(w, images, labels), flat)
    flat.requires_grad_()
    gradients = torch.stack([torch.autograd.grad(loss(flat, *part), flat)[0] for part in parts])
    mean = gradients.mean(0)
    away = gradients - mean
    covariance = 10 * away.T @ away / (len(parts) - 1)
    trace = torch.trace(hessian @ covariance)
    expected = trace / (mean @ hessian @ mean - trace / 200)
    found = facts.hessian_noise_scale
    assert found == pytest.approx(expected.item(), rel=1e-6) if expected > 0 else found is None


def test_the_line_by_hand(trained):
    """Weights mixed, batch norm's statistics made anew over the sample, losses by plain torch."""
    facts = path.measure(trained["a"], trained["b"], CPU, points=4, examples=1500, batch_size=500, precision="fp64")
    assert [point.alpha for point in facts.line] == [-1, 0, 1, 2]
    model, dataset = model_at(trained["a"])
    ends = [weights_of(trained[name]) for name in "ab"]
    images, labels = next(iter(dataset.train.batches(0, 1, 1500, DOUBLE)))
    test_images, test_labels = next(iter(dataset.test.batches(0, 1, 1500, DOUBLE)))
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d))
    for point in facts.line:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                a, b = (end[name].double() for end in ends)
                parameter.copy_((1 - point.alpha) * a + point.alpha * b)
            before = model[1](model[0](images))  # flattened, the first linear layer
            norm.running_mean.copy_(before.mean(0))
            norm.running_var.copy_(before.var(0, unbiased=False))
            outputs, test_outputs = model(images), model(test_images)
        assert point.numbers["train_loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)
        assert point.numbers["test_loss"] == pytest.approx(F.cross_entropy(test_outputs, test_labels).item(), rel=1e-5)
        right = 100 * (test_outputs.argmax(1) == test_labels).double().mean().item()
        assert point.numbers["test_accuracy_percent"] == pytest.approx(right)
    assert facts.a.global_batch_size == 50
    assert facts.b.global_batch_size == 500
    assert facts_of(trained["b"], "path")["distance"] == facts.distance


def test_each_batch_normalised_by_itself(trained):
    """``--batch-norm batch``, as the paper evaluates: at α = 1 the whole sample in one batch is train mode's loss."""
    facts = path.measure(
        trained["a"], trained["b"], CPU, points=4, examples=1500, batch_size=1500, norm="batch", curve=False,
        precision="fp64",
    )  # fmt: skip
    model, dataset = model_at(trained["b"])
    images, labels = next(iter(dataset.train.batches(0, 1, 1500, DOUBLE)))
    assert facts.line[2].numbers["train_loss"] == pytest.approx(F.cross_entropy(model.train()(images), labels).item())
    assert facts.curve == []


def test_one_rank_and_two_measure_the_same(trained):
    alone = {kind: measure(trained) for kind, measure in MEASURES.items()}
    runs = json.dumps({name: str(path) for name, path in trained.items()})
    two = pool.ranks(2, "worlds.diagnose:measure_all", runs)
    assert two.returncode == 0, two.stderr
    for kind, facts in alone.items():
        found = facts_of(trained["a"], kind)
        assert (found["ranks"], facts.ranks) == (2, 1)
        close(found, json.loads(json.dumps(content(facts))), 1e-6)


@pytest.mark.parametrize(
    "words",
    [
        ["noise", "a", "--small", "10", "--big", "60", "--batches", "3"],
        ["sharpness", "a", "--examples", "600", "--batch-size", "100", "--space", "full", "--epsilon", "1e-3"],
        ["spectrum", "a", "--examples", "600", "--batch-size", "100", "--vectors", "2", "--eigenvalues", "2"],
        ["path", "a", "b", "--points", "4", "--examples", "600", "--batch-size", "100", "--no-curve"],
        ["plateau", "a", "--examples", "600", "--batch-size", "100"],
    ],
    ids=lambda words: words[0],
)
def test_the_command_prints_a_table_and_leaves_numbers_and_a_picture(trained, words, tmp_path, monkeypatch, capsys):
    numbers = tmp_path / "numbers.json"
    given = [str(trained.get(word, word)) for word in words]
    monkeypatch.setattr("sys.argv", ["largebatch", "diagnose", *given, "--json", str(numbers)])
    app(sys.argv[1:], standalone_mode=False)
    facts = json.loads(numbers.read_text())
    assert facts == facts_of(trained["a"], words[0])
    assert facts == content(read(DIAGNOSES[words[0]], facts, numbers)), "what was written is read as it was"
    assert facts["command"].startswith(f"largebatch diagnose {words[0]} ")
    assert "<svg" in (trained["a"] / "diagnostics" / f"{words[0]}.svg").read_text()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"diagnostics/{words[0]}.json" in printed
    assert "run a" in printed


def test_a_loss_that_still_falls(trained):
    facts = plateau.measure(trained["plain"], CPU)
    assert facts.verdict == "falling", facts.evidence
    assert facts.checkpoint_step == 120


def test_the_records_alone(trained):
    facts = plateau.measure(trained["unsaved"], CPU)
    assert facts.verdict == "unknown"
    assert "checkpoint_step" not in facts_of(trained["unsaved"], "plateau")


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (lambda t: sharpness.measure(t["unsaved"], CPU), "has no checkpoint to look at; train it with checkpoint"),
        (lambda t: spectrum.measure(t["a"].parent, CPU), "is no run: it has no run.yaml"),
        (lambda t: path.measure(t["a"], t["wide"], CPU), r"differ \(model.width: 8 there, 12 here\)"),
        (lambda t: noise.measure(t["a"], CPU, small=50, big=50), "--small = 50 must be smaller than --big = 50"),
        (lambda t: noise.measure(t["a"], CPU, small=64, big=32), "--small = 64 must be smaller than --big = 32"),
        (lambda t: noise.measure(t["a"], CPU, small=0), "--small = 0 must be smaller than --big"),
        (lambda t: noise.measure(t["a"], CPU, big=0), "--small = 64 must be smaller than --big = 0"),
        (lambda t: noise.measure(t["a"], CPU, small=1, big=4), "a batch of one example leaves batch norm one value"),
        (lambda t: sharpness.measure(t["a"], CPU, examples=1), "a batch of one example leaves batch norm one value"),
        (lambda t: path.measure(t["a"], t["b"], CPU, examples=1), "a batch of one example leaves batch norm one value"),
        (lambda t: noise.measure(t["a"], CPU, small=100, big=1600), "--big 1600 is larger than the training set"),
        (lambda t: sharpness.measure(t["a"], CPU, epsilons=[0.0]), "--epsilon 0"),
        (lambda t: sharpness.measure(t["a"], CPU, space="half"), "--space half is not known; valid"),
        (lambda t: sharpness.measure(t["a"], CPU, norm="none"), "--batch-norm none is not known; valid"),
        (lambda t: sharpness.measure(t["a"], CPU, rhos=[-1.0]), "--rho -1"),
        (lambda t: spectrum.measure(t["a"], CPU, examples=2000), "--examples 2000 is out of range; .* 1500"),
        (
            lambda t: spectrum.measure(t["a"], CPU, examples=1499, batch_size=100),
            "--examples 1499 cannot be cut .* 1500",
        ),
        (lambda t: spectrum.measure(t["a"], CPU, precision="bf16"), "--precision bf16 is not known; valid: fp32, fp64"),
        (lambda t: spectrum.measure(t["a"], CPU, step=7), "has no checkpoint of step 7; there are"),
        (lambda t: path.measure(t["a"], t["b"], CPU, points=1), "--points 1 makes no line"),
        (lambda t: path.measure(t["a"], t["a"], CPU), "are one run; a path lies between two"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_sentence(trained, measure, sentence):
    with pytest.raises(UserError, match=sentence) as told:
        measure(trained)
    assert "\n" not in str(told.value)


def test_the_noise_scale_of_repeated_examples_is_refused(trained, tmp_path):
    run = tmp_path / "repeated"
    shutil.copytree(trained["b"], run)
    written = yaml.safe_load((run / "run.yaml").read_text())
    written["data"]["repeats"] = 3
    (run / "run.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match=r"data.repeats = 3, .* valid: a run with data.repeats = 1") as told:
        noise.measure(run, CPU, small=10, big=50, batches=2)
    assert "\n" not in str(told.value)


def test_what_happened_to_the_files_is_told_in_a_sentence(trained, tmp_path):
    """A damaged checkpoint, somebody's own copy beside it, records without numbers, a folder that is a file."""
    run = tmp_path / "copy"
    shutil.copytree(trained["b"], run)
    newest = saved(run)[-1]
    shutil.copytree(newest, newest.with_name("step-best"))
    assert opened(run, CPU).step == opened(run, CPU, step=int(newest.name[5:])).step
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[::2]:
        line.pop("lr", None)
        line["loss"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plateau.measure(run, CPU).verdict
    shutil.rmtree(run / "diagnostics")
    (run / "diagnostics").write_text("")
    with pytest.raises(UserError, match="diagnostics/plateau.json cannot be written"):
        plateau.measure(run, CPU, checkpoint=False)
    for folder in saved(run):
        damage(folder)
    with pytest.raises(UserError, match="does not fit; train it again, or name another|can be read; train it again"):
        opened(run, CPU)


def test_dropout_belongs_to_the_part(trained):
    """Two measurements draw the same, and leave the random state as it was."""
    before = torch.get_rng_state()
    once, again = (noise.measure(trained["dropout"], CPU, small=10, big=50, batches=3) for _ in range(2))
    assert once.squares == again.squares
    assert torch.equal(torch.get_rng_state(), before)


def test_image_folders_are_looked_at_too(trained, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number in range(24):
        file = tmp_path / ("train" if number < 16 else "val") / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (20, 20, 3), generator=generator, dtype=torch.uint8)
        PIL.Image.fromarray(pixels.numpy()).save(file)
    written = {
        "name": "folder", "model": {"name": "tiny_cnn", "channels": [4]}, "optimizer": {"name": "sgd"},
        "data": {"name": "folder", "root": str(tmp_path), "image_size": 16, "workers": 0},
        "batch": {"global_batch_size": 8}, "steps": 2, "lr": {"base": 0.1},
        "record": {"dir": str(tmp_path / "run"), "to": []},
    }  # fmt: skip
    assert train(config.from_dict(written), quiet=True).status == "finished"
    run = tmp_path / "run"
    loss = sharpness.measure(run, CPU, examples=16, batch_size=4, space="full", precision="fp64").loss
    assert loss == pytest.approx(spectrum.measure(run, CPU, examples=16, batch_size=4, precision="fp64").loss)
    shutil.copytree(run, tmp_path / "again")
    assert path.measure(run, tmp_path / "again", CPU, points=4, examples=16, batch_size=4).distance == 0
    assert noise.measure(run, CPU, small=2, big=8, batches=2).big_batch_size == 8


def test_dropout_on_has_no_hessian(trained):
    """``diagnose`` switches it off; a model that drops all the same is refused by the layer's name."""
    run = opened(trained["dropout"], CPU)
    objective = run.objective(run.sample(600, 100))
    objective.check_deterministic()
    run.model.train()
    with pytest.raises(UserError, match=re.escape("draw at random")):
        objective.check_deterministic()


def test_numbers_of_several_runs_take_no_one_file(trained, tmp_path):
    told = largebatch("diagnose", "noise", trained["a"], trained["b"], "--json", tmp_path / "x.json")
    assert told.returncode == 2
    assert "takes one run" in told.stderr


def test_a_table_for_each_command(trained):
    facts = noise.measure(trained["a"], CPU, small=10, big=50, batches=4)
    assert noise.table(facts).row_count == 4
    assert any("noise scale" in sentence or "beyond measure" in sentence for sentence in noise.sentences(facts))
    lost = dataclasses.replace(facts, noise_scale=None, noise_scale_high=None)
    assert "beyond measure" in noise.sentences(lost)[1]
    assert not math.isnan(facts.gradient_square)
