"""A cluster as its file says it: nodes of devices, a network inside a node and one between nodes, paces of workloads.

```yaml
name: dgx-h100
title: DGX H100, 8 devices a node, 8 x NDR 400
devices_per_node: 8
memory: 8.0e10                    # bytes of a device
inside: {bandwidth: 3.2e11, latency: 3e-6}      # bytes/s that a device sends; seconds of a hop
between: {bandwidth: 2.8e11, latency: 1e-5}     # bytes/s that a node sends, all its cards together
workloads:
  resnet50: {per_example: 1.3e-4, floor: 3e-3, fixed: 4e-4, gradient_bytes: 5.1e7, intervals: {floor: [2e-3, 5e-3]}}
sources: [who says so]
```

All in seconds, bytes, bytes/s and FLOP/s; skeleton.py has every key. ``intervals`` are 95 % intervals of what was
fitted; a number without one was stated. ``peak`` of a link is what its datasheet says, where the bandwidth is what was
fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from largebatch.errors import UserError, suggestion
from largebatch.recipes import strict_yaml
from largebatch.recipes.config.mistakes import section_of
from largebatch.recipes.keys import Finite, NonNegativeFloat, PositiveFloat, PositiveInt, Section

FOLDER = Path(__file__).parent / "machines"
LINK, PACE, MEETING = ("bandwidth", "latency"), ("per_example", "floor", "fixed"), ("seconds",)
"""Keys that are fitted (fit.py)."""

Interval = tuple[NonNegativeFloat, NonNegativeFloat]
Text = Annotated[str, Field(min_length=1)]
Precision = Literal["fp8", "bf16", "fp16", "tf32", "fp32", "fp64"]
"""In which a workload's products are computed. ``fp32`` is what torch makes of float32: products in it, convolutions on
NVIDIA's devices in TF32; ``tf32`` has both in TF32."""
RESERVE = 3.0 * 2**30
"""[bytes]"""


class Estimated(Section):
    """Numbers of which some were fitted: those have an interval."""

    intervals: dict[str, Interval] = Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def intervals_are_of_numbers(self) -> Estimated:
        for key, (low, high) in self.intervals.items():
            if key == "intervals" or key not in type(self).model_fields:
                raise ValueError(f"intervals.{key} is of no number that stands here")
            if low > high:
                raise ValueError(f"intervals.{key} = [{low:g}, {high:g}] should ascend")
            if key == "bandwidth" and not low:
                raise ValueError(f"intervals.bandwidth = [{low:g}, {high:g}] should begin above 0")
        return self

    def interval(self, key: str) -> tuple[float, float]:
        """Of a number that was stated, that number twice."""
        return self.intervals.get(key, (getattr(self, key), getattr(self, key)))


class Link(Estimated):
    """What one device (inside a node) or one node (between nodes) sends at once, and what a hop costs beside it."""

    bandwidth: PositiveFloat  # [bytes/s]
    latency: NonNegativeFloat = 0.0  # [s]
    peak: PositiveFloat | None = None  # [bytes/s]


class Meeting(Estimated):
    """What a step of several ranks costs beside what they send: those of a CPU compute on the cores that communicate,
    and wait for their turn."""

    seconds: PositiveFloat  # [s] of a step


