"""Weak and strong scaling of the trainer: the same work for each rank, or the same batch for more ranks.

Every world is a process group of its own, started by torchrun on this host; in rounds, the worlds in turn, the order
reversed every other round, so that a machine that slows down meets all alike. Efficiency is a world's examples per
second over those of the smallest one, over how many times as many ranks it has; the median of the rounds. Beside it
stands the all-reduce alone, of the gradient's bytes in that world, and what of it a step shows (its exposed part).

Under a launcher, on one host or several, only the world that is there is measured.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.table
import torch

from largebatch.data.processes import processors
from largebatch.errors import UserError
from largebatch.machine import launched
from largebatch.recipes import config, registry
from largebatch.records.circumstances import circumstances_of
from largebatch.run.assemble import dataset_of
from largebatch.studies.bench.scaling import world as one_world
from largebatch.studies.bench.scaling.world import KINDS
from largebatch.studies.bench.throughput import turns
from largebatch.studies.bench.throughput.show import plain_table, scaled
from largebatch.studies.cluster.calibrate import modelled

LAUNCHERS = ("torchrun",)


def parse_ranks(text: str) -> list[int]:
    """``1,2,4`` as numbers, ascending."""
    found: list[int] = []
    for word in text.split(","):
        try:
            ranks = int(word)
        except ValueError:
            raise UserError(f"--ranks {text}: {word!r} is no whole number; write 1,2,4") from None
        if ranks < 1:
            raise UserError(f"--ranks {text}: {ranks} is no world; at least 1")
        if ranks in found:
            raise UserError(f"--ranks {text} has {ranks} twice; once is enough")
        found.append(ranks)
    return sorted(found)


def measure(
    run: config.Run,
    recipe: Path,
    overrides: list[str],
    worlds: list[int],
    steps: int,
    rounds: int,
    launcher: str = "torchrun",
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Facts of kind ``scaling``: every world started here, ``rounds`` times. ``recipe`` is where ``run`` was read."""
    if launcher not in LAUNCHERS:
        raise UserError(
            f"--launcher {launcher} is not started from here; valid: {', '.join(LAUNCHERS)}. Under srun or mpirun the "
            "same command measures the world that is there"
        )
    device = "cpu" if run.device == "cpu" or not torch.cuda.is_available() else "cuda"
    if device == "cuda" and worlds[-1] > torch.cuda.device_count():
        raise UserError(
            f"--ranks {worlds[-1]}: this host has {torch.cuda.device_count()} CUDA devices, and each rank needs one; "
            "take fewer ranks, or device=cpu"
        )
    dataset = dataset_of(run)
    one_world.check(run, worlds, steps, len(dataset.train), dataset.pixels_per_example, device)
    threads = threads_per_rank(worlds)
    found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in worlds}
    for number in range(rounds):
        for ranks in worlds if number % 2 == 0 else reversed(worlds):
            say(f"round {number + 1} of {rounds}: {counted(ranks, 'rank')}")
            found[ranks].append(started(ranks, recipe, overrides, worlds, steps, threads))
    facts = {
        **circumstances(run, steps, rounds, command),
        "device": device,
        "precision": found[worlds[0]][0]["precision"],
        "threads_per_rank": threads,
        "worlds": [together(found[ranks], found[worlds[0]]) for ranks in worlds],
    }
    return modelled(facts)


def measure_here(run: config.Run, worlds: list[int], steps: int, command: str = "") -> dict[str, Any]:
    """The same facts of the world that a launcher started, which stands alone. Collective."""
    found = one_world.measure(run, worlds[0], steps)
    return {
        **circumstances(run, steps, 1, command),
        "device": "cuda" if found["machine"]["gpu"] else "cpu",
        "precision": found["precision"],
        "threads_per_rank": found["machine"]["torch_threads"],
        "launched": True,
        "worlds": [together([found])],
        "measured": found,
    }


