"""The bench measures two loops that do the same work; no test here says how fast."""

from __future__ import annotations

import json
import math

import pytest
import torch
from programs import largebatch

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

    from largebatch import config
    from largebatch.bench.throughput import measure

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
        measure(config.load(path), 1, 1, "")
