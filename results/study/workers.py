"""One worker beside two on one thread each, taking turns: runs of a study per second, and what is spent around them.

OMP_NUM_THREADS=1 python results/study/workers.py --rounds 3 --json results/study/workers.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from largebatch.records.facts import write_json

HERE = Path(__file__).parent
STUDY = {
    "name": "workers",
    "recipes": [{"recipe": str((HERE / "constant.yaml").resolve()), "search": {"lr.base": {"log": [0.02, 0.5]}}}],
    "batches": [256, 384, 512, 768, 1024, 1536],
    "target": {"score": 99},  # none reaches it: all runs are equally long
    "epochs": 0.5,
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
        results = [json.loads(path.read_text()) for path in out.rglob("result.json")]
    return {
        "workers": workers,
        "runs": len(results),
        "seconds": seconds,
        "seconds_in_runs": sum(result["seconds_total"] for result in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rounds = [[studied(1), studied(2)] for _ in range(asked.rounds)]
    ratios = [two["runs"] / two["seconds"] / (one["runs"] / one["seconds"]) for one, two in rounds]
    facts = {
        "kind": "study_workers",
        "rounds": rounds,
        "runs_per_second_of_two_over_one": {"median": statistics.median(ratios), "each": ratios},
    }
    print(json.dumps(facts, indent=1))
    if asked.json:
        write_json(asked.json, facts)


if __name__ == "__main__":
    main()
