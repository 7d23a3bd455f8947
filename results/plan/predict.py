"""What the cluster model makes of published rows: ``python results/plan/predict.py``, beside rows.csv, families.yaml.

Each family of rows is fitted on its rows of at most 64 devices, and predicts the others; the table says how far it is
off. Each row of at most 64 devices is left out once, under other priors, too. Then Goyal's 8 to 352 GPUs, which nothing
is fitted to, and LAMB's 76 minutes from LAMB's smaller rows. With ``--machines`` the files of the package's machines
are written anew, each fitted to all rows of its families.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from largebatch.recipes.strict_yaml import parse
from largebatch.report.alone import write_picture
from largebatch.studies.cluster import fit as fitting
from largebatch.studies.cluster import machine as machines
from largebatch.studies.cluster import rows as measured
from largebatch.studies.cluster.fit import fit, interval_of, seconds_of
from largebatch.studies.cluster.machine import Machine, Pace
from largebatch.studies.cluster.rows import StepRows
from largebatch.studies.cluster.step import BACKWARD, step_time
from largebatch.studies.cluster.stragglers import Stragglers
from largebatch.studies.cluster.workload import data_parallel

HERE = Path(__file__).parent
FEW, MANY, WITHIN = 64, 256, 0.15
PRIORS = ((0.08, 0.45), (0.06, 0.45), (0.06, 0.9), (0.1, 0.45))  # of the floor
SPREADS = (0.0, 0.01, 0.02, 0.03, 0.04)  # of ln seconds that a device computes in a step


def systems() -> dict[str, Any]:
    return parse((HERE / "families.yaml").read_text(), "families.yaml")


def hardware(name: str, written: dict[str, Any]) -> Machine:
    """A machine of which the datasheets are known, and nothing else."""
    links = {where: {"bandwidth": written[where], "peak": written[where]} for where in ("inside", "between")}
    stated = ("devices_per_node", "devices_per_host", "launcher", "memory", "memory_bandwidth", "peaks")
    keys = {key: written[key] for key in stated if key in written}
    return machines.checked({"name": name, "sources": [written["source"]], **keys, **links}, name)


def family(name: str, rows: StepRows, known: dict[str, Any]) -> tuple[StepRows, Machine]:
    system = known["families"][name]
    written = known["systems"][system]
    of_family = rows.of(name)
    if written.get("sharded_updates"):
        fewest = min(row.devices for row in of_family.rows)
        facts = {
            workload: dataclasses.replace(fact, update_bytes=fact.update_bytes / fewest)
            for workload, fact in of_family.facts.items()
        }
        of_family = StepRows(of_family.rows, facts)
    return of_family, hardware(system, written)


def predictions(rows: StepRows, known: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every row that has a row of at most FEW devices in its family."""
    lines = []
    for name in known["families"]:
        of_family, base = family(name, rows, known)
        fitted = fit(of_family.chosen(row for row in of_family.rows if row.devices <= FEW), base)
        for row in of_family.rows:
            seconds = seconds_of(fitted, row)
            bounds = interval_of(fitted, lambda other, row=row: seconds_of(other, row), row.devices, row.workload)
            assert bounds is not None
            lines.append(
                {"family": name, "workload": row.workload, "devices": row.devices, "share": row.share,
                 "measured_ms": 1e3 * row.seconds, "model_ms": 1e3 * seconds, "low_ms": 1e3 * bounds[0],
                 "high_ms": 1e3 * bounds[1], "error": seconds / row.seconds - 1, "fitted": row.devices <= FEW,
                 "source": row.source}
            )  # fmt: skip
    return lines


def left_out(rows: StepRows, known: dict[str, Any]) -> dict[str, float]:
    """Every row of at most FEW devices predicted by the other such rows of its family."""
    errors, inside = [], 0
    for name in known["families"]:
        of_family, base = family(name, rows, known)
        few = [row for row in of_family.rows if row.devices <= FEW]
        for row in few if len(few) > 1 else ():
            fitted = fit(of_family.chosen(other for other in few if other is not row), base)
            bounds = interval_of(fitted, lambda other, row=row: seconds_of(other, row), row.devices, row.workload)
            assert bounds is not None
            errors.append(abs(seconds_of(fitted, row) / row.seconds - 1))
            inside += bounds[0] <= row.seconds <= bounds[1]
    return {"rows": len(errors), "median": statistics.median(errors), "inside": inside / len(errors),
            "rms": math.sqrt(statistics.fmean(error**2 for error in errors))}  # fmt: skip


