"""A score that is no accuracy: where less is better, in another unit, or not the same in every row."""

import json
import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from report.made_up import path

from largebatch.errors import UserError
from largebatch.plan.score import ACCURACY, Score
from largebatch.records.diagnoses import PathRecord
from largebatch.records.typed import read
from largebatch.report import path_figure, summarize, svg, verdict
from largebatch.report.batch_figures import score_by_batch
from largebatch.report.curves import CurveLine
from largebatch.report.numerals import of_score, scored
from largebatch.report.page import html, markdown
from largebatch.report.scales import focus
from largebatch.report.summary import SeedMean
from largebatch.report.table import results, searches

ERROR = Score("squared_error", "squared error", more_is_better=False, tolerance=0.01)
DEGREES = Score("absolute_error", "absolute error", "°C", more_is_better=False, tolerance=0.5)
R2 = Score("r2", "R²", tolerance=0.02)
EQUAL = Score("perplexity", "perplexity", more_is_better=False)  # no difference is small enough
ERRORS_IN_PERCENT = Score("error_percent", "error", "%", more_is_better=False, tolerance=0.5)


@pytest.fixture
def compared(tmp_path, write_comparison):
    """The comparison of rows {label: (batch, numbers)} under a score."""

    def made(score, rows, **changed):
        folder = write_comparison(tmp_path / "c", rows, of_runs={"score": score._asdict(), **changed})
        return summarize(folder)

    return made


