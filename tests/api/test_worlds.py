"""Own parts on one rank and on two, with every engine, killed and resumed: the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pool
import pytest
import torch
from worlds.own_parts import TwoInputs

pytestmark = pytest.mark.worlds
EXACT = {"precision": "fp64"}


def trained(folder: Path, name: str, ranks: int, kind: str, optimizer: str = "", **overrides: object) -> Path:
    keys = json.dumps(overrides)
    ended = pool.ranks(ranks, "worlds.own_parts:train", folder / name, kind, keys, optimizer)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder / name


def weights(run: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(f"{run}.rank{rank}.pt", weights_only=True)


def assert_same(run: Path, other: Path, tolerance: float, rank: int = 0) -> None:
    for name, tensor in weights(run).items():
        torch.testing.assert_close(weights(other, rank)[name], tensor, rtol=tolerance, atol=tolerance)
    assert not torch.equal(weights(run)["head.weight"], TwoInputs().head.weight.double())


@pytest.mark.parametrize("kind", ["generator", "global"])
def test_augmentations_are_the_same_in_any_world_with_any_engine(tmp_path, kind):
    """The module is float32, so the last bits of float64 are not compared; runs beside are, elsewhere."""
    alone = trained(tmp_path, "alone", 1, kind, **EXACT)
    ddp = trained(tmp_path, "ddp", 2, kind, **EXACT, **{"batch.micro_batch_size": 6})
    fsdp = trained(tmp_path, "fsdp", 2, kind, **EXACT, **{"engine.name": "fsdp", "data.workers": 2})
    for run in (ddp, fsdp):
        assert_same(alone, run, 1e-7)
        assert_same(alone, run, 1e-7, rank=1)  # all ranks have the weights of the end


def test_zero_shards_an_optimizer_of_torch_that_steps_element_by_element(tmp_path):
    pytest.importorskip("deepspeed")
    alone = trained(tmp_path, "alone", 1, "generator", "AdamW")
    zero = trained(tmp_path, "zero", 2, "generator", "AdamW", **{"engine.name": "deepspeed", "engine.zero": 1})
    assert_same(alone, zero, 1e-5)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_killed_and_resumed_in_another_world_is_never_stopped(tmp_path, engine):
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    exact = {} if engine == "deepspeed" else EXACT
    keys = {"engine.name": engine, "checkpoint.every_epochs": 0.4, **exact}
    straight = trained(tmp_path, "straight", 1, "generator", **{**keys, "engine.name": "ddp"})
    words = ("worlds.own_parts:train", tmp_path / "killed", "generator", json.dumps(keys), "")
    killed = pool.start_ranks(2, *words, KILL_AFTER_STEP="7")
    pool.all_ended(killed)
    assert -9 in [rank.returncode for rank in killed]
    resumed = trained(tmp_path, "killed", 2, "generator", **keys)
    assert "resumed" in (resumed / "train.log").read_text()
    assert_same(straight, resumed, 1e-5 if engine == "deepspeed" else 1e-7)


def test_a_data_set_that_differs_between_ranks_is_refused(tmp_path):
    ended = pool.ranks(2, "worlds.own_parts:train_uneven", tmp_path / "run")
    assert ended.returncode != 0
    assert "has 241 examples to train and 50 to test on at rank 1, 240 and 50 at rank 0" in ended.stderr


def test_two_runs_one_after_another_with_every_engine_in_one_process(tmp_path):
    ended = pool.ranks(2, "worlds.own_parts:train_by_turns", tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
