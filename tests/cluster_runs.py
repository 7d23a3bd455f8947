"""Runs on several hosts: how they are started, and what they leave behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hosts import Hosts, Process
from programs import REPOSITORY

from largebatch import checkpoint
from largebatch.checkpoint.pieces import whole
from largebatch.recipes import config
from largebatch.run.train import train

PROGRAM = REPOSITORY / "tests" / "cluster" / "program.py"
PORT = 29500

# One training that ends alike to rounding in any world: float64, no batch norm. Every step is recorded.
EXACT: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp64",
    "batch__global_batch_size": 120,
    "optimizer": {"name": "lamb"},
    "lr": {"base": 0.02, "warmup": {"epochs": 1, "from": "zero"}, "decay": {"name": "linear"}},
    "epochs": None,
    "steps": 60,
    "evaluate__every_epochs": 1000,
    "record__every_steps": 1,
}
ROUNDING = 1e-12

# A host is lost for torchrun after keep_alive_interval × keep_alive_max_attempt = 3 s; the hosts that are left wait
# last_call_timeout = 3 s for others before they go on. Their defaults are 15 s and 30 s.
QUICK = {"keep_alive_interval": 1, "keep_alive_max_attempt": 3, "last_call_timeout": 3}


def torchrun(
    hosts: Hosts, host: str, *arguments: object, nodes: str, meets_at: str = "a", restarts: int = 0, **more: str
) -> Process:
    """``torchrun`` on one host, with one rank; the hosts meet at the c10d rendezvous of one of them."""
    return hosts.start(
        host,
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", nodes, "--nproc-per-node", 1, "--max-restarts", restarts),
        *("--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", f"{hosts.address(meets_at)}:{PORT}"),
        *("--rdzv-conf", ",".join(f"{key}={value}" for key, value in QUICK.items())),
        *("--local-addr", hosts.address(host)),
        *arguments,
        cwd=None,
        **more,
    )


def undisturbed(recipe: Path, directory: Path, *overrides: str) -> Path:
    """The same recipe in one process, here; its run directory."""
    train(config.load(recipe, [f"record.dir={directory}", *overrides]), quiet=True)
    return directory


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def plan(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "plan.json").read_text())


def lines(directory: Path, event: str) -> list[dict[str, Any]]:
    """The lines of an event in metrics.jsonl as far as they are whole; none before there are any."""
    file = directory / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []
    return [found for found in map(json.loads, whole) if found["event"] == event]


def steps(directory: Path) -> dict[int, dict[str, Any]]:
    """The training line of every step; after a resume the last one counts."""
    return {line["step"]: line for line in lines(directory, "train")}


def saved_steps(directory: Path) -> list[int]:
    """The steps of the whole checkpoints, newest first."""
    return [checkpoint.step_of(path) for path in checkpoint.existing(directory / "checkpoints")]


def unfinished(directory: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((directory / "checkpoints").glob("*.unfinished"))


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint."""
    found = checkpoint.load_newest(directory / "checkpoints")
    assert found is not None, f"no checkpoint in {directory}"
    return {name: whole(saved) for name, saved in found.state["model"].items()}


def assert_same_end(directory: Path, reference: Path, tolerance: float = ROUNDING) -> None:
    """The same weights, and in every step the same examples (their loss to rounding is their fingerprint) and lr."""
    there, here = steps(reference), steps(directory)
    assert list(here) == list(there)
    for step in there:
        assert here[step]["examples_seen"] == there[step]["examples_seen"], step
        assert here[step]["lr"] == there[step]["lr"], step
        assert abs(here[step]["loss"] - there[step]["loss"]) <= tolerance * max(1, abs(there[step]["loss"])), step
    expected, found = weights(reference), weights(directory)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)