@pytest.mark.parametrize(
    ("score", "rows", "said"),
    [
        (
            ERROR,
            {
                "base": (64, [0.5, 0.5]), "near": (320, [0.508, 0.508]), "worse": (320, [0.7, 0.7]),
                "broken": (320, [None, None]), "too large": (640, [0.9, 0.9]),
            },
            "At batch 320, near ends at a test squared error of 0.5080 against the baseline’s 0.5000 at batch 64"
            " (+0.0080 where less is better, 95 % interval +0.0080 to +0.0080, 2 seeds): within 0.01 in squared"
            " error, with 5.0 times fewer steps and the same 10 epochs; worse ends 0.20 higher there; broken finishes"
            " at no seed; at batch 640 the nearest, too large, ends 0.40 higher.",
        ),
        (
            ERROR,
            {"base": (64, [0.5]), "lower": (640, [0.1]), "higher": (640, [0.6])},
            "At batch 640, lower ends at a test squared error of 0.1000 against the baseline’s 0.5000 at batch 64"
            " (−0.40 where less is better, one seed: no interval): within 0.01 in squared error, with 10.0 times"
            " fewer steps and the same 10 epochs; higher ends 0.10 higher there.",
        ),
        (
            DEGREES,
            {"base": (64, [21.0]), "far": (640, [23.0])},
            "No row at a larger batch ends within 0.5 °C of the baseline; the nearest, at batch 640: far ends at a test"
            " absolute error of 23.00 °C against the baseline’s 21.00 °C at batch 64 (+2.0 °C where less is better, one"
            " seed: no interval), with 10.0 times fewer steps and the same 10 epochs.",
        ),
        (
            R2,
            {"base": (64, [0.9]), "near": (640, [0.885]), "lost": (640, [-3.0])},
            "At batch 640, near ends at a test R² of 0.8850 against the baseline’s 0.9000 at batch 64 (−0.015, one"
            " seed: no interval): within 0.02 in R², with 10.0 times fewer steps and the same 10 epochs; lost loses"
            " 3.9 there.",
        ),
        (
            EQUAL,
            {"base": (64, [20.0]), "same": (640, [20.0])},
            "At batch 640, same ends at a test perplexity of 20.00 against the baseline’s 20.00 at batch 64 (0.00 where"
            " less is better, one seed: no interval): no worse, with 10.0 times fewer steps and the same 10 epochs.",
        ),
        (
            EQUAL,
            {"base": (64, [20.0]), "worse": (640, [20.1])},
            "No row at a larger batch ends as well as the baseline; the nearest, at batch 640: worse ends at a test"
            " perplexity of 20.10 against the baseline’s 20.00 at batch 64 (+0.10 where less is better, one seed: no"
            " interval), with 10.0 times fewer steps and the same 10 epochs.",
        ),
        (
            ERRORS_IN_PERCENT,
            {"base": (64, [8.0]), "near": (640, [8.5])},
            "At batch 640, near ends at 8.50 % test error against the baseline’s 8.00 % at batch 64 (+0.50 points where"
            " less is better, one seed: no interval): within 0.5 points with 10.0 times fewer steps and the same 10"
            " epochs.",
        ),
        (
            ERROR,
            {"base": (64, [None]), "other": (640, [0.4])},
            "The baseline, base, has no finished run with a squared error, so nothing can be compared with it (1"
            " failed: loss is nan at step 17).",
        ),
        (
            ERROR,
            {"base": (64, [0.5, 0.51])},
            "base ends at a test squared error of 0.5050 ± 0.0071 at batch 64 after 100 steps (10 epochs); there is"
            " nothing to compare it with.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_in_whole_sentences(compared, score, rows, said):
    assert verdict(compared(score, rows)) == said


def test_table_notes_and_markdown_of_an_error(compared):
    comparison = compared(
        ERROR, {"base": (64, [0.5, 0.52]), "lamb": (640, [0.49, None]), "sgd": (640, [0.6])}, beside={"test_r2": 0.5}
    )
    table = results(comparison)
    assert [column.heading for column in table.columns][4:8] == [
        "train squared error", "test squared error", "difference", "95\u00a0% interval"
    ]  # fmt: skip
    assert [line.cells[5:7] for line in table.lines] == [
        ("0.510 ± 0.014", "–"), ("0.4900", "−0.020"), ("0.6000", "+0.090")
    ]  # fmt: skip
    assert [line.mark for line in table.lines] == ["baseline", "best large batch", ""], "the lowest is the best"
    text = markdown(comparison)
    assert "* Less is better: a difference below zero is an improvement." in text
    assert "Each squared error is the mean over the finished seeds" in text
    assert "| train squared error | test squared error | r2 | in total, s |" in text, "and what is measured beside it"
    for word in ("accurac", "points", "%, ", ", %"):
        assert word not in text.replace("95 % interval", "")


def test_percents_that_are_no_accuracy_keep_their_points(compared):
    score = Score("mean_average_precision_percent", "mean average precision", "%", tolerance=0.5)
    comparison = compared(score, {"base": (64, [61.0]), "large": (640, [60.0])}, evaluated_on="held_out")
    assert [column.heading for column in results(comparison).columns][4:7] == [
        "train mean average precision, %", "held-out mean average precision, %", "difference, points"
    ]  # fmt: skip
    text = markdown(comparison)
    assert "* Mean average precisions are of a held-out part of the training set" in text
    assert "in percentage points." in text
    assert "Less is better" not in text


def test_what_is_published_is_found_by_the_scores_key(compared):
    comparison = compared(ERROR, {"base": (64, [0.5])}, config=json.dumps({
        "expect": {"source": "a paper", "by_batch_size": {"64": {"numbers": {"squared_error": 0.4}, "top1": 70.0}},
                   "note": None}, "batch": {"global_batch_size": 64},
    }))  # fmt: skip
    assert dict(comparison.rows[0].published) == {64: 0.4}
    assert "| base | squared error 0.4, top1 70 | a paper | 0.5000 |" in markdown(comparison)


def test_a_search_is_read_by_its_own_score(compared, tmp_path):
    compared(ERROR, {"base": (64, [0.5])})
    tried = [(0.1, 0.6), (0.1, 0.4), (0.2, 0.7), (0.4, None)]
    trials = [{"values": {"lr.base": lr}, "squared_error": error} for lr, error in tried]
    file = tmp_path / "c" / "comparison.json"
    facts = json.loads(file.read_text())
    space, chosen = {"lr.base": {"log": [0.1, 0.4]}}, {"lr.base": 0.1}
    search = {"space": space, "budget": 4, "chosen": chosen, "hold_out": 100, "trials": trials}
    facts["rows"][0]["search"] = search | {"score": ERROR._asdict(), "at_edge": ["lr.base"]}
    file.write_text(json.dumps(facts))
    table = searches(summarize(tmp_path / "c"))
    at_edge = "lr.base 0.1 (at an edge)"
    assert table.lines[0].cells == ("base", "4", "1", at_edge, "0.4000", "100"), "the lowest is the best"
    assert table.caption.endswith("and a better may lie beyond.")
    page = html(summarize(tmp_path / "c"))
    assert "held-out squared error (less is better)" in page
    assert "Crosses at the top are trials that failed (1), from above in the order of the rows." in page


def test_rows_of_different_scores_are_a_sentence_and_no_number(tmp_path, write_run):
    first, second = (
        write_run(tmp_path / name / "0", number, batch, score=score._asdict())
        for name, number, batch, score in (("a", 91.0, 64, ACCURACY), ("b", 0.4, 640, ERROR))
    )
    comparison = summarize([first, second])
    assert verdict(comparison) == (
        "These runs cannot be compared: they are judged by different scores (accuracy, squared error)."
    )
    assert [row.difference for row in comparison.rows] == [None, None]
    assert [line.cells[5] for line in results(comparison).lines] == ["91.00 %", "0.4000"]
    assert results(comparison).columns[5].heading == "test score"
    page = html(comparison)
    assert "each in its own unit" in page
    assert "Test accuracy against" not in page
    assert "Training loss against epochs" in page, "which needs no score"


@pytest.mark.parametrize(
    "score", [[], {}, {"key": "a"}, {"key": 1, "name": "a"}, {"key": "a", "name": "a", "tolerance": -1}, {"other": 1}]
)
def test_a_plan_whose_score_is_none_is_told_in_a_sentence(tmp_path, write_run, score):
    run = write_run(tmp_path / "a" / "0")
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"score": score}))
    with pytest.raises(UserError, match=re.escape("plan.json: score")):
        summarize(run)


