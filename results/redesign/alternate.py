"""The trainer of two checkouts, taking turns: ``alternate.py OLD NEW RECIPE STEPS THREADS ROUNDS [OVERRIDES]``.

Each checkout is a process of its own that times ``STEPS`` steps of its trainer, and of its bare loop, when it is told
to; who goes first changes every round. Seconds are processor time, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import types
from importlib import import_module
from pathlib import Path


def turns_of(checkout: str, recipe: str, steps: int, threads: int, overrides: list[str]) -> None:
    sys.path.insert(0, checkout)
    import torch

    torch.set_num_threads(threads)
    today = (Path(checkout) / "largebatch" / "run").is_dir()  # the floors
    config = import_module("largebatch.recipes.config" if today else "largebatch.config")
    assemble = import_module("largebatch.run.assemble" if today else "largebatch.assemble").assemble
    bench = "largebatch.studies.bench.throughput" if today else "largebatch.bench.throughput"
    turns, measure, ready = (import_module(f"{bench}.{name}") for name in ("turns", "measure", "ready"))
    turns.time = types.SimpleNamespace(perf_counter=time.process_time)
    fixed, _ = turns.timed(config.load(recipe, overrides), steps)
    job = assemble(fixed, torch.device("cpu"))
    bare = measure.bare_contestant(job, ready.ready(job), steps * job.plan.global_batch_size)
    turns.trainer_seconds(job), bare.seconds()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps([turns.trainer_seconds(job) / steps, bare.seconds() / steps]), flush=True)


def main(old: str, new: str, recipe: str, steps: str, threads: str, rounds: str, *overrides: str) -> None:
    started = {}
    for checkout in (old, new):
        command = [sys.executable, __file__, "--turns-of", checkout, recipe, steps, threads, *overrides]
        started[checkout] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
        )
        assert started[checkout].stdout.readline().strip() == "ready"
    rows = []
    for number in range(int(rounds)):
        row = {}
        for checkout in (old, new) if number % 2 == 0 else (new, old):
            process = started[checkout]
            process.stdin.write("go\n"), process.stdin.flush()
            row[checkout] = json.loads(process.stdout.readline())
        rows.append(row)
    print(f"{recipe} {' '.join(overrides)}: {1e3 * statistics.median(row[new][0] for row in rows):.3f} ms a step")
    for name, values in {
        "new over old": [row[old][0] / row[new][0] for row in rows],
        "new over its bare loop": [row[new][1] / row[new][0] for row in rows],
        "old over its bare loop": [row[old][1] / row[old][0] for row in rows],
    }.items():
        print(f"  {name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}), {len(rows)} rounds")


if __name__ == "__main__":
    if sys.argv[1] == "--turns-of":
        _, _, checkout, recipe, steps, threads, *overrides = sys.argv
        turns_of(checkout, recipe, int(steps), int(threads), overrides)
    else:
        main(*sys.argv[1:])
