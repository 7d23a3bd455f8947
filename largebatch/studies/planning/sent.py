"""What a device of a plan computes and sends in a step: a pace of the machine's, and the collectives of a trace.

gradients, DDP        all-reduced in the trace's buckets, beside the backward pass of the last micro-batch
gradients, FSDP2      reduce-scattered by block beside the backward pass of every micro-batch
weights, FSDP2        gathered by block beside both passes of every micro-batch, half of the bytes in each
gradients, ZeRO       all-reduced when a backward pass is over: one bucket holds them
weights, ZeRO         gathered after the optimizer's step
batch norm, norms     by the ranks that share them, waited for
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from largebatch.records.plan import TracedCollective
from largebatch.studies.cluster.machine import Machine, Pace
from largebatch.studies.cluster.step import collective_time
from largebatch.studies.cluster.workload import Kind, Transfer, Workload

NOT_EVERY_STEP = ("loss record",)
KINDS: dict[str, Kind] = {
    "all_reduce": "all_reduce", "reduce_scatter": "reduce_scatter", "all_gather": "all_gather",
    "broadcast": "all_gather", "all_to_all": "all_to_all",
}  # fmt: skip


def workload_of(
    machine: Machine, pace: Pace, engine: str, collectives: Sequence[TracedCollective], accumulation: int, devices: int
) -> Workload:
    """On so many devices, with so many micro-batches."""
    gradients = [row for row in collectives if row.what_for == "gradients"]
    waited = sum(
        times_of(row, accumulation) * collective_time(machine, KINDS[row.collective], row.bytes, ranks_of(row, devices))
        for row in collectives
        if row.what_for not in ("gradients", "weights", *NOT_EVERY_STEP)
    )
    last = [float(row.bytes) for row in gradients for _ in range(row.calls) if not row.repeated]
    transfers = [
        *of_gradients(engine, gradients, accumulation),
        *of_weights(engine, [row for row in collectives if row.what_for == "weights"], accumulation),
    ]
    pace = pace.model_copy(update={"fixed": pace.fixed + waited})
    return Workload(pace, tuple(transfers), tuple(last) if engine != "deepspeed" else ())


def of_gradients(engine: str, rows: Iterable[TracedCollective], accumulation: int) -> Iterator[Transfer]:
    hidden = None if engine == "deepspeed" else "backward"
    for kind, repeated, size in totals(rows):
        yield Transfer(kind, size, hidden, accumulation - 1 if repeated else 1)


def of_weights(engine: str, rows: Iterable[TracedCollective], accumulation: int) -> Iterator[Transfer]:
    for kind, repeated, size in totals(rows):
        times = accumulation - 1 if repeated else 1
        if engine == "fsdp":
            yield Transfer(kind, size / 2, "forward", times)
            yield Transfer(kind, size / 2, "backward", times)
        else:
            yield Transfer(kind, size, None, times)


def totals(rows: Iterable[TracedCollective]) -> list[tuple[Kind, bool, float]]:
    """Bytes by kind, of one micro-batch, of those that are repeated and of those that are not."""
    sums: dict[tuple[Kind, bool], float] = {}
    for row in rows:
        key = (KINDS[row.collective], bool(row.repeated))
        sums[key] = sums.get(key, 0.0) + row.bytes * row.calls
    return [(kind, repeated, size) for (kind, repeated), size in sums.items()]


def times_of(row: TracedCollective, accumulation: int) -> int:
    return row.calls * (accumulation - 1 if row.repeated else 1)


def ranks_of(row: TracedCollective, devices: int) -> int:
    """Batch norm is shared by neighbours, everything else by all."""
    return min(row.ranks, devices) if row.what_for == "batch norm" else devices
