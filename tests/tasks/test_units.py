"""A loss that is a mean over units which vary by example: the same in every world, micro-batch, engine and resume."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import torch.nn.functional as F
import yaml
from ends import different, events, result
from method_recipes import PLAIN, recipe_of
from programs import state_at_end, weights_at_end
from worlds import own_task

from largebatch import tasks
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train

RECIPE: dict[str, Any] = {
    **PLAIN,
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "digits"},
    "task": {"name": "weighted"},
    "record": {"to": [], "every_steps": 1},
}
FP32 = {"precision": "fp32"}
CUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "accumulated": (1, {"batch": {"global_batch_size": 120, "micro_batch_size": 24}}),
    "two ranks": (2, {}),
    "four ranks, accumulated": (4, {"batch": {"global_batch_size": 120, "micro_batch_size": 6}}),
    "fsdp on two": (2, {"engine": {"name": "fsdp"}}),
    "sam": (2, {"sam": {"rho": 0.05}}),
    "zero 1 on two": (2, {"engine": {"name": "deepspeed", "zero": 1}, **FP32}),
    "zero 2 on two": (2, {"engine": {"name": "deepspeed", "zero": 2}, **FP32}),
}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__])
    own_task.known()


def written(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {**RECIPE, **more}
    recipe["record"] = {**recipe["record"], "dir": str(folder / "run")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "units", **recipe}))
    return folder / "recipe.yaml"


def test_the_first_step_by_hand(tmp_path):
    """One SGD step: the gradient is that of Σ y·CE over Σ y of the whole batch, not of a mean over micro-batches."""
    changes = {
        "epochs": None,
        "steps": 1,
        "optimizer": {"name": "sgd", "momentum": 0.0},
        "weight_decay": {"value": 0.0},
    }
    batch = {"global_batch_size": 120, "micro_batch_size": 24}
    run = config.load(written(tmp_path, lr={"base": 0.1}, batch=batch, **changes))
    job = assemble(run, torch.device("cpu"))
    before = {name: value.detach().clone() for name, value in job.engine.model.named_parameters()}
    micro_batches = [
        batch for step in job.dataset.train.steps(job.plan, 0, 0, job.placement, run.seed) for batch in step
    ]
    images, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    assert len({int(part[1].sum()) for part in micro_batches}) > 1, "micro-batches that differ in their units"
    loss = (labels * F.cross_entropy(job.engine.model(images), labels, reduction="none")).sum() / labels.sum()
    gradients = torch.autograd.grad(loss, list(job.engine.model.parameters()))
    assert train(run, quiet=True).status == "finished"
    after = weights_at_end(run.directory)
    for (name, value), gradient in zip(before.items(), gradients, strict=True):
        torch.testing.assert_close(after[name], value - 0.1 * gradient, rtol=1e-12, atol=1e-14)
    assert events(run.directory, "train")[0]["loss"] == pytest.approx(loss.item(), rel=1e-12)


def test_the_noise_scale_of_the_first_step_by_hand(tmp_path):
    """Parts are weighed by their units: Σ (uᵢ/U)·‖gᵢ‖², gᵢ the gradient of the part's own mean loss."""
    batch = {"global_batch_size": 120, "micro_batch_size": 12}
    record = {**RECIPE["record"], "noise_scale": {"small_batch_size": 24, "every_steps": 1}}
    run = config.load(written(tmp_path, record=record, batch=batch, lr={"base": 0.1}, epochs=None, steps=1))
    job = assemble(run, torch.device("cpu"))
    micro_batches = [
        batch for step in job.dataset.train.steps(job.plan, 0, 0, job.placement, run.seed) for batch in step
    ]
    parts = [
        tuple(torch.cat(both) for both in zip(*micro_batches[i : i + 2], strict=True))
        for i in range(0, len(micro_batches), 2)
    ]
    assert len({int(labels.sum()) for _, labels in parts}) > 1, "parts that differ in their units"

    def gradient(images, labels):
        loss = (labels * F.cross_entropy(job.engine.model(images), labels, reduction="none")).sum() / labels.sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(job.engine.model.parameters()))])

    whole = gradient(*(torch.cat(both) for both in zip(*parts, strict=True))).square().sum().item()
    units = [labels.sum().item() for _, labels in parts]
    small = sum(u * gradient(*part).square().sum().item() for u, part in zip(units, parts, strict=True)) / sum(units)
    assert train(run, quiet=True).status == "finished"
    (found,) = events(run.directory, "noise_scale")
    assert found["gradient_square"] == pytest.approx((120 * whole - 24 * small) / 96, rel=1e-9)
    assert found["variance_trace"] == pytest.approx((small - whole) / (1 / 24 - 1 / 120), rel=1e-9)


