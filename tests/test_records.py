"""What is left on the disk: whole files, facts that know when they were changed, circumstances, typed records."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import REPOSITORY
from report import made_up

from largebatch.errors import UserError
from largebatch.records import circumstances, facts, files
from largebatch.records.circumstances import circumstances_of
from largebatch.records.comparison import ComparisonRecord
from largebatch.records.diagnoses import DIAGNOSES
from largebatch.records.run import LINES, EvaluateLine, PlanRecord, ResultRecord, StopLine, WorkerLine
from largebatch.records.typed import content, made, read

WRITES: dict[str, Callable[[Path], None]] = {
    "text": lambda path: files.write_text(path, "new ä"),
    "text on the disk": lambda path: files.write_text(path, "new ä", on_disk=True),
    "bytes": lambda path: files.write_bytes(path, "new ä".encode()),
    "json": lambda path: facts.write_json(path, {"new": "ä"}),
}


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(path: Path, content: Any, **_: Any) -> Any:
    with open(path, "wb") as file:
        file.write(
            content[: len(content) // 2] if isinstance(content, bytes) else content[: len(content) // 2].encode()
        )
    refuse()


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("kind", WRITES)
def test_a_file_takes_the_place_of_the_one_before(tmp_path, kind, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    WRITES[kind](path)
    assert path.read_bytes() == (b'{\n  "new": "\xc3\xa4"\n}\n' if kind == "json" else "new ä".encode())
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize(
    ("place", "name", "trouble"),
    [
        (Path, "write_text", half), (Path, "write_bytes", half), (os, "replace", refuse), (os, "replace", interrupted),
        (os, "fsync", refuse),
    ],
    ids=["half a text", "half the bytes", "no name", "interrupted", "no flush"],
)  # fmt: skip
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path, monkeypatch, kind, before, place, name, trouble
):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    met = []
    with monkeypatch.context() as patched:
        patched.setattr(place, name, lambda *given, **named: met.append(name) or trouble(*given, **named))
        try:
            WRITES[kind](path)
        except (OSError, KeyboardInterrupt):
            assert met
            assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])
        else:
            assert not met


def test_on_the_disk_means_content_then_name_then_folder(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(Path(os.readlink(f"/proc/self/fd/{fd}"))) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda one, two: done.append((one, two)) or replace(one, two))
    with files.whole(tmp_path / "file", on_disk=True) as unfinished:
        unfinished.write_bytes(b"new")
    assert done == [unfinished, (unfinished, tmp_path / "file"), tmp_path]
    assert unfinished.parent == tmp_path
    assert unfinished.suffix == files.UNFINISHED


def test_two_who_write_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with files.whole(path) as one, files.whole(path) as two:
        one.write_text("one"), two.write_text("two")
    assert path.read_text() == "one", "whoever ends last"
    assert list(tmp_path.iterdir()) == [path]


CHECKED = {"step": 3, "words": ["ä", None, {"sha256": "no checksum"}], "number": 0.1}


def test_checked_facts_come_back(tmp_path):
    text = facts.checked_text(CHECKED)
    assert facts.checked_facts(text.encode(), "x.json") == CHECKED
    whole = json.loads(text)
    assert list(whole) == [*CHECKED, "sha256"], "any reader of JSON reads them"
    assert whole["sha256"] == hashlib.sha256(text.rpartition(',\n "sha256"')[0].encode()).hexdigest()


@pytest.mark.parametrize("facts_of", [facts.checked_text({"a": [1, "two"]})])
def test_no_byte_of_checked_facts_changes_unseen(facts_of):
    content = facts_of.encode()
    for index in range(len(content)):
        for changed in (content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :], content[:index]):
            with pytest.raises(facts.Altered, match=r"the checksum of x\.json does not fit"):
                facts.checked_facts(changed, "x.json")


@pytest.mark.parametrize(("body", "sentence"), [("[" * 100_000, "x is no JSON"), ("{1", "x is no JSON")])
def test_a_checksum_that_fits_does_not_make_facts(body, sentence):
    text = f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'
    with pytest.raises(facts.Unsound, match=sentence):
        facts.checked_facts(text.encode(), "x")
    with pytest.raises(facts.Unsound, match="x is no text"):
        facts.checked_facts(b"\xff\xfe", "x")


def test_circumstances_say_what_was_measured_on_what(monkeypatch):
    monkeypatch.setattr(circumstances, "commit", lambda: "0123456789ab+")
    found = circumstances_of("largebatch bench optimizer")
    assert list(found) == ["command", "machine", "versions", "commit"]
    assert (found["command"], found["commit"]) == ("largebatch bench optimizer", "0123456789ab+")
    assert {"python", "torch", "numpy"} <= found["versions"].keys()
    assert found["machine"]["gpu"] is None
    assert found["machine"].keys() == {"host_cpu", "cores", "torch_threads", "gpu", "os"}
    json.dumps(found)


@pytest.mark.parametrize(("tracked", "commit"), [(True, "0123456789ab+"), (False, None)])
def test_the_commit_is_that_of_a_checkout_that_has_the_package(monkeypatch, tracked, commit):
    asked = []

    def git(words: list[str], **_: Any) -> subprocess.CompletedProcess:
        asked.append(words)
        there = tracked and (Path(words[2]) / words[-1]).is_file() if "ls-files" in words else True
        return subprocess.CompletedProcess(words, 0 if there else 1, stdout="0123456789ab+\n")

    monkeypatch.setattr(subprocess, "run", git)
    assert circumstances.commit.__wrapped__() == commit
    assert len(asked) == (2 if tracked else 1)


OLD = Path(__file__).parent / "runs" / "old_classification"
KINDS = {"plan.json": PlanRecord, "result.json": ResultRecord, "comparison.json": ComparisonRecord}


def without_version(record: Any) -> dict[str, Any]:
    whole = content(record)
    assert whole.pop("version") == record.VERSION
    return whole


def known(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


@pytest.mark.parametrize("name", KINDS)
def test_what_was_written_before_records_had_types_is_read_and_written_as_it_was(name):
    there = [json.loads(file.read_text()) for file in sorted(OLD.rglob(name))]
    assert there
    for whole in there:
        again = without_version(read(KINDS[name], whole, name))
        if name == "comparison.json":  # version 1 searched one key
            again, whole = without_searches(again), without_searches(whole)
        assert known(again) == known(whole)


def without_searches(comparison: dict[str, Any]) -> dict[str, Any]:
    tuning = {key: comparison["tuning"][key] for key in ("trials", "hold_out", "seed")}
    rows = [
        {key: value for key, value in row.items() if key not in ("search", "learning_rate_search")}
        for row in comparison["rows"]
    ]
    return {**comparison, "tuning": tuning, "rows": rows}


def test_a_search_of_one_key_is_read_as_one_of_several():
    (file,) = OLD.rglob("comparison.json")
    before = json.loads(file.read_text())["rows"][0]["learning_rate_search"]
    [row] = read(ComparisonRecord, json.loads(file.read_text()), "comparison.json").rows
    assert row.search is not None
    assert row.search.chosen == {"lr.base": before["chosen_base"]}
    assert [trial.values for trial in row.search.trials or ()] == [
        {"lr.base": pytest.approx(trial["peak_lr"] * before["chosen_base"] / before["chosen"])}
        for trial in before["trials"]
    ]
    assert [trial.number("accuracy_percent") for trial in row.search.trials or ()] == [
        trial["accuracy_percent"] for trial in before["trials"]
    ]
    assert (row.search.budget, row.search.hold_out) == (before["budget"], before["hold_out"])


def test_so_is_what_was_diagnosed():
    files = [REPOSITORY / "results" / f"{name}.json" for name in ("noise-mnist/at-the-end", "keskar-f1/path")]
    measured = [json.loads(file.read_text()) for file in files]
    measured += json.loads((REPOSITORY / "results" / "keskar-f1" / "sharpness.json").read_text())
    for whole in (*measured, made_up.PLATEAU, made_up.critical()):
        whole.pop("seed_of_run", None)  # not ours: added where they were gathered
        assert known(without_version(read(DIAGNOSES[whole["kind"]], whole, "x.json"))) == known(whole)


def test_so_is_every_line_of_old_metrics():
    lines = [json.loads(line) for file in OLD.rglob("metrics.jsonl") for line in file.read_text().splitlines()]
    assert {line["event"] for line in lines} >= {"train", "evaluate", "checkpoint", "stop"}
    for line in lines:
        kind = LINES[line.pop("event")]
        assert without_version(read(kind, line, "metrics.jsonl")) == line


def test_numbers_by_key_stand_beside_the_other_keys():
    at = {"step": 3, "examples_seen": 30, "epoch": 0.5, "seconds": 1.0, "split": "test", "examples": 10}
    line = EvaluateLine(**at, numbers={"loss": 0.5, "top5_percent": 99.0})
    assert without_version(line) == {**at, "loss": 0.5, "top5_percent": 99.0}
    assert read(EvaluateLine, {"event": "evaluate", **content(line)}, "a line") == line
    assert (line.number("loss"), line.number("epoch"), line.number("nothing")) == (0.5, 0.5, None)
    worker = WorkerLine(0, 5, 0.1, 90.0, step=3)
    assert read(WorkerLine, content(worker), "a line") == worker


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": None}, "plan.json: seed is 'None'; valid: int"),
        ({"steps": "ten"}, "plan.json: steps is 'ten'; valid: int"),
        ({"global_batch_size": 0}, "plan.json: global_batch_size: Input should be greater than 0"),
        ({"ramp": [[1.0]]}, "plan.json: ramp.0: Value should have at least 2 items"),
        ({"machine": 3}, "plan.json: machine: Input should be"),
        ({"score": {"key": "a"}}, "plan.json: score.name: Field required"),
        ({"score": {"key": "a", "name": "a", "tolerance": -1}}, "plan.json: score: "),
        ({"version": 2}, "plan.json: version is '2'; this largebatch reads versions up to 1"),
        ({"version": "x"}, "plan.json: version is 'x'"),
    ],
)
def test_what_readers_rely_on_is_refused_in_a_sentence(changed, sentence):
    whole = json.loads((OLD / "small_perceptron" / "seed-0" / "plan.json").read_text())
    with pytest.raises(UserError) as caught:
        read(PlanRecord, {**whole, **changed}, "plan.json")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_what_nobody_relies_on_is_none_where_it_is_of_another_kind():
    plan = read(
        PlanRecord,
        {"global_batch_size": 64, "steps": 10, "seed": 0, "lr": "high", "epochs": "ten", "parameters": [], "title": 3,
         "unheard_of": 1},
        "plan.json",
    )  # fmt: skip
    assert (plan.lr, plan.epochs, plan.parameters, plan.title, plan.versions) == (None, None, None, "3", None)
    assert read(ResultRecord, {"status": "finished", "workers": 3, "test_loss": "low"}, "r").numbers == {
        "test_loss": None
    }


def test_the_pages_made_from_the_code_are_what_the_script_makes():
    at = importlib.util.spec_from_file_location("build", REPOSITORY / "docs" / "build.py")
    assert at is not None
    assert at.loader is not None
    build = importlib.util.module_from_spec(at)
    at.loader.exec_module(build)
    for page, text in build.PAGES:
        assert (REPOSITORY / "docs" / page).read_text(encoding="utf-8") == text(), "run make docs"


def test_a_writer_is_refused_what_its_record_does_not_know():
    assert made(StopLine, {"step": 1, "reason": "SIGTERM"}) == StopLine(step=1, reason="SIGTERM")
    at = {"step": 3, "examples_seen": 30, "epoch": 0.5, "seconds": 1.0, "split": "test", "examples": 10}
    assert made(EvaluateLine, {**at, "loss": 0.5}).numbers == {"loss": 0.5}
    assert made(EvaluateLine, {**at, "loss": 0.5, "numbers": 3.0}).numbers == {"loss": 0.5, "numbers": 3.0}
    for kind, given, words in (
        (StopLine, {"step": 1}, "reason"),
        (StopLine, {"step": 1, "reason": "x", "why": "x"}, "why"),
        (EvaluateLine, {**at, "words": "no number"}, "knows no words"),
    ):
        with pytest.raises(TypeError, match=words):
            made(kind, given)
