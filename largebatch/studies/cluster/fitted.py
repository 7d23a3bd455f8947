"""``plan fit``: measured steps in, a machine's file out, and a table of how far the model is off, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.table

from largebatch.errors import UserError
from largebatch.report.numerals import count, listing
from largebatch.studies.cluster import calibrate
from largebatch.studies.cluster import machine as machines
from largebatch.studies.cluster import rows as measured
from largebatch.studies.cluster.fit import TransferRow, fit, interval_of, seconds_of
from largebatch.studies.cluster.machine import Machine
from largebatch.studies.cluster.rows import StepRow, StepRows, WorkloadFacts


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
        size = calibrate.gradient_bytes(facts)
        if size or facts["model"] not in known:
            known[facts["model"]] = WorkloadFacts(size) if size else stated or WorkloadFacts()
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
            f"{', '.join(machines.names())}, or a file MACHINE.yaml"
        )
    known = machines.find(base) if base else calibrate.this_host(benches)
    few = rows.chosen(row for row in rows.rows if most is None or row.devices <= most)
    if not few.rows:
        fewest = min(row.devices for row in rows.rows)
        raise UserError(f"--most {most}: no row has so few devices; the least is {fewest}")
    if unfitted := {row.workload for row in rows.rows} - set(few.facts):
        raise UserError(f"--most {most} leaves no row of {sorted(unfitted)[0]}; a pace needs one")
    plain = known.model_copy(update={"workloads": {}, "fit": None, "name": name or known.name, "title": None})
    machine = fit(few, plain, transfers)
    assert machine.fit is not None
    lines = [_line(machine, row, most) for row in rows.rows]
    facts = {
        "kind": "machine_fit", "title": f"Steps on {machine.name}: the model over what was measured",
        "command": command, "machine": machine.model_dump(mode="json"), "rows": lines,
        "without_gradient_bytes": sorted(name for name, fact in few.facts.items() if not fact.gradient_bytes),
    }  # fmt: skip
    return machine, facts


def _line(machine: Machine, row: StepRow, most: int | None) -> dict[str, Any]:
    seconds = seconds_of(machine, row)
    bounds = interval_of(machine, lambda other: seconds_of(other, row), row.devices)
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
            f"{100 * line['error']:+.1f} %",
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
    fitted = [abs(line["error"]) for line in facts["rows"] if line["fitted"]]
    others = [abs(line["error"]) for line in facts["rows"] if not line["fitted"]]
    said = [f"fitted to {count(len(fitted))} rows, of which the largest error is {100 * max(fitted):.1f} %"]
    if others:
        near = sum(error <= 0.15 for error in others)
        said.append(
            f"predicted {count(len(others))} rows, {count(near)} within 15 %, at most {100 * max(others):.1f} % off"
        )
    said += [
        f"{name}: how many bytes its gradients have is not known, so nothing is sent; --gradients BYTES, or a column "
        "gradient_bytes"
        for name in facts["without_gradient_bytes"]
    ]
    said.append("an interval as wide as its prior is of a number that these rows say nothing of (docs/planning_step.md)")
    return said


def _plain(title: str, headings: Sequence[str]) -> rich.table.Table:
    shown = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return shown


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