@pytest.mark.worlds
def test_the_noise_scale_is_the_same_on_two_ranks(tmp_path):
    found = []
    for ranks, micro in ((1, 12), (2, 12), (2, 6)):
        folder = tmp_path / f"{ranks} of {micro}"
        batch = {"global_batch_size": 120, "micro_batch_size": micro}
        record = {**RECIPE["record"], "noise_scale": {"small_batch_size": 12, "every_steps": 2}}
        ended = pool.ranks(ranks, "worlds.own_task:train", written(folder, record=record, batch=batch))
        assert ended.returncode == 0, ended.stderr[-3000:]
        found.append(events(folder / "run", "noise_scale"))
    keys = ("step", "gradient_square", "variance_trace", "noise_scale_low")
    assert len(found[0]) > 3
    for other in found[1:]:
        for one, another in zip(found[0], other, strict=True):
            assert [one[key] for key in keys] == pytest.approx([another[key] for key in keys], rel=1e-9)


@pytest.mark.worlds
def test_the_same_however_it_is_cut(tmp_path):
    whole: dict[str, Path] = {}
    for name, (ranks, changes) in CUTS.items():
        if "zero" in name and importlib.util.find_spec("deepspeed") is None:
            continue
        alone = {key: value for key, value in changes.items() if key not in ("engine", "batch")}
        for folder, count, those in (
            (tmp_path / "whole" / str(sorted(alone)), 1, alone),
            (tmp_path / name, ranks, changes),
        ):
            if (folder / "run").exists():
                continue
            ended = pool.ranks(count, "worlds.own_task:train", written(folder, **those))
            assert ended.returncode == 0, ended.stderr[-3000:]
        whole[name] = tmp_path / "whole" / str(sorted(alone)) / "run"
        here, there = tmp_path / name / "run", whole[name]
        tolerance = 2e-5 if changes.get("precision") == "fp32" else 1e-12
        for key, value in weights_at_end(there).items():
            torch.testing.assert_close(weights_at_end(here)[key], value, rtol=tolerance, atol=tolerance, msg=name)
        for number in ("test_loss", "train_loss", "test_perplexity_like"):
            assert result(here)[number] == pytest.approx(result(there)[number], rel=tolerance), name
        losses = [[line["loss"] for line in events(run, "train")] for run in (here, there)]
        assert losses[0] == pytest.approx(losses[1], rel=tolerance), name


@pytest.mark.worlds
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_killed_and_resumed(tmp_path, engine):
    undisturbed, recipe = (written(tmp_path / name, engine={"name": engine}) for name in ("undisturbed", "killed"))
    assert pool.ranks(2, "worlds.own_task:train", undisturbed).returncode == 0
    ranks = pool.start_ranks(2, "worlds.own_task:killed", "between a gradient and its step", 17, recipe)
    pool.all_ended(ranks)
    assert ranks[1].returncode == -9
    assert pool.ranks(2, "worlds.own_task:train", recipe).returncode == 0
    assert events(recipe.parent / "run", "resume")
    assert state_at_end(recipe.parent / "run")["progress"]["step"] == 25
    assert different(recipe.parent / "run", undisturbed.parent / "run") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"lr": {"base": 0.05, "scaling": "adascale", "reference_batch_size": 20}},
            "lr.scaling = adascale needs examples that count alike; those of task.name = weighted do not",
        ),
        (
            {"averaging": recipe_of("swap")["averaging"]},
            "averaging.name = swap waits for a train accuracy, and task.name = weighted has none",
        ),
        (
            {"expect": {"numbers": {"r2": 0.5}, "source": "a paper"}},
            "expect.numbers.r2 is no number of task.name = weighted; its numbers: loss, perplexity_like",
        ),
        ({"expect": {"top1": 90, "source": "a paper"}}, "expect.top1 is no number of task.name = weighted"),
        ({"loss": {"label_smoothing": 0.1}}, "loss.label_smoothing = 0.1 has no effect on task.name = weighted"),
        (
            {"task": {"name": "classification", "label_smoothing": 0.1}, "loss": {"label_smoothing": 0.2}},
            "loss.label_smoothing and task.label_smoothing are the same number; leave one out",
        ),
        (
            {"task": {"name": "multilabel"}},
            "task.name = multilabel needs labels that are 0 or 1 for each, (examples × labels) floating",
        ),
        ({"task": {"name": "regresion"}}, "task.name = regresion is not known; did you mean regression"),
        (
            {"data": {"name": "diabetes"}, "task": {"name": "classification"}, "batch": {"global_batch_size": 38}},
            "task.name = classification needs labels that are classes, a whole number (int64) per example, and "
            "data.name = diabetes has targets of float32, 1 per example",
        ),
        (
            {"data": {"name": "diabetes", "augment": "flip"}, "task": None},
            "data.augment is for images; data set diabetes has none",
        ),
        (
            {
                "data": {"name": "diabetes"},
                "task": None,
                "model": {"name": "tiny_cnn"},
                "batch": {"global_batch_size": 38},
            },
            "model.name = tiny_cnn takes images, the inputs are 10; valid: mlp",
        ),
    ],
)
def test_what_a_task_cannot_do_is_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        assemble(config.load(written(tmp_path, **changes)), torch.device("cpu"))
