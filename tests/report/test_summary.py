import json
import math

import pytest
from scipy import stats

from largebatch.report import summarize, verdict
from largebatch.report.fairness import fairness
from largebatch.report.summary import SeedMean, difference, estimate
from largebatch.report.table import every_run, results


def test_a_row_by_hand(tmp_path, write_comparison):
    folder = write_comparison(tmp_path / "c", {"base": (64, [91.0, 92.0, 93.0]), "lamb": (640, [91.0, 92.0, None])})
    base, lamb = summarize(folder).rows
    assert (base.reached.mean, base.reached.std, base.reached.n) == (92.0, 1.0, 3)
    assert lamb.reached.mean == 91.5
    assert lamb.reached.std == pytest.approx(math.sqrt(0.5))
    assert lamb.reached.n == 2
    assert (len(lamb.broken), lamb.trouble) == (1, "1 failed: loss is nan at step 17")
    assert (base.steps, lamb.steps, lamb.fewer_steps) == (100, 10, 10.0)
    assert lamb.difference.amount == -0.5
    assert lamb.difference.standard_error == pytest.approx(math.sqrt(0.5 / 2 + 1 / 3))
    assert base.difference is None


def test_averages_of_weights_stand_beside_the_trained_ones(tmp_path, write_comparison):
    folder = write_comparison(tmp_path / "c", {"base": (64, [91.0, 92.0]), "averaged": (64, [91.0, 92.0])})
    assert not any("EMA" in column.heading for column in results(summarize(folder)).columns)
    for seed, reached in enumerate((93.0, 93.5)):
        file = folder / "row-1" / f"seed-{seed}" / "result.json"
        beside = {"ema_test_accuracy_percent": reached, "lawa_test_accuracy_percent": None, "ema_test_loss": 0.1}
        file.write_text(json.dumps(json.loads(file.read_text()) | beside))
    base, averaged = summarize(folder).rows
    assert (base.averages, averaged.reached.mean) == ({}, 91.5)
    assert list(averaged.averages) == ["ema"]
    assert (averaged.averages["ema"].mean, averaged.averages["ema"].std) == (93.25, pytest.approx(math.sqrt(0.125)))
    for table, cells in (
        (results(summarize(folder)), ["–", "93.25 ± 0.35"]),
        (every_run(summarize(folder)), ["–", "–", "93.00", "93.50"]),
    ):
        place = [column.heading for column in table.columns].index("EMA: test accuracy, %")
        assert table.columns[place - 1].heading == "test accuracy, %"
        assert [line.cells[place] for line in table.lines] == cells


def test_the_interval_is_welchs():
    a, b = [90.1, 90.7, 91.0], [91.5, 91.9, 91.6, 91.4]
    own = difference(estimate(a), estimate(b))
    peer = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (own.low, own.high) == pytest.approx((peer.low, peer.high), rel=1e-9)


def test_one_seed_has_no_interval_and_equal_seeds_have_an_empty_one():
    assert difference(SeedMean(90, None, 1), SeedMean(91, 0.5, 3)).low is None
    assert estimate([90.0, None]) == SeedMean(90.0, None, 1)
    assert estimate([None]) is None
    same = difference(estimate([90.0, 90.0]), estimate([91.0, 91.0]))
    assert (same.amount, same.low, same.high) == (-1.0, -1.0, -1.0)


