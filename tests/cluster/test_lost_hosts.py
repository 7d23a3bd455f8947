"""Hosts that are lost, drained, cut off or come back in the middle of a run: the result is that of one process.

torchrun leads the hosts together again (``--nnodes 1:2``), every rank reads the last checkpoint, and each step goes on
with the same examples at the same learning rate, whatever the number of hosts.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import (
    EXACT,
    PROGRAM,
    assert_same_end,
    lines,
    plan,
    result,
    saved_steps,
    steps,
    torchrun,
    undisturbed,
    unfinished,
)
from hosts import Hosts, Process, several, wait_until

pytestmark = pytest.mark.slow


class Elastic:
    """One run on as many of its hosts as there are, slowed down; and its undisturbed likeness."""

    def __init__(self, hosts: Hosts, recipe: Any, folder: Path, meets_at: str = "a", timeout_minutes: float = 0.15):
        self.hosts, self.folder, self.meets_at = hosts, folder, meets_at
        self.recipe = recipe(**EXACT, timeout_minutes=timeout_minutes, checkpoint__every_epochs=1)
        self.directory = folder / "runs" / "tiny"
        self.steps = EXACT["steps"]
        self.running: dict[str, Process] = {}
        self.pace(0.05)

    def start(self, *names: str) -> None:
        for name in names:
            self.running[name] = torchrun(
                self.hosts, name, PROGRAM, "train", self.recipe,
                nodes="1:2", restarts=3, meets_at=self.meets_at, PACE=str(self.folder / "pace"),
                # torch 2.15's agents share one store by default and remember its first address: then a host that comes
                # later waits in vain for it, and the hosts left after rank zero's is lost look for it where it was.
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
            )  # fmt: skip

    def pace(self, step_seconds: float, flush_seconds: float = 0.0) -> None:
        unfinished_file = self.folder / "pace.new"
        unfinished_file.write_text(f"{step_seconds} {flush_seconds}")
        os.replace(unfinished_file, self.folder / "pace")

    def wait_for(self, condition: Any, what: str, seconds: float = 120) -> None:
        def met() -> bool:
            ended = [host for host, process in self.running.items() if process.popen.poll() is not None]
            assert not ended, f"host {ended[0]} ended while waiting for {what}"
            return condition()

        wait_until(met, what, seconds)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: max(steps(self.directory), default=0) >= step, f"step {step}")

    def wait_for_world(self, size: int, resumes: int) -> None:
        self.wait_for(
            lambda: [line["world_size"] for line in lines(self.directory, "resume")][resumes - 1 :] == [size],
            f"resume {resumes} in a world of {size}",
        )

    def lose(self, host: str) -> None:
        """For good: the cable first, so that nobody hears of it, then everything on it."""
        self.hosts.cut(host)
        self.hosts.kill(host)
        del self.running[host]

    def assert_same_end(self) -> None:
        assert result(self.directory)["status"] == "finished"
        assert plan(self.directory)["global_batch_size"] == 120
        assert_same_end(self.directory, undisturbed(self.recipe, self.folder / "alone"))


@pytest.fixture
def hosts(tmp_path: Path) -> Any:
    with several(2, tmp_path / "hosts") as hosts:
        yield hosts


def test_a_host_lost_for_good(hosts, recipe, tmp_path):
    run = Elastic(hosts, recipe, tmp_path)
    run.start("a", "b")
    run.wait_for_step(30)
    assert plan(run.directory)["world_size"] == 2
    saved = saved_steps(run.directory)[0]
    run.lose("b")
    run.wait_for_world(1, resumes=1)
    run.pace(0)
    assert run.running["a"].ends(seconds=120) == 0
    (resumed,) = lines(run.directory, "resume")
    assert resumed["step"] >= saved > 0
    assert (plan(run.directory)["world_size"], resumed["micro_batch_size"]) == (1, 120)
    run.assert_same_end()


def test_a_host_cut_off_joins_again_once_its_cable_is_mended(hosts, recipe, tmp_path):
    run = Elastic(hosts, recipe, tmp_path)
    run.start("a", "b")
    run.wait_for_step(20)
    hosts.cut("b")
    run.wait_for_world(1, resumes=1)
    run.pace(2)  # long enough for the other to be there again
    hosts.mend("b")
    run.wait_for_world(2, resumes=2)
    run.pace(0)
    assert [process.ends(seconds=120) for process in run.running.values()] == [0, 0]
    assert [line["world_size"] for line in lines(run.directory, "resume")] == [1, 2]
    run.assert_same_end()


def test_a_host_drained(hosts, recipe, tmp_path):
    """SIGTERM to torchrun on one host: all ranks stop at the same step and save, so no step is taken twice."""
    run = Elastic(hosts, recipe, tmp_path)
    run.start("a", "b")
    run.wait_for_step(10)
    drained = run.running.pop("b")
    drained.popen.send_signal(signal.SIGTERM)
    run.wait_for_world(1, resumes=1)
    run.pace(0)
    assert drained.ends(seconds=120) != 0
    assert run.running["a"].ends(seconds=120) == 0
    (resumed,), (stopped,) = lines(run.directory, "resume"), lines(run.directory, "stop")
    assert resumed["step"] == stopped["step"]
    assert len(lines(run.directory, "train")) == len(steps(run.directory))
    run.assert_same_end()


def test_rank_zero_lost_in_the_middle_of_a_save(hosts, recipe, tmp_path):
    """Rank zero is where the address sorts first; the rendezvous is at the other host, which is left."""
    run = Elastic(hosts, recipe, tmp_path, meets_at="b")
    run.start("a", "b")
    run.wait_for(lambda: saved_steps(run.directory), "the first checkpoint")
    run.pace(0.05, flush_seconds=1)
    run.wait_for(lambda: unfinished(run.directory), "another checkpoint to begin")
    saved = saved_steps(run.directory)
    run.lose("a")
    run.pace(0.05)
    run.wait_for_world(1, resumes=1)
    run.pace(0)
    assert run.running["b"].ends(seconds=120) == 0
    (resumed,) = lines(run.directory, "resume")
    assert resumed["step"] >= saved[0] > 0
    run.assert_same_end()


def test_a_cable_mended_within_the_time_out_is_not_noticed(hosts, recipe, tmp_path):
    run = Elastic(hosts, recipe, tmp_path, timeout_minutes=1)
    run.start("a", "b")
    run.wait_for(lambda: saved_steps(run.directory), "the first checkpoint")
    run.pace(0.05, flush_seconds=1)
    run.wait_for(lambda: unfinished(run.directory), "another checkpoint to begin")
    hosts.cut("b")
    run.pace(0.05)
    time.sleep(1)  # for the step that was under way
    stood_at = max(steps(run.directory))
    time.sleep(2)
    assert max(steps(run.directory)) == stood_at < run.steps
    hosts.mend("b")
    assert [process.ends(seconds=120) for process in run.running.values()] == [0, 0]
    assert lines(run.directory, "resume") == []
    run.assert_same_end()
