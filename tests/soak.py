"""An hour of training with a kill every minute or two: ``python tests/soak.py --minutes 60 --out results/soak``.

Two ranks under torchrun, with batch norm, dropout, augmentation and momentum. A random rank is killed by SIGKILL at
random moments; torchrun starts both again, and the run goes on from its last checkpoint. The same run undisturbed comes
first. At the end every recorded step, the weights and the optimizer's states are compared bit by bit. So that the hour
is one of many restarts and not of heat, the disturbed run waits a little at every step, which changes nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from ends import different, events, of_every_step
from programs import environment

STEPS = 24_000
RECIPE = {
    "model": {"name": "tiny_cnn", "channels": [8, 16], "dropout": 0.2},
    "data": {"name": "digits", "augment": "crop_flip"},
    "batch": {"global_batch_size": 100},
    "steps": STEPS,
    "optimizer": {"name": "lars"},
    "lr": {"base": 4.0, "warmup": {"epochs": 5}, "decay": {"name": "polynomial"}},
    "weight_decay": {"value": 1e-4},
    "evaluate": {"every_epochs": 100},
    "checkpoint": {"every_epochs": 10},
    "record": {"every_steps": 20, "to": []},
    "timeout_minutes": 1,
}


def started(folder: Path, name: str, pace: float) -> subprocess.Popen[bytes]:
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "record": {**RECIPE["record"], "dir": str(folder / name)}}))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1000"]
    with open(folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, *words, "-m", "worlds.paced", "train", str(recipe)],
            stdout=log, stderr=log, env=environment(SECONDS_PER_STEP=str(pace)),
        )  # fmt: skip


def workers(agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(agent.pid).children() if "worlds.paced" in " ".join(child.cmdline())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for the two runs")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True)
    chance = random.Random(asked.seed)
    begun = time.time()
    assert started(asked.work, "undisturbed", 0.0).wait() == 0
    seconds_undisturbed = time.time() - begun
    directory, begun = asked.work / "killed", time.time()
    agent = started(asked.work, "killed", asked.minutes * 60 * 0.8 / STEPS)
    kills: list[dict[str, Any]] = []
    while agent.poll() is None:
        due = time.time() + chance.uniform(60, 120)
        while agent.poll() is None and time.time() < due:
            time.sleep(1)
        if agent.poll() is not None or len(ranks := workers(agent)) < 2:
            continue
        before = events(directory, "train")[-1]["step"]
        sessions = len(events(directory, "resume"))
        rank, moment = chance.randrange(2), time.time()
        ranks[rank].send_signal(signal.SIGKILL)
        while agent.poll() is None and not (len(events(directory, "resume")) > sessions):
            time.sleep(0.25)
        told = {"minute": (moment - begun) / 60, "rank": rank, "last_recorded_step": before}
        told |= {
            "resumed_at_step": events(directory, "resume")[-1]["step"],
            "seconds_until_resumed": time.time() - moment,
        }
        kills.append(told)
        print(json.dumps(told), flush=True)
    steps, those = of_every_step(directory), of_every_step(asked.work / "undisturbed")
    facts = {
        "kind": "soak",
        "seed": asked.seed,
        "steps": STEPS,
        "ranks": 2,
        "minutes": (time.time() - begun) / 60,
        "seconds_undisturbed": seconds_undisturbed,
        "exit_code": agent.returncode,
        "kills": kills,
        "recorded_steps_that_differ": sum(steps.get(step) != numbers for step, numbers in those.items()),
        "recorded_steps": len(those),
        "state_that_differs": different(asked.work / "killed", asked.work / "undisturbed"),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "soak.json").write_text(json.dumps(facts, indent=1) + "\n")
    print({key: value for key, value in facts.items() if key != "kills"}, len(kills), "kills")


if __name__ == "__main__":
    main()
