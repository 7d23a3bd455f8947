"""The layers of a model as a table for the terminal."""

from __future__ import annotations

import rich.table

from largebatch.records.looking import LayerRow, ModelRecord
from largebatch.terminal.escapes import escaped

GIGA, MIB = 1e9, 2**20


def heading(model: ModelRecord) -> str:
    shape = "×".join(map(str, model.input_shape))
    return (
        f"{model.model} on {model.data}, {model.task}: a micro-batch of {model.micro_batch_size:,} ({shape}) in "
        f"{model.precision} on {model.device}"
    )


def table(model: ModelRecord, depth: int) -> rich.table.Table:
    """Modules down to ``depth`` below the model, each with what lies in it."""
    shown = rich.table.Table(box=None, padding=(0, 2), pad_edge=False)
    frozen = model.frozen > 0
    scale, unit = _unit(model.forward_flops)
    headings = ("layer", "output", "trainable", *(["frozen"] if frozen else []), unit, "%", "MiB kept")
    for column in headings:
        shown.add_column(column, justify="left" if column in ("layer", "output") else "right", no_wrap=True)
    for row in model.layers:
        if row.depth > depth:
            continue
        name = (row.name or "").rpartition(".")[2] or model.model or ""
        cells = [escaped(f"{'  ' * row.depth}{name}  {row.type}"), _shape(row, model), f"{row.trainable:,}"]
        cells += [f"{row.frozen:,}"] * frozen
        called = row.calls or not row.depth
        cells += [f"{(row.forward_flops or 0) / scale:,.3f}" if called else "not called"]
        cells += [f"{row.share_percent:.1f}" if row.share_percent is not None and called else ""]
        cells += [f"{(row.activation_bytes or 0) / MIB:,.1f}" if called else ""]
        shown.add_row(*cells)
    return shown


def sentences(model: ModelRecord) -> list[str]:
    """The totals."""
    forward, backward = model.forward_flops, model.backward_flops
    scale, unit = _unit(forward)
    frozen = f", {model.frozen:,} more frozen" if model.frozen else ""
    outside = f", {model.outside_flops / scale:,.3f} of it in the loss" if model.outside_flops else ""
    return [
        f"{model.trainable:,} trainable parameters{frozen}",
        f"an example takes {forward / scale:,.3f} {unit} forward ({forward / 2 / scale:,.3f} multiply-adds{outside}) "
        f"and {backward / scale:,.3f} backward",
        f"{model.activation_bytes / MIB:,.1f} MiB are kept for the backward pass of a micro-batch; the most that a "
        "step needs is told by train --dry-run",
    ]


def _unit(flops: int) -> tuple[float, str]:
    return (GIGA, "GFLOP") if flops >= 1e8 else (1e6, "MFLOP")


def _shape(row: LayerRow, model: ModelRecord) -> str:
    """Of one example where the first dimension is the micro-batch; the whole else."""
    shape = list(row.output_shape or ())
    if not shape:
        return ""
    if shape[0] == model.micro_batch_size:
        return "×".join(map(str, shape[1:])) or "1"
    return f"({'×'.join(map(str, shape))})"
