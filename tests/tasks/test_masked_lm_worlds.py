"""A masked language model after 20 steps over two lengths: the same weights in every world and engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import yaml
from ends import events, result
from method_recipes import recipe_of
from programs import weights_at_end

RECIPE: dict[str, Any] = {
    "batch": {"global_batch_size": 48},
    "epochs": None,
    "steps": 20,
    "lr": {"base": 0.01, "warmup": {"steps": 3}, "decay": {"name": "linear"}},
    "phases": [{"data.length": 16, "steps": 12}, {"batch.global_batch_size": 24, "lr.warmup.steps": 2}],
}
CUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "accumulated": (1, {"batch": {"global_batch_size": 48, "micro_batch_size": 6}}),
    "two ranks": (2, {}),
    "four ranks": (4, {}),
    "fsdp on two": (2, {"engine": {"name": "fsdp"}}),
    "zero 1 on two": (2, {"engine": {"name": "deepspeed", "zero": 1}}),
    "zero 2 on two": (2, {"engine": {"name": "deepspeed", "zero": 2}}),
}
TOLERANCE = {"fp32": 1e-6, "fp64": 1e-12}  # of what a weight is, at least 1


def recipe(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    written = recipe_of("masked_lm", **{**RECIPE, "record": {"dir": str(folder / "run"), "to": []}, **more})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(written))
    return folder / "recipe.yaml"


def trained(folder: Path, ranks: int, **more: Any) -> Path:
    """The run's directory."""
    ended = pool.ranks(ranks, "worlds.kills:train", recipe(folder, **more))
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder / "run"


@pytest.mark.worlds
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_the_same_weights_however_it_is_cut(tmp_path, precision, optimizer):
    """With BERT's ε: the gradient of a key's bias is all rounding, which a smaller one would divide by itself."""
    same = {"precision": precision, "optimizer": {"name": optimizer, "eps": 1e-6}}
    whole = trained(tmp_path / "whole", 1, **same)
    tolerance = TOLERANCE[precision]
    for name, (ranks, changes) in CUTS.items():
        if "zero" in name and (precision == "fp64" or importlib.util.find_spec("deepspeed") is None):
            continue  # DeepSpeed has no float64
        run = trained(tmp_path / name, ranks, **same, **changes)
        for key, value in weights_at_end(whole).items():
            torch.testing.assert_close(weights_at_end(run)[key], value, rtol=tolerance, atol=tolerance, msg=name)
        for number in ("test_loss", "test_perplexity"):
            assert result(run)[number] == pytest.approx(result(whole)[number], rel=10 * tolerance), name


@pytest.mark.worlds
def test_another_world_goes_on_where_one_ended(tmp_path):
    """Two ranks are killed in the first phase, three go on over its edge and are killed in the second, one ends it."""
    whole, folder = trained(tmp_path / "whole", 1), tmp_path / "by turns"
    often = {"checkpoint": {"every_epochs": 0.01, "keep": 50, "asynchronous": False}}  # each is there when they die
    for ranks, nth in ((2, 7), (3, 9)):
        path = recipe(folder, **often)
        started = pool.start_ranks(ranks, "worlds.kills:killed", "between a gradient and its step", nth, path)
        pool.all_ended(started)
        assert started[ranks - 1].returncode == -9
    trained(folder, 1, **often)
    begun = [line["step"] for line in events(folder / "run", "resume")]
    assert len(begun) == 2
    assert begun[0] < 12 < begun[1], "one in each phase"
    for key, value in weights_at_end(whole).items():
        torch.testing.assert_close(weights_at_end(folder / "run")[key], value, rtol=1e-12, atol=1e-12)
