"""A machine fitted to measured steps.

What is fitted is positive, so that its logarithm θ is: of each workload the seconds of an example, the floor of a
micro-batch and the fixed part of a step; bandwidth and latency of both networks; where ranks of a CPU
meet, what that costs. The maximum a posteriori minimises

    Σ_rows (ln T(θ) − ln T_measured)²/kσ² + Σ_transfers (ln c(θ) − ln c_measured)²/τ² + Σ_θ ρ((θ − µ)/s)

with σ the relative error of a row and the priors below, which decide where rows do not: a floor and a fixed part only
ever show as their sum as long as nobody accumulates, and few rows tell a slow network from small kernels. σ is what the
model is off more than what a measurement is, so that the k rows of one workload, number of devices, batch and
accumulation count as one. The intervals are those of the normal approximation there (Laplace): covariance (JᵀJ)⁻¹ of
all residuals, σ² raised to what the residuals say, as if four more rows had had the stated one. Where rows say nothing
an interval is the prior's.

ρ(z) = z² of a pace. Of a link it is ν·ln(1 + z²/ν), ν = 4, as of Student's t (Lange, Little & Taylor 1989, J. Am.
Stat. Assoc. 84, 881): as curved at 0, and of a network that is a hundred times as slow as its datasheet rows can
outweigh it. That has several minima. The one that is found from the medians is taken, unless it is more than 10 % rms
off the rows: then the lowest of those that are found from links 30 and 1,000 times as slow. Between σ and 10 % such a
lower one is told (``doubt``) and not taken: it would have a GB200's links inside a rack eleven times as slow as they
are, for one row.

The priors, as medians and standard deviations of the logarithm:

    per_example     none
    floor           8 % of the step with the largest share of a device, where people take the largest that fits; 0.45
    fixed           what the optimizer moves over the memory's bandwidth, 0.45; where that is unknown 1 % of the step, 1
    bandwidth       0.7 of the link's ``peak``, 0.3; of a link without one its bandwidth, as sure as its interval
    latency         10 µs between nodes and 3 µs inside, or of a link without a peak its own; 1
    meeting         the machine's own, 1.5

Published rows of at most 64 devices, each left out once, are told as well by 6 % and 0.6 or 0.9 (results/plan).

How sure a step's time is (:func:`interval_of`): the gradient of its logarithm by θ with that covariance, σ, and 8 %
for each factor e by which it has more devices than any row of its workload had. With that, 95 % intervals hold 21 of
the 22 published rows of 256 devices and more, from which the 8 % were taken.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from largebatch.errors import UserError
from largebatch.report.numerals import rounded
from largebatch.studies.cluster.machine import FittedRow, Link, Machine, MachineFit, Pace, point_errors
from largebatch.studies.cluster.rows import StepRow, StepRows
from largebatch.studies.cluster.step import collective_time, step_time
from largebatch.studies.cluster.workload import Transfer, data_parallel

FLOOR, FLOOR_SPREAD = 0.08, 0.45
FIXED_SPREAD = 0.45
UNKNOWN_FIXED, UNKNOWN_FIXED_SPREAD = 0.01, 1.0
ACHIEVED, ACHIEVED_SPREAD = 0.7, 0.3
LATENCY = {"inside": 3e-6, "between": 1e-5}
LATENCY_SPREAD = 1.0
MEETING_SPREAD = 1.5
PARTS = ("inside", "between", "meeting")
"""Of a machine, that have numbers to fit; those of a workload are beside them."""
SLOWER = (1.0, 30.0, 1000.0)
"""How many times as slow as its prior a link is where a search begins."""
SEARCH = 60
"""Steps of one search, at most; the published rows need 10 to 30."""
TAIL = 4.0
"""ν"""
FAR = 0.1
"""Rms of the rows' residuals, from which on a fit is doubted."""
SLOW = 2.0
"""Times, from which on a link is told of."""
ROW_ERROR, PRIOR_ROWS = 0.05, 4
TRANSFER_ERROR = 0.2
BEYOND = 0.08
TWO_SIDED = 1.959964
"""Standard deviations of a 95 % interval."""
LEAST = 1e-9
"""[s] A latency of 0 has no logarithm."""


