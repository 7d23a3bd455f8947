"""Statements between rows: an exact test of few pairs, Holm's correction, how often alike rows are called different."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from curves.points import row
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, permutation_test

from largebatch.studies.curves.measured import TargetCurve, TargetPoint, TargetRun
from largebatch.studies.curves.pairs import (
    MOST_EXACT,
    PairedStatement,
    corrected,
    interval_of_mean,
    log_ratios,
    sign_flip_p,
    smallest_p,
    statements,
)

DIFFERENCES = st.lists(st.floats(-2, 2).map(lambda value: round(value, 3)), min_size=1, max_size=9)


@given(DIFFERENCES)
def test_p_is_the_share_of_signs_as_far_from_zero(differences):
    seen, sums = abs(math.fsum(differences)), []
    for signs in itertools.product((-1, 1), repeat=len(differences)):
        sums.append(abs(math.fsum(sign * value for sign, value in zip(signs, differences, strict=True))))
    wanted = sum(value >= seen - 1e-9 for value in sums) / len(sums)
    assert sign_flip_p(differences) == pytest.approx(wanted)
    assert smallest_p(len(differences)) <= wanted <= 1


def test_p_is_that_of_scipy():
    differences = np.random.default_rng(0).standard_normal(8) + 0.5
    peer = permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert sign_flip_p(differences) == pytest.approx(peer.pvalue)


def test_many_pairs_are_drawn_and_never_prove_all():
    differences = np.random.default_rng(1).standard_normal(16) + 0.4
    exact, drawn = sign_flip_p(differences), sign_flip_p([*differences, 0.0])  # a pair that says nothing
    assert drawn == pytest.approx(exact, rel=0.1)
    assert 0 < sign_flip_p([1.0] * 40) < 1e-4


@given(st.lists(st.integers(-2000, 2000).map(lambda value: value / 1000), min_size=6, max_size=8, unique=True))
def test_the_interval_is_the_test_turned_around(differences):
    bounds = interval_of_mean(differences)
    for inside in (bounds.low + 1e-7, bounds.high - 1e-7):
        if bounds.low < inside < bounds.high:
            assert sign_flip_p([value - inside for value in differences]) > 0.05
    for outside in (bounds.low - 1e-6, bounds.high + 1e-6):
        assert sign_flip_p([value - outside for value in differences]) <= 0.05


def test_too_few_pairs_have_no_interval_and_cannot_decide():
    assert interval_of_mean([0.1] * 5) is None
    assert smallest_p(3) == sign_flip_p([0.7, 0.8, 0.9]) == 0.25
    (one,) = statements([row("a", lambda b, s: 100, (32,)), row("b", lambda b, s: 200 + s, (32,))])
    assert (one.pairs, one.p, one.smallest, one.decided, one.interval) == (3, 0.25, 0.25, False, None)
    assert one.ratio == pytest.approx(100 / (200 * 201 * 202) ** (1 / 3))


def holm(ps: list[float], level: float) -> set[int]:
    """Step down, rejecting while p ≤ level / (how many are left)."""
    order, rejected = sorted(range(len(ps)), key=lambda index: ps[index]), set()
    for place, index in enumerate(order):
        if ps[index] * (len(ps) - place) > level:
            break
        rejected.add(index)
    return rejected


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8), st.floats(0.001, 0.9))
def test_corrected_as_holm_steps_down(ps, level):
    made = [PairedStatement("a", "b", place, 6, 1.0, None, p) for place, p in enumerate(ps)]
    made.insert(1, PairedStatement("a", "b", 99, 0, None, None, None))  # without pairs it is no statement
    after = corrected(made)
    assert after[1].corrected is None
    kept = [one.corrected for place, one in enumerate(after) if place != 1]
    assert {place for place, p in enumerate(kept) if p <= level} == holm(ps, level)
    assert all(p >= before for p, before in zip(kept, ps, strict=True))


def test_pairs_are_of_the_same_seed_and_batch():
    first = TargetCurve("a", (TargetPoint(32, (TargetRun(0, 100.0), TargetRun(1, 200.0), TargetRun(5, 7.0))),))
    second = TargetCurve("b", (TargetPoint(32, (TargetRun(1, 100.0), TargetRun(0, 400.0), TargetRun(6, 7.0))),))
    assert log_ratios(first, second, 32) == pytest.approx([math.log(0.25), math.log(2)])
    assert log_ratios(first, second, 64) == []
    assert statements([first, row("c", lambda b, s: 1.0, (64,))]) == []


def test_censored_runs_count_up_to_where_they_were_given_up():
    def one(first: TargetRun, second: TargetRun) -> float:
        curves = [TargetCurve(label, (TargetPoint(32, (run,)),)) for label, run in (("a", first), ("b", second))]
        return log_ratios(*curves, 32)[0]

    assert one(TargetRun(0, 100), TargetRun(0, 400, reached=False)) == pytest.approx(math.log(0.25))
    assert one(TargetRun(0, 400, reached=False), TargetRun(0, 100)) == pytest.approx(math.log(4))
    assert one(TargetRun(0, 400, reached=False), TargetRun(0, 400, reached=False)) == 0
    assert one(TargetRun(0, 300), TargetRun(0, 200, reached=False)) == 0, "nobody knows which is faster"
    assert one(TargetRun(0, 300, reached=False), TargetRun(0, 200, reached=False)) == 0


def test_a_real_difference_is_decided_with_pairs_enough():
    draws = np.random.default_rng(2)
    rows = [
        row(label, lambda batch, seed, factor=factor: factor * math.exp(0.05 * draws.standard_normal()), seeds=9)
        for label, factor in (("slow", 2.0), ("fast", 1.0))
    ]
    made = statements(rows)
    assert len(made) == 5
    for one in made:
        assert one.decided
        assert one.interval.low <= one.ratio <= one.interval.high
        assert 1.7 < one.interval.low < 2 < one.interval.high < 2.4
    (over_all,) = statements(rows, whole=True)
    assert (over_all.batch, over_all.pairs) == (None, 5 * len(rows[0].points[0].runs))
    assert over_all.p is not None
    assert over_all.p <= smallest_p(15)
    assert over_all.ratio == pytest.approx(2, rel=0.1)


@pytest.mark.worlds
@pytest.mark.parametrize(("rows", "seeds", "budget"), [(2, 6, np.inf), (3, 8, np.inf), (2, 9, 3.0), (2, 3, np.inf)])
def test_alike_rows_are_called_different_in_at_most_five_percent(rows, seeds, budget):
    """Of all statements of a repetition not one: every two rows at every batch, with runs that end at the budget."""
    draws, wrong, wrong_over_all, repeated = np.random.default_rng(seeds), 0, 0, 500
    for _ in range(repeated):
        seed_effect = draws.standard_normal((5, seeds))  # what a seed has in common in all rows

        def needed(batch: int, seed: int, effect=seed_effect) -> float:
            return math.exp(1 + 0.3 * effect[batch % 5, seed] + 0.2 * draws.standard_normal())

        curves = [row(str(label), needed, (10, 21, 42, 83), seeds, budget) for label in range(rows)]
        made = statements(curves)
        assert len(made) == 4 * rows * (rows - 1) / 2
        wrong += any(one.decided for one in made)
        wrong_over_all += any(one.decided for one in statements(curves, whole=True)) if 4 * seeds <= MOST_EXACT else 0
    assert max(wrong, wrong_over_all) <= binom.ppf(0.999, repeated, 0.05)
    if seeds == 3:
        assert wrong == 0, "three pairs have no p below 0.25"
