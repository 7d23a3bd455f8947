"""A machine fitted to steps: known numbers come back, priors decide where rows do not, intervals hold what they say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from step_time.clusters import PACE, machine

from largebatch.errors import UserError
from largebatch.studies.cluster import machine as machines
from largebatch.studies.cluster.fit import (
    ACHIEVED,
    ACHIEVED_SPREAD,
    BEYOND,
    FIXED_SPREAD,
    FLOOR,
    FLOOR_SPREAD,
    LATENCY,
    ROW_ERROR,
    TransferRow,
    fit,
    interval_of,
    inverse_square,
    seconds_of,
)
from largebatch.studies.cluster.machine import Link, Machine
from largebatch.studies.cluster.rows import KNOWN, StepRow, StepRows, WorkloadFacts
from largebatch.studies.cluster.step import collective_time, step_time
from largebatch.studies.cluster.workload import Transfer, data_parallel

FACTS = WorkloadFacts(PACE.gradient_bytes, PACE.update_bytes)
BASE = machine(memory_bandwidth=1e12).model_copy(
    update={where: Link(bandwidth=rate, peak=rate) for where, rate in (("inside", 1e11), ("between", 1e10))}
)


def measured(truth: Machine, places: list[tuple[int, float, int]], noise: float = 0.0, seed: int = 0) -> StepRows:
    """Rows of (devices, share, accumulation) as the truth would have them, with lognormal noise."""
    random = np.random.default_rng(seed)
    rows = []
    for devices, share, accumulation in places:
        seconds = step_time(truth, data_parallel(truth.pace("one")), devices, share, accumulation).total
        seconds *= math.exp(noise * random.standard_normal())
        rows.append(StepRow("one", devices, devices * share * accumulation, seconds, accumulation))
    return StepRows(tuple(rows), {"one": FACTS})


TRUTH = machine(inside=7e10, between=6e9, hop=8e-6, workloads={"one": PACE}, memory_bandwidth=1e12)
MANY = [(devices, share, parts) for devices in (1, 8, 16, 64) for share in (1, 8, 64, 400) for parts in (1, 8)]


def test_a_machine_is_found_again_from_rows_that_say_all():
    rows = measured(TRUTH, [(devices, share * 1.01**n, parts) for devices, share, parts in MANY for n in range(8)])
    found = fit(rows, BASE)
    assert found.fit is not None
    assert found.fit.rms_error < 0.01
    pace = found.pace("one")
    assert (pace.per_example, pace.floor, pace.fixed) == pytest.approx((1e-4, 4e-3, 1e-3), rel=0.05)
    assert found.between.bandwidth == pytest.approx(6e9, rel=0.1)


def test_without_rows_that_say_it_a_number_is_the_prior():
    """One row of one device: the floor and the fixed part are what was assumed, the networks are unknown."""
    rows = measured(TRUTH, [(1, 100, 1)])
    found = fit(rows, BASE)
    step = rows.rows[0].seconds
    pace = found.pace("one")
    assert pace.floor == pytest.approx(FLOOR * step, rel=1e-6)
    assert pace.fixed == pytest.approx(PACE.update_bytes / 1e12, rel=1e-6)
    assert found.between.bandwidth == pytest.approx(ACHIEVED * 1e10, rel=1e-6)
    assert found.inside.latency == pytest.approx(LATENCY["inside"], rel=1e-6)
    assert seconds_of(found, rows.rows[0]) == pytest.approx(step, rel=1e-6)
    for part, key, spread in (
        (pace, "floor", FLOOR_SPREAD), (pace, "fixed", FIXED_SPREAD), (found.between, "bandwidth", ACHIEVED_SPREAD)
    ):  # fmt: skip
        low, high = part.interval(key)
        assert math.log(high / low) == pytest.approx(2 * 1.959964 * spread, rel=1e-4)


def test_the_maximum_is_no_worse_than_what_lies_around_it():
    """The residuals squared and added up by hand, at the fit and at points about it."""
    rows = measured(TRUTH, [(8, 200, 1), (16, 100, 1), (64, 20, 1)], noise=0.05, seed=1)
    found = fit(rows, BASE)
    step = max(rows.rows, key=lambda row: row.share).seconds

    def tailed(z: float) -> float:
        return 4 * math.log(1 + z**2 / 4)

    def lost(one: Machine) -> float:
        pace = one.pace("one")
        return math.fsum(
            [(math.log(seconds_of(one, row) / row.seconds) / ROW_ERROR) ** 2 for row in rows.rows]
            + [
                (math.log(pace.floor / (FLOOR * step)) / FLOOR_SPREAD) ** 2,
                (math.log(pace.fixed / 1e-3) / FIXED_SPREAD) ** 2,
                tailed(math.log(one.inside.bandwidth / (ACHIEVED * 1e11)) / ACHIEVED_SPREAD),
                tailed(math.log(one.between.bandwidth / (ACHIEVED * 1e10)) / ACHIEVED_SPREAD),
                tailed(math.log(one.inside.latency / LATENCY["inside"])),
                tailed(math.log(one.between.latency / LATENCY["between"])),
            ]
        )

    def moved(factors: np.ndarray) -> Machine:
        pace, inside, between = found.pace("one"), found.inside, found.between
        paces = {"one": pace.model_copy(update={
            "per_example": pace.per_example * factors[0], "floor": pace.floor * factors[1],
            "fixed": pace.fixed * factors[2]})}  # fmt: skip
        links = {
            name: link.model_copy(update={"bandwidth": link.bandwidth * one, "latency": link.latency * other})
            for name, link, one, other in (("inside", inside, *factors[3:5]), ("between", between, *factors[5:7]))
        }
        return found.model_copy(update={"workloads": paces, **links})

    best = lost(found)
    random = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(40):
            assert lost(moved(np.exp(size * random.standard_normal(7)))) > best - 1e-9


@pytest.mark.parametrize("second", [1e-3, 60.0])
def test_a_fit_knows_no_unit_of_time(second):
    """Latencies alone have a prior in seconds: here one that is stated."""
    rows = measured(TRUTH, [(8, 200, 1), (16, 100, 1), (64, 20, 1)])

    def scaled(second: float) -> Machine:
        links = {
            where: Link(
                bandwidth=rate / second, latency=1e-5 * second,
                intervals={"latency": (0.9e-5 * second, 1.1e-5 * second)},
            )
            for where, rate in (("inside", 7e10), ("between", 6e9))
        }  # fmt: skip
        base = BASE.model_copy(update={**links, "memory_bandwidth": 1e12 / second})
        times = tuple(dataclasses.replace(row, seconds=row.seconds * second) for row in rows.rows)
        return fit(StepRows(times, rows.facts), base)

    one, other = scaled(1).pace("one"), scaled(second).pace("one")
    for key in ("per_example", "floor", "fixed"):
        assert getattr(other, key) == pytest.approx(second * getattr(one, key), rel=1e-4)


@pytest.mark.worlds
def test_intervals_hold_as_often_as_they_say():
    """Machines drawn from the priors, three noisy rows of few devices each: 95 % intervals of 512 devices hold what the
    machine does there in at least 85 % of 60."""
    random = np.random.default_rng(7)
    held = 0
    for seed in range(60):
        factors = np.exp(random.standard_normal(5) * [FLOOR_SPREAD, FIXED_SPREAD, ACHIEVED_SPREAD, ACHIEVED_SPREAD, 1])
        pace = PACE.model_copy(update={
            "per_example": 1e-4, "floor": FLOOR * 0.025 * factors[0], "fixed": 1e-3 * factors[1]})  # fmt: skip
        truth = machine(
            inside=ACHIEVED * 1e11 * factors[2], between=ACHIEVED * 1e10 * factors[3], hop=1e-5 * factors[4],
            workloads={"one": pace}, memory_bandwidth=1e12,
        )  # fmt: skip
        rows = measured(truth, [(8, 230, 1), (16, 120, 1), (64, 60, 1)], ROW_ERROR, seed)
        there = StepRow("one", 512, 512 * 20, 1.0)
        bounds = interval_of(fit(rows, BASE), lambda one, there=there: seconds_of(one, there), 512, "one")
        assert bounds is not None
        held += bounds[0] <= seconds_of(truth, there) <= bounds[1]
    assert held >= 51


def test_an_interval_widens_beyond_the_rows():
    rows = measured(TRUTH, [(8, 200, 1), (64, 20, 1)])
    found = fit(rows, BASE)

    def width(devices: int, workload: str = "one") -> float:
        bounds = interval_of(found, lambda one: 1e-3, devices, workload)
        assert bounds is not None
        return math.log(bounds[1] / bounds[0]) / (2 * 1.959964)

    assert width(64) == width(2) == pytest.approx(ROW_ERROR, rel=1e-6)
    assert width(512) == pytest.approx(math.hypot(ROW_ERROR, BEYOND * math.log(8)), rel=1e-6)
    assert width(8, "another") == pytest.approx(math.hypot(ROW_ERROR, BEYOND * math.log(8)), rel=1e-6)
    assert interval_of(BASE, lambda one: 1e-3, 8, "one") is None


def test_collectives_measured_alone_say_what_the_network_does():
    sizes = (1e3, 1e6, 1e8)
    rows = measured(TRUTH, [(1, 100, 1), (2, 100, 1)])
    alone = [
        TransferRow(Transfer("all_reduce", size), 2, collective_time(TRUTH, "all_reduce", size, 2)) for size in sizes
    ]
    found = fit(rows, BASE, alone * 30)
    assert (found.inside.bandwidth, found.inside.latency) == pytest.approx((7e10, 8e-6), rel=0.05)


def test_a_worse_fit_is_less_sure():
    smooth, rough = (fit(measured(TRUTH, MANY, noise, 3), BASE) for noise in (0.0, 0.3))
    assert smooth.fit is not None
    assert rough.fit is not None
    assert smooth.fit.row_error == ROW_ERROR
    assert 0.2 < rough.fit.row_error < 0.4
    assert rough.fit.rms_error > 0.15


def test_rows_that_repeat_a_point_count_as_one():
    """Five times the same rows are those rows; five rows about a point are one row at their mean."""
    places = [(8, 200, 1), (16, 100, 1), (64, 20, 1)]
    rows = measured(TRUTH, places, 0.05)
    once, five = fit(rows, BASE), fit(StepRows(rows.rows * 5, rows.facts), BASE)
    assert once.fit is not None
    assert five.fit is not None
    assert np.array(five.fit.covariance) == pytest.approx(np.array(once.fit.covariance), rel=1e-3, abs=1e-6)
    assert five.pace("one").per_example == pytest.approx(once.pace("one").per_example, rel=1e-6)
    first = rows.rows[0]
    apart = [dataclasses.replace(first, seconds=first.seconds * math.exp(off)) for off in (0.0, -0.03, 0.03)]
    spread = fit(StepRows((*apart, *rows.rows[1:]), rows.facts), BASE)
    assert spread.pace("one").per_example == pytest.approx(once.pace("one").per_example, rel=1e-3)
    assert five.fit.rms_error == pytest.approx(once.fit.rms_error, rel=1e-6)
    assert spread.fit is not None
    errors = [row.error for row in spread.fit.rows]
    squares = [sum(error**2 for error in errors[:3]) / 3, errors[3] ** 2, errors[4] ** 2]
    assert spread.fit.rms_error == pytest.approx(math.sqrt(sum(squares) / 3), rel=1e-9)


SLOW_PLACES = [(8, 400, 1), (16, 200, 1), (32, 100, 1), (64, 50, 1), (64, 200, 1)]


@pytest.mark.parametrize("slower", [300, 1000])
def test_a_network_far_below_its_datasheet_is_found(slower):
    truth = TRUTH.model_copy(update={"between": Link(bandwidth=7e9 / slower, latency=1e-5)})
    found = fit(measured(truth, SLOW_PLACES), BASE)
    assert found.fit is not None
    assert found.fit.rms_error < 0.01
    assert found.fit.doubt is None
    assert found.between.bandwidth == pytest.approx(7e9 / slower, rel=0.2)


def test_a_lower_minimum_that_is_not_taken_is_told():
    """A DGX H100 whose cards are a hundred times as slow: a larger floor is nearly as good, and the priors like it."""
    known = machines.find("dgx-h100")
    slow = known.model_copy(update={"between": Link(bandwidth=known.between.bandwidth / 100, latency=1e-5)})
    rows = []
    for devices, share, _ in SLOW_PLACES:
        seconds = step_time(slow, data_parallel(slow.pace("resnet50")), devices, share).total
        rows.append(StepRow("resnet50", devices, devices * share, seconds))
    facts = {"resnet50": KNOWN["resnet50"]}
    found = fit(StepRows(tuple(rows), facts), known.model_copy(update={"workloads": {}, "fit": None}))
    assert found.fit is not None
    assert 0.05 < found.fit.rms_error < 0.1
    assert found.between.bandwidth > slow.between.bandwidth * 30
    assert "rms with the links between 9" in (found.fit.doubt or "")


def test_a_pace_above_the_peak_is_refused():
    rows = measured(TRUTH, [(8, 200, 1)])
    facts = {"one": dataclasses.replace(FACTS, flops=1e12, precision="bf16")}  # in 1e-4 s: 1e16 FLOP/s
    with pytest.raises(UserError, match=r"workloads.one: flops over per_example are 9.*e\+15 FLOP/s, and a device"):
        fit(StepRows(rows.rows, facts), BASE.model_copy(update={"peaks": {"bf16": 1e15}}))
    assert fit(StepRows(rows.rows, facts), BASE.model_copy(update={"peaks": {"bf16": 1e17}})).pace("one").flops == 1e12


def test_variances_are_squares():
    """(JᵀJ)⁻¹; the pseudo-inverse where a direction changes nothing, with no variance below 0."""
    generator = np.random.default_rng(0)
    jacobian = generator.normal(size=(9, 4))
    assert np.allclose(inverse_square(jacobian), np.linalg.inv(jacobian.T @ jacobian), rtol=1e-10)
    jacobian[:, 3] = 1e-12 * jacobian[:, 0]
    found = inverse_square(jacobian)
    assert np.all(np.diag(found) >= 0)
    assert np.allclose(found, np.linalg.pinv(jacobian.T @ jacobian), rtol=1e-6, atol=1e-12)