@dataclasses.dataclass(frozen=True)
class TransferRow:
    """One collective of so many devices, measured with nothing beside it."""

    transfer: Transfer
    devices: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Prior:
    """Of the logarithm of a number of the machine; without a spread nothing is known."""

    parameter: str
    median: float
    spread: float | None
    heavy: bool = False  # tails

    def residual(self, theta: float) -> float:
        """The root of ρ; 0 where nothing is known."""
        if not self.spread:
            return 0.0
        z = (theta - math.log(self.median)) / self.spread
        return math.copysign(math.sqrt(TAIL * math.log1p(z * z / TAIL)), z) if self.heavy else z


def fit(rows: StepRows, base: Machine, transfers: Sequence[TransferRow] = ()) -> Machine:
    """``base`` with the numbers that these rows say; its links are what is known of the networks."""
    try:
        return _fit(rows, base, transfers)
    except UserError:
        raise
    except (ArithmeticError, ValueError):  # a number has left what floating point holds
        raise UserError(
            f"no machine like {base.name} takes steps as these rows have them; look at their seconds and gradient bytes"
        ) from None


def _fit(rows: StepRows, base: Machine, transfers: Sequence[TransferRow]) -> Machine:
    of_workloads = (prior for name in rows.facts for prior in _of_workload(name, rows, base))
    priors = [*_of_links(base), *_of_meeting(base), *of_workloads]
    unfitted = _with_paces(base, rows, {prior.parameter: prior.median for prior in priors})
    weights = _weights(rows.rows)
    points = sum(weight**2 for weight in weights)

    def residuals(theta: np.ndarray) -> np.ndarray:
        machine = _placed(unfitted, priors, theta)
        return np.array(
            [
                weight * math.log(seconds_of(machine, row) / row.seconds) / ROW_ERROR
                for weight, row in zip(weights, rows.rows, strict=True)
            ]
            + [math.log(_alone(machine, one) / one.seconds) / TRANSFER_ERROR for one in transfers]
            + [prior.residual(value) for prior, value in zip(priors, theta, strict=True) if prior.spread]
        )

    found = _minima(residuals, priors, len(rows.rows), points)
    ended = found.taken
    apart = ROW_ERROR * ended.fun[: len(rows.rows)]
    row_error = math.sqrt((PRIOR_ROWS * ROW_ERROR**2 + float(apart @ apart)) / (PRIOR_ROWS + points))
    row_error = max(ROW_ERROR, row_error)
    scale = np.ones(len(ended.fun))
    scale[: len(apart)] = ROW_ERROR / row_error
    jacobian = ended.jac * scale[:, None]
    covariance = inverse_square(jacobian)
    machine = _placed(unfitted, priors, ended.x)
    other = None if found.other is None else _placed(unfitted, priors, found.other.x)
    record = _fit_record(machine, rows, priors, covariance, row_error, other)
    whole = _with_intervals(machine, priors, ended.x, covariance, record)
    for name in rows.facts:
        if said := whole.above_peak(name):
            raise UserError(said)
    return whole


def inverse_square(jacobian: np.ndarray) -> np.ndarray:
    """(JᵀJ)⁻¹ as a square, so that no variance is below 0; 0 along what no residual depends on."""
    _, values, directions = np.linalg.svd(jacobian, full_matrices=False)
    told = values > np.finfo(float).eps ** 0.5 * values[0]
    root = directions[told].T / values[told]
    return root @ root.T


@dataclasses.dataclass(frozen=True)
class _Minima:
    """Ends of searches: the one that is taken, and a lower one that is not."""

    taken: Any
    other: Any | None = None