class Pace(Estimated):
    """Of a device, for a workload: it computes a micro-batch of n examples in floor + per_example·n (Hockney 1988,
    Parallel Comput. 7, 1: half of the asymptotic rate at n = floor/per_example)."""

    per_example: PositiveFloat  # [s]
    floor: NonNegativeFloat = 0.0  # [s] of a micro-batch, however small: launches, small kernels
    fixed: NonNegativeFloat = 0.0  # [s] of a step, however many micro-batches it has: the optimizer
    precision: Precision | None = None  # that it was measured in, where that is known
    times: dict[Precision, PositiveFloat] = Field(default_factory=dict)  # the seconds of an example in others, measured
    flops: PositiveFloat | None = None  # forward and backward of one example, where they are known
    gradient_bytes: NonNegativeFloat = 0.0  # that the devices sum in a step
    update_bytes: NonNegativeFloat = 0.0  # that the optimizer reads and writes in a step
    data_per_example: NonNegativeFloat = 0.0  # [s] that reading and decoding one takes whoever feeds the device

    def computing(self, share: float) -> float:
        return self.floor + self.per_example * share

    def of_flops(self, flops: float) -> Pace:
        """Of a workload that computes like this one: as many FLOP/s, the same floor."""
        if self.flops is None:
            raise UserError("a pace without flops tells nothing of other workloads; add flops of one example to it")
        return self.slower(flops / self.flops).model_copy(update={"flops": flops})

    def slower(self, ratio: float) -> Pace:
        """With so many times the seconds of an example, and the same floor."""
        intervals = dict(self.intervals)
        if bounds := intervals.get("per_example"):
            intervals["per_example"] = (ratio * bounds[0], ratio * bounds[1])
        return self.model_copy(update={"per_example": ratio * self.per_example, "intervals": intervals})


class FittedRow(Section):
    """A measured step that a machine was fitted to, and what the fit makes of it."""

    workload: Text
    devices: PositiveInt
    batch: PositiveFloat
    accumulation: PositiveInt = 1
    seconds: PositiveFloat
    fitted_seconds: PositiveFloat
    source: str | None = None

    @property
    def error(self) -> float:
        return self.fitted_seconds / self.seconds - 1


def point_errors(rows: Sequence[FittedRow]) -> dict[tuple[str, int, float, int], list[float]]:
    """Workload, devices, batch and accumulation -> the errors of the rows that repeat this point."""
    errors: dict[tuple[str, int, float, int], list[float]] = {}
    for row in rows:
        errors.setdefault((row.workload, row.devices, row.batch, row.accumulation), []).append(row.error)
    return errors


class MachineFit(Section):
    """How a machine's numbers were found (fit.py), and how sure they are: of the logarithms of ``parameters``."""

    rows: Annotated[tuple[FittedRow, ...], Field(min_length=1)]
    rms_error: NonNegativeFloat  # of fitted over measured seconds − 1; each of k rows of one point has weight 1/k
    largest_error: NonNegativeFloat
    row_error: PositiveFloat  # standard deviation of a row about the model, relative
    doubt: Text | None = None  # another machine that meets the rows better, and was not taken
    parameters: tuple[Text, ...]
    covariance: tuple[tuple[Finite, ...], ...]

    @pydantic.model_validator(mode="after")
    def covariance_is_of_parameters(self) -> MachineFit:
        number = len(self.parameters)
        if [len(line) for line in self.covariance] != [number] * number:
            raise ValueError(f"covariance should have {number} lines of {number} numbers, as there are parameters")
        return self

    def most_devices(self, workload: str) -> int:
        """Of its own rows; 1 of a workload without any."""
        return max((row.devices for row in self.rows if row.workload == workload), default=1)


