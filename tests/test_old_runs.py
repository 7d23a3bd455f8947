"""Runs and a comparison that commit 8cecc49 left behind, before scores were data: they open, and they go on.

``tests/runs/old_classification`` holds a row with a search (three trials, without their checkpoints), seed 0, which
finished, and seed 1, which was stopped after step 35 of 60. Everything was computed in float64 on one thread.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
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
    [start] = [point for point in facts.line if point.alpha == 0.0]
    events = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    *_, last = (event for event in events if event.get("split") == "test")
    assert start.numbers["test_accuracy_percent"] == last["accuracy_percent"]
    assert start.numbers["test_loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert plateau.measure(finished, CPU, checkpoint=False).step == 60


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
    search = read(old / "comparison.json")["rows"][0]["search"]
    begun = read(OLD / "comparison.json")["rows"][0]["learning_rate_search"]
    assert search["chosen"] == {"lr.base": 0.2}
    assert [(trial["values"]["lr.base"], trial["accuracy_percent"]) for trial in search["trials"]] == [
        (trial["peak_lr"], trial["accuracy_percent"]) for trial in begun["trials"]
    ]


# Of commit a4be16b, before parts: tests/method_recipes.py on one thread in float64; two of each run's checkpoints at
# most are left, and the weights that it ended with.

BEFORE_PARTS = {  # which of its checkpoints it goes on from
    "ema": ("ema", 13),
    "adascale, noise scale": ("adascale", 7),
    "workers that step alone": ("post_local_sgd_with_ema", 13),
    "in the middle of an epoch that is counted": ("swap", 7),
    "between two workers": ("swap", 50),
}


@pytest.mark.worlds
@pytest.mark.parametrize("case", BEFORE_PARTS)
def test_a_run_of_before_parts_goes_on(tmp_path, one_thread, case):
    method, step = BEFORE_PARTS[case]
    directory = shutil.copytree(OLD.parent / "before_parts" / method, tmp_path / method)
    before = read(directory / "result.json")
    (directory / "result.json").unlink()
    for newer in (directory / "checkpoints").glob("step-*"):
        if int(newer.name.removeprefix("step-")) > step:
            shutil.rmtree(newer)
    run = config.load(directory / "run.yaml", [f"record.dir={directory}"])
    assert train(run, quiet=True).status == "finished"
    assert f"from {directory}/checkpoints/step-{step:08}" in (directory / "train.log").read_text()
    ended, expected = weights_at_end(directory), safetensors.torch.load_file(directory / "end.safetensors")
    assert ended.keys() == expected.keys()
    for name, tensor in ended.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-11, msg=name)
    after = read(directory / "result.json")
    measured = [key for key, value in before.items() if isinstance(value, float) and "second" not in key]
    assert {key: after[key] for key in measured} == pytest.approx({key: before[key] for key in measured}, rel=1e-9)
    assert [worker["steps"] for worker in after.get("workers") or []] == [w["steps"] for w in before["workers"] or []]
