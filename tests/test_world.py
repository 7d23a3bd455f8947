"""The machine never changes the result: the same recipe on one process and on several."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pool
import pytest
import torch
import yaml
from programs import REPOSITORY, largebatch, saved, torchrun, weights_at_end

pytestmark = pytest.mark.worlds
RECIPES = sorted((REPOSITORY / "configs" / "quickstart").glob("*.yaml"))
OPTIMIZERS = {
    "sgd": {"name": "sgd", "nesterov": True},
    "heavy_ball": {"name": "heavy_ball", "momentum_correction": True},
    "lars": {"name": "lars", "trust_coefficient": 0.01},
    "lamb": {"name": "lamb"},
    "adamw": {"name": "adamw"},
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> tuple[Path, dict[int, dict]]:
    """The same work in worlds of 1, 2 and 3, one start each."""
    directory = tmp_path_factory.mktemp("worlds")
    (directory / "recipes").mkdir()
    for name, optimizer in OPTIMIZERS.items():
        recipe = {
            "model": {"name": "tiny_cnn", "channels": [4, 8], "norm": False},
            "data": {"name": "digits", "augment": "crop_flip"},
            "batch": {"global_batch_size": 120},
            "precision": "fp64",
            "epochs": 2,
            "optimizer": optimizer,
            "weight_decay": {"value": 0.01, "skip": ["bias"]},
            "max_grad_norm": 1.0,
            "loss": {"label_smoothing": 0.1},
            "lr": {"base": 0.05, "warmup": {"epochs": 0.5}, "decay": {"name": "cosine"}},
            "record": {"to": []},
        }
        (directory / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    ends = {}
    for world in (1, 2, 3):
        ended = torchrun(world, "worlds.invariance:work", directory)
        assert ended.returncode == 0, ended.stderr
        ends[world] = json.loads((directory / f"world{world}.json").read_text())
    return directory, ends


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return weights_at_end(directory)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("world", [2, 3])
def test_weights_are_those_of_one_process_to_1e_12(worlds, name, world):
    directory, ends = worlds
    alone, many = (weights(directory / f"world{w}" / name) for w in (1, world))
    for key in alone:
        assert alone[key].dtype == torch.float64
        torch.testing.assert_close(many[key], alone[key], rtol=1e-12, atol=1e-12)
    assert ends[world][name]["examples"] == ends[1][name]["examples"], "the same examples in every step"
    for number in ("test_loss", "train_loss", "test_accuracy_percent", "steps"):
        assert ends[world][name][number] == pytest.approx(ends[1][name][number], rel=1e-11)


@pytest.mark.parametrize("world", [2, 3])
def test_the_recorded_losses_are_means_over_the_global_batch(worlds, world):
    directory, _ = worlds
    recorded = []
    for w in (1, world):
        lines = map(json.loads, (directory / f"world{w}" / "lars" / "metrics.jsonl").read_text().splitlines())
        recorded.append([(x["loss"], x["grad_norm"], x["lr"]) for x in lines if x["event"] == "train"])
    assert len(recorded[0]) > 3
    for one, many in zip(*recorded, strict=True):
        assert many == pytest.approx(one, rel=1e-10)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_counts_every_example_once(worlds, batch_size, world):
    _, ends = worlds
    alone, many = (ends[w][f"evaluate {batch_size}"] for w in (1, world))
    assert many["examples"] == alone["examples"] == 297
    assert many["accuracy_percent"] == alone["accuracy_percent"]
    assert many["loss"] == pytest.approx(alone["loss"], rel=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_one_all_reduce_per_step_whatever_the_accumulation(worlds, world):
    _, ends = worlds
    buckets, accumulation = ends[world]["all-reduced buckets"]
    assert buckets == 1
    assert accumulation > 1


def test_a_batch_that_two_ranks_cannot_share_is_one_sentence(recipe):
    ended = torchrun(2, "-m", "largebatch", "train", recipe("odd", batch={"global_batch_size": 101}))
    assert ended.returncode != 0
    told = [line for line in ended.stderr.splitlines() if line.startswith("largebatch: ")]
    assert told == [
        "largebatch: batch.global_batch_size = 101 does not factor into 2 ranks; nearest that do: 100 or 102"
    ]


def test_a_signal_to_one_rank_stops_both_at_the_same_step(recipe):
    path = recipe("signalled", epochs=40)
    ranks = pool.start_ranks(2, "worlds.kills:signalled", int(signal.SIGTERM), 22, 1, path)
    pool.all_ended(ranks)
    assert [rank.returncode for rank in ranks] == [143, 143], ranks[0].stderr
    folder = Path(yaml.safe_load(path.read_text())["record"]["dir"])
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped", 24)  # noticed in step 23, agreed one later
    assert saved(folder)[-1].name == "step-00000024"


@pytest.mark.real_data
@pytest.mark.parametrize("name", [pytest.param("goyal2017", marks=pytest.mark.slow), "lamb2019"])
def test_a_quickstart_recipe_on_two_ranks_is_the_one_on_one(tmp_path, name):
    """As the README starts it, made short; without batch norm, in float64."""
    path = REPOSITORY / "configs" / "quickstart" / f"{name}.yaml"
    short = ["epochs=0.1", "lr.warmup.epochs=0.05", "model.norm=false", "precision=fp64", "data.name=mnist"]
    directories = [tmp_path / "one", tmp_path / "two"]
    assert largebatch("train", path, *short, f"record.dir={directories[0]}").returncode == 0
    two = torchrun(2, "-m", "largebatch", "train", path, *short, f"record.dir={directories[1]}")
    assert two.returncode == 0, two.stderr
    one, other = (weights(directory) for directory in directories)
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-12, atol=1e-12)
