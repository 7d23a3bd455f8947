"""The bench measures two loops that do the same work; no test here says how fast."""

from __future__ import annotations

import io
import json
import math

import pytest
import rich.console
import torch
from programs import largebatch

from largebatch import config
from largebatch.bench import throughput
from largebatch.bench.bare_loop import bare_loop
from largebatch.errors import UserError


def test_the_bare_loop_trains_on_every_image_with_the_global_mean():
    """Against one big batch: micro-batches add up to the gradient of the global batch."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(12) % 3
    mean, std = torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 50.0)
    ends = []
    for micro in (12, 4):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        off = torch.autocast("cpu", enabled=False)
        bare_loop(
            model, optimizer, images, labels, mean, std, 12, micro, 3, off, torch.float32, torch.contiguous_format
        )
        ends.append(model[1].weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])


def test_the_command_writes_its_numbers_with_units_and_circumstances(recipe, tmp_path):
    file = tmp_path / "bench.json"
    ended = largebatch("bench", "throughput", recipe(), "--pairs", 3, "--steps", 4, "--json", file, COLUMNS="120")
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(file.read_text())
    assert facts["pairs"] == len(facts["trainer_over_bare_loop"]) == 3
    assert facts["trainer_over_bare_loop_median"] == sorted(facts["trainer_over_bare_loop"])[1]
    for trainer, bare, ratio in zip(
        facts["trainer_examples_per_second"],
        facts["bare_loop_examples_per_second"],
        facts["trainer_over_bare_loop"],
        strict=True,
    ):
        assert math.isclose(trainer / bare, ratio, rel_tol=1e-9)
    assert facts["command"].startswith("largebatch bench throughput")
    assert facts["machine"]["cores"] >= 1
    assert "trainer / bare loop" in ended.stdout


def test_sets_that_are_read_from_files_are_refused(recipe, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 40)).save(tmp_path / split / name / f"{number}.jpg")
    path = recipe(
        data={"name": "folder", "root": str(tmp_path), "image_size": 32, "workers": 0},
        batch={"global_batch_size": 2},
        model={"name": "tiny_cnn"},
    )
    with pytest.raises(UserError, match="bench throughput measures sets that live on the device; folder is read"):
        throughput.measure(config.load(path), 1, 1, "")


def test_the_trainer_stands_beside_itself_under_other_keys(recipe, monkeypatch):
    """Four steps of 100 examples in two seconds, and of 50 in half a second: 200 and 400 examples per second."""
    seconds = {100: 2.0, 50: 0.5}
    order = []

    def seconds_of(job):
        order.append(job.plan.global_batch_size)
        assert job.plan.steps == 4
        assert job.run.record.layers_every_steps == (2 if order[-1] == 50 else 0)
        return seconds[order[-1]]

    monkeypatch.setattr(throughput, "_seconds_of_trainer", seconds_of)
    keys = ["batch.global_batch_size=50", "record.layers_every_steps=2"]
    run = config.load(recipe(max_grad_norm=1.0))  # which keeps a bare loop out
    facts = throughput.measure(run, 2, 4, "bench", beside=keys)
    assert order[:2] == [100, 50], "both warm up"
    assert order[2:] in ([100, 50, 50, 100], [50, 100, 100, 50]), "who goes first alternates"
    assert facts["beside"] == keys
    assert facts["trainer_examples_per_second"] == [200.0, 200.0]
    assert facts["beside_examples_per_second"] == [400.0, 400.0]
    assert facts["trainer_over_beside"] == [0.5, 0.5]
    assert facts["trainer_over_beside_median"] == 0.5
    assert not any("bare" in key for key in facts)
    console = rich.console.Console(file=io.StringIO(), width=140)
    console.print(throughput.table(facts))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"trainer / with {' '.join(keys)}" in text
    assert "bare" not in text


def test_both_trainers_train(recipe):
    facts = throughput.measure(config.load(recipe()), 1, 3, "", beside=["record.layers_every_steps=1"])
    (ratio,) = facts["trainer_over_beside"]
    assert ratio == facts["trainer_examples_per_second"][0] / facts["beside_examples_per_second"][0] > 0


def test_what_stands_beside_must_be_a_recipe(recipe):
    with pytest.raises(UserError, match="tiny with --beside: unknown key record.layers_every_step; did you mean"):
        throughput.measure(config.load(recipe()), 1, 1, "", beside=["record.layers_every_step=1"])