def _minima(
    residuals: Callable[[np.ndarray], np.ndarray], priors: Sequence[Prior], rows: int, points: float
) -> _Minima:
    """From the priors' medians; where the rows stay apart from it the lowest from slower links, too."""
    start = np.array([math.log(prior.median) for prior in priors])
    where = [prior.parameter.rsplit(".", 1) for prior in priors]
    first: Any = None
    others, rms = [], math.inf
    for slower in itertools.product(SLOWER, repeat=len(LATENCY)):
        by_link = dict(zip(LATENCY, slower, strict=True))
        off = [math.log(by_link.get(one, 1.0)) if key == "bandwidth" else 0.0 for one, key in where]
        try:
            ended = least_squares(
                residuals, start - off, x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=SEARCH
            )
        except (ArithmeticError, ValueError):
            if first is None:
                raise
            continue
        if first is None:
            first, rms = ended, ROW_ERROR * float(np.linalg.norm(ended.fun[:rows])) / math.sqrt(points)
            if rms <= ROW_ERROR:
                return _Minima(first)
        others.append(ended)
    lowest = min(others, key=lambda one: one.cost)
    if rms > FAR:
        return _Minima(lowest)
    return _Minima(first, lowest if lowest.cost < (1 - 1e-6) * first.cost else None)


def _weights(rows: Sequence[StepRow]) -> list[float]:
    """1/√k for each of k rows that repeat one point."""
    points = [(row.workload, row.devices, row.batch, row.accumulation) for row in rows]
    return [points.count(point) ** -0.5 for point in points]


def seconds_of(machine: Machine, row: StepRow) -> float:
    workload = data_parallel(machine.pace(row.workload))
    return step_time(machine, workload, row.devices, row.share, row.accumulation).total


def interval_of(
    machine: Machine, seconds: Callable[[Machine], float], devices: int, workload: str
) -> tuple[float, float] | None:
    """95 % interval of ``seconds`` of a workload's step on so many devices; None of a machine that was not fitted."""
    fitted = machine.fit
    if fitted is None:
        return None
    step = 1e-4
    middle = seconds(machine)
    slopes = [
        (math.log(seconds(_times(machine, name, math.exp(step)))) - math.log(middle)) / step
        for name in fitted.parameters
    ]
    gradient, covariance = np.array(slopes), np.array(fitted.covariance)
    beyond = BEYOND * max(0.0, math.log(devices / fitted.most_devices(workload)))
    spread = math.sqrt(float(gradient @ covariance @ gradient) + fitted.row_error**2 + beyond**2)
    return middle * math.exp(-TWO_SIDED * spread), middle * math.exp(TWO_SIDED * spread)


def _alone(machine: Machine, row: TransferRow) -> float:
    return collective_time(machine, row.transfer.collective, row.transfer.bytes, row.devices)


def _of_links(base: Machine) -> list[Prior]:
    priors = []
    for where, hop in LATENCY.items():
        link: Link = getattr(base, where)
        if link.peak is not None:
            bandwidth, spread = ACHIEVED * link.peak, ACHIEVED_SPREAD
            latency, hop_spread = hop, LATENCY_SPREAD
        else:
            bandwidth, spread = link.bandwidth, _spread(link, "bandwidth", ACHIEVED_SPREAD)
            latency, hop_spread = max(LEAST, link.latency or hop), _spread(link, "latency", LATENCY_SPREAD)
        priors += [
            Prior(f"{where}.bandwidth", bandwidth, spread, heavy=True),
            Prior(f"{where}.latency", latency, hop_spread, heavy=True),
        ]
    return priors


def _of_meeting(base: Machine) -> list[Prior]:
    return [Prior("meeting.seconds", base.meeting.seconds, MEETING_SPREAD)] if base.meeting else []


def _spread(link: Link, key: str, otherwise: float) -> float:
    low, high = link.interval(key)
    return math.log(high / low) / (2 * TWO_SIDED) if 0 < low < high else otherwise


def _of_workload(name: str, rows: StepRows, base: Machine) -> list[Prior]:
    largest = max((row for row in rows.rows if row.workload == name), key=lambda row: row.share)
    step = largest.seconds / largest.accumulation
    facts = rows.facts[name]
    if facts.update_bytes and base.memory_bandwidth:
        fixed = Prior(f"{name}.fixed", facts.update_bytes / base.memory_bandwidth, FIXED_SPREAD)
    else:
        fixed = Prior(f"{name}.fixed", UNKNOWN_FIXED * step, UNKNOWN_FIXED_SPREAD)
    return [
        Prior(f"{name}.per_example", (1 - FLOOR) * step / largest.share, None),
        Prior(f"{name}.floor", FLOOR * step, FLOOR_SPREAD),
        fixed,
    ]


