"""The bench starts worlds, each trains its own batch, and what they measured is put side by side; nothing is timed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import rich.console
import torch
from programs import largebatch, torchrun

from largebatch.errors import UserError
from largebatch.machine import launched
from largebatch.recipes import config
from largebatch.studies.bench.scaling import measure as scaling
from largebatch.studies.bench.scaling import world as scaling_world


def measured(ranks: int, weak: float, strong: float, alone: float | None = None) -> dict[str, Any]:
    """What a world might tell: images per second, and the seconds of its all-reduce of 1,000 bytes."""

    def of(speed: float, batch: int) -> dict[str, Any]:
        parts = ("data", "forward", "backward", "communication", "optimizer", "step", "other")
        return {
            "global_batch_size": batch,
            "micro_batch_size": 50,
            "accumulation_steps": 2,
            "images_per_second": speed,
            "seconds_per_step": batch / speed,
            "split": {f"{part}_seconds": 0.25 for part in parts},
        }

    return {
        "ranks": ranks,
        "hosts": 1,
        "precision": "fp32",
        "weak": of(weak, 100 * ranks),
        "strong": of(strong, 100),
        "all_reduce": alone and {"bytes": 1000, "seconds": alone, "algorithm_bytes_per_second": 1000 / alone},
        "machine": {"gpu": None, "cores": 8, "torch_threads": 1},
    }


def shown(facts: dict[str, Any]) -> str:
    console = rich.console.Console(file=io.StringIO(), width=160)
    for table in scaling.tables(facts):
        console.print(table)
    for sentence in scaling.notes(facts):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


# ---- the worlds themselves ----


@pytest.mark.worlds
def test_two_worlds_of_gloo(recipe, tmp_path):
    file = tmp_path / "scaling.json"
    path = recipe(batch__micro_batch_size=50)
    options = ("--ranks", "1,2", "--rounds", 1, "--steps", 3, "--json", file)
    ended = largebatch("bench", "scaling", path, "model.width=8", *options, COLUMNS="120")
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(file.read_text())
    assert (facts["kind"], facts["device"], facts["threads_per_rank"]) == ("scaling", "cpu", 1)
    alone, two = facts["worlds"]
    assert (alone["ranks"], two["ranks"]) == (1, 2)
    batches = {kind: [world[kind]["global_batch_size"] for world in (alone, two)] for kind in ("weak", "strong")}
    assert batches == {"weak": [100, 200], "strong": [100, 100]}
    assert [world["weak"]["accumulation_steps"] for world in (alone, two)] == [2, 2]
    assert [world["strong"]["accumulation_steps"] for world in (alone, two)] == [2, 1]
    assert alone["all_reduce"] is None
    assert alone["weak"]["split"]["communication_seconds"] == 0
    assert two["weak"]["split"]["communication_seconds"] > 0
    assert two["all_reduce"]["bytes"] == 4 * (64 * 8 + 8 + 8 * 10 + 10)
    for world in (alone, two):
        for kind in ("weak", "strong"):
            row, base = world[kind], alone[kind]["images_per_second"][0]
            assert row["efficiency"] == pytest.approx([row["images_per_second"][0] / base / world["ranks"]])
            speed = row["global_batch_size"] / row["seconds_per_step"][0]
            assert row["images_per_second"][0] == pytest.approx(speed)
    for words in ("round 1 of 1: 2 ranks", "Weak scaling", "Strong scaling", "2 ranks: 2.44 kB summed alone"):
        assert words in ended.stdout


@pytest.mark.worlds
def test_under_a_launcher_its_world_is_measured(recipe, tmp_path):
    file = tmp_path / "world.json"
    words = ("-m", "largebatch", "bench", "scaling", recipe(), "--steps", 2, "--json", file)
    ended = torchrun(2, *words)
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(file.read_text())
    (world,) = facts["worlds"]
    assert (world["ranks"], world["weak"]["global_batch_size"]) == (2, 200)
    assert "efficiency" not in world["weak"]
    assert "a launcher started this world of 2 ranks on 1 host:" in ended.stdout


# ---- what is put side by side ----


def test_the_worlds_are_started_in_turn_and_compared_within_a_round(recipe, monkeypatch):
    path = recipe()
    speeds = {1: [(100.0, 100.0), (50.0, 50.0)], 2: [(150.0, 120.0), (80.0, 50.0)]}  # weak and strong in each round
    order: list[int] = []

    def started(ranks, given, overrides, worlds, steps, threads):
        assert (given, overrides, worlds, steps) == (path, ["model.width=8"], [1, 2], 5)
        order.append(ranks)
        alone = 0.5 * order.count(2) if ranks == 2 else None
        return measured(ranks, *speeds[ranks][order.count(ranks) - 1], alone)

    monkeypatch.setattr(scaling, "started", started)
    overrides = ["model.width=8"]
    facts = scaling.measure(config.load(path, overrides), path, overrides, [1, 2], 5, 2)
    assert order == [1, 2, 2, 1], "who begins alternates"
    alone, two = facts["worlds"]
    assert alone["weak"]["efficiency"] == alone["strong"]["efficiency"] == [1.0, 1.0]
    assert two["weak"]["efficiency"] == [0.75, 0.8]
    assert two["strong"]["efficiency"] == [0.6, 0.5]
    assert two["all_reduce"]["seconds"] == [0.5, 1.0]
    assert two["all_reduce"]["algorithm_bytes_per_second"] == 1000 / 0.75
    text = shown(facts)
    assert "75–80" in text
    assert "2 ranks: 1 kB summed alone at 1.33 kB/s" in text


def test_a_world_larger_than_its_machine_is_told():
    rounds = {ranks: [measured(ranks, 100.0, 100.0)] for ranks in (1, 16)}
    facts = {
        **scaling.circumstances(config.from_dict(written(), "made up"), 5, 1, ""),
        "device": "cpu",
        "precision": "fp32",
        "threads_per_rank": 1,
        "worlds": [scaling.together(rounds[ranks], rounds[1]) for ranks in (1, 16)],
    }
    facts["machine"]["cores"] = 8
    assert "16 threads of 16 ranks share 8 cores: no efficiency can be expected" in shown(facts)
    facts["machine"]["cores"] = 16
    assert "share" not in shown(facts)


def written() -> dict[str, Any]:
    return {
        "name": "made up",
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "batch": {"global_batch_size": 100},
        "steps": 3,
        "optimizer": {"name": "sgd"},
        "lr": {"base": 0.1},
    }


def test_weak_scaling_keeps_a_ranks_share():
    run = config.from_dict(written(), "made up")
    sizes = [
        scaling_world.at(run, kind, ranks, base, 5).batch.global_batch_size
        for kind, ranks, base in (("weak", 8, 1), ("weak", 8, 2), ("weak", 2, 2), ("strong", 8, 2))
    ]
    assert sizes == [800, 400, 100, 100]


def test_threads_are_the_same_in_every_world(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert scaling.threads_per_rank([1, 64]) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(scaling.os, "sched_getaffinity", lambda process: range(8))
    assert [scaling.threads_per_rank(worlds) for worlds in ([1, 2, 4], [1, 16])] == [2, 1]


# ---- mistakes ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,two", "--ranks 1,two: 'two' is no whole number; write 1,2,4"),
        ("0,1", "--ranks 0,1: 0 is no world; at least 1"),
        ("2,2", "--ranks 2,2 has 2 twice; once is enough"),
        ("", "--ranks : '' is no whole number; write 1,2,4"),
    ],
)
def test_ranks_that_are_none(text, words):
    with pytest.raises(UserError) as mistake:
        scaling.parse_ranks(text)
    assert str(mistake.value) == words


def test_ranks_ascend():
    assert scaling.parse_ranks("4,1,2") == [1, 2, 4]


@pytest.mark.parametrize(
    ("worlds", "words"),
    [
        ([1, 3], "--ranks 3, strong scaling: batch.global_batch_size = 100 does not factor into 3 ranks; nearest"),
        ([3, 6], "--ranks 3, weak scaling: batch.global_batch_size = 100 does not divide among 3 ranks, the fewest"),
        ([1, 20], "--ranks 20, weak scaling: batch.global_batch_size = 2000 is larger than the training set"),
    ],
)
def test_worlds_that_the_batch_does_not_fit(recipe, worlds, words):
    path = recipe()
    with pytest.raises(UserError) as mistake:
        scaling.measure(config.load(path), path, [], worlds, 5, 1)
    assert str(mistake.value).startswith(words)


def test_more_ranks_than_devices(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    path = recipe()
    with pytest.raises(UserError, match="--ranks 4: this host has 2 CUDA devices, and each rank needs one; take fewer"):
        scaling.measure(config.load(path), path, [], [1, 4], 5, 1)


def test_a_launcher_that_is_not_known(recipe):
    path = recipe()
    with pytest.raises(UserError, match="--launcher srun is not started from here; valid: torchrun. Under srun"):
        scaling.measure(config.load(path), path, [], [1], 5, 1, launcher="srun")


@pytest.mark.worlds
def test_what_stopped_a_world_is_told(recipe, monkeypatch, tmp_path):
    """The parent does not see what the world sees: here a file that is gone by then."""
    assert launched.place_of({}) is None
    path = recipe()
    run = config.load(path)
    path.unlink()
    with pytest.raises(UserError) as mistake:
        scaling.measure(run, path, [], [1], 5, 1)
    told = str(mistake.value)
    assert told.startswith("the world of 1 rank ended with exit code 1: ")
    assert str(path) in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("W1 a warning\nlargebatch: no such file: x\nE1122 failed (exitcode: 2)\n", "no such file: x"),
        (
            "[rank0]: RuntimeError: out of luck\nE1122 12:00 failed\ntorch.x.ChildFailedError:\n",
            "[rank0]: RuntimeError: out of luck",
        ),
        ("killed\n", "killed"),
        ("", "it said nothing"),
    ],
)
def test_the_reason_of_an_end(told, wanted):
    assert scaling.reason(told) == wanted


@pytest.mark.gpu
def test_a_world_of_one_device(recipe, tmp_path: Path):
    file = tmp_path / "scaling.json"
    ended = largebatch(
        "bench", "scaling", recipe(), "--ranks", "1", "--rounds", 1, "--steps", 3, "--json", file, COLUMNS="120"
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(file.read_text())["device"] == "cuda"
