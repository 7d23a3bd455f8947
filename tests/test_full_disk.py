"""A disk without room, for real: the training goes on, says what it could not write, and writes it when it can."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich.console
import torch
from beside import beside
from programs import saved, weights_at_end

from largebatch import checkpoint
from largebatch.recipes import config
from largebatch.run.assemble import Job
from largebatch.run.train import train
from largebatch.steps.step import Step

pytestmark = pytest.mark.worlds  # mount and umount are processes
CHANGES = {
    "model": {"name": "mlp", "width": 400, "depth": 1, "norm": True},  # 0.25 MB a checkpoint
    "epochs": 4,
    "checkpoint": {"every_epochs": 0.4, "keep": 1},
    "record__every_steps": 1,
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    (place := tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


PAGE = os.sysconf("SC_PAGE_SIZE")


def fill(place: Path) -> None:
    """To the last byte, the rest of the last page of the run's lines included."""
    [lines] = place.glob("*/metrics.jsonl")
    with open(lines, "a") as file:
        empty = json.dumps({"event": "padding", "": ""})
        file.write(json.dumps({"event": "padding", "": "." * (-(file.tell() + len(empty) + 1) % PAGE)}) + "\n")
    assert lines.stat().st_size % PAGE == 0
    with open(place / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    free = os.statvfs(place)
    assert free.f_bavail == 0


def is_written(directory: Path, step: int) -> None:
    """Waits until the thread that saves has named the checkpoint of this step."""
    while not any(path.name == f"step-{step:08}" for path in saved(directory)):
        time.sleep(0.01)


def recorded(directory: Path, event: str) -> list[dict[str, Any]]:
    text = (directory / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def test_a_full_disk_stops_no_training(recipe, disk):
    """Full from step 20 to step 40: three saves fail, the lines of those steps follow, and the end is the same."""
    whole = config.load(recipe("whole", **CHANGES))
    assert train(whole, quiet=True).status == "finished"
    # A save has ended before the next step, so that it is known which of them find no room.
    overrides = [f"record.dir={disk / 'run'}", "checkpoint.asynchronous=false"]
    run = config.load(recipe("full", **CHANGES), overrides)
    good: list[Path] = []

    def act(job: Job, step: Step) -> None:
        if step.number == 20:
            is_written(run.directory, 18)
            fill(disk)
        if step.number == 40:
            found = checkpoint.load_newest(run.directory / "checkpoints")
            assert found is not None
            good.append(found.path)
            assert len(recorded(run.directory, "train")) < 30, "the lines wait"
            (disk / "filler").unlink()

    said = io.StringIO()
    console = rich.console.Console(file=said, width=1000)
    with beside(before=act):
        result = train(run, console=console)
    assert result.status == "finished"
    assert [path.name for path in good] == ["step-00000018"]
    saves = {line["step"]: line for line in recorded(run.directory, "checkpoint")}
    failed = [step for step, line in saves.items() if not line["written"]]
    assert failed == [24, 30, 36]
    assert {saves[step]["problem"].rpartition(": ")[2] for step in failed} == {"No space left on device"}
    for step in failed:
        why = f"{run.directory}/checkpoints/step-000000{step}: No space left on device"
        sentence = f"the checkpoint of step {step} could not be written ({why}); the training goes on"
        assert f"{sentence}, the last good one is {good[0]}" in said.getvalue()
    assert (
        f"{run.directory}/metrics.jsonl cannot be written: No space left on device; its lines wait" in said.getvalue()
    )
    assert [line["step"] for line in recorded(run.directory, "train")] == list(range(1, 61))
    assert "could not be written" in (run.directory / "train.log").read_text()
    assert not list((run.directory / "checkpoints").glob("*.unfinished"))
    expected, found = weights_at_end(whole.directory), weights_at_end(run.directory)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_disk_that_stays_full_leaves_the_last_good_checkpoint(recipe, disk):
    """Even result.json cannot be written; with room again the same command goes on and finishes."""
    run = config.load(recipe("full", **CHANGES), [f"record.dir={disk / 'run'}"])

    def act(job: Job, step: Step) -> None:
        if step.number == 20:
            is_written(run.directory, 18)
            fill(disk)

    said = io.StringIO()
    with beside(before=act):
        result = train(run, console=rich.console.Console(file=said, width=1000))
    assert (result.status, result.signal) == ("stopped", None), "the program ends with 1"
    assert result.reason is not None
    assert result.reason.startswith("the training is done, but the checkpoint of step 60 could not be written")
    assert result.reason.endswith("the last good one is " + str(saved(run.directory)[-1]))
    assert f"{run.directory}/result.json cannot be written: No space left on device" in said.getvalue()
    assert [path.name for path in saved(run.directory)] == ["step-00000018"]
    (disk / "filler").unlink()
    assert train(run, quiet=True).status == "finished"
    assert "resumed at step 18 of 60" in (run.directory / "train.log").read_text()
    assert [path.name for path in saved(run.directory)] == ["step-00000060"]
    assert {line["step"] for line in recorded(run.directory, "train")} == set(range(1, 61))
