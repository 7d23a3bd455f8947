"""Runs and a comparison that commit 8cecc49 left behind, before scores were data: they open, and they go on.

``tests/runs/old_classification`` holds a row with a search (three trials, without their checkpoints), seed 0, which
finished, and seed 1, which was stopped after step 35 of 60. Everything was computed in float64 on one thread.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from programs import weights_at_end

from largebatch import report
from largebatch.plan.score import ACCURACY
from largebatch.recipes import config
from largebatch.report.page import markdown
from largebatch.run.train import train
from largebatch.studies.compare import Tuning, compare
from largebatch.studies.diagnose import path, plateau

OLD = Path(__file__).parent / "runs" / "old_classification"
ROW = "small_perceptron"
CPU = torch.device("cpu")


def read(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.fixture
def old(tmp_path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old")


def test_nothing_in_them_says_what_they_are_judged_by():
    for plan in OLD.rglob("plan.json"):
        assert "score" not in read(plan), plan


def test_a_report_shows_their_accuracy():
    comparison = report.summarize(OLD)
    [row] = comparison.rows
    assert row.score == ACCURACY
    assert row.reached.mean == read(OLD / ROW / "seed-0" / "result.json")["test_accuracy_percent"]
    assert row.trouble.startswith("1 stopped: SIGTERM after step 35")
    text = markdown(comparison)
    assert f"ends at {row.reached.mean:.2f} % test accuracy" in text
    assert "| best at the chosen, % |" in text


def test_a_diagnosis_looks_at_their_weights(old):
    """The way between two of them begins at what the finished one measured of itself; a plateau reads the records."""
    finished, stopped = (old / ROW / f"seed-{seed}" for seed in (0, 1))
    facts = path.measure(finished, stopped, CPU, points=2, curve=False, examples=200, precision="fp64")
    [start] = [point for point in facts["line"] if point["alpha"] == 0.0]
    events = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    *_, last = (event for event in events if event.get("split") == "test")
    assert start["test_accuracy_percent"] == last["accuracy_percent"]
    assert start["test_loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert plateau.measure(finished, CPU, checkpoint=False)["step"] == 60


def test_a_stopped_one_goes_on_and_ends_like_one_that_nothing_disturbed(old, tmp_path):
    stopped, whole = old / ROW / "seed-1", tmp_path / "whole"
    ends = [
        train(config.load(stopped / "run.yaml", [f"record.dir={directory}"]), quiet=True)
        for directory in (stopped, whole)
    ]
    assert [end.status for end in ends] == ["finished", "finished"]
    assert "resumed at step 35" in (stopped / "train.log").read_text()
    gone_on, undisturbed = (end.numbers for end in ends)
    assert gone_on["test_accuracy_percent"] == undisturbed["test_accuracy_percent"]
    assert gone_on["test_loss"] == pytest.approx(undisturbed["test_loss"], rel=1e-6)
    for name, weight in weights_at_end(whole).items():
        torch.testing.assert_close(weights_at_end(stopped)[name], weight, rtol=1e-6, atol=1e-9)


def test_the_same_comparison_goes_on_in_its_folder(old):
    before = {file: file.read_bytes() for file in old.rglob("metrics.jsonl")}
    compare([OLD / f"{ROW}.yaml"], old, seeds=2, tuning=Tuning(trials=3))
    changed = [file for file, content in before.items() if file.read_bytes() != content]
    assert changed == [old / ROW / "seed-1" / "metrics.jsonl"], "what was finished is not trained again"
    search, begun = (read(folder / "comparison.json")["rows"][0]["learning_rate_search"] for folder in (old, OLD))
    assert (search["chosen"], search["trials"]) == (0.2, begun["trials"])
