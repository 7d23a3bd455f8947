"""Which rank is slow and in what: two ranks of which one sleeps, in one group."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from programs import weights_at_end
from worlds.ranks import NAP

from largebatch.machine import distributed
from largebatch.methods import step_times
from largebatch.recipes import config
from largebatch.run.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    recipe = {
        "model": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.2}, "data": {"name": "digits"},
        "batch": {"global_batch_size": 100, "micro_batch_size": 25}, "steps": 6,
        "optimizer": {"name": "sgd", "momentum": 0.9}, "lr": {"base": 0.1},
        "record": {"to": [], "every_steps": 2, "ranks_every_steps": 1},
    }  # fmt: skip
    (place / "small.yaml").write_text(json.dumps(recipe))
    ended = pool.ranks(2, "worlds.ranks:work", place / "small.yaml", place)
    assert ended.returncode == 0, ended.stderr
    return place


def events(directory: Path, kind: str = "ranks") -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def sentences(directory: Path) -> list[str]:
    return [line for line in (directory / "train.log").read_text().splitlines() if "is slow" in line]


def same_weights(*directories: Path) -> bool:
    one, other = map(weights_at_end, directories)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("case", "part", "words"),
    [
        ("stream", "data", "data wait"),
        ("micro_batch", "data", "data wait"),
        ("compute", "compute", "compute"),
        ("optimizer", "optimizer", "optimizer step"),
        ("sam", "data", "data wait"),
    ],
)
def test_the_rank_that_sleeps_is_named_and_what_it_slept_in(folder: Path, case: str, part: str, words: str):
    """The other waits for it in its communication, which is nobody's own."""
    lines = events(folder / case)
    assert [line["step"] for line in lines] == [3, 4, 5, 6], "in the first two DDP makes its buckets"
    for line in lines:
        assert (line["slowest_rank"], line["slowest_host"], line["slowest_part"]) == (1, "node1", part)
        assert line["own_seconds_slowest"] > line[f"{part}_seconds_most"] - 1e-6 >= NAP - 1e-6
        assert line["own_seconds_slowest"] - line["own_seconds_median"] > NAP / 2
        assert line["slowest_over_median"] > 1.5
        if case != "optimizer":  # after the last step of all, nobody waits for it
            assert line["communication_seconds_most"] > NAP / 2
            assert line["slowest_communication_seconds"] < NAP / 2
        parts = sum(line[f"slowest_{name}_seconds"] for name in step_times.DISJOINT)
        assert parts <= line["slowest_step_seconds"] + 1e-6
        of_compute = line["slowest_forward_seconds"] + line["slowest_backward_seconds"]
        assert of_compute == pytest.approx(line["slowest_compute_seconds"], abs=1e-9)
        if case == "compute":  # it slept in Ddp.forward
            assert line["slowest_forward_seconds"] > NAP - 1e-6 > line["slowest_backward_seconds"]
    (told,) = [line for line in sentences(folder / case) if "rank 1" in line]
    assert "rank 1 (host node1) is slow: 0." in told
    assert f"; {words} 0." in told


@pytest.mark.worlds
def test_where_all_are_equally_slow_nobody_is(folder: Path):
    lines = events(folder / "equal")
    assert len(lines) == 4
    for line in lines:
        assert line["own_seconds_median"] >= NAP
        assert line["slowest_over_median"] == line["own_seconds_slowest"] / line["own_seconds_median"]
    assert not sentences(folder / "equal")


@pytest.mark.worlds
def test_a_rank_is_named_again_after_a_while(folder: Path):
    assert len([line for line in sentences(folder / "again") if "rank 1" in line]) == 2


@pytest.mark.worlds
def test_with_shards_the_wait_for_data_is_told_and_nothing_else(folder: Path):
    for line in events(folder / "fsdp"):
        assert (line["slowest_rank"], line["slowest_part"]) == (1, "data")
        for part in ("compute", "forward", "backward", "communication", "optimizer"):
            assert line[f"{part}_seconds_median"] is line[f"slowest_{part}_seconds"] is None
        assert line["own_seconds_slowest"] == line["data_seconds_most"] >= NAP
        assert line["step_seconds_most"] > NAP
    (told,) = sentences(folder / "fsdp")
    assert "rank 1 (host node1) is slow: it waits 0." in told
    assert "fsdp does not tell computing from communicating" in told


@pytest.mark.worlds
@pytest.mark.parametrize("case", ["equal", "stream", "micro_batch", "compute", "optimizer"])
def test_measured_steps_change_no_bit(folder: Path, case: str):
    assert not events(folder / "off")
    assert same_weights(folder / "off", folder / case)


