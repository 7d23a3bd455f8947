"""``largebatch runs``, and ``compare`` of runs that are there."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import trained
from typer.testing import CliRunner

from largebatch.cli import app
from largebatch.errors import UserError
from largebatch.report.run import read_run
from largebatch.report.summary import summarize
from largebatch.run import record
from largebatch.studies.reading import runs


def command(*words: object) -> str:
    ended = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of digits at batches of 100 and 300, and one that is judged by held-out examples."""
    root = tmp_path_factory.mktemp("runs")
    trained(root / "deep" / "large", batch={"global_batch_size": 300}, epochs=1)
    trained(root / "small", epochs=1)
    trained(root / "other", epochs=1, data={"name": "digits", "hold_out": 300})
    return root


@pytest.mark.worlds
def test_runs_are_listed_with_their_scores(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    said = command("runs", folder, "--json", tmp_path / "runs.json")
    facts = {row["run"]: row for row in json.loads((tmp_path / "runs.json").read_text())["runs"]}
    assert facts.keys() == {"deep/large", "small", "other"}
    for name, batch in (("deep/large", 300), ("small", 100)):
        row, result = facts[name], json.loads((folder / name / "result.json").read_text())
        assert (row["state"], row["batch"], row["epochs"], row["seed"]) == ("finished", batch, 1, 0)
        assert row["score"] == result["test_accuracy_percent"]
        [line] = [line for line in said.splitlines() if line.startswith(f"{name} ")]
        assert f"{result['test_accuracy_percent']:.2f} %" in line
    begun = [row["begun"] for row in json.loads((tmp_path / "runs.json").read_text())["runs"]]
    assert begun == sorted(begun, reverse=True)


@pytest.mark.worlds
def test_a_run_in_progress_an_unfinished_and_a_broken_one(folder, tmp_path):
    run = trained(tmp_path / "all" / "run", epochs=1)
    with open(run / "metrics.jsonl", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert runs.row_of(run, tmp_path)["state"] == "running"
    (run / "result.json").unlink()
    row = runs.row_of(run, tmp_path)
    assert (row["state"], row["epochs"], row["of_epochs"]) == ("unfinished", 1.0, 1.0)
    (run / "plan.json").write_text("{}")
    assert "run" in command("runs", tmp_path / "all")
    (run / "plan.json").write_text("no json")
    assert "unreadable" in command("runs", tmp_path / "all")
    (tmp_path / "empty").mkdir()
    assert "holds no runs" in command("runs", tmp_path / "empty")
    with pytest.raises(UserError, match="is no folder; runs lie in runs/"):
        command("runs", tmp_path / "nowhere")


@pytest.mark.worlds
def test_a_look_at_the_lock_keeps_no_run_from_beginning(tmp_path, monkeypatch):
    """`runs` holds it for an instant. A process that trains holds it to its end, and is told."""
    run = trained(tmp_path / "run", epochs=1)
    with open(run / "metrics.jsonl", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        monkeypatch.setattr(record.time, "sleep", lambda _: fcntl.flock(file, fcntl.LOCK_UN))
        with record.locked(run):
            assert runs.row_of(run, tmp_path)["state"] == "running"
    waited: list[float] = []
    with open(run / "metrics.jsonl", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(record.time, "sleep", waited.append)
        with pytest.raises(UserError, match="is being trained in by another process"), record.locked(run):
            pass
    assert sum(waited) <= 1
    assert runs.row_of(run, tmp_path)["state"] == "finished"


DAMAGES = {
    "plan.json": ["", "null", "[1]", '{"version": 99}', '{"global_batch_size": 0}', '{"score": {"key": "a"}}'],
    "metrics.jsonl": ["\x00", "no json\n{}", "[]", '{"event": "evaluate"}', '{"event": "evaluate", "step": 1e99}'],
    "result.json": ["", "3", "{}", '{"status": "lost"}', '{"status": "finished"}', '{"evaluated_on": 7}'],
    "run.yaml": ["", "[", "- a", "model: 3", "expect: {by_batch_size: {x: 1}}"],
}


@pytest.mark.worlds
@pytest.mark.parametrize("file", DAMAGES)
def test_whatever_a_run_holds_it_is_a_row_and_a_sentence(folder, tmp_path, file):
    """Damaged, cut short, missing, or another kind of thing: no traceback in a list nor in a table."""
    good = Path(shutil.copytree(folder / "small", tmp_path / "good"))
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    whole = (good / file).read_bytes()

    def damages() -> Iterator[str]:
        for text in DAMAGES[file]:
            (bad / file).write_text(text)
            yield text
        (bad / file).write_bytes(whole[: len(whole) // 2])
        yield "half"
        (bad / file).write_bytes(b"\xff\xfe")
        yield "no text"
        (bad / file).unlink()
        yield "missing"
        (bad / file).mkdir()
        yield "a folder"

    for damage in damages():
        rows = {row["run"]: row for row in runs.runs_in(tmp_path)}
        assert rows["good"]["state"] == "finished", damage
        if "bad" in rows:  # else it is no run at all
            assert len(runs._cells(rows["bad"])) == len(runs.COLUMNS)
            assert rows["bad"]["state"] != "unreadable" or "\n" not in rows["bad"]["reason"]
        json.dumps(list(rows.values()))
        try:
            assert len(summarize(runs.in_order([good, bad], None)).rows) == 2
        except UserError as problem:
            assert "\n" not in str(problem), damage


@pytest.mark.worlds
def test_a_run_that_was_not_evaluated_yet_is_compared_with_one_that_was(folder, tmp_path):
    """As it is being written: without a result it is judged on what its lines say, and nothing is held against it."""
    going = Path(shutil.copytree(folder / "other", tmp_path / "going"))
    (going / "result.json").unlink()
    assert runs.in_order([folder / "other", going], None) == [folder / "other", going]
    assert read_run(going, "going").evaluated_on == "held_out"
    (going / "metrics.jsonl").unlink()
    assert runs.in_order([going, folder / "other"], None) == [going, folder / "other"]
    assert runs.row_of(going, tmp_path)["state"] == "unfinished"
    other = trained(
        tmp_path / "diabetes", data={"name": "diabetes"}, batch={"global_batch_size": 20}, lr={"base": 0.01}, epochs=1
    )
    with pytest.raises(UserError, match="cannot be compared: the task of the one is classification, of the other regr"):
        runs.in_order([folder / "small", other], None)
    assert {row["state"] for row in runs.runs_in(tmp_path)} == {"unfinished", "finished"}


def test_names_that_are_no_path_are_a_sentence(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="is no run folder; compare takes recipe files, or run folders alone"):
        command("compare", "x" * 5000, tmp_path / "run")
    for name, said in (("", "the run is empty"), ("@best", "the run is empty"), ("x" * 5000, "is too long for a path")):
        with pytest.raises(UserError, match=said):
            command("evaluate", name)


@pytest.mark.worlds
def test_runs_made_separately_have_one_table_and_a_stated_baseline(folder, tmp_path):
    large, small = folder / "deep" / "large", folder / "small"
    said = command("compare", large, small, "--out", tmp_path / "report")
    assert f"baseline: {small}, of the smallest batch" in said.replace("\n", "")
    assert "(baseline)" in said
    assert (tmp_path / "report" / "report.html").is_file()
    said = command("compare", small, large, "--baseline", large, "--out", tmp_path / "report")
    assert f"baseline: {large}" in said.replace("\n", "")
    assert runs.in_order([small, large], large) == [large, small]


@pytest.mark.worlds
def test_what_cannot_be_compared_is_refused_in_a_sentence(folder, tmp_path, recipe):
    small, large, other = folder / "small", folder / "deep" / "large", folder / "other"
    for words, said in (
        (
            (small, other),
            "cannot be compared: the split that it is judged on of the one is test, of the other held",
        ),
        ((small, recipe()), "is no run folder; compare takes recipe files, or run folders alone"),
        ((small, large, "--baseline", other), "other is none of the runs; valid: "),
        ((small, large, "--vary", "lr.base=1,2"), "--vary is for recipes, which it trains; these runs are there"),
        ((small, large, "--seeds", "2"), "--seeds is for recipes"),
        ((small, large, "--trials", "3"), "--trials is for recipes"),
        ((small, large, small), "are one run; name each once"),
    ):
        with pytest.raises(UserError, match=said):
            command("compare", *words, "--out", tmp_path / "report")
