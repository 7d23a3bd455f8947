"""The facts of ``bench throughput`` as tables and sentences."""

from __future__ import annotations

import statistics
from typing import Any

import rich.box
import rich.table

NAMES = {"bare_loop": "bare loop", "dataloader_loop": "DataLoader loop"}
PARTS = {
    "data": "data wait",
    "forward": "forward",
    "backward": "backward",
    "communication": "exposed all-reduce",
    "optimizer": "optimizer",
    "other": "the rest of the loop",
    "step": "step",
}


def tables(facts: dict[str, Any]) -> list[rich.table.Table]:
    return [contest(facts), *([split(facts)] if "split" in facts else [])]


def contest(facts: dict[str, Any]) -> rich.table.Table:
    parts, micro = facts["accumulation_steps"], facts["micro_batch_size"]
    made_of = f" = {parts} × {micro:,}" if parts > 1 else ""
    title = (
        f"{facts['recipe']}: {facts['model']} on {facts['data']}, batch {facts['global_batch_size']:,}{made_of}, "
        f"{facts['device']} {facts['precision']}"
    )
    shown = plain_table(title, ("", "examples/s", "least", "most", "trainer /", "synthetic /"))
    for row in facts["contestants"]:
        name = row["name"]
        label = f"with {' '.join(facts['beside'])}" if name == "beside" else NAMES.get(name, name)
        speeds = facts[f"{name}_examples_per_second"]
        speed = [f"{value:,.0f}" for value in (statistics.median(speeds), min(speeds), max(speeds))]
        ratios = [facts.get(f"{ours}_over_{name}_median") for ours in ("trainer", "synthetic")]
        shown.add_row(label, *speed, *("" if ratio is None else f"{ratio:.3f}" for ratio in ratios))
    return shown


def split(facts: dict[str, Any]) -> rich.table.Table:
    shown = plain_table("A step of the trainer", ("", "ms", "%"))
    whole = facts["split"]["step_seconds"]
    for part, label in PARTS.items():
        seconds = facts["split"][f"{part}_seconds"]
        cells = ("–", "–") if seconds is None else (f"{1e3 * seconds:,.2f}", f"{100 * seconds / whole:.1f}")
        shown.add_row(label, *cells, end_section=part == "other")
    return shown


def plain_table(title: str, headings: tuple[str, ...]) -> rich.table.Table:
    shown = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    return shown


def notes(facts: dict[str, Any]) -> list[str]:
    """What is said below the tables; the verdict last."""
    rounds = f"{facts['pairs']} rounds, {facts['steps_timed']} steps a turn"
    said = [f"{rounds}; medians, and medians of the ratios within a round"]
    said += [f"fixed: {change}" for change in facts["changed"]]
    said += [f"{NAMES.get(c['name'], c['name'])}: {c['what']}" for c in facts["contestants"] if c["what"]]
    if "beside" in facts:
        return said
    said += [f"{NAMES.get(name, name)}: left out, {reason}" for name, reason in facts["left_out"].items()]
    for key, words in (("peak_allocated_bytes", "allocated on the device at its peak"),
                       ("peak_resident_growth_bytes", "grown by at its peak, workers not counted")):  # fmt: skip
        if key in facts["memory"]:
            said.append(f"memory: {facts['memory'][key] / 2**30:,.2f} GiB {words}")
    said += of_arithmetic(facts["arithmetic"])
    if facts["device_busy_share"] is not None:
        said.append(f"device: busy for {percent(facts['device_busy_share'])} of a step on ready batches")
    return [*said, f"verdict: {facts['verdict']['sentence']}"]


def of_arithmetic(facts: dict[str, Any]) -> list[str]:
    if "not_counted_because" in facts:
        return [f"arithmetic: not counted, {facts['not_counted_because']}"]
    one, rate = facts["forward_flop_per_image"] + facts["backward_flop_per_image"], facts["model_flop_per_second"]
    used, peak = facts["utilisation_of_measured_peak"], f"{scaled(facts['measured_peak_flop_per_second'])}FLOP/s"
    told = (
        f"arithmetic: {scaled(one * facts['passes'])}FLOP an example, forward and backward; {scaled(rate)}FLOP/s, "
        f"{percent(used)} of the {peak} of a large matrix product here"
    )
    if facts["datasheet"]:
        used, peak = facts["utilisation_of_datasheet_peak"], f"{scaled(facts['datasheet_peak_flop_per_second'])}FLOP/s"
        told += f", {percent(used)} of the {peak} of the datasheet ({facts['datasheet']})"
    said = [told]
    if facts["share_of_mlperf_rate"] is not None:
        share = f"{percent(facts['share_of_mlperf_rate'])} of 7,760 images/s"
        said.append(f"MLPerf: {share}, ResNet-50's rate for each of 8 H200 in Training v4.0")
    return said


def scaled(number: float) -> str:
    """``4.09 G``: three digits and the prefix of a unit to follow."""
    for prefix in "", "k", "M", "G", "T":
        if number < 999.5 or prefix == "T":
            break
        number /= 1000
    return f"{number:,.3g} {prefix}" if number < 999.5 else f"{number:,.0f} {prefix}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
