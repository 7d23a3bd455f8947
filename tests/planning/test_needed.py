"""Examples to the target at a batch: points, the line between them, the law beyond, bounds; and BERT's own runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from largebatch.errors import UserError
from largebatch.studies.curves import published
from largebatch.studies.curves.law import ScalingLaw
from largebatch.studies.curves.measured import MiddleOfRuns, TargetPoint, TargetRun, middle_of
from largebatch.studies.planning.target import BoundTarget, LawTarget, PointsTarget, points_target


def middles(examples: dict[int, float]) -> list[MiddleOfRuns]:
    return [middle_of(TargetPoint(batch, (TargetRun(0, needed),))) for batch, needed in examples.items()]


def bert() -> PointsTarget:
    return points_target("bert", published.load(published.located("mlperf/bert")).curve().middles(), "bert")


def bounds() -> dict[int, tuple[float, float]]:
    points = published.load(published.located("mlperf/bert")).curve().points
    return {p.batch: (min(r.examples for r in p.runs), max(r.examples for r in p.runs)) for p in points}


def test_berts_samples_lie_within_the_references_at_every_batch():
    target = bert()
    for batch, (least, most) in bounds().items():
        assert least <= target.needed(batch).examples <= most


def test_berts_batches_are_foretold_by_their_neighbours_better_than_by_the_law():
    whole = bert()
    misses: dict[str, list[float]] = {"line": [], "law": []}
    for place in range(1, len(whole.reached) - 1):
        left = [*whole.reached[:place], *whole.reached[place + 1 :]]
        point, target = whole.reached[place], points_target("", left, "")
        misses["line"].append(target.needed(point.batch).examples / point.examples - 1)
        misses["law"].append(target.law.examples(point.batch) / point.examples - 1)
    line, law = (math.sqrt(np.mean(np.square(miss))) for miss in misses.values())
    assert line < 0.6 * law
    assert whole.missed == pytest.approx(line, rel=0.1)  # of logarithms


def test_mlperfs_own_law_of_bert_says_more_than_its_runs_need():
    """Evaluations are every 0.05·(230.23·B + 3,000,000) samples: 13,030 as B_crit, and an E_min that no run has."""
    law = LawTarget("", ScalingLaw(3e6, 230.23))
    assert law.critical == pytest.approx(13_030, abs=1)
    assert all(law.needed(batch).examples > most for batch, (_, most) in bounds().items())


@given(st.floats(0, 1))
def test_between_two_points_it_is_their_line(way):
    points = {100: 1000.0, 200: 1300.0, 800: 4000.0}
    batch = round(100 + 100 * way)
    needed = points_target("", middles(points), "").needed(batch)
    assert needed.examples == pytest.approx(1000 + 3 * (batch - 100))
    assert needed.low is None or needed.low <= needed.examples <= (needed.high or 0)


def test_beyond_the_points_the_interval_is_that_of_a_weighted_regression():
    points = {64: 1010.0, 128: 1120.0, 256: 1265.0, 512: 1770.0, 1024: 2480.0}
    target = points_target("", middles(points), "")
    needed = target.needed(4096)
    batches, examples = (np.array(list(part), float) for part in (points.keys(), points.values()))
    weights = np.diag(1 / examples**2)
    design = np.stack([np.ones(5), batches], 1)
    normal = np.linalg.inv(design.T @ weights @ design)
    fitted = normal @ design.T @ weights @ examples
    s2 = (examples - design @ fitted) @ weights @ (examples - design @ fitted) / 3
    at = np.array([1, 4096.0])
    middle = at @ fitted
    half = student.ppf(0.975, 3) * math.sqrt(s2 * (middle**2 + at @ normal @ at))
    assert needed.examples == pytest.approx(middle, rel=1e-6)
    assert (needed.low, needed.high) == pytest.approx((middle - half, middle + half), rel=1e-6)
    assert needed.basis == "beyond"


def test_a_lower_bound_is_no_point():
    runs = {64: 1000.0, 128: 1100.0}
    censored = middle_of(TargetPoint(256, (TargetRun(0, 5000.0, reached=False),)))
    target = points_target("", [*middles(runs), censored], "")
    assert [point.batch for point in target.reached] == [64, 128]


def test_one_batch_is_not_enough():
    with pytest.raises(UserError, match=r"x has 1 batch size at which the target was reached; a plan needs 2 or more"):
        points_target("", middles({64: 100.0}), "x")


@given(st.integers(1, 10**6), st.floats(10, 1e5), st.integers(1, 10**4))
def test_a_bound_holds_what_the_recipe_takes_and_what_the_law_would(batch, critical, first):
    needed = BoundTarget("", critical, first, 1000.0).needed(batch)
    assert needed.low is not None
    assert needed.low <= needed.examples == needed.high
    law = ScalingLaw(1.0, 1 / critical)
    expected = 1000 * law.examples(batch) / law.examples(first)
    assert sorted((needed.low, needed.examples)) == pytest.approx(sorted((1000.0, expected)))
