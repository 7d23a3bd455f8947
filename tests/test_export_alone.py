"""Whoever has an exported file and nothing else can use it: the accuracy that was recorded comes out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torchvision.transforms.v2 as T
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from largebatch import models
from largebatch.cli.checkpoint import app
from largebatch.recipes import config
from largebatch.run.train import train


def export(run: Path) -> Result:
    return CliRunner().invoke(app, ["export", str(run)], catch_exceptions=False)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three classes that differ in their brightest third; 72 × 72 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 7)):
        for number, label in enumerate(("zebra", "ant", "mule")):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for image in range(count):
                pixels = rng.integers(0, 200, (72, 72, 3), dtype=np.uint8)
                pixels[:, 24 * number : 24 * number + 24] += np.uint8(30)
                Image.fromarray(pixels).save(tmp_path / "images" / split / label / f"{image}.png")
    return tmp_path / "images"


class Predictor:
    """Made of the file alone, by its header; the network by the name and the arguments that it has."""

    def __init__(self, file: Path) -> None:
        with safetensors.safe_open(file, framework="pt") as opened:
            words = opened.metadata()
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        keys = ("arguments", "classes", "input_size", "resize", "crop_pct", "mean", "std")
        about: dict[str, Any] = {key: json.loads(words[key]) for key in keys}
        self.classes = about["classes"]
        shape = tuple(about["input_size"])
        self.model = models.build(words["model"], int(words["num_classes"]), shape, 1, about["arguments"]).eval()
        self.model.load_state_dict(weights)
        resized = [T.Resize(about["resize"], T.InterpolationMode(words["interpolation"]), antialias=True)]
        steps = [
            *(resized if about["resize"] else []),
            T.CenterCrop(shape[1:]),
            T.PILToTensor(),
            T.ToDtype(torch.float32, scale=True),
        ]
        self.seen = T.Compose([*steps, T.Normalize(about["mean"], about["std"])])
        assert about["crop_pct"] == pytest.approx(shape[1] / about["resize"])

    def __call__(self, image: Path) -> str:
        with torch.no_grad(), Image.open(image) as opened:
            return self.classes[int(self.model(self.seen(opened)[None]).argmax())]


@pytest.mark.worlds
def test_a_predictor_of_the_file_alone_has_the_recorded_accuracy(recipe, photographs, tmp_path):
    run = config.load(
        recipe(
            model={"name": "mlp", "width": 32, "depth": 1, "norm": True},
            data={"name": "folder", "root": str(photographs), "image_size": 48, "decode": "pillow", "workers": 0},
            batch__global_batch_size=12,
            epochs=4,
        )
    )
    result = train(run, quiet=True)
    assert result.status == "finished"
    assert export(run.directory).exit_code == 0
    alone = (run.directory / "weights.safetensors").rename(tmp_path / "alone.safetensors")
    predictor = Predictor(alone)
    assert predictor.classes == ["ant", "mule", "zebra"]
    images = sorted((photographs / "val").glob("*/*.png"))
    right = [predictor(image) == image.parent.name for image in images]
    assert 100 * sum(right) / len(right) == pytest.approx(result.numbers["test_accuracy_percent"])
    assert 0 < sum(right) < len(right) or sum(right) > len(right) / 2
