"""What happens on clusters, done for real: ranks killed, stopped, frozen; checkpoints spoilt. Nothing changes the end.

Two ranks under torchrun, with batch norm, dropout, augmentation and momentum; every step is recorded. The number of
kills is N_KILLS; LARGEBATCH_KILLS asks for another.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from programs import environment, saved, state_at_end, torchrun, weights_at_end

from largebatch import checkpoint
from largebatch.checkpoint import manifest

N_KILLS = int(os.environ.get("LARGEBATCH_KILLS", "10"))
KILLS_OF_A_RUN = 5
PATIENCE = 240  # seconds, for whatever is waited for
STEPS = 300
HARD = {
    **TINY,
    "model": {"name": "tiny_cnn", "channels": [8, 8], "dropout": 0.3},
    "data": {"name": "digits", "augment": "flip"},
    "epochs": 20,
    "evaluate": {"every_epochs": 8},
    "checkpoint": {"every_epochs": 0.4, "keep": 3},
}


def written(folder: Path, name: str = "run", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    record = {"dir": str(folder / name), "tensorboard": False, "every_steps": 1}
    path.write_text(yaml.safe_dump({**HARD, "record": record, **changes}))
    return path


class Launch:
    """``torchrun`` with two ranks, beside the test; what it says goes to a file. Ended with the test."""

    def __init__(
        self, recipe: Path, *overrides: str, restarts: int = 0, program: Path | None = None, **more: str
    ) -> None:
        self.directory = recipe.with_suffix("")
        self.said = recipe.with_name(f"{recipe.stem}.said")
        program_words = [str(program)] if program else ["-m", "largebatch", "train"]
        with open(self.said, "w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    "--max-restarts", str(restarts), *program_words, str(recipe), *overrides,
                ],
                stdout=file, stderr=file, env=environment(**more),
            )  # fmt: skip

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers()
        for process in (self.process.pid, *workers.values()):
            if self.process.poll() is None:
                os.kill(process, signal.SIGKILL)
        self.process.wait()

    def until(self, there: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := there():
                return found
            if self.process.poll() is not None and not (found := there()):
                break
            time.sleep(0.01)
        raise AssertionError(f"waited for {what}; it said:\n{self.said.read_text()[-4000:]}")

    def workers(self) -> dict[int, int]:
        """rank -> process, of those that run now."""
        found = {}
        for pid in map(int, words_in(f"/proc/{self.process.pid}/task/{self.process.pid}/children")):
            if ranks := re.findall(rb"(?:^|\0)RANK=(\d+)", bytes_in(f"/proc/{pid}/environ")):
                found[int(ranks[0])] = pid
        return found

    def step(self) -> int:
        """The one recorded last; 0 before there is any."""
        try:
            with open(self.directory / "metrics.jsonl", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return 0
        return max(map(int, re.findall(rb'\n{"event": "train", "step": (\d+),', whole)[-1:]), default=0)

    def at(self, step: int) -> dict[int, int]:
        """The workers, when the run has come to ``step``."""
        self.until(lambda: self.step() >= step, f"step {step}, the run is at {self.step()}")
        return self.until(lambda: len(w := self.workers()) == 2 and w, "two workers")

    def end(self) -> int:
        self.until(lambda: self.process.poll() is not None, "the end of the run")
        return self.process.wait()


def bytes_in(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError:  # the process has just ended
        return b""


def words_in(file: str) -> list[bytes]:
    return bytes_in(file).split()


def events(directory: Path, event: str) -> list[dict[str, Any]]:
    file = directory / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []
    return [line for line in map(json.loads, whole) if line["event"] == event]


def train_lines(directory: Path) -> list[dict[str, Any]]:
    return events(directory, "train")


def of_every_step(directory: Path) -> dict[int, tuple[Any, ...]]:
    """The last line of each counts."""
    return {x["step"]: (x["examples_seen"], x["lr"], x["loss"], x["grad_norm"]) for x in train_lines(directory)}


def tensors(tree: Any, name: str = "") -> dict[str, torch.Tensor]:
    match tree:
        case torch.Tensor():
            return {name: tree}
        case dict():
            return {n: t for key, below in tree.items() for n, t in tensors(below, f"{name}/{key}").items()}
        case list() | tuple():
            return {n: t for i, below in enumerate(tree) for n, t in tensors(below, f"{name}/{i}").items()}
    return {}


def assert_same_end(directory: Path, reference: Path) -> None:
    """0 steps differ; weights, momentum, running statistics and random states are the same bits."""
    there, here = of_every_step(reference), of_every_step(directory)
    assert sorted(here) == sorted(there)
    assert [step for step in there if here[step] != there[step]] == []
    expected, found = (tensors(state_at_end(run)) for run in (reference, directory))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    ends = [json.loads((run / "result.json").read_text()) for run in (reference, directory)]
    assert [end["status"] for end in ends] == ["finished"] * 2
    assert ends[0]["test_loss"] == ends[1]["test_loss"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = torchrun(2, "-m", "largebatch", "train", written(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert sorted(of_every_step(folder / "run")) == list(range(1, STEPS + 1))
    assert any("momentum" in name for name in tensors(state_at_end(folder / "run")))
    return folder / "run"


@pytest.mark.parametrize("run", range(-(-N_KILLS // KILLS_OF_A_RUN)))
def test_ranks_killed_at_random_moments_change_nothing(undisturbed, tmp_path, run):
    kills = min(KILLS_OF_A_RUN, N_KILLS - run * KILLS_OF_A_RUN)
    seed = random.SystemRandom().randrange(10**6)
    print("seed of these kills:", seed)
    chance = random.Random(seed)
    moments = [STEPS * k // kills + chance.randrange(1, STEPS // kills - 20) for k in range(kills)]
    with Launch(written(tmp_path), restarts=20) as launch:
        for moment in moments:
            workers = launch.at(moment)
            time.sleep(chance.random() * 0.05)  # anywhere in a step, a save, or the evaluation
            rank = chance.randrange(2)
            print(f"rank {rank} is killed at step {launch.step()}")
            os.kill(workers[rank], signal.SIGKILL)
            launch.until(lambda dead=workers: not set(dead.values()) & set(launch.workers().values()), "new workers")
        assert launch.end() == 0, launch.said.read_text()[-4000:]
    assert len(events(launch.directory, "resume")) >= kills - 1  # the first may come before there is a checkpoint
    assert_same_end(launch.directory, undisturbed)


def test_damaged_checkpoints_are_told_and_the_one_before_is_used_by_all_ranks(undisturbed, tmp_path):
    recipe = written(tmp_path)
    directory = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    (directory / "run.yaml").unlink()
    (directory / "result.json").unlink()
    (directory / "run.yaml").write_text((undisturbed / "run.yaml").read_text())
    third, second, first = saved(directory)
    (first / "manifest.json").unlink()
    file = second / sorted(manifest.read(second)["files"])[1]  # which rank 1 checks
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    ended = torchrun(2, "-m", "largebatch", "train", recipe, "record.dir=" + str(directory))
    assert ended.returncode == 0, ended.stderr[-3000:]
    log = (directory / "train.log").read_text()
    assert f"checkpoint {first.name} cannot be read (it has no manifest.json); the one before it is used" in log
    assert f"checkpoint {second.name} cannot be read (the checksum of {file.name} does not fit)" in log
    assert f"resumed at step {checkpoint.step_of(third)} of {STEPS}" in log
    assert_same_end(directory, undisturbed)


def test_what_is_exported_is_the_mean_over_ranks(undisturbed):
    from typer.testing import CliRunner

    from largebatch.cli.checkpoint import app

    out = undisturbed.parent / "weights.pt"
    assert CliRunner().invoke(app, ["export", str(undisturbed), "--out", str(out)]).exit_code == 0
    exported = torch.load(out)["state_dict"]
    assert {name: tensor.tolist() for name, tensor in exported.items()} == {
        name: tensor.tolist() for name, tensor in weights_at_end(undisturbed).items()
    }
    name = next(name for name in exported if name.endswith("running_mean"))
    own = [rank["statistics"][name] for rank in state_at_end(undisturbed)["ranks"]]
    assert len(own) == 2
    assert not torch.equal(own[0], own[1])
    torch.testing.assert_close(exported[name], (own[0] + own[1]) / 2)


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)], ids=["TERM", "USR1"])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(undisturbed, tmp_path, number, rank):
    """Workers that torchrun starts anew end at once; without the file the same command goes on."""
    recipe, stop = written(tmp_path), tmp_path / "stop"
    with Launch(recipe, restarts=1, LARGEBATCH_STOP_FILE=str(stop)) as launch:
        workers = launch.at(50)
        os.kill(workers[rank], number)
        assert launch.end() == 1
    said = launch.said.read_text()
    assert stop.read_text().split()[0] == str(128 + number)
    assert f"exitcode  : {128 + number} " in said
    [stopped] = events(launch.directory, "stop")
    assert stopped["reason"] == number.name
    assert not events(launch.directory, "resume"), "no worker went on"
    assert f"stopped: {number.name} after step {stopped['step']}; saved as" in said
    newest = saved(launch.directory)[-1]
    assert checkpoint.step_of(newest) == stopped["step"] < STEPS
    assert train_lines(launch.directory)[-1]["step"] == stopped["step"]
    if number == signal.SIGTERM:
        ended = torchrun(2, "-m", "largebatch", "train", recipe)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert_same_end(launch.directory, undisturbed)


WAITS = r"largebatch: 1 of 2 ranks waited \d+ s at the [a-z ]+ step \d+ for rank 1"


def test_a_frozen_rank_is_named_and_the_run_starts_anew(undisturbed, tmp_path):
    """torchrun ends what is frozen after 30 s; here the test does, as soon as the sentence is said."""
    with Launch(written(tmp_path), "timeout_minutes=0.1", restarts=3) as launch:
        workers = launch.at(30)
        os.kill(workers[1], signal.SIGSTOP)
        launch.until(lambda: re.search(WAITS, launch.said.read_text()), "the sentence")
        assert workers[0] not in launch.workers().values() or not bytes_in(f"/proc/{workers[0]}/cmdline")
        os.kill(workers[1], signal.SIGKILL)
        assert launch.end() == 0, launch.said.read_text()[-4000:]
    said = launch.said.read_text()
    assert re.search(WAITS + r", of which there is no word", said), said[-4000:]
    assert len(events(launch.directory, "resume")) == 1
    assert_same_end(launch.directory, undisturbed)


SLEEPS = """
import os, sys, time
from largebatch import cli, distributed
from largebatch.data.resident import ResidentSplit

steps = ResidentSplit.steps

def sleeps(self, *arguments):
    for number, item in enumerate(steps(self, *arguments)):
        if number == 20 and distributed.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            time.sleep(1000)
        yield item

ResidentSplit.steps = sleeps
sys.argv[1:] = ["train", *sys.argv[1:]]
cli.main()
"""


def test_a_rank_asleep_in_its_data_is_named_with_its_place(undisturbed, tmp_path):
    (program := tmp_path / "sleeps.py").write_text(SLEEPS)
    with Launch(written(tmp_path), "timeout_minutes=0.1", restarts=3, program=program) as launch:
        assert launch.end() == 0, launch.said.read_text()[-4000:]
    said = launch.said.read_text()
    place = r" \(host \S+, process \d+\), which has stood at the data of step 21 for \d+ s"
    assert re.search(WAITS + place, said), said[-4000:]
    assert len(events(launch.directory, "resume")) == 1
    assert_same_end(launch.directory, undisturbed)