@pytest.mark.worlds
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["batch.micro_batch_size=20"],
        ["sam.rho=0.05"],
        ["sam.rho=0.05", "sam.m=25", "batch.micro_batch_size=25"],
        ["averaging={name: post_local_sgd, workers: 2, period: 2, from_epoch: 0}", "batch.micro_batch_size=25"],
        ["lr={base: 0.1, scaling: adascale, reference_batch_size: 25}", "batch.micro_batch_size=25", "steps=30"],
        ["data={name: digits}", "engine.name=fsdp"],
    ],
)
def test_measuring_alone(recipe, tmp_path: Path, overrides: list[str]):
    path = recipe(steps=7, epochs=None, record__every_steps=5, model__dropout=0.3)
    with distributed.group(torch.device("cpu"), alone=True):
        for name, every in (("on", 3), ("off", 0)):
            keys = [f"record.dir={tmp_path}/{name}", f"record.ranks_every_steps={every}", *overrides]
            assert train(config.load(path, keys), quiet=True).status == "finished"
    lines = events(tmp_path / "on")
    assert [line["step"] for line in lines][:2] == [3, 6], "one before the first recording mark, one after it"
    for line in lines:
        assert (line["slowest_rank"], line["slowest_over_median"]) == (0, 1)
        assert line["examples_seen"] == 100 * line["step"]
        known = [line[f"slowest_{part}_seconds"] for part in step_times.DISJOINT]
        assert known[0] > 0
        assert sum(seconds or 0.0 for seconds in known) <= line["slowest_step_seconds"]
        if "engine.name=fsdp" in overrides:
            assert known[1:] == [None] * 4
        else:
            _, forward, backward, communication, optimizer = known
            assert min(forward, backward, optimizer) > 0
            assert line["slowest_compute_seconds"] == pytest.approx(forward + backward, abs=1e-9)
            assert communication >= 0
            assert communication == 0 or overrides[0].startswith(("averaging", "lr", "sam")), "sums over a rank alone"
    assert not sentences(tmp_path / "on")
    assert same_weights(tmp_path / "on", tmp_path / "off")


class ScriptedClock:
    """Each look at it is a second later; what was asked between two looks is known."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("overrides", "wanted"),  # seconds of data, forward, backward, communication, optimizer
    [
        # data: the step, two micro-batches, and one look that finds no more
        ([], (4, 2, 2, 0, 1)),
        # twice two passes over batches of a list; the way to w + ε, and that back, count as backward
        (["sam.rho=0.05"], (4, 4, 6, 1, 1)),
        (["sam.rho=0.05", "sam.m=50"], (6, 4, 6, 0, 1)),
    ],
)
def test_every_second_falls_into_one_part(recipe, tmp_path: Path, monkeypatch, overrides, wanted):
    monkeypatch.setattr(step_times, "time", ScriptedClock())
    path = recipe(steps=3, epochs=None, record__ranks_every_steps=1, batch__micro_batch_size=50)
    assert train(config.load(path, [f"record.dir={tmp_path}/run", *overrides]), quiet=True).status == "finished"
    (line,) = events(tmp_path / "run")
    assert tuple(line[f"slowest_{part}_seconds"] for part in step_times.DISJOINT) == wanted
    other = line["slowest_step_seconds"] - sum(wanted)
    assert other == int(other) > 0


def rows(*own: float, step: float = 1.0) -> list[dict[str, float]]:
    fixed = {"data": 0.1, "communication": 0.3, "optimizer": 0.05, "step": step}
    return [{**fixed, "compute": seconds, "forward": seconds / 4, "backward": 3 * seconds / 4} for seconds in own]


@pytest.mark.parametrize(
    ("own", "step", "slow"),
    [
        ((0.2, 0.2, 0.2, 0.45), 1.0, True),
        ((0.2, 0.2, 0.2, 0.35), 1.0, False),  # 0.50 of 0.35
        ((0.2, 0.45), 1.0, True),  # of two the faster is the median
        ((0.45, 0.45, 0.2), 1.0, False),  # the fast one is the exception
        ((0.2, 0.45), 3.0, False),  # of a step of 3 s nobody misses it
    ],
)
def test_what_is_slow(own: tuple[float, ...], step: float, slow: bool):
    hosts = [f"n{rank}" for rank in range(len(own))]
    found = step_times.summary(rows(*own, step=step), hosts)
    assert step_times.is_slow(found) is slow
    assert found["slowest_host"] == hosts[own.index(max(own))]
    assert found["own_seconds_slowest"] == pytest.approx(max(own) + 0.15)


def test_the_sentence():
    of_ranks = rows(0.1, 0.1, 0.1, 0.1)
    of_ranks[3] |= {"data": 0.22, "compute": 0.2}
    found = step_times.summary(of_ranks, ["node01", "node01", "node07", "node07"])
    assert step_times.sentence(found, "ddp") == (
        "rank 3 (host node07) is slow: 0.470 s a step of its own, median 0.250 s; data wait 0.220 s, median 0.100 s"
    )
    assert found["communication_seconds_median"] == 0.3
    for row in of_ranks:
        row |= dict.fromkeys(("compute", "forward", "backward", "communication", "optimizer"), math.nan)
    found = step_times.summary(of_ranks, ["node01", "node01", "node07", "node07"])
    assert step_times.sentence(found, "fsdp") == (
        "rank 3 (host node07) is slow: it waits 0.220 s a step for data, median 0.100 s (fsdp does not tell computing "
        "from communicating)"
    )


@pytest.mark.gpu
def test_on_a_device_parts_are_times_between_events(recipe, tmp_path: Path):
    path = recipe(steps=7, epochs=None, record__every_steps=5, batch__micro_batch_size=25, precision="fp32")
    for name, every in (("on", 3), ("off", 0)):
        keys = [f"record.dir={tmp_path}/{name}", f"record.ranks_every_steps={every}", "deterministic=true"]
        train(config.load(path, keys), quiet=True)
    for line in events(tmp_path / "on"):
        known = [line[f"slowest_{part}_seconds"] for part in step_times.DISJOINT]
        assert min(known[1], known[2], known[4]) > 0
        assert 0 < sum(known) <= line["slowest_step_seconds"] * 1.001
    assert same_weights(tmp_path / "on", tmp_path / "off")
