"""`largebatch plan --target`: a study's curves, a noise scale and a critical batch, as their commands write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planning.clusters import planned
from report import made_up

from largebatch.records.curves import TargetsRecord
from largebatch.records.typed import content
from largebatch.studies.curves.measured import CurveParts, TargetCurve, TargetPoint, TargetRun
from largebatch.studies.curves.recorded import curve_record

pytestmark = [pytest.mark.worlds, pytest.mark.usefixtures("one_thread")]
DIGITS = 1500
MLP = {"name": "mlp", "width": 16, "depth": 1}


def study(**parts: object) -> Path:
    """Two rows on E = least·(1 + B/100), three seeds each."""
    of = CurveParts(**({"model": MLP, "data": "digits", "optimizer": "sgd"} | parts))
    curves = []
    for label, least in (("sgd", 1000.0), ("lars", 2000.0)):
        points = [
            TargetPoint(batch, tuple(TargetRun(seed, least * (1 + batch / 100) * (1 + seed / 50)) for seed in range(3)))
            for batch in (25, 50, 100, 200)
        ]
        curves.append(curve_record(TargetCurve(label, tuple(points)), of))
    facts = TargetsRecord(
        name="two", title="two rows", source=None, target="accuracy 90 %", score="accuracy_percent", score_target=90.0,
        unit="digits", epoch=DIGITS, middle="median", command=None, curves=curves,
    )  # fmt: skip
    folder = Path("studied")
    folder.mkdir(exist_ok=True)
    (folder / "curves.json").write_text(json.dumps(content(facts)))
    return folder


def noise(**changes: object) -> None:
    Path("run/diagnostics").mkdir(parents=True, exist_ok=True)
    facts = made_up.noise(80.0, 50.0, 200.0) | {"model": "mlp", "data": "digits"} | changes
    Path("run/diagnostics/noise.json").write_text(json.dumps(facts))


def test_a_row_of_a_study(ask):
    folder = study()
    arguments = ("--devices", "1", "--batches", "50,75", "--target", str(folder))
    facts = planned(ask, *arguments, "--row", "lars")
    assert [point.examples for point in facts.points] == pytest.approx([3000 * 1.02, 3500 * 1.02])
    assert [point.phases[0].basis for point in facts.points] == ["measured", "between"]
    assert (facts.points[0].examples_low, facts.points[0].examples_high) == pytest.approx((3000, 3000 * 1.04))
    assert (facts.unchecked, facts.target_optimizer, facts.target_score) == ([], "sgd", 90)
    assert "intervals of examples hold at most 75 % where a batch has few seeds, not 95" in facts.sure
    code, _, err = ask("tiny.yaml", "--machine", "cluster.yaml", *arguments)
    assert code == 2
    assert "has several rows; choose one: --row sgd | --row lars" in err
    code, _, err = ask("tiny.yaml", "--machine", "cluster.yaml", *arguments, "--row", "larz")
    assert code == 2
    assert "did you mean lars?" in err


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"model": {"name": "resnet20"}}, "is of model resnet20, and the recipe trains mlp"),
        ({"model": MLP | {"width": 64}}, "is of model mlp with width 64, and the recipe has model.width = 16"),
        ({"data": "mnist"}, "is of data mnist, and the recipe trains on digits"),
    ],
)
def test_a_study_of_something_else(ask, parts, said):
    arguments = ("--devices", "1", "--target", str(study(**parts)), "--row", "sgd")
    code, _, err = ask("tiny.yaml", "--machine", "cluster.yaml", *arguments)
    assert code == 2
    assert said in err


def test_a_noise_scale_is_a_bound_by_its_lower_end(ask):
    """2 epochs at batch 100: at 300 at most as many times more as E(300)/E(100) with 50 as B_crit."""
    noise()
    facts = planned(ask, "--devices", "1", "--batches", "100,300", "--target", "run")
    small, large = facts.points
    assert small.examples == 2 * DIGITS
    assert large.examples == large.examples_high == pytest.approx(2 * DIGITS * (1 + 300 / 50) / (1 + 100 / 50))
    assert large.examples_low == 2 * DIGITS
    assert large.phases[0].basis == "at most"
    assert facts.unchecked == ["run/diagnostics/noise.json does not say model.depth and model.width, which the recipe "
                               "does: that they agree was not checked"]  # fmt: skip


def test_a_noise_scale_of_something_else_or_without_an_end(ask):
    arguments = ("tiny.yaml", "--machine", "cluster.yaml", "--devices", "1", "--target", "run")
    noise(model="vgg11")
    assert "is of model vgg11, and the recipe trains mlp" in ask(*arguments)[2]
    noise(data="mnist")
    assert "is of data mnist, and the recipe trains on digits" in ask(*arguments)[2]
    noise(noise_scale=None, noise_scale_low=None)
    assert "the noise scale is not bounded, so nothing follows from it" in ask(*arguments)[2]


def test_what_the_package_publishes_says_what_it_is_of():
    from largebatch.studies.curves import published

    for name in published.names():
        points = published.load(published.located(name))
        assert points.model is not None, name
        assert points.optimizer is not None, name
        assert points.optimizer.name in points.title.lower(), name