def by_prior(rows: StepRows, known: dict[str, Any]) -> list[dict[str, Any]]:
    """What another prior of the floor would change."""
    stated, found = (fitting.FLOOR, fitting.FLOOR_SPREAD), []
    for fitting.FLOOR, fitting.FLOOR_SPREAD in PRIORS:
        many = [line for line in predictions(rows, known) if line["devices"] >= MANY]
        found.append(
            {"floor": fitting.FLOOR, "spread": fitting.FLOOR_SPREAD, "left_out": left_out(rows, known),
             "within": sum(abs(line["error"]) <= WITHIN for line in many), "of": len(many),
             "median": statistics.median(abs(line["error"]) for line in many)}
        )  # fmt: skip
    fitting.FLOOR, fitting.FLOOR_SPREAD = stated
    return found


def goyal() -> list[dict[str, Any]]:
    """8 to 352 P100, 32 images each: from what the paper says of the machine (8 GPUs a server, 50 Gbit/s, 120 ms of
    backward pass, 100 MB of gradients) and the medians of the priors of fit.py; nothing is fitted. The paper does not
    say how evenly its GPUs computed, so there is a line for each deviation of ln seconds."""
    achieved = fitting.ACHIEVED
    base = machines.checked(
        {"name": "p100-50gbe", "devices_per_node": 8, "inside": {"bandwidth": achieved * 8.0e10, "latency": 3e-6},
         "between": {"bandwidth": achieved * 6.25e9, "latency": 1e-5}},
        "p100",
    )  # fmt: skip
    parameters, micro, memory = measured.RESNET50, 0.120 / BACKWARD, 7.32e11
    pace = Pace(
        per_example=(1 - fitting.FLOOR) * micro / 32, floor=fitting.FLOOR * micro,
        fixed=5 * 4 * parameters / memory, gradient_bytes=4 * parameters,
    )  # fmt: skip
    found = []
    for spread in SPREADS:
        seconds = []
        for devices in (8, 352):
            time = step_time(base, data_parallel(pace), devices, 32)
            seconds.append(time.total + time.compute * (Stragglers(spread).expected(devices) - 1))
        growth = seconds[1] / seconds[0] - 1
        found.append({"spread": spread, "ms": [1e3 * one for one in seconds], "growth": growth,
                      "within_4_points": abs(growth - 0.12) <= 0.04})  # fmt: skip
    return found


def lamb(rows: StepRows, known: dict[str, Any]) -> list[dict[str, Any]]:
    """64k/32k on 1,024 chips: 7,037 steps at length 128 and 1,562 at 512, from rows that were nine to one. Sequences
    of the two lengths compute alike, so that their seconds are as their FLOP."""
    of_family, base = family("lamb-tpu-v3", rows, known)
    short, long = (measured.KNOWN[name].flops or math.nan for name in ("bert_large_128", "bert_large_512"))
    found = []
    for most in (64, 512):
        fitted = fit(of_family.chosen(row for row in of_family.rows if row.devices <= most), base)

        def minutes(machine: Machine) -> float:
            mixed = machine.pace("bert_large_9_to_1")
            pace = mixed.model_copy(update={"flops": 0.9 * short + 0.1 * long})
            parts = ((7037, short, 64), (1562, long, 32))
            return sum(
                steps * step_time(machine, data_parallel(pace.of_flops(flops)), 1024, share).total / 60
                for steps, flops, share in parts
            )

        bounds = interval_of(fitted, minutes, 1024, "bert_large_9_to_1")
        found.append(
            {"fitted_on_at_most": most, "minutes": minutes(fitted), "interval": bounds, "published_minutes": 76.19,
             "error": minutes(fitted) / 76.19 - 1}
        )  # fmt: skip
    return found


def page(facts: dict[str, Any]) -> str:
    lines, few = facts["rows"], facts["priors"][0]["left_out"]
    many = [line for line in lines if line["devices"] >= MANY]
    good = [line for line in many if abs(line["error"]) <= WITHIN]
    inside = [line for line in many if line["low_ms"] <= line["measured_ms"] <= line["high_ms"]]
    middle = statistics.median(abs(line["error"]) for line in many)
    text = [
        "# What the cluster model makes of published rows",
        "",
        "Made by `python results/plan/predict.py` from `rows.csv` and `families.yaml`; nothing here was measured by "
        "largebatch.",
        "",
        f"Fitted on the rows of at most {FEW} devices of each family. Of the {len(many)} rows of {MANY} devices and "
        f"more **{len(good)} are predicted within 15 %**, median error {middle:.1%}; {len(inside)} lie in the 95 % "
        "interval. "
        f"Of the {few['rows']} rows of at most {FEW} devices, each left out once, the median error is "
        f"{few['median']:.1%}, and {few['inside']:.0%} lie in the interval.",
        "",
        "![The model over what was published](predictions.svg)",
        "",
        "| family | workload | devices | share | measured ms | model ms | 95 % | error | |",
        "|---|---|---:|---:|---:|---:|---|---:|---|",
    ]
    for line in lines:
        judged = "fitted" if line["fitted"] else ""
        if line["devices"] >= MANY:
            judged = "within" if abs(line["error"]) <= WITHIN else "**beyond**"
        text.append(
            f"| {line['family']} | {line['workload']} | {line['devices']:,} | {line['share']:g} | "
            f"{line['measured_ms']:.1f} | {line['model_ms']:.1f} | {line['low_ms']:.1f}–{line['high_ms']:.1f} | "
            f"{line['error']:+.1%} | {judged} |"
        )
    return "\n".join([*text, *_of_priors(facts["priors"]), *_of_goyal(facts["goyal"]), *_of_lamb(facts["lamb"])]) + "\n"


