"""lr.scaling = surge: the curve of Li et al. 2024 in another statement, where its peak comes from, whom it fits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.errors import UserError
from largebatch.plan.schedules import scaled_lr
from largebatch.recipes import config
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts, Decided


def written(batch: int = 64, optimizer: str = "adamw", **lr: Any) -> dict[str, Any]:
    return {
        "name": "surge",
        "device": "cpu",
        "epochs": 2,
        "model": {"name": "mlp", "width": 8, "depth": 1},
        "data": {"name": "synthetic", "num_classes": 3, "image_shape": [1, 2, 2], "examples": 960, "workers": 0},
        "batch": {"global_batch_size": batch},
        "optimizer": {"name": optimizer},
        "lr": {"base": 1e-3, "reference_batch_size": 16, "scaling": "surge", "noise_scale": 100, **lr},
    }


def decided_of(recipe: dict[str, Any]) -> Decided:
    return decide(config.from_dict(recipe), DataFacts(960), 1, "cpu")


@pytest.mark.parametrize("batch", [1, 16, 64, 100, 400, 960])
def test_the_curve(batch):
    """As the paper has it, ε_max / (½(√(N/B) + √(B/N))); and as 1/cosh of half the logarithm of B/N."""
    highest = 1e-3 * 0.5 * (math.sqrt(100 / 16) + math.sqrt(16 / 100))
    expected = highest / (0.5 * (math.sqrt(100 / batch) + math.sqrt(batch / 100)))
    assert decided_of(written(batch)).peak_lr == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(highest / math.cosh(math.log(batch / 100) / 2), rel=1e-12)


def test_its_limits():
    """√B far below the noise scale, highest there, falling as 1/√B far above; base at the reference."""
    sizes = np.unique(np.geomspace(1, 10**8, 2001).round()).astype(int)
    rates = np.array([scaled_lr(2.0, "surge", int(size), 7, 10_000.0) for size in sizes])
    assert sizes[rates.argmax()] == pytest.approx(10_000, rel=0.02)
    assert scaled_lr(2.0, "surge", 7, 7, 10_000.0) == 2.0
    assert scaled_lr(2.0, "surge", 14, 7, 1e12) == pytest.approx(2.0 * math.sqrt(2), rel=1e-9)
    assert scaled_lr(2.0, "surge", 4 * 10**9, 10**9, 1.0) == pytest.approx(1.0, rel=1e-6)


def test_its_arithmetic_is_said():
    assert decided_of(written()).lr.rule == (
        "surge: 0.001 × (√(100/16) + √(16/100))/(√(100/64) + √(64/100)) = 0.00141463; 0.00145 at the noise scale of 100"
    )


@pytest.fixture
def measured(tmp_path) -> Path:
    (tmp_path / "run" / "diagnostics").mkdir(parents=True)
    facts = {"kind": "noise", "version": 1, "noise_scale": 100.0}
    (tmp_path / "run" / "diagnostics" / "noise.json").write_text(json.dumps(facts))
    return tmp_path / "run"


def test_a_runs_noise_scale_is_read_once_and_recorded(measured):
    for place in (measured, measured / "diagnostics" / "noise.json"):
        run = config.from_dict(written(noise_scale=str(place)))
        assert decide(run, DataFacts(960), 1, "cpu").peak_lr == decided_of(written()).peak_lr
        kept = run.as_written()
        assert kept["lr"]["noise_scale"] == {"examples": 100.0, "from": str(place)}
    (measured / "diagnostics" / "noise.json").unlink()
    again = config.from_dict(kept)
    assert again == run, "what a run keeps needs the other run no more"
    assert f"100 ({place})" in decide(again, DataFacts(960), 1, "cpu").lr.rule
    assert config.from_dict(written()).as_written()["lr"]["noise_scale"] == 100


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (written(optimizer="sgd"), "lr.scaling = surge is the curve of steps as long as a gradient's sign"),
        (written(optimizer="lamb"), "optimizer.name = lamb is another; valid: linear, sqrt, none"),
        (written(optimizer="muon"), "optimizer.name = muon is another"),
        (written(noise_scale=None), "lr.scaling = surge needs lr.noise_scale"),
        (written(scaling="sqrt"), "lr.noise_scale has no effect without lr.scaling = surge"),
        (written(reference_batch_size=None), "lr.scaling = surge needs lr.reference_batch_size"),
        (written(noise_scale=0), "lr.noise_scale.examples = 0 should be greater than 0"),
        (written(noise_scale="nowhere"), "lr.noise_scale = 'nowhere' cannot be read"),
        (written(noise_scale=True), "lr.noise_scale"),
    ],
)
def test_what_does_not_fit_is_one_sentence(recipe, sentence):
    with pytest.raises(UserError) as caught:
        decided_of(recipe)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_phase_asks_as_well():
    recipe = written(optimizer="sgd", scaling="none", reference_batch_size=None, noise_scale=None)
    lr = {"base": 0.1, "scaling": "surge", "reference_batch_size": 16, "noise_scale": 50}
    recipe["phases"] = [{"steps": 5}, {"lr": lr}]
    with pytest.raises(UserError, match="lr.scaling = surge is the curve of steps"):
        decided_of(recipe)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"kind": "noise", "noise_scale": null}', "the noise scale is not bounded there"),
        ('{"kind": "spectrum"}', "the noise scale is not there"),
        ("[]", "the noise scale is not there"),
        ("{", "it is no JSON"),
    ],
)
def test_a_file_without_a_noise_scale_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "noise.json").write_text(content)
    with pytest.raises(UserError) as caught:
        config.from_dict(written(noise_scale=str(tmp_path / "noise.json")))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch", "epochs", "lr"), [(16, 1, 0.1), (64, 4, 0.2), (32, 2, 0.1 * math.sqrt(2))])
def test_legw(batch, epochs, lr):
    """You et al. 2019 (1901.08256): κ times the batch, κ times the epochs of warm-up, √κ times the lr."""
    recipe = written(batch, "sgd", base=0.1, scaling="sqrt", noise_scale=None)
    recipe["lr"]["warmup"] = {"epochs": 1, "scaling": "linear"}
    decided = decided_of({**recipe, "epochs": 10})
    assert decided.peak_lr == pytest.approx(lr, rel=1e-12)
    assert decided.lr.schedule.warmup == epochs * 960
    assert decided.lr.warmup == f"{epochs} epochs (1 × {batch}/16, LEGW) from 0"
