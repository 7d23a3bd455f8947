"""torch.profiler around single steps, and what it saw of them: the Chrome trace, the table, the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from largebatch.records import names
from largebatch.records.facts import write_json
from largebatch.records.files import whole, write_text
from largebatch.records.looking import ProfiledKernel, ProfiledOperator, ProfileRecord
from largebatch.records.typed import content

STEP = "ProfilerStep#"  # the name by which tools that read traces know a step
SHOWN = 40  # operators of the text file


class Session:
    """Ready from when it is made; records from the first step's beginning on."""

    def __init__(self, device: str, shapes: bool, stacks: bool, warmed_up: bool) -> None:
        """RuntimeError where somebody profiles already: torch has one profiler."""
        if torch.autograd._profiler_enabled():
            raise RuntimeError("another one is at work")
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.cuda = device == "cuda"
        self.shapes = shapes
        self.profiler = torch.profiler.profile(activities=activities, record_shapes=shapes, with_stack=stacks)
        self.profiler.prepare_trace()
        self.steps: list[int] = []  # that are complete, counted from 1
        self.warmed_up = warmed_up  # whether it is ready a step before it records
        self._recording = False
        self._step: tuple[int, Any] | None = None  # in progress

    def begin(self, number: int) -> None:
        if not self._recording:
            self.profiler.start_trace()
            self._recording = True
        self._step = number, torch.profiler.record_function(f"{STEP}{number}")
        self._step[1].__enter__()

    def end(self) -> None:
        if self._step is not None:
            (number, annotation), self._step = self._step, None
            annotation.__exit__(None, None, None)
            self.steps.append(number)

    def stop(self) -> None:
        """Nobody is profiled any more. What was not recorded yet, or only in part, is thrown away."""
        if self._step is not None:
            annotation, self._step = self._step[1], None
            annotation.__exit__(None, None, None)
        if not self._recording:
            self.profiler.start_trace()  # one that is ready and never started cannot be stopped
        self.profiler.stop_trace()

    def spans(self) -> list[tuple[float, float]]:
        """When the complete steps began and ended, in microseconds of the trace."""
        wanted = {f"{STEP}{number}" for number in self.steps}
        ranges = {
            event.trace_name: (event.time_range.start, event.time_range.end)
            for event in self._events()
            if event.trace_name in wanted and event.device_type == DeviceType.CPU
        }
        return [ranges[f"{STEP}{number}"] for number in self.steps]

    def inside(self) -> list[Any]:
        """Everything that began in a complete step, but for the steps themselves."""
        spans = self.spans()
        return [
            event
            for event in self._events()
            if not event.trace_name.startswith(STEP)
            and any(begin <= event.time_range.start < end for begin, end in spans)
        ]

    def _events(self) -> Iterable[Any]:
        return self.profiler.events() or ()


def operators_of(session: Session) -> list[ProfiledOperator]:
    """Calls on the host by name, and by shapes if they were asked for; most of their own time first."""
    sums: dict[tuple[str, str | None], list[float]] = {}
    for event in session.inside():
        if event.device_type != DeviceType.CPU or event.is_async:
            continue
        shapes = str(event.input_shapes) if session.shapes else None
        own = sums.setdefault((event.name, shapes), [0, 0.0, 0.0, 0.0, 0.0])
        times = (event.cpu_time_total, event.self_cpu_time_total)
        times += (event.device_time_total, event.self_device_time_total) if session.cuda else (0.0, 0.0)
        own[0] += 1
        for place, microseconds in enumerate(times, start=1):
            own[place] += microseconds / 1e6
    found = [
        ProfiledOperator(
            name=name,
            calls=int(calls),
            cpu_seconds=cpu,
            self_cpu_seconds=self_cpu,
            device_seconds=device if session.cuda else None,
            self_device_seconds=self_device if session.cuda else None,
            shapes=shapes,
        )
        for (name, shapes), (calls, cpu, self_cpu, device, self_device) in sums.items()
    ]
    return sorted(found, key=lambda one: (-(one.self_device_seconds or 0), -one.self_cpu_seconds, one.name))


