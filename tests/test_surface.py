"""surface: the facts of each, what is said of them, mistakes in one sentence, and a picture that can be read."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import rich.console

from largebatch.diagnostics.surfaces import METHODS, SURFACES, crossings
from largebatch.errors import UserError
from largebatch.report import svg
from largebatch.report.alone import DRAWINGS, write_picture
from largebatch.studies import surface

NAMES = list(SURFACES)


@pytest.fixture(scope="module")
def measured():
    """Each surface's own runs, the ravine's 100,000 updates made once."""
    return {name: surface.measure(name, command=f"largebatch surface {name}") for name in NAMES}


def printed(shown) -> str:
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def paths(facts, **wanted):
    return [path for path in facts["paths"] if all(path[key] == value for key, value in wanted.items())]


@pytest.mark.worlds
@pytest.mark.parametrize("name", NAMES)
def test_facts_are_whole_small_and_finite(measured, name):
    facts = measured[name]
    text = json.dumps(facts, allow_nan=False)
    assert len(text) < 250_000
    assert (facts["kind"], facts["name"], facts["command"]) == ("surface", name, f"largebatch surface {name}")
    assert {"machine", "versions", "commit", "formula", "parameters", "window", "start", "notes"} <= set(facts)
    for path in facts["paths"]:
        assert len(path["points"]) == len(path["update_numbers"]) <= 500
        assert (path["points"][0], path["points"][-1]) == (path["start"], path["end"])
        assert path["update_numbers"] == sorted(set(path["update_numbers"]))
        assert path["update_numbers"][-1] == path["updates"]
        assert path["diverged"] == (path["updates"] < facts["updates"])
        assert path["end_loss"] == pytest.approx(float(SURFACES[name].loss(*path["end"])))
        assert len(path["start"]) == len(facts["parameters"]) == len(facts["window"])
    assert len({path["label"] for path in facts["paths"]}) == len(facts["paths"])


@pytest.mark.worlds
def test_the_saddles_facts_say_what_the_lecture_says(measured):
    facts = measured["saddle"]
    at = facts["critical_points"][0]
    assert (at["point"], at["loss"], at["gradient"], at["minimum_ratio"]) == ([0, 0], 1, [0, 0], 0.5)
    assert at["hessian"] == [[0, -2], [-2, 0]]
    assert at["eigenvalues"] == pytest.approx([-2, 2])
    assert at["escape_direction"] == pytest.approx([0.5**0.5] * 2)
    (on_the_ridge,) = paths(facts, start=[1, -1])
    assert on_the_ridge["ends_in"] == "saddle point"
    beside = [path for path in facts["paths"] if path is not on_the_ridge]
    assert {path["method"] for path in beside} == set(METHODS)
    assert all(path["settled_after_updates"] and path["ends_in"] != "saddle point" for path in beside)


@pytest.mark.worlds
def test_the_ravines_runs_are_the_lectures(measured):
    facts = measured["ravine"]
    seen = [(path["method"], path["lr"], path["mean_loss"]) for path in facts["paths"]]
    assert seen == [
        ("gradient_descent", 1e-7, False), ("gradient_descent", 1e-7, True), ("gradient_descent", 1e-2, False),
        ("adagrad_sum", 1, False), ("adagrad", 1, False), ("adagrad", 0.1, False), ("adagrad", 0.01, False),
    ]  # fmt: skip
    ends = [path["end"] for path in facts["paths"] if not path["diverged"] and path["lr"] != 1]
    expected = [(-123.69217, 2.48340), (-120.36185, 2.47383), (-188.43320, 2.669455), (-180.37505, 2.64627)]
    np.testing.assert_allclose(ends, expected, atol=5.1e-6)
    (diverged,) = paths(facts, diverged=True)
    assert diverged["after_one_update"] == pytest.approx([201.12, 113_063.76], abs=0.005)
    assert diverged["crossings_of_optimum"] == pytest.approx([-119.98, -123.80, -127.40], abs=0.005)
    assert crossings(np.array(diverged["points"]), 2.67) == pytest.approx([-119.98, -123.80, -127.40], abs=0.005)
    (settled,) = paths(facts, method="adagrad", lr=0.1)
    assert settled["settled_after_updates"] == 29_512
    (swinging,) = (path for path in facts["paths"] if path["swings_around_optimum"])
    assert (swinging["method"], swinging["lr"]) == ("adagrad", 1)
    assert swinging["range_of_last_half"][1] == pytest.approx([0.67, 4.67], abs=0.005)
    at = facts["critical_points"][0]
    assert at["condition_number"] == pytest.approx(3.134e5, rel=1e-4)
    assert at["gradient_descent_stable_below_lr"] == pytest.approx(1.14493e-6, rel=1e-6)


@pytest.mark.worlds
def test_bursts_survive_the_thinning(measured):
    """Of 100,000 points some 200 are kept, among them the farthest."""
    (swinging,) = paths(measured["ravine"], method="adagrad", lr=1)
    low, high = swinging["range_of_last_half"][1]
    late = [point[1] for point, at in zip(swinging["points"], swinging["update_numbers"], strict=True) if at > 50_000]
    assert min(late) == pytest.approx(low, abs=0.05)
    assert max(late) == pytest.approx(high, abs=0.05)


def test_thinning_keeps_ends_and_extremes_and_all_of_a_short_path():
    line = np.arange(100_001.0)[:, None]
    line[77_777] = -5.0
    kept = surface.thinned(line)
    assert {0, 77_777, 100_000} <= set(kept.tolist())
    assert len(kept) < 500
    assert surface.thinned(line[:300]).tolist() == list(range(300))


@pytest.mark.worlds
def test_in_the_double_well_momentum_decides(measured):
    ends = {path["method"]: path["end"][0] for path in measured["double_well"]["paths"]}
    assert ends == pytest.approx(
        {"gradient_descent": 0, "rmsprop": 0, "heavy_ball": 6, "nesterov": 6, "adam": 6}, abs=0.15
    )
    (stuck,) = paths(measured["double_well"], method="gradient_descent")
    assert stuck["ends_in"] == "local minimum"


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["saddle", "double_well"])
def test_momentum_as_a_sum_is_the_buffer_and_the_step_of_the_heavy_ball(measured, name):
    facts = measured[name]
    (ball,) = paths(facts, method="heavy_ball")
    steps = np.diff(np.array(ball["points"]), axis=0)
    for row in facts["momentum"]["updates"]:
        i = row["update"]
        assert row["weights"] == pytest.approx([-ball["lr"] * 0.9 ** (i - 1 - k) for k in range(i)])
        by_hand = sum(w * np.array(g) for w, g in zip(row["weights"], facts["momentum"]["gradients"], strict=False))
        np.testing.assert_allclose(row["weighted_sum"], by_hand, rtol=1e-12)
        np.testing.assert_allclose(row["buffer"], by_hand, rtol=1e-12)
        np.testing.assert_allclose(steps[i - 1], by_hand, rtol=1e-9)
    assert [row["update"] for row in facts["momentum"]["updates"]] == [1, 2, 3, 4]


@pytest.mark.worlds
def test_tables_fit_a_terminal_and_show_the_numbers(measured):
    shown = {name: printed(surface.table(measured[name])) for name in NAMES}
    for text in shown.values():
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"Adagrad, mean of g² +0\.1 +−188\.4332 +2\.6695 +101,936\.73 +29,512", shown["ravine"])
    assert re.search(r"gradient descent, mean loss +1e-7 +−120\.3619 +2\.4738", shown["ravine"])
    assert re.search(r"gradient descent +0\.01 .* diverges", shown["ravine"])
    assert re.search(r"gradient descent, from \(1, −1\) +0\.05 +0\.0000 +0\.0000 +1 +–", shown["saddle"])
    unrolled = surface.momentum_table(measured["double_well"])
    assert unrolled is not None
    assert "− 0.36·(−2.275) − 0.4·(−0.7322)" in printed(unrolled)
    assert surface.momentum_table(measured["ravine"]) is None


@pytest.mark.worlds
def test_notes_say_the_lectures_numbers(measured):
    saddle, ravine, wells = ("\n".join(measured[name]["notes"]) for name in NAMES)
    assert "eigenvalues −2 and 2, minimum ratio 0.5, escape direction (0.7071, 0.7071)" in saddle
    assert "from (1, −1): ends in the saddle point" in saddle
    assert "b = −188.4332, w = 2.669455: loss 101,936.73" in ravine
    assert "condition number 313,418, gradient descent is stable below η = 1.14493e-6" in ravine
    assert "first update leads to b = 201.12, w = 113,063.76" in ravine
    assert "cross w = 2.67 at b = −119.98, −123.80, −127.40" in ravine
    assert "η = 1: has not settled: in the last 50,000 updates b between" in ravine
    assert "ends in the local minimum" in wells


def test_what_is_chosen_replaces_the_lectures_runs():
    facts = surface.measure("ravine", ["adam", "gradient_descent", "adam"], updates=30)
    assert [(path["method"], path["lr"]) for path in facts["paths"]] == [("adam", 1e-3), ("gradient_descent", 1e-7)]
    facts = surface.measure("ravine", lr=1e-8, updates=30)
    labels = [path["label"] for path in facts["paths"]]
    assert labels == [
        "gradient descent, η = 1e-8",
        "gradient descent, mean loss, η = 1e-8",
        "Adagrad, sum of g², η = 1e-8",
        "Adagrad, mean of g², η = 1e-8",
    ]
    facts = surface.measure("saddle", momentum=0.5, start=(0.5, 0.25), updates=3)
    assert {path["momentum"] for path in facts["paths"]} == {None, 0.5}
    assert all(path["start"] == [0.5, 0.25] for path in facts["paths"])
    assert len(facts["paths"]) == len(METHODS)
    assert facts["momentum"]["updates"][1]["weights"] == pytest.approx([-0.01, -0.02])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "sadle"}, "surface 'sadle' is not known; did you mean saddle?"),
        ({"name": "x"}, "valid: double_well, ravine, saddle"),
        ({"methods": ["heavyball"]}, "method 'heavyball' is not known; did you mean heavy_ball?"),
        ({"methods": ["?"]}, "valid: adagrad, adagrad_sum, adam, gradient_descent, heavy_ball, nesterov, rmsprop"),
        ({"lr": 0.0}, "lr = 0 must be a finite number above 0"),
        ({"lr": math.nan}, "lr = nan must be"),
        ({"lr": math.inf}, "lr = inf must be"),
        ({"momentum": 1.0}, "momentum = 1 must be at least 0 and below 1"),
        ({"momentum": -0.1}, "momentum = -0.1 must be at least 0 and below 1"),
        ({"momentum": 0.9, "methods": ["rmsprop"]}, "those with one: heavy_ball, nesterov and adam"),
        ({"momentum": 0.9, "name": "ravine"}, "momentum = 0.9 is of no use to the methods chosen"),
        ({"updates": 0}, "updates = 0 must be between 1 and 1,000,000"),
        ({"updates": 1_000_001}, "updates = 1000001 must be between 1 and 1,000,000"),
        ({"start": [1.0]}, "start = 1 does not fit saddle; valid: one number for each of w1, w2"),
        ({"start": [1.0, math.nan]}, "start = 1, nan must be finite numbers"),
        ({"start": [1e16, 0.0]}, "start = 1e+16, 0 must be finite numbers within ±1e+15"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments, sentence):
    with pytest.raises(UserError) as told:
        surface.measure(**{"name": "saddle"} | arguments)
    assert sentence in str(told.value)


@pytest.mark.worlds
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [1e-300, 30.0, 1e300])
def test_no_learning_rate_is_too_wild(method, name, lr, tmp_path):
    """Warnings are errors: nothing overflows on the way, in the table or in the picture."""
    facts = surface.measure(name, [method], lr=lr, updates=50)
    json.dumps(facts, allow_nan=False)
    assert facts["paths"][0]["diverged"] >= (lr == 1e300)
    printed(surface.table(facts))
    if method == "heavy_ball":
        printed(surface.momentum_table(facts))
        write_picture(facts, tmp_path / "wild.svg")


@pytest.fixture(scope="module")
def figures(measured):
    with svg.drawing():
        return {name: DRAWINGS["surface"](facts).figure for name, facts in measured.items()}


@pytest.mark.worlds
@pytest.mark.parametrize("name", NAMES)
def test_each_is_drawn_to_svg_and_png(measured, name, tmp_path):
    for suffix, head in ((".svg", b"<svg"), (".png", b"\x89PNG")):
        write_picture(measured[name], tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"{name}{suffix}").read_bytes().startswith(head)
    text = "".join(ElementTree.parse(tmp_path / f"{name}.svg").getroot().itertext())
    for path in measured[name]["paths"]:
        assert path["title"] in text
    for parameter in measured[name]["parameters"]:
        assert parameter in text
    assert not re.search(r"nan|inf\b", (tmp_path / f"{name}.svg").read_text())


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["saddle", "ravine"])
def test_a_panel_for_each_run_with_its_own_path_start_and_end(measured, figures, name):
    facts, panels = measured[name], figures[name].axes
    assert len(panels) == len(facts["paths"])
    for axes, path in zip(panels, facts["paths"], strict=True):
        lines = [line.get_xydata().tolist() for line in axes.lines]
        assert path["points"] in lines
        assert [path["start"]] in lines
        assert ([path["end"]] in lines) == (not path["diverged"])
        said = [text.get_text() for text in axes.texts]
        assert any(text.startswith("diverges") for text in said) == path["diverged"]
        assert [list(axes.get_xlim()), list(axes.get_ylim())] == facts["window"]
    said = [text.get_text() for axes in panels for text in axes.texts]
    assert ("settled after 29,512 updates" in said) == (name == "ravine")


@pytest.mark.worlds
def test_the_double_well_shows_the_loss_and_below_it_every_way(measured, figures):
    facts = measured["double_well"]
    land, time = figures["double_well"].axes
    assert land.get_xlim() == time.get_xlim() == tuple(facts["window"][0])
    low, high = time.get_ylim()
    assert low > high  # downwards
    ways = [list(line.get_xdata()) for line in time.lines]
    for path in facts["paths"]:
        assert [point[0] for point in path["points"][1:]] in ways
    assert {text.get_text() for text in land.texts} == {"local minimum", "hill", "minimum", "loss"}


@pytest.mark.worlds
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_drawn_in_stand_in_colours_alone(figures, name):
    with svg.drawing():
        text = svg.inline(figures[name], "picture", "title", "description")
    assert not re.findall(r"#[0-9a-f]{6}\b", text)
    assert "var(--c0)" in text
