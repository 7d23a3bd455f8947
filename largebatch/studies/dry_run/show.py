"""The facts of a dry run as tables for the terminal."""

from __future__ import annotations

from typing import Any

import rich.table

DryRunFacts = dict[str, Any]


def memory_table(facts: DryRunFacts) -> rich.table.Table:
    micro = facts["traced_micro_batch_size"]
    shown = table(f"memory of a rank at micro-batch {micro:,}", "", "MiB")
    for part, value in facts["memory_per_rank_mib"].items():
        if value:
            shown.add_row(part, f"{value:,.1f}")
    shown.add_row("(activations of an evaluation)", f"{facts['memory_of_evaluation_mib']:,.1f}")
    shown.add_section()
    shown.add_row("total", f"{facts['memory_total_per_rank_mib']:,.1f}")
    return shown


def collectives_table(facts: DryRunFacts) -> rich.table.Table:
    shown = table("collectives of a rank and step", "", "for", "ranks", "calls", "MiB", "MiB sent in a ring")
    for row in facts["collectives_per_step"]:
        sizes = (row["bytes"] / 2**20, row["ring_bytes"] / 2**20)
        shown.add_row(
            row["collective"], row["what_for"], f"{row['ranks']:,}", f"{row['calls']:g}",
            *(f"{size:,.3f}" if size < 1 else f"{size:,.1f}" for size in sizes),
        )  # fmt: skip
    return shown


def table(title: str, *headings: str) -> rich.table.Table:
    shown = rich.table.Table(title=title, title_justify="left", box=None, padding=(0, 2), pad_edge=False)
    for heading in headings:
        words = heading in ("", "for")
        shown.add_column(heading, justify="left" if words else "right", no_wrap=True)
    return shown


def sentences(facts: DryRunFacts) -> list[str]:
    evaluated, saved = facts["evaluated_after_steps"], facts["saved_after_steps"]
    return [
        f"evaluated after {in_words(evaluated)}",
        f"saved after {in_words(saved)}" if saved else "no checkpoints",
        f"{facts['flops_per_step_and_rank']:.3g} floating-point operations per step and rank",
    ]


def in_words(steps: list[int]) -> str:
    """The first of them and the last."""
    if len(steps) <= 4:
        return f"steps {', '.join(f'{step:,}' for step in steps)}" if len(steps) > 1 else f"step {steps[0]:,}"
    first = ", ".join(f"{step:,}" for step in steps[:2])
    return f"steps {first}, … {steps[-1]:,} ({len(steps):,} times)"