def axes_after(score, ends, **how):
    """(ends of the axis, sentences) for one line to each of the ends; all begin far from them."""
    axes = Figure().add_subplot()
    start = 5.0 if score.unit == "%" or not score.more_is_better else -5.0
    return axes, focus(axes, {label: [CurveLine((0, 1), (start, end))] for label, end in ends.items()}, score, **how)


def test_a_scale_cuts_what_is_worse_whichever_way_that_is():
    axes, said = axes_after(ERROR, {"a": 0.5, "b": 0.6, "diverged": 1e6})
    low, high = axes.get_ylim()
    assert 0.4 < low < 0.5
    assert 0.6 < high < 1
    assert said == [f"The axis ends at {high:.3g}.", "Above it: diverged (1,000,000)."]
    axes, said = axes_after(ACCURACY, {"a": 91.0, "b": 90.0, "diverged": 10.0})
    assert axes.get_ylim()[0] > 80
    assert said == ["The axis starts at 88 %.", "Below it: diverged (10.00 %)."]
    axes, said = axes_after(R2, {"a": 0.9, "diverged": -30.0})
    assert -1 < axes.get_ylim()[0] < 0.9 < axes.get_ylim()[1]
    assert said[-1] == "Below it: diverged (−30.00)."
    axes, said = axes_after(ERROR, {"a": 0.0, "b": 0.0})
    assert axes.get_ylim()[0] == 0, "no error is below zero"


def test_numbers_of_a_score():
    assert of_score(91.2345, ACCURACY) == "91.23 %"
    assert of_score(0.498712, ERROR) == "0.4987"
    assert of_score(12345.6, ERROR) == "12,346"
    assert of_score(-1.5, DEGREES) == "−1.500 °C"
    assert scored(SeedMean(0.5123, 0.0123, 2), ERROR) == "0.512 ± 0.012"
    assert scored(None, ERROR) == "–"


@pytest.mark.worlds
def test_pictures_of_an_error(compared, troubles):
    rows = {"base": (64, [0.5, 0.52]), "mid": (320, [0.7]), "lost": (640, [None]), "large": (1280, [3.0])}
    page = html(compared(ERROR, rows))
    assert troubles(page) == []
    assert "Test squared error against epochs" in page
    assert page.count("test squared error (less is better)</text>") == 4, "epochs, steps, time and batch size"
    assert "A cross at the top: no run finished" in page.replace("\u00a0", " ")
    assert "accuracy" not in page
    assert 'id="squared-error-epochs-desc"' in page


def test_an_error_that_grows_without_bound_is_drawn_on_a_logarithmic_scale(compared):
    rows = {"a": (64, [0.5]), "b": (128, [0.7]), "c": (256, [1e6])}
    one = compared(ERROR, rows)
    one = replace(one, rows=tuple(replace(row, config="one.yaml") for row in one.rows))
    with svg.drawing():
        pictures = score_by_batch(one)
    assert [picture.title for picture in pictures] == [
        "Test squared error against batch size", "Train squared error against batch size"
    ]  # fmt: skip
    assert [picture.caption for picture in pictures] == ["The scale is logarithmic."] * 2


def test_a_way_between_two_regressions_has_one_line_for_loss_and_score():
    def facts(score, number):
        def of(split, alpha):
            return {f"{split}_loss": 1 + alpha, f"{split}_{score.key}": number(1 + alpha)}

        points = [{"alpha": alpha, **of("train", alpha), **of("test", alpha)} for alpha in (0.0, 0.5, 1.0)]
        return read(PathRecord, path(line=points, curve=[], score=score._asdict()), "path.json")

    with svg.drawing():
        same = path_figure.draw(facts(ERROR, lambda loss: loss))
        other = path_figure.draw(facts(DEGREES, lambda loss: 3 * loss))
    assert "dots" not in same.caption
    assert same.figure.axes[0].texts[0].get_text() == "squared error (log scale)"
    assert "dots: absolute error" in other.caption
    assert "absolute error, °C (less is better)" in [text.get_text() for text in other.figure.axes[0].texts]