def _with_paces(base: Machine, rows: StepRows, values: dict[str, float]) -> Machine:
    paces = dict(base.workloads)
    for name, facts in rows.facts.items():
        numbers = {key: values[f"{name}.{key}"] for key in ("per_example", "floor", "fixed")}
        paces[name] = Pace(**numbers, **dataclasses.asdict(facts))
    return base.model_copy(update={"workloads": paces, "fit": None})


def _times(machine: Machine, parameter: str, factor: float) -> Machine:
    """With this number so many times as large."""
    where, key = parameter.rsplit(".", 1)
    if where in PARTS:
        part = getattr(machine, where)
        return machine.model_copy(update={where: part.model_copy(update={key: factor * getattr(part, key)})})
    pace = machine.workloads[where]
    changed = pace.model_copy(update={key: factor * getattr(pace, key)})
    return machine.model_copy(update={"workloads": {**machine.workloads, where: changed}})


def _placed(unfitted: Machine, priors: Sequence[Prior], theta: np.ndarray) -> Machine:
    parts: dict[str, dict[str, float]] = {}
    for prior, value in zip(priors, theta, strict=True):
        where, key = prior.parameter.rsplit(".", 1)
        parts.setdefault(where, {})[key] = math.exp(value)
    paces = {name: pace.model_copy(update=parts.get(name, {})) for name, pace in unfitted.workloads.items()}
    changed = {where: getattr(unfitted, where).model_copy(update=parts[where]) for where in PARTS if where in parts}
    return unfitted.model_copy(update={**changed, "workloads": paces})


def _with_intervals(
    machine: Machine, priors: Sequence[Prior], theta: np.ndarray, covariance: np.ndarray, record: MachineFit
) -> Machine:
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for prior, value, spread in zip(priors, theta, np.sqrt(np.diag(covariance)), strict=True):
        where, key = prior.parameter.rsplit(".", 1)
        bounds = (math.exp(value - TWO_SIDED * spread), math.exp(value + TWO_SIDED * spread))
        intervals.setdefault(where, {})[key] = bounds
    parts = {
        where: getattr(machine, where).model_copy(update={"intervals": intervals[where]})
        for where in PARTS
        if where in intervals
    }
    paces = {
        name: pace.model_copy(update={"intervals": intervals[name]}) if name in intervals else pace
        for name, pace in machine.workloads.items()
    }
    return machine.model_copy(update={**parts, "workloads": paces, "fit": record})


def _fit_record(
    machine: Machine, rows: StepRows, priors: Sequence[Prior], covariance: np.ndarray, row_error: float,
    other: Machine | None,
) -> MachineFit:  # fmt: skip
    fitted = tuple(
        FittedRow(
            workload=row.workload, devices=row.devices, batch=row.batch, accumulation=row.accumulation,
            seconds=row.seconds, fitted_seconds=seconds_of(machine, row), source=row.source,
        )
        for row in rows.rows
    )  # fmt: skip
    return MachineFit(
        rows=fitted,
        rms_error=_rms([_rms(errors) for errors in point_errors(fitted).values()]),
        doubt=None if other is None else _doubt(machine, other, rows),
        largest_error=max(abs(row.error) for row in fitted),
        row_error=row_error,
        parameters=tuple(prior.parameter for prior in priors),
        covariance=tuple(tuple(float(value) for value in line) for line in covariance),
    )


def _doubt(machine: Machine, other: Machine, rows: StepRows) -> str:
    """What the rows would rather have, and the priors would not."""
    rms = _rms([seconds_of(other, row) / row.seconds - 1 for row in rows.rows])
    times = {where: getattr(machine, where).bandwidth / getattr(other, where).bandwidth for where in LATENCY}
    said = [f"{where} {rounded(ratio)} times as slow" for where, ratio in times.items() if ratio > SLOW]
    return (
        f"the rows would be met within {100 * rms:.1f} % rms with the links {' and '.join(said) or 'otherwise'}; an "
        "all-reduce measured alone (bench scaling) tells"
    )


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(math.fsum(error**2 for error in errors) / len(errors))