class Machine(Section):
    """A file. A node is what ``inside`` connects, a host what one launcher is started on: of a rack that is one NVLink
    domain a node is the rack, and a host one of its trays."""

    name: Text
    title: str | None = None
    devices_per_node: PositiveInt
    devices_per_host: PositiveInt | None = None  # where a node is several hosts
    launcher: Literal["torchrun", "none"] = "torchrun"  # none: largebatch does not run there
    memory: PositiveFloat | None = None  # [bytes] of a device
    reserve: NonNegativeFloat = RESERVE  # [bytes] of it, for what a dry run does not count
    memory_bandwidth: PositiveFloat | None = None  # [bytes/s] of a device
    peaks: dict[Precision, PositiveFloat] = Field(default_factory=dict)  # [FLOP/s] dense, of a device
    inside: Link
    between: Link
    meeting: Meeting | None = None  # unset: nothing
    workloads: dict[str, Pace] = Field(default_factory=dict)
    sources: tuple[Text, ...] = ()
    fit: MachineFit | None = None

    @pydantic.model_validator(mode="after")
    def parameters_are_numbers_that_stand_here(self) -> Machine:
        keys: dict[str, tuple[str, ...]] = {"inside": LINK, "between": LINK, **dict.fromkeys(self.workloads, PACE)}
        if self.meeting is not None:
            keys["meeting"] = MEETING
        for parameter in self.fit.parameters if self.fit else ():
            where, _, key = parameter.rpartition(".")
            if key not in keys.get(where, ()):
                raise ValueError(f"fit.parameters has {parameter[:60]}, which is no number that stands here")
        return self

    @pydantic.model_validator(mode="after")
    def a_node_is_of_whole_hosts(self) -> Machine:
        if self.devices_per_node % self.host:
            raise ValueError(
                f"devices_per_host = {self.devices_per_host} should divide devices_per_node = {self.devices_per_node}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def no_pace_is_above_the_peak(self) -> Machine:
        for name in self.workloads:
            if said := self.above_peak(name):
                raise ValueError(said)
        return self

    def above_peak(self, workload: str) -> str | None:
        """What is wrong with a pace that computes faster than a device can."""
        pace = self.workloads[workload]
        if pace.precision in pace.times:
            return (
                f"workloads.{workload}.times has {pace.precision}, in which the pace itself was measured; leave it out"
            )
        measured: list[tuple[Precision | None, float]] = [(pace.precision, 1.0), *pace.times.items()]
        for precision, times in measured:
            peak = self.peak(precision) if precision else max(self.peaks.values(), default=None)
            if pace.flops is None or peak is None or (rate := pace.flops / (times * pace.per_example)) <= peak:
                continue
            key = "per_example" if times == 1 else f"times.{precision}"
            return (
                f"workloads.{workload}: flops over per_example are {rate:.3g} FLOP/s, and a device computes at most "
                f"{peak:.3g} in {precision or 'any precision'} (peaks); flops too many, or {key} too small"
            )
        return None

    def peak(self, precision: Precision) -> float | None:
        """The most that is computed in it; of fp32 the TF32 of its convolutions."""
        if precision == "fp32":
            return max((self.peaks[key] for key in ("fp32", "tf32") if key in self.peaks), default=None)
        return self.peaks.get(precision)

    @property
    def host(self) -> int:
        """Devices."""
        return self.devices_per_host or self.devices_per_node

    def nodes(self, devices: int) -> int:
        return -(-devices // self.devices_per_node)

    def hosts(self, devices: int) -> int:
        return -(-devices // self.host)

    def in_a_node(self, devices: int) -> int:
        """Of so many, spread over as few nodes as they need, in whole hosts."""
        if devices <= self.host:
            return devices
        nodes = self.nodes(devices)
        return self.host * -(-devices // (nodes * self.host))

    def cards(self, devices: int) -> float:
        """Which share of a node's network cards so many have: those of the hosts that they are on."""
        return self.hosts(self.in_a_node(devices)) * self.host / self.devices_per_node

    def pace(self, workload: str) -> Pace:
        if workload not in self.workloads:
            raise UserError(f"{self.name} has no pace of {workload}{suggestion(workload, list(self.workloads))}")
        return self.workloads[workload]


def written(machine: Machine) -> str:
    """The text of its file; numbers to six digits."""
    return strict_yaml.written(_rounded(machine.model_dump(mode="json", exclude_defaults=True)), machine.name)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def names() -> list[str]:
    """Of the package's machines."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find(name: str) -> Machine:
    """One of the package by its name, or a file of one's own."""
    if name in names():
        return load(FOLDER / f"{name}.yaml")
    if Path(name).suffix in (".yaml", ".yml") or Path(name).exists():
        return load(Path(name))
    raise UserError(f"machine {name} is neither a file, MACHINE.yaml, nor known{suggestion(name, names())}")


def load(file: Path) -> Machine:
    """A machine's file, checked."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the machine {file} cannot be read: {str(error)[:200]}") from None
    return checked(strict_yaml.parse(text, str(file)), str(file))


def checked(written: object, source: str) -> Machine:
    return section_of(Machine, written, source, f"{source} should hold keys, as in devices_per_node: 8")