def _of_priors(priors: list[dict[str, Any]]) -> list[str]:
    text = ["", "## Other priors of the floor", "", "The first is the one that is used.", "",
            f"| median, deviation | rows ≥ {MANY} within 15 % | their median | left out: median | rms | in 95 % |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    for one in priors:
        few = one["left_out"]
        text.append(
            f"| {one['floor']:.0%}, {one['spread']} | {one['within']} of {one['of']} | {one['median']:.1%} | "
            f"{few['median']:.1%} | {few['rms']:.1%} | {few['inside']:.0%} |"
        )
    return text


def _of_goyal(lines: list[dict[str, Any]]) -> list[str]:
    text = [
        "", "## Goyal et al. 2017, 8 to 352 P100", "",
        "From the paper's description of the machine and the priors' medians, nothing fitted; the paper has +12 %.", "",
        "| deviation of a device's ln seconds | 8 | 352 | | within 4 points |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for line in lines:
        few, many = line["ms"]
        judged = "yes" if line["within_4_points"] else "no"
        text.append(f"| {line['spread']:g} | {few:.0f} ms | {many:.0f} ms | {line['growth']:+.1%} | {judged} |")
    return text


def _of_lamb(lines: list[dict[str, Any]]) -> list[str]:
    text = ["", "## LAMB's 76 minutes on 1,024 TPU v3 chips", ""]
    for line in lines:
        low, high = line["interval"]
        text.append(
            f"- from its rows of at most {line['fitted_on_at_most']} chips: {line['minutes']:.1f} minutes "
            f"({low:.0f} to {high:.0f}), {line['error']:+.1%} of {line['published_minutes']}"
        )
    return text


def with_times(machine: Machine, times: dict[str, Any]) -> Machine:
    """What other precisions take, of the paces of which it was measured."""
    paces = {
        name: pace.model_copy(update={"times": times[name]}) if name in times else pace
        for name, pace in machine.workloads.items()
    }
    sources = (*machine.sources, *([times["source"]] if times else []))
    return machine.model_copy(update={"workloads": paces, "sources": sources})


def write_machines(rows: StepRows, known: dict[str, Any]) -> None:
    for name, families in known["machines"].items():
        parts = [family(one, rows, known) for one in families]
        together = tuple(row for part, _ in parts for row in part.rows)
        facts = {workload: fact for part, _ in parts for workload, fact in part.facts.items()}
        base = parts[0][1].model_copy(update={"name": name})
        fitted = with_times(fit(StepRows(together, facts), base), known["times"].get(name, {}))
        (machines.FOLDER / f"{name}.yaml").write_text(machines.written(fitted), encoding="utf-8")
        assert fitted.fit is not None
        print(f"{name}: {len(together)} rows, rms {fitted.fit.rms_error:.1%}, largest {fitted.fit.largest_error:.1%}")


def main() -> None:
    rows, known = measured.read(HERE / "rows.csv"), systems()
    if "--machines" in sys.argv[1:]:
        write_machines(rows, known)
        return
    facts = {
        "kind": "cluster_predictions", "rows": predictions(rows, known), "priors": by_prior(rows, known),
        "goyal": goyal(), "lamb": lamb(rows, known),
    }  # fmt: skip
    (HERE / "predictions.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    title = "Fitted on few devices: the model over what was published"
    drawn = [
        {**line, "seconds": line["measured_ms"], "model_seconds": line["model_ms"],
         "model_seconds_low": line["low_ms"], "model_seconds_high": line["high_ms"]}
        for line in facts["rows"]
    ]  # fmt: skip
    write_picture({"kind": "machine_fit", "title": title, "rows": drawn}, HERE / "predictions.svg")
    text = page(facts)
    (HERE / "predictions.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