def kernels_of(session: Session) -> list[ProfiledKernel] | None:
    """What ran on the device; None on the CPU. A kernel belongs to the step in which it was launched."""
    if not session.cuda:
        return None
    sums: dict[str, list[float]] = {}
    for event in session.inside():
        for kernel in event.kernels if event.device_type == DeviceType.CPU else ():
            own = sums.setdefault(kernel.name, [0, 0.0])
            own[0] += 1
            own[1] += kernel.duration / 1e6
    found = [ProfiledKernel(name=name, calls=int(calls), device_seconds=s) for name, (calls, s) in sums.items()]
    return sorted(found, key=lambda one: (-one.device_seconds, one.name))


def write(session: Session, directory: Path, rank: int, world_size: int, device: str) -> tuple[Path, Path]:
    """The trace, the table as text and as a record, each whole; where the first two lie."""
    folder = directory / names.PROFILE
    folder.mkdir(parents=True, exist_ok=True)
    first, last = session.steps[0], session.steps[-1]
    name = f"steps-{first}-{last}-rank-{rank}"
    trace = folder / f"{name}.trace.json.gz"
    with whole(trace) as unfinished:
        compressed = unfinished.with_name(f"{unfinished.name}.gz")  # by whose ending torch knows that it is to compress
        session.profiler.export_chrome_trace(str(compressed))
        compressed.replace(unfinished)
    record = ProfileRecord(
        first_step=first,
        last_step=last,
        rank=rank,
        world_size=world_size,
        device=device,
        warmed_up=session.warmed_up,
        step_seconds=[(end - begin) / 1e6 for begin, end in session.spans()],
        trace=trace.name,
        operators=operators_of(session),
        kernels=kernels_of(session),
    )
    write_json(folder / f"{name}.json", content(record))
    table = folder / f"{name}.txt"
    write_text(table, as_text(record))
    return trace, table


def as_text(record: ProfileRecord) -> str:
    """The operators that take most time of their own, and on CUDA the kernels."""
    seconds, cuda = record.step_seconds, record.kernels is not None
    steps = f"steps {record.first_step} to {record.last_step}"
    lines = [
        f"{steps}, rank {record.rank} of {record.world_size}, {record.device}: "
        f"{1000 * sum(seconds) / len(seconds):.3f} ms a step, the profiler's own cost included",
        f"the whole trace: {record.trace} (ui.perfetto.dev, chrome://tracing)",
        "",
    ]
    host = sum(one.self_cpu_seconds for one in record.operators) or 1.0
    headings = ["calls", "self CPU ms", "%", "CPU ms", *(["self device ms", "device ms"] if cuda else [])]
    rows = []
    for one in record.operators[:SHOWN]:
        device = [one.self_device_seconds or 0.0, one.device_seconds or 0.0] if cuda else []
        share = 100 * one.self_cpu_seconds / host
        times = [f"{1000 * one.self_cpu_seconds:.3f}", f"{share:.1f}", f"{1000 * one.cpu_seconds:.3f}"]
        told = f"{one.name}  {one.shapes}" if one.shapes else one.name
        rows.append([f"{one.calls:,}", *times, *(f"{1000 * s:.3f}" for s in device), told])
    lines += _columns([*headings, "operator"], rows)
    if len(record.operators) > SHOWN:
        lines.append(f"and {len(record.operators) - SHOWN} more, which the record has")
    if record.kernels:
        rows = [[f"{one.calls:,}", f"{1000 * one.device_seconds:.3f}", one.name] for one in record.kernels[:SHOWN]]
        lines += ["", *_columns(["calls", "device ms", "kernel"], rows)]
    return "\n".join(lines) + "\n"


def _columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Numbers to the right, the name last."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in (headings, *rows)
    ]
