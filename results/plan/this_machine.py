"""Two ranks of this machine predicted for models that it was not fitted on: ``python results/plan/this_machine.py``.

The network, and what two ranks wait for one another, are fitted to the ``bench scaling`` of one model (rows of one and
two ranks, its all-reduce alone). Of each other model the fit sees the step of one rank and how many bytes its gradients
have; its steps of two ranks are predicted. With ``--measure`` the benches are run anew, which wants a machine that does
nothing else: they are written beside this file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from largebatch.studies.cluster import calibrate
from largebatch.studies.cluster.fit import fit, interval_of, seconds_of
from largebatch.studies.cluster.rows import StepRows

HERE = Path(__file__).parent
SMALL = "batch.micro_batch_size=128"  # the same in every world: of 256 a core computes each more slowly
BENCHES = {  # the first is fitted to
    "tiny_cnn": ["configs/quickstart/lamb2019.yaml"],
    "resnet20": ["configs/cifar10/baseline.yaml", "model={name: resnet20}", "batch.global_batch_size=256", SMALL],
    "mlp": ["configs/mnist/baseline.yaml", "model={name: mlp}", "batch.global_batch_size=1024"],
}
WITHIN = 0.15


def file_of(name: str) -> Path:
    return HERE / f"this_machine_{name}.json"


def measure() -> None:
    for name, recipe in BENCHES.items():
        words = ["largebatch", "bench", "scaling", *recipe, "--ranks", "1,2", "--rounds", "3", "--steps", "20"]
        subprocess.run([*words, "--json", str(file_of(name))], check=True)


def predicted(known: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Every step of several ranks of ``other``, from all of ``known`` and its own of one rank."""
    rows = calibrate.rows_of(other)
    facts = {one["model"]: calibrate.facts_of(one) for one in (known, other)}
    seen = StepRows((*calibrate.rows_of(known), *(row for row in rows if row.devices == 1)), facts)
    machine = fit(seen, calibrate.this_host([known]), calibrate.transfers_of(known))
    found = []
    for row in rows:
        if row.devices > 1:
            seconds = seconds_of(machine, row)
            bounds = interval_of(machine, lambda one, row=row: seconds_of(one, row), row.devices, row.workload)
            assert bounds is not None
            found.append(
                {"model": other["model"], "ranks": row.devices, "batch": row.batch, "measured_ms": 1e3 * row.seconds,
                 "model_ms": 1e3 * seconds, "low_ms": 1e3 * bounds[0], "high_ms": 1e3 * bounds[1],
                 "error": seconds / row.seconds - 1}
            )  # fmt: skip
    return found


def page(lines: list[dict[str, Any]], known: dict[str, Any]) -> str:
    good = sum(abs(line["error"]) <= WITHIN for line in lines)
    text = [
        "# Two ranks of one machine, for models that it was not fitted on",
        "",
        f"Made by `python results/plan/this_machine.py` from the benches beside it (`--measure` runs them), on "
        f"{known['machine']['host_cpu']}, {known['machine']['cores']} cores. The machine is fitted to `bench scaling` "
        f"of {known['model']}; of each other model it has seen the step of one rank.",
        "",
        f"**{good} of {len(lines)} steps are predicted within 15 %.** What ranks of a CPU wait for one another in a "
        "step (`meeting`) is fitted as well; that they share its memory and clock the model knows nothing of.",
        "",
        "| model | ranks | batch | measured ms | model ms | 95 % | error |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    text += [
        f"| {line['model']} | {line['ranks']} | {line['batch']:,.0f} | {line['measured_ms']:.1f} | "
        f"{line['model_ms']:.1f} | {line['low_ms']:.1f}–{line['high_ms']:.1f} | {line['error']:+.1%} |"
        for line in lines
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    if "--measure" in sys.argv[1:]:
        measure()
    known, *others = (json.loads(file_of(name).read_text()) for name in BENCHES)
    text = page([line for other in others for line in predicted(known, other)], known)
    (HERE / "this_machine.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
