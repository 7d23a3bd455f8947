"""results/plan/predict.py: what stands in its tables is what the model says today."""

from __future__ import annotations

import importlib.util
import json

import pytest
from programs import REPOSITORY

FOLDER = REPOSITORY / "results/plan"


@pytest.fixture(scope="module")
def predict():
    at = importlib.util.spec_from_file_location("predict", FOLDER / "predict.py")
    assert at is not None
    assert at.loader is not None
    module = importlib.util.module_from_spec(at)
    at.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stated():
    return json.loads((FOLDER / "predictions.json").read_text())


@pytest.mark.worlds
def test_every_row_is_predicted_as_it_stands_there(predict, stated):
    lines = predict.predictions(predict.measured.read(FOLDER / "rows.csv"), predict.systems())
    assert len(lines) == len(stated["rows"]) == 120
    for line, other in zip(lines, stated["rows"], strict=True):
        assert (line["family"], line["devices"]) == (other["family"], other["devices"])
        assert line["model_ms"] == pytest.approx(other["model_ms"], rel=0.01)


def test_goyal_and_lamb_are_what_stands_there(predict, stated):
    for line, other in zip(predict.goyal(), stated["goyal"], strict=True):
        assert line["growth"] == pytest.approx(other["growth"], rel=1e-3)
    for line, other in zip(
        predict.lamb(predict.measured.read(FOLDER / "rows.csv"), predict.systems()), stated["lamb"], strict=True
    ):
        assert line["minutes"] == pytest.approx(other["minutes"], rel=0.01)
        assert abs(line["error"]) < 0.15


def test_the_page_is_made_of_these_numbers(predict, stated):
    assert predict.page(stated) == (FOLDER / "predictions.md").read_text()
