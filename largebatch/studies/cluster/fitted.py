"""``plan fit``: measured steps in, a machine's file out, and a table of how far the model is off, row by row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.table

from largebatch.errors import UserError
from largebatch.report.numerals import count, counted, listing
from largebatch.studies.cluster import calibrate
from largebatch.studies.cluster import machine as machines
from largebatch.studies.cluster import rows as measured
from largebatch.studies.cluster.fit import FAR, TransferRow, fit, interval_of, seconds_of
from largebatch.studies.cluster.machine import Machine, MachineFit, point_errors
from largebatch.studies.cluster.rows import StepRow, StepRows, WorkloadFacts

ALLOWED = FAR
"""Rms error of the rows, up to which a machine is written without more ado."""
UNNAMED = "fitted"


def gathered(
    files: Sequence[Path], family: str | None, workload: str | None, gradients: float | None
) -> tuple[StepRows, list[TransferRow], list[dict[str, Any]]]:
    """The rows of all files, the collectives that were measured alone, and the facts of the benches among them."""
    stated = None if gradients is None else WorkloadFacts(gradients)
    rows: list[StepRow] = []
    known: dict[str, WorkloadFacts] = {}
    benches = [calibrate.read(file) for file in files if file.suffix == ".json"]
    for facts in benches:
        rows += calibrate.rows_of(facts)
        model, said = facts["model"], calibrate.facts_of(facts)
        before = known.get(model, WorkloadFacts(gradients or 0.0))
        size = said.gradient_bytes or before.gradient_bytes
        known[model] = dataclasses.replace(before, gradient_bytes=size, flops=said.flops or before.flops)
    for file in files:
        if file.suffix != ".json":
            read = measured.read(file, workload or "step", stated)
            read = read.of(family) if family else read
            if len(families := list(dict.fromkeys(row.family for row in read.rows))) > 1:
                some = listing([str(one) for one in families[:6]] + (["others"] if len(families) > 6 else []))
                raise UserError(f"{file} has rows of {some}; --family NAME takes those of one")
            rows += read.rows
            known |= read.facts
    transfers = [row for facts in benches for row in calibrate.transfers_of(facts)]
    return StepRows(tuple(rows), known), transfers, benches


def machine_fit(
    files: Sequence[Path], base: str | None, family: str | None = None, workload: str | None = None,
    gradients: float | None = None, most: int | None = None, name: str | None = None, command: str = "",
) -> tuple[Machine, dict[str, Any]]:  # fmt: skip
    """The machine, fitted to the rows of at most ``most`` devices; and the facts of kind ``machine_fit``."""
    rows, transfers, benches = gathered(files, family, workload, gradients)
    if base is None and len(benches) < len(files):
        raise UserError(
            "plan fit needs --machine, whose devices a node and links these rows had: one of "
            f"{', '.join(machines.names())}, or a file MACHINE.yaml, which largebatch plan fit --skeleton shows"
        )
    known = machines.find(base) if base else calibrate.this_host(benches)
    few = rows.chosen(row for row in rows.rows if most is None or row.devices <= most)
    if not few.rows:
        fewest = min(row.devices for row in rows.rows)
        raise UserError(f"--most {most}: no row has so few devices; the least is {fewest}")
    if unfitted := {row.workload for row in rows.rows} - set(few.facts):
        raise UserError(f"--most {most} leaves no row of {sorted(unfitted)[0]}; a pace needs one")
    plain = known.model_copy(
        update={
            "workloads": {}, "fit": None, "title": None, "sources": tuple(_sources(files, base, known.name)),
        }
    )  # fmt: skip
    machine = fit(few, plain, transfers).model_copy(update={"name": name or UNNAMED})
    assert machine.fit is not None
    lines = [_line(machine, row, most) for row in rows.rows]
    facts = {
        "kind": "machine_fit", "title": f"Steps on {machine.name}: the model over what was measured",
        "command": command, "machine": machine.model_dump(mode="json"), "rows": lines,
        "without_gradient_bytes": sorted(name for name, fact in few.facts.items() if not fact.gradient_bytes),
        "without_precision": sorted(name for name, fact in few.facts.items() if not fact.precision),
    }  # fmt: skip
    return machine, facts


def _sources(files: Sequence[Path], base: str | None, name: str) -> list[str]:
    said = [f"largebatch plan fit of {listing([file.name for file in files])}"]
    return said if base is None else [*said, f"all else is that of {name}"]


def refused(facts: dict[str, Any], allowed: float = ALLOWED) -> str | None:
    """Why no plan should rest on this machine; ``allowed`` is the rms error of its rows."""
    for name in facts["without_gradient_bytes"]:
        if (many := {line["devices"] for line in _fitted(facts) if line["workload"] == name}) != {1}:
            return (
                f"{name}: rows of {listing([count(one) for one in sorted(many)])} devices tell nothing of the links "
                "while it is not known how many bytes its gradients have; --gradients BYTES, or a column gradient_bytes"
            )
    found = _found(facts)
    if (rms := found.rms_error) > allowed:
        return (
            f"the model is {100 * rms:.0f} % rms off the rows, worst {_worst(found)}; look at those, or take it as it "
            f"is: --allow-error {math.ceil(100 * rms) / 100:g}"
        )
    return None


def _found(facts: dict[str, Any]) -> MachineFit:
    return MachineFit.model_validate(facts["machine"]["fit"])


def _fitted(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in facts["rows"] if line["fitted"]]


def _worst(found: MachineFit) -> str:
    largest = {point: max(errors, key=abs) for point, errors in point_errors(found.rows).items()}
    errors = sorted(largest.items(), key=lambda point: -abs(point[1]))[:3]
    return listing(
        f"{workload} on {count(devices)} at batch {count(batch)} ({_percent(error, 0)})"
        for (workload, devices, batch, _), error in errors
    )


def _line(machine: Machine, row: StepRow, most: int | None) -> dict[str, Any]:
    seconds = seconds_of(machine, row)
    bounds = interval_of(machine, lambda other: seconds_of(other, row), row.devices, row.workload)
    assert bounds is not None
    return {
        "workload": row.workload, "devices": row.devices, "global_batch_size": row.batch,
        "micro_batch_size": row.share, "accumulation_steps": row.accumulation, "seconds": row.seconds,
        "model_seconds": seconds, "model_seconds_low": bounds[0], "model_seconds_high": bounds[1],
        "error": seconds / row.seconds - 1, "fitted": most is None or row.devices <= most, "source": row.source,
    }  # fmt: skip


def tables(facts: dict[str, Any]) -> list[rich.table.Table]:
    return [_of_rows(facts["rows"]), _of_numbers(facts["machine"])]


def _of_rows(lines: list[dict[str, Any]]) -> rich.table.Table:
    shown = _plain(
        "Measured steps and the model's", ("workload", "devices", "share", "ms", "model", "95 %", "error", "")
    )
    for line in lines:
        low, high = line["model_seconds_low"], line["model_seconds_high"]
        parts = line["accumulation_steps"]
        shown.add_row(
            line["workload"],
            count(line["devices"]),
            f"{line['micro_batch_size']:g}" + (f" × {parts}" if parts > 1 else ""),
            _ms(line["seconds"]),
            _ms(line["model_seconds"]),
            f"{_ms(low)}–{_ms(high)}",
            f"{_percent(line['error'], 1)}",
            "" if line["fitted"] else "predicted",
        )
    return shown


def _of_numbers(machine: dict[str, Any]) -> rich.table.Table:
    shown = _plain(f"{machine['name']}: what was found", ("", "", "95 %"))
    for where in ("inside", "between"):
        link = machine[where]
        for key, unit, factor in (("bandwidth", "GB/s", 1e-9), ("latency", "µs", 1e6)):
            low, high = link["intervals"][key]
            value = f"{factor * link[key]:.3g} {unit}"
            shown.add_row(f"{where}, {key}", value, f"{factor * low:.3g}–{factor * high:.3g}")
    for name, pace in machine["workloads"].items():
        for key, words in (("per_example", "an example"), ("floor", "floor of a micro-batch"), ("fixed", "fixed")):
            low, high = pace["intervals"][key]
            shown.add_row(f"{name}, {words}", f"{_ms(pace[key])} ms", f"{_ms(low)}–{_ms(high)}")
    return shown


def notes(facts: dict[str, Any]) -> list[str]:
    found = _found(facts)
    number, points = len(found.rows), len(point_errors(found.rows))
    others = [abs(line["error"]) for line in facts["rows"] if not line["fitted"]]
    repeats = f" of {counted(points, 'point')}, each of which counts once" if points < number else ""
    said = [
        f"fitted to {counted(number, 'row')}{repeats}; it is {100 * found.rms_error:.1f} % rms off them, at most "
        f"{100 * found.largest_error:.1f} %"
    ]
    if found.doubt:
        said.append(f"warning: {found.doubt}")
    if found.rms_error > ALLOWED:
        said.append(f"warning: that is more than {100 * ALLOWED:.0f} %; worst are {_worst(found)}")
    if others:
        near = sum(error <= 0.15 for error in others)
        said.append(
            f"predicted {counted(len(others), 'row')}, {count(near)} within 15 %, at most {100 * max(others):.1f} % off"
        )
    said += [
        f"{name}: how many bytes its gradients have is not known, so nothing is sent, and the links are the priors'; "
        "--gradients BYTES, or a column gradient_bytes"
        for name in facts["without_gradient_bytes"]
    ]
    said += [
        f"{name}: in which precision it was measured is not said, so that a plan takes it as it stands; a column "
        "precision says it"
        for name in facts["without_precision"]
    ]
    said.append(
        "an interval as wide as its prior is of a number that these rows say nothing of (docs/planning_step.md)"
    )
    return said


def _plain(title: str, headings: Sequence[str]) -> rich.table.Table:
    shown = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return shown


def _percent(error: float, places: int) -> str:
    return f"{100 * error:+.{places}f} %".replace("-", "−")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
