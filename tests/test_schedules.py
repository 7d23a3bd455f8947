"""Schedules against the papers' own numbers and against a second statement of each shape."""

from __future__ import annotations

import math
import re

import pytest

from largebatch.errors import UserError
from largebatch.plan.batch import resolve
from largebatch.plan.schedules import Schedule, scaled_lr, table_lr
from largebatch.recipes import decays
from largebatch.recipes.rates import schedule

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


# Warm-ups and decays of BERT, each against a plain statement of what its code does

BATCH, SET = 64, 10_000


def of_recipe(steps: int, **lr: object) -> Schedule:
    """Of the section ``lr`` in a run of so many steps."""
    return schedule(resolve(dataset_size=SET, global_batch_size=BATCH, steps=steps), **lr).schedule


def polynomial_warm_up(t: int, warmup: float, total: int, degree: float) -> float:
    """``PolyWarmUpScheduler`` of NVIDIA's DeepLearningExamples, at its progress t/total."""
    progress = t / total
    return progress / warmup if progress < warmup else (1.0 - progress) ** degree


def linear_warm_up(t: int, warmup: int, start: int, total: int) -> float:
    """``LinearWarmupPolyDecayScheduler`` of MLPerf's reference, degree 1."""
    return (t - start) / warmup if t - start < warmup else 1.0 - min(t / total, 1.0)


def exponential_warm_up(t: int, warmup: float, total: int, rate: float, every: int) -> float:
    """``warmup_exp_decay_exp`` of DeepSpeedExamples' bing_bert."""
    return (t / total / warmup) ** 2.0 if t / total < warmup else rate ** ((t - warmup * total) / every)


def triangle(t: int, total: int, base: float, falloff: float) -> float:
    """``get_triangle`` of cramming."""
    return min(base + t * (1 - base) / (1 - falloff) / total, 1 / falloff - t / (total * falloff))


def steps_of(total: int) -> list[int]:
    return sorted({*range(0, total, 37), *range(20), total - 1})


@pytest.mark.parametrize(
    ("total", "lr", "published"),
    [
        (
            7038,
            {"base": 6e-3, "warmup": {"share": 0.2843}, "decay": {"name": "polynomial", "power": 0.5, "from": "start"}},
            lambda t: 6e-3 * polynomial_warm_up(t, 0.2843, 7038, 0.5),
        ),
        (
            7038,
            {"base": 6e-3, "warmup": {"steps": 2000}, "decay": {"name": "linear", "from": "start"}},
            lambda t: 6e-3 * polynomial_warm_up(t, 2000 / 7038, 7038, 1.0),
        ),
        (
            512,
            {
                "base": 2.88293e-3,
                "warmup": {"steps": 287, "start_step": -76},
                "decay": {"name": "linear", "from": "start", "end_step": 600},
            },
            lambda t: 2.88293e-3 * linear_warm_up(t, 287, -76, 600),
        ),
        (
            800,
            {"base": 1.0, "warmup": {"steps": 100}, "decay": {"name": "linear", "from": "start", "end_step": 700}},
            lambda t: linear_warm_up(t, 100, 0, 700),
        ),
        (
            5000,
            {
                "base": 12e-3,
                "warmup": {"steps": 450, "power": 2, "from": 1e-3},
                "decay": {"name": "exponential", "factor": 0.9, "every_steps": 250, "end_lr": 1e-3},
            },
            lambda t: 1e-3 + 11e-3 * exponential_warm_up(t, 0.06, 7500, 0.9, 250),
        ),
        (
            1000,
            {"base": 1e-3, "warmup": {"share": 0.75, "from": 0.25e-3}, "decay": {"name": "linear"}},
            lambda t: 1e-3 * triangle(t, 1000, 0.25, 0.25),
        ),
    ],
)
def test_schedules_of_bert_at_their_steps(total, lr, published):
    found = of_recipe(total, **lr)
    for step in steps_of(total):
        assert found(step * BATCH) == pytest.approx(published(step), rel=1e-9, abs=1e-15), step


def test_a_warm_up_grows_with_the_batch_whatever_it_is_stated_in():
    """LAMB: 1/320 of the steps at 512, a fifth at 32k."""
    for stated in ({"share": 1 / 320}, {"steps": 100}, {"epochs": 0.01}):
        lr = {"base": 1.0, "reference_batch_size": BATCH // 4, "warmup": {**stated, "scaling": "linear"}}
        whole = {"share": 1 / 320 * 1000 * BATCH, "steps": 100 * BATCH, "epochs": 0.01 * SET}[next(iter(stated))]
        assert of_recipe(1000, **lr).warmup == pytest.approx(4 * whole)


@pytest.mark.parametrize(
    ("lr", "sentence"),
    [
        ({"warmup": {"steps": 3, "share": 0.5}}, "lr.warmup.steps and lr.warmup.share both say how long it is"),
        ({"warmup": {"epochs": 1, "steps": 5}}, "lr.warmup.epochs and lr.warmup.steps both say"),
        ({"warmup": {"steps": 100}}, "lr.warmup.steps = 100 must be below the run's 100 steps"),
        ({"warmup": {"share": 1}}, "warmup.share = 1 should be less than 1"),
        ({"warmup": {"steps": 9, "start_step": -9}}, "start_step = -9 leaves out all of the warm-up"),
        ({"warmup": {"steps": 9, "start_step": 2}}, "start_step = 2 should be less than or equal to 0"),
        ({"warmup": {"from": "bse"}}, "lr.warmup.from = 'bse' is not known; valid: zero or base or a rate above 0"),
        (
            {"warmup": {"steps": 9}, "decay": {"name": "linear", "end_step": 5}},
            "lr.decay ends after 320 examples, before",
        ),
        ({"decay": {"name": "exponential", "every_steps": 5, "end_lr": 2}}, "lr.decay.end_lr = 2 is above the peak 1"),
        ({"scaling": "adam_sqrt", "reference_batch_size": 8}, "adam_sqrt changes betas and eps as well; valid: linear"),
    ],
)
def test_what_is_wrong_with_such_schedules_is_one_sentence(lr, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        of_recipe(100, base=1.0, **lr)
