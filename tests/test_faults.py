"""What happens on clusters, done for real: ranks killed, stopped, frozen; checkpoints spoilt. Nothing changes the end.

Two ranks under torchrun, with batch norm, dropout, augmentation and momentum; every step is recorded. The number of
kills is N_KILLS; LARGEBATCH_KILLS asks for another.
"""

from __future__ import annotations

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
from ends import different, events, of_every_step, result, state
from programs import environment, saved, state_at_end, torchrun, weights_at_end

from largebatch import checkpoint
from largebatch.checkpoint import manifest

pytestmark = pytest.mark.slow
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
    record = {"dir": str(folder / name), "to": [], "every_steps": 1}
    path.write_text(yaml.safe_dump({**HARD, "record": record, **changes}))
    return path


class Launch:
    """``torchrun`` with two ranks, beside the test; what it says goes to a file. Ended with the test."""

    def __init__(
        self, recipe: Path, *overrides: str, restarts: int = 0, program: tuple[object, ...] = ("train",), **more: str
    ) -> None:
        """``program``: a function of worlds/kills.py and its first arguments."""
        self.directory = recipe.with_suffix("")
        self.said = recipe.with_name(f"{recipe.stem}.said")
        with open(self.said, "w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    "--max-restarts", str(restarts), "-m", "worlds.kills", *map(str, program), str(recipe), *overrides,
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


def assert_same_end(directory: Path, reference: Path) -> None:
    assert different(directory, reference) == []
    assert result(directory)["status"] == "finished"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = torchrun(2, "-m", "largebatch", "train", written(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert sorted(of_every_step(folder / "run")) == list(range(1, STEPS + 1))
    assert any("momentum" in name for name in state(folder / "run"))
    return folder / "run"


@pytest.mark.parametrize("run", range(-(-N_KILLS // KILLS_OF_A_RUN)))
def test_ranks_killed_at_random_moments_change_nothing(undisturbed, tmp_path, run):
    """Anywhere in a step, a save or an evaluation; torchrun starts both again."""
    kills = min(KILLS_OF_A_RUN, N_KILLS - run * KILLS_OF_A_RUN)
    seed = random.SystemRandom().randrange(10**6)
    print("seed of these kills:", seed)
    program = ("killed_in_every_life", seed, kills, STEPS)
    with Launch(written(tmp_path), restarts=kills, program=program) as launch:
        assert launch.end() == 0, launch.said.read_text()[-4000:]
    assert len(set(re.findall(r"life \d+: rank \d is killed", launch.said.read_text()))) == kills
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
    program = ("signalled", int(number), 50, rank)
    with Launch(recipe, restarts=1, program=program, LARGEBATCH_STOP_FILE=str(stop)) as launch:
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
    assert events(launch.directory, "train")[-1]["step"] == stopped["step"]
    if number == signal.SIGTERM:
        ended = torchrun(2, "-m", "largebatch", "train", recipe)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert_same_end(launch.directory, undisturbed)


WAITS = r"largebatch: 1 of 2 ranks waited \d+ s at the [a-z ]+ step \d+ for rank 1"


def test_a_frozen_rank_is_named_and_the_run_starts_anew(undisturbed, tmp_path):
    """torchrun ends what is frozen after 30 s; here the test does, as soon as the sentence is said."""
    program = ("signalled", int(signal.SIGSTOP), 30, 1)
    with Launch(written(tmp_path), "timeout_minutes=0.1", restarts=3, program=program) as launch:
        workers = launch.until(lambda: len(w := launch.workers()) == 2 and w, "two workers")
        launch.until(lambda: re.search(WAITS, launch.said.read_text()), "the sentence")
        assert workers[0] not in launch.workers().values() or not bytes_in(f"/proc/{workers[0]}/cmdline")
        os.kill(workers[1], signal.SIGKILL)
        assert launch.end() == 0, launch.said.read_text()[-4000:]
    said = launch.said.read_text()
    assert re.search(WAITS + r", of which there is no word", said), said[-4000:]
    assert len(events(launch.directory, "resume")) == 1
    assert_same_end(launch.directory, undisturbed)


def test_a_rank_asleep_in_its_data_is_named_with_its_place(undisturbed, tmp_path):
    program = ("asleep_in_its_data",)
    with Launch(written(tmp_path), "timeout_minutes=0.1", restarts=3, program=program) as launch:
        assert launch.end() == 0, launch.said.read_text()[-4000:]
    said = launch.said.read_text()
    place = r" \(host \S+, process \d+\), which has stood at the data of step 21 for \d+ s"
    assert re.search(WAITS + place, said), said[-4000:]
    assert len(events(launch.directory, "resume")) == 1
    assert_same_end(launch.directory, undisturbed)