def test_the_verdict_takes_the_largest_batch_that_is_near(tmp_path, write_comparison):
    folder = write_comparison(
        tmp_path / "c",
        {
            "base": (64, [91.5, 91.5]),
            "small": (128, [91.6, 91.6]),
            "near": (320, [91.0, 91.0]),
            "naive": (320, [88.4, 88.4]),
            "broken": (320, [None, None]),
            "too large": (640, [90.5, 90.5]),
        },
    )
    assert verdict(summarize(folder)) == (
        "At batch 320, near ends at 91.00 % test accuracy against the baseline’s 91.50 % at batch 64 (−0.50"
        " points, 95 % interval −0.50 to −0.50, 2 seeds): within 0.5 points with 5.0 times fewer steps and"
        " the same 10 epochs; naive loses 3.10 points there; broken finishes at no seed;"
        " at batch 640 the nearest, too large, falls 1.00 points short."
    )
    assert [line.mark for line in results(summarize(folder)).lines] == [
        "baseline",
        "",
        "best large batch",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            {"base": (64, [91.5]), "far, far": (640, [90.0])},
            "No row at a larger batch ends within 0.5",
        ),
        ({"base": (64, [91.5]), "far, far": (640, [90.0])}, "“far, far” ends at 90.00 %"),
        (
            {"base": (64, [91.5]), "near": (640, [91.7])},
            "(+0.20 points, one seed: no interval): within 0.5 points",
        ),
        (
            {"base": (64, [91.5]), "near": (640, [91.7, 91.5])},
            "(+0.10 points, 2 against 1 seeds: no interval)",
        ),
        (
            {"base": (64, [91.5]), "lost": (640, [None])},
            "than the baseline’s batch 64 has a finished run",
        ),
        ({"base": (64, [None]), "near": (640, [91.7])}, "has no finished run with an accuracy"),
        (
            {"base": (64, [91.5]), "other": (32, [91.7])},
            "No row has a larger batch than the baseline’s",
        ),
        ({"base": (64, [91.5])}, "there is nothing to compare it with"),
    ],
)
def test_the_verdict_admits_what_is_not_there(tmp_path, write_comparison, rows, said):
    assert said in verdict(summarize(write_comparison(tmp_path / "c", rows)))


def test_unequal_budgets_splits_and_seeds_are_said(tmp_path, write_run):
    base = write_run(tmp_path / "a" / "0", 91.0)
    runs = [base, write_run(tmp_path / "b" / "0", 91.2, 640, seed=3, epochs=20.0, budget_examples=12800)]
    comparison = summarize(runs)
    assert "20 epochs instead of 10" in verdict(comparison)
    said = fairness(comparison)
    assert "Not the same number of training examples: 6,400 (a); 12,800 (b)." in said
    assert "Not the same seeds: 0 (a); 3 (b)." in said
    assert "Same data for every row: digits." in said
    held_out = write_run(tmp_path / "c" / "0", 99.0, 640, evaluated_on="held_out")
    mixed = summarize([base, held_out])
    assert mixed.rows[1].difference is None
    assert mixed.reached.name == "final accuracy"
    assert "was evaluated as the baseline was" in verdict(mixed)


def test_runs_on_different_data_are_not_judged(tmp_path, write_run):
    first, second = (write_run(tmp_path / name, dataset=name) for name in ("digits", "mnist"))
    assert verdict(summarize([first, second])) == (
        "These runs cannot be compared: they were trained on different data (digits, mnist)."
    )


def test_steps_and_epochs_are_those_taken_where_a_method_ends_elsewhere(tmp_path, write_comparison):
    """AdaScale stops by its own clock, SWAP adds its workers: what was planned is not what was done."""
    folder = write_comparison(tmp_path / "c", {"base": (64, [91.0, 92.0]), "adascale": (640, [91.0, 92.0])})
    for seed, (steps, seen) in enumerate([(20, 12800), (30, 19200)]):
        file = folder / "row-1" / f"seed-{seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": steps, "examples_seen": seen}))
    base, adascale = summarize(folder).rows
    assert (base.steps, base.epochs) == (100, 10.0)
    assert (adascale.steps, adascale.epochs, adascale.fewer_steps) == (25, 25.0, 4.0)
    assert "Not the same epochs: 10 (base); 20 and 30 (adascale)." in fairness(summarize(folder))
    filled = folder / "row-0" / "seed-0" / "result.json"  # a last step filled up to a whole batch is no other budget
    filled.write_text(json.dumps(json.loads(filled.read_text()) | {"examples_seen": 6400 + 63}))
    assert summarize(folder).rows[0].epochs == 10.0
