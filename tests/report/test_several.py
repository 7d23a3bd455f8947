"""Several comparisons in one report, and accuracy against batch size over them."""

import json
import re

import pytest

from largebatch.errors import UserError
from largebatch.report import summarize, verdict, write
from largebatch.report.batch_figures import curves

SIZES = (1, 10, 100, 1000, 10_000)
FIXED = dict(zip(SIZES, (98.0, 99.0, 98.5, 90.0, 11.0), strict=True))
PUBLISHED = {
    "source": "slide 24",
    "by_batch_size": {1: {"top1": 99.14}, "100": {"top1": 99.23}, 60_000: {"top1": 87.0}},
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory, write_comparison):
    """``study/fixed``, one recipe at five sizes; ``study/tuned``, the same at three; ``study/recipes``, two recipes."""
    study = tmp_path_factory.mktemp("several") / "study"

    def comparison(name, rows, *, note):
        """Rows are (label, recipe file, batch, accuracies)."""
        folder = write_comparison(
            study / name, {str(place): (batch, list(values)) for place, (_, _, batch, values) in enumerate(rows)},
            name=name, command=f"largebatch compare {name}", notes=[note, "No test image was looked at."],
        )  # fmt: skip
        data = json.loads((folder / "comparison.json").read_text())
        for row, (label, recipe, batch, _) in zip(data["rows"], rows, strict=True):
            row |= {"label": label, "config": recipe, "overrides": [f"batch.global_batch_size={batch}", "epochs=10"]}
            row["expect"] = PUBLISHED if recipe == "mnist.yaml" else None
        (folder / "comparison.json").write_text(json.dumps(data))

    same = "Momentum", "mnist.yaml"
    comparison("fixed", [(*same, size, [top, top]) for size, top in FIXED.items()], note="No search.")
    tuned = [(*same, 10, [99.1, 99.1]), (*same, 1000, [98.0, 98.2]), (*same, 10_000, [None, None])]
    comparison("tuned", tuned, note="Searched.")
    recipes = [("LAMB", "lamb.yaml", 1000, [98.6]), ("LARS", "lars.yaml", 10_000, [96.0])]
    comparison("recipes", recipes, note="No search.")
    return study


@pytest.fixture(scope="module")
def folders(parent):
    return [parent / name for name in ("fixed", "tuned", "recipes")]


@pytest.fixture(scope="module")
def written(folders):
    return write(folders)


@pytest.mark.worlds
def test_rows_keep_their_comparison_and_the_first_has_the_baseline(folders):
    comparison = summarize(folders)
    assert comparison.name == "study"
    assert [row.id for row in comparison.rows][:1] + [row.id for row in comparison.rows][5:] == [
        "fixed/row-0", "tuned/row-0", "tuned/row-1", "tuned/row-2", "recipes/row-0", "recipes/row-1"
    ]  # fmt: skip
    assert [row.label for row in comparison.rows][4:] == [
        "fixed at 10,000", "tuned at 10", "tuned at 1,000", "tuned at 10,000", "recipes: LAMB", "recipes: LARS"
    ]  # fmt: skip
    assert comparison.baseline.id == "fixed/row-0"
    assert comparison.rows[-1].difference.amount == -2.0, "from the first comparison's baseline"
    assert comparison.runs[-1].name == "recipes/row-1/seed-0"
    assert "at batch 10,000 the nearest, “recipes: LARS”, falls 2.00 points short" in verdict(comparison)


@pytest.mark.worlds
def test_commands_and_notes_of_all(folders, written):
    comparison = summarize(folders)
    assert comparison.commands == tuple(f"largebatch compare {name}" for name in ("fixed", "tuned", "recipes"))
    assert comparison.notes == (
        "No test image was looked at.", "fixed: No search.", "tuned: Searched.", "recipes: No search."
    )  # fmt: skip
    text = written.markdown.read_text()
    assert all(f"    largebatch compare {name}\n" in text for name in ("fixed", "tuned", "recipes"))
    assert "* tuned: Searched." in text
    assert "* Not the same seeds: 0, 1 (all of fixed and all of tuned); 0 (all of recipes)." in text


