"""Schedules against the papers' own numbers and against a second statement of each shape."""

from __future__ import annotations

import math

import pytest

from largebatch.errors import UserError
from largebatch.plan.schedules import Schedule, scaled_lr, table_lr
from largebatch.recipes import decays

IMAGENET = 1_281_167


def kind(name: str, **keys: object) -> decays.Decay:
    return decays.table()[name](name=name, **keys)


@pytest.mark.parametrize(
    ("batch", "lr"),
    [(128, 0.05), (256, 0.1), (512, 0.2), (1024, 0.4), (2048, 0.8), (4096, 1.6), (8192, 3.2), (65536, 25.6)],
)
def test_linear_scaling_is_goyals_figure_1(batch, lr):
    assert scaled_lr(0.1, "linear", batch, 256) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(("batch", "lr"), [(512, 0.005), (8192, 0.02), (32768, 0.04)])
def test_square_root_scaling_is_lambs_rule(batch, lr):
    assert scaled_lr(0.005, "sqrt", batch, 512) == pytest.approx(lr, rel=1e-12)


def test_no_scaling_ignores_the_batch():
    assert scaled_lr(0.3, "none", 8192, None) == 0.3


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 0.1), (2.5, 1.65), (5, 3.2), (29.99, 3.2), (30, 0.32), (60, 0.032), (80, 0.0032), (89.9, 0.0032)],
)
def test_goyals_schedule_at_8192(epoch, lr):
    schedule = Schedule(
        peak=3.2, total=90 * IMAGENET, warmup=5 * IMAGENET, start=0.1,
        decay=kind("steps", at_epochs=(30, 60, 80), factor=0.1),
        milestones=tuple(at * IMAGENET for at in (30, 60, 80)),
    )  # fmt: skip
    assert schedule(epoch * IMAGENET) == pytest.approx(lr, rel=1e-9)


def test_warm_up_grows_at_every_step_by_the_same_amount():
    schedule = Schedule(peak=1.0, total=1000, decay=kind("constant"), warmup=100, start=0.2)
    values = [schedule(seen) for seen in range(0, 101, 10)]
    assert values[0] == 0.2
    assert values[-1] == 1.0
    for before, after in zip(values, values[1:], strict=False):
        assert after - before == pytest.approx(0.08)


SHAPES = {  # the decay from 1 at the end of the warm-up to `end` at the end, in other words
    "constant": lambda t, end: 1.0,
    "linear": lambda t, end: 1.0 * (1 - t) + end * t,
    "cosine": lambda t, end: end + (1 - end) * math.cos(t * math.pi / 2) ** 2,
    "polynomial": lambda t, end: (1 - end) * (1 - 2 * t + t * t) + end,
}


@pytest.mark.parametrize("decay", SHAPES)
@pytest.mark.parametrize("end", [0.0, 0.01])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_decays_against_a_second_statement(decay, end, t):
    keys = {"end_lr": end, "power": 2.0}
    own = {key: value for key, value in keys.items() if key in decays.table()[decay].model_fields}
    schedule = Schedule(peak=1.0, total=1100, warmup=100, decay=kind(decay, **own))
    assert schedule(100 + t * 1000) == pytest.approx(SHAPES[decay](t, end), abs=1e-12)


def test_nothing_happens_after_the_end():
    schedule = Schedule(peak=1.0, total=100, decay=kind("linear", end_lr=0.1))
    assert schedule(100) == schedule(130) == pytest.approx(0.1)


def test_a_table_says_its_rows_and_refuses_what_lies_between():
    table = {8192: 30.0, 16384: 33.0, 32768: 40.0}
    assert table_lr(table, 16384) == 33.0
    assert table_lr(table, 12288, interpolate=True) == pytest.approx(31.5)
    with pytest.raises(UserError, match="no row for global batch 12288; rows: 8192, 16384, 32768; lr.interpolate"):
        table_lr(table, 12288)
    with pytest.raises(UserError, match="no row for global batch 65536; rows: 8192, 16384, 32768$"):
        table_lr(table, 65536, interpolate=True)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="longer than the run"):
        Schedule(peak=1.0, total=100, decay=kind("constant"), warmup=101)


def test_a_decay_that_would_rise_is_refused():
    with pytest.raises(UserError, match="above the peak"):
        Schedule(peak=0.1, total=100, decay=kind("cosine", end_lr=0.2))


def test_a_piecewise_decay_takes_its_factors_and_its_warm_up_ends_at_the_first():
    """Akiba et al. 2017's slow start."""
    decay = kind("piecewise", at_epochs=(40, 70, 85), factors=(0.5, 0.075, 0.01, 0.001))
    schedule = Schedule(peak=12.8, total=90, decay=decay, warmup=2, milestones=(40, 70, 85))
    assert [schedule(s) for s in (0, 1, 2, 39.9, 40, 70, 85, 89)] == pytest.approx(
        [0, 3.2, 6.4, 6.4, 0.96, 0.128, 0.0128, 0.0128]
    )
