"""One worker beside two on one thread each, taking turns: runs of a study per second, and what is spent around them.

The whole command, which starts and writes its report once however long a study is; and from the begin of the first run
to the end of the last, with what workers wait for one another.

OMP_NUM_THREADS=1 python results/study/workers.py --rounds 3 --json results/study/workers.json
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from largebatch.records.facts import write_json

HERE = Path(__file__).parent
STUDY = {
    "name": "workers",
    "recipes": [{"recipe": str((HERE / "constant.yaml").resolve()), "search": {"lr.base": {"log": [0.02, 0.5]}}}],
    "batches": [256, 384, 512, 768, 1024, 1536],
    "target": {"score": 99},  # none reaches it: all runs are equally long
    "epochs": 1,
    "every_epochs": 0.25,
    "trials": 4,
    "seeds": 1,
    "hold_out": 10_000,
}


def studied(workers: int) -> dict[str, float]:
    """Runs, wall time of the whole command [s], and the time within runs [s]."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "study.yaml", Path(folder) / "out"
        file.write_text(yaml.safe_dump(STUDY))
        words = ["study", str(file), "--out", str(out), "--workers", str(workers)]
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "largebatch", *words], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begun
        files = list(out.rglob("result.json"))
        lengths = [json.loads(file.read_text())["seconds_total"] for file in files]
        ends = [file.stat().st_mtime for file in files]
    return {
        "workers": workers,
        "runs": len(files),
        "seconds": seconds,
        "seconds_from_first_run_to_last": max(ends) - min(map(operator.sub, ends, lengths)),
        "seconds_in_runs": sum(lengths),
    }


def ratios(rounds: list[list[dict[str, float]]], seconds: str) -> dict[str, Any]:
    """Runs per second of two workers over those of one."""
    each = [two["runs"] / two[seconds] / (one["runs"] / one[seconds]) for one, two in rounds]
    return {"median": statistics.median(each), "each": each}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rounds = [[studied(1), studied(2)] for _ in range(asked.rounds)]
    facts = {
        "kind": "study_workers",
        "rounds": rounds,
        "runs_per_second_of_two_over_one": {
            "from_first_run_to_last": ratios(rounds, "seconds_from_first_run_to_last"),
            "with_starts_and_report": ratios(rounds, "seconds"),
        },
    }
    print(json.dumps(facts, indent=1))
    if asked.json:
        write_json(asked.json, facts)


if __name__ == "__main__":
    main()