@pytest.mark.worlds
def test_the_report_goes_where_the_comparisons_lie(parent, folders, written, tmp_path, write_comparison):
    assert written.html == parent / "report.html"
    assert "<h1>study</h1>" in written.html.read_text()
    elsewhere = write_comparison(tmp_path / "else" / "where", {"a": (64, [90.0])})
    apart = write([folders[2], elsewhere])
    assert apart.html == parent / "report" / "report.html"
    assert write([folders[2], elsewhere], tmp_path / "out").html == tmp_path / "out" / "report.html"
    ids = [row.id for row in summarize([folders[2], elsewhere]).rows]
    assert len(set(ids)) == 3
    assert ids[0].endswith("study/recipes/row-0")


@pytest.mark.worlds
def test_a_comparison_beside_a_run_is_refused(folders):
    with pytest.raises(UserError, match="is a comparison and .* is none"):
        summarize([folders[0], folders[0] / "row-0" / "seed-0"])


@pytest.mark.worlds
def test_each_comparison_has_its_own_curves(written, troubles):
    text = written.html.read_text()
    headings = re.findall(r"<h2 id=\"([^\"]*)\">([^<]*)", text)
    assert [name for _, name in headings][1:6] == [
        "Curves: fixed", "Curves: tuned", "Curves: recipes", "Batch size", "Time"
    ]  # fmt: skip
    assert headings[1][0] == "curves-fixed"
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    assert troubles(text) == []


@pytest.mark.worlds
def test_one_curve_for_each_recipe_of_each_comparison(folders):
    drawn = curves(summarize(folders))
    assert [(curve.name, [row.global_batch_size for row in curve.rows]) for curve in drawn] == [
        ("fixed", list(SIZES)), ("tuned", [10, 1000, 10_000]), ("recipes: LAMB", [1000]), ("recipes: LARS", [10_000])
    ]  # fmt: skip
    assert len({curve.look for curve in drawn}) == 4


def picture(text, name):
    """(title, texts, description, caption) of a picture of the page."""
    [figure] = [
        figure for figure in re.findall(r"<figure>.*?</figure>", text, re.DOTALL) if f'id="{name}-desc"' in figure
    ]
    caption = re.findall(r"<p>(.*?)</p>", figure)
    return (
        re.search("<strong>(.*?)</strong>", figure)[1],
        re.findall(r"<text[^>]*>([^<]*)", figure),
        re.search(f'id="{name}-desc">([^<]*)', figure)[1],
        caption[0].replace("\u00a0", " ") if caption else "",
    )


@pytest.mark.worlds
def test_accuracy_against_batch_size_shows_the_whole_fall(written):
    title, texts, said, caption = picture(written.html.read_text(), "accuracy-batch")
    assert title == "Test accuracy against batch size"
    assert said.startswith("fixed: 98.00 % at 1, 99.00 % at 10, 98.50 % at 100, 90.00 % at 1,000, 11.00 % at 10,000; ")
    assert "tuned: 99.10 % at 10, 98.10 % at 1,000; " in said
    assert said.endswith("published: 99.14 % at 1, 99.23 % at 100"), "those between our sizes"
    assert {"1", "10", "100", "1,000", "10,000", "0"} <= set(texts), "five sizes, and the axis from 0"
    assert caption == (
        "Bars are ± one standard deviation over seeds. Published: slide 24."
        " A cross at the foot: no run finished (tuned at 10,000)."
    )


@pytest.mark.worlds
def test_train_accuracy_stands_beside_it(written):
    title, _, said, caption = picture(written.html.read_text(), "train-accuracy-batch")
    assert title == "Train accuracy against batch size"
    assert said.startswith("fixed: 100.00 % at 1, 101.00 % at 10")  # the made-up runs add two points
    assert "published" not in said
    assert "published" not in caption.lower()


@pytest.mark.worlds
def test_a_lone_row_far_below_does_not_stretch_the_axis(tmp_path, write_comparison):
    rows = {"a": (64, [90.0]), "b": (640, [89.0]), "c": (1280, [30.0])}
    text = write(write_comparison(tmp_path / "c", rows)).html.read_text()
    assert "Below it: c (30.00 %)." in picture(text, "accuracy-batch")[3]


@pytest.mark.worlds
def test_sizes_too_close_to_be_named_are_ticks(tmp_path, write_comparison, troubles):
    sizes = [2**power for power in range(17)]
    text = write(
        write_comparison(
            tmp_path / "c",
            {str(size): (size, [90.0]) for size in sizes},
        )
    ).html.read_text()
    _, texts, _, _ = picture(text, "accuracy-batch")
    named = [word for word in texts if word.replace(",", "").isdigit() and int(word.replace(",", "")) in sizes]
    assert {"1", "65,536"} <= set(named)
    assert 5 <= len(named) < 17
    assert troubles(text) == []