def started(
    ranks: int, recipe: Path, overrides: list[str], worlds: list[int], steps: int, threads: int
) -> dict[str, Any]:
    """What a world of so many ranks measured of itself: this very command under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "world.json"
        words = [
            "bench", "scaling", str(recipe), *overrides,
            "--ranks", ",".join(map(str, worlds)), "--steps", str(steps), "--json", str(file), *registry.as_options(),
        ]  # fmt: skip
        in_a_world(ranks, words, threads, file)
        return json.loads(file.read_text())["measured"]


def in_a_world(ranks: int, words: list[str], threads: int, file: Path | None = None) -> None:
    """This program with these words in a world of so many ranks of this host, which is to write the ``file``; without
    one what it prints is seen."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    ended = subprocess.run(
        [*launcher, "-m", "largebatch", *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=None if file is None else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if ended.returncode or (file is not None and not file.exists()):
        code = ended.returncode
        raise UserError(f"the world of {counted(ranks, 'rank')} ended with exit code {code}: {reason(ended.stderr)}")


def reason(stderr: str) -> str:
    """The sentence in which the program ended, else the first exception, else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    own = [line.removeprefix("largebatch: ") for line in lines if line.startswith("largebatch: ")]
    raised = [line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exception)\b", line)]
    raised = [line for line in raised if "ChildFailedError" not in line]  # the launcher's own
    return next(iter(own or raised or lines[-1:]), "it said nothing")


def threads_per_rank(worlds: list[int]) -> int:
    """The same in every world, else the smaller ones would be given more of the machine."""
    if stated := launched.number(os.environ, "OMP_NUM_THREADS", 0):
        return stated
    return max(1, processors() // worlds[-1])


def together(rounds: list[dict[str, Any]], smallest: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """One world over all rounds, beside the smallest one if there is any."""
    ranks = rounds[0]["ranks"]
    world: dict[str, Any] = {"ranks": ranks, "hosts": rounds[0]["hosts"], "all_reduce": None}
    for kind in KINDS:
        here = [one[kind] for one in rounds]
        speeds = [one["images_per_second"] for one in here]
        world[kind] = {
            **{key: here[0][key] for key in ("global_batch_size", "micro_batch_size", "accumulation_steps")},
            "images_per_second": speeds,
            "seconds_per_step": [one["seconds_per_step"] for one in here],
            "split": {part: middle([one["split"][part] for one in here]) for part in here[0]["split"]},
        }
        if smallest is not None:
            per_rank = [one[kind]["images_per_second"] / one["ranks"] for one in smallest]
            world[kind]["efficiency"] = [own / ranks / its for own, its in zip(speeds, per_rank, strict=True)]
    if rounds[0]["all_reduce"]:
        seconds = [one["all_reduce"]["seconds"] for one in rounds]
        size = rounds[0]["all_reduce"]["bytes"]
        rate = size / statistics.median(seconds)
        world["all_reduce"] = {"bytes": size, "seconds": seconds, "algorithm_bytes_per_second": rate}
    return world


def middle(values: list[Any]) -> float | None:
    return None if None in values else statistics.median(values)


def circumstances(run: config.Run, steps: int, rounds: int, command: str) -> dict[str, Any]:
    return {
        "kind": "scaling",
        "recipe": run.name,
        "model": run.model.name,
        "data": run.data.name,
        "engine": run.engine.name,
        "steps_timed": steps,
        "rounds": rounds,
        "changed": turns.timed(run, steps)[1],
        **circumstances_of(command),
    }


def tables(facts: dict[str, Any]) -> list[rich.table.Table]:
    return [table(facts, kind) for kind in KINDS]


def table(facts: dict[str, Any], kind: str) -> rich.table.Table:
    what = {"weak": "Weak scaling: the same batch for each rank", "strong": "Strong scaling: the same global batch"}
    headings = ("ranks", "batch", "examples/s", "%", "low–high", "ms/step", "model", "exposed", "all-reduce alone, ms")
    shown = plain_table(what[kind], headings)
    for world in facts["worlds"]:
        row = world[kind]
        shares = [100 * share for share in row.get("efficiency", [])]
        exposed, alone = row["split"]["communication_seconds"], world["all_reduce"]
        shown.add_row(
            f"{world['ranks']}",
            f"{row['global_batch_size']:,}",
            f"{statistics.median(row['images_per_second']):,.0f}",
            f"{statistics.median(shares):.0f}" if shares else "",
            f"{min(shares):.0f}–{max(shares):.0f}" if shares else "",
            f"{1e3 * statistics.median(row['seconds_per_step']):,.2f}",
            of_model(row, world is facts["worlds"][0]),
            "–" if exposed is None else f"{1e3 * exposed:,.2f}",
            "" if alone is None else f"{1e3 * statistics.median(alone['seconds']):,.2f}",
        )
    return shown


def of_model(row: dict[str, Any], fitted: bool) -> str:
    """What the cluster model makes of the step, in ms; and by how much that is off, unless it was fitted to it."""
    if (seconds := row.get("model_seconds_per_step")) is None:
        return "–"
    off = 100 * (seconds / statistics.median(row["seconds_per_step"]) - 1)
    return f"{1e3 * seconds:,.2f}" + ("" if fitted else f" {off:+.0f} %")


def notes(facts: dict[str, Any]) -> list[str]:
    threads, worlds = facts["threads_per_rank"], facts["worlds"]
    said = [f"fixed: {change}" for change in facts["changed"]]
    said.append(
        f"{facts['recipe']}: {facts['model']} on {facts['data']}, engine {facts['engine']}, {facts['device']} "
        f"{facts['precision']}, {counted(threads, 'thread')} a rank, {counted(facts['rounds'], 'round')} of "
        f"{counted(facts['steps_timed'], 'step')}"
    )
    if facts.get("launched"):
        said.append(
            f"a launcher started this world of {counted(worlds[0]['ranks'], 'rank')} on "
            f"{counted(worlds[0]['hosts'], 'host')}: it alone was measured, and nothing says how efficient it is; "
            "without a launcher the bench starts the worlds itself"
        )
    else:
        said.append("%: examples/s over those of the first row, over how many times as many ranks there are")
    if any("model_seconds_per_step" in world["weak"] for world in worlds):
        said.append("model: what a step should take by the first row and the all-reduces alone (docs/planning_step.md)")
    said.append(
        "exposed: ms of a step in which gradients are summed and nothing hides it, the wait for slower ranks in it"
    )
    for world in worlds:
        if alone := world["all_reduce"]:
            rate = alone["algorithm_bytes_per_second"]
            said.append(
                f"{counted(world['ranks'], 'rank')}: {scaled(alone['bytes'])}B summed alone at {scaled(rate)}B/s"
            )
    cores = facts["machine"]["cores"]
    if facts["device"] == "cpu" and (most := worlds[-1]["ranks"] * threads) > cores and not facts.get("launched"):
        said.append(f"{most} threads of {worlds[-1]['ranks']} ranks share {cores} cores: no efficiency can be expected")
    return said


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
