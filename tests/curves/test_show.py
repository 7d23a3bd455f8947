"""`largebatch study show`: what is there, tables and sentences, numbers and pictures, and mistakes."""

from __future__ import annotations

import functools
import io
import json
import re
from dataclasses import replace

import pytest
import rich.console

from largebatch.records.curves import TargetsRecord
from largebatch.records.typed import content, read
from largebatch.report import targets
from largebatch.studies.curves.measured import TargetCurve, TargetPoint, TargetRun
from largebatch.studies.curves.recorded import curve_record, measure

OWN = """
title: some runs did not
unit: images
points:
  32: {lr: 0.1, examples: {100000: 1, 110000: 1, 104000: 1}}
  128: {lr: 0.2, examples: {130000: 1, 125000: 1, 119000: 1}}
  512: {lr: 0.4, examples: {200000: 1, 190000: 1, 215000: 1}}
  8192: {examples: {690000: 1}, unreached: {700000: 2}}
"""


@pytest.fixture
def ask(tmp_path, monkeypatch, front_door):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    return functools.partial(front_door, "study")


def test_without_a_name_it_lists_them(ask):
    code, out, _ = ask("show")
    assert code == 0
    assert "mlperf/resnet50" in out
    assert "46,900" in out


def test_resnet50_in_a_table_and_sentences(ask, tmp_path):
    code, out, err = ask("show", "mlperf/resnet50", "--json", "numbers.json")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.strip().startswith("67,840")]
    assert re.split("  +", line.strip())[:6] == ["67,840", "24.7", "28", "85.9", "85.6 to 86.1", "1,621"]
    assert "B_crit 46,900 images (41,000 to 54,000), E_min 34.6 epochs" in out
    assert "perfect scaling (20 %) ends at 9,380" in out
    assert "188,000 (beyond what was measured)" in out
    facts = json.loads((tmp_path / "numbers.json").read_text())
    record = read(TargetsRecord, facts, "numbers.json")
    assert content(record) == facts == json.loads(json.dumps(content(measure("mlperf/resnet50", record.command))))
    assert record.command == "largebatch study show mlperf/resnet50 --json numbers.json"


@pytest.mark.worlds
def test_several_names_with_pictures(ask, tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    code, out, err = ask("show", "mlperf/bert", "own.yaml", "--out", "there/in")
    assert (code, err) == (0, "")
    written = sorted(str(file.relative_to(tmp_path / "there/in")) for file in (tmp_path / "there").rglob("*.*"))
    assert written == ["mlperf/bert.json", "mlperf/bert.svg", "own.json", "own.svg"]
    assert "> 700,000" in out
    assert "1 of 3" in out
    assert "fewer than 6 runs at batch 32, 128, 512 and 8,192: intervals hold at most 75 %" in out
    assert "a lower bound" in (tmp_path / "there/in/own.svg").read_text()


def test_mistakes_are_one_sentence(ask, tmp_path):
    (tmp_path / "taken").write_text("")
    (tmp_path / "own.yaml").write_text(OWN)
    for arguments, said in {
        ("study.yaml",): "study study.yaml is neither a file nor known; valid: add, run, show, status",
        ("shwo",): "study shwo is neither a file nor known; did you mean show?",
        ("show", "mlperf/resnet"): "did you mean mlperf/resnet50?",
        ("show", "mlperf/bert", "mlperf/flux1", "--json", "x.json"): "--json x.json takes one name",
        ("show", "mlperf/bert", "--json", "none/x.json"): "the folder none does not exist",
        ("show", "own.yaml", "--out", "taken"): "--out: the folder taken cannot be made",
    }.items():
        code, _, err = ask(*arguments)
        assert code == 2, arguments
        assert said in err
        assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.yaml", "taken"]


def test_a_row_with_seconds_shows_them():
    runs = tuple(TargetRun(seed, 1000.0 + seed, True, 12.0 + seed) for seed in range(3))
    slow = tuple(TargetRun(seed, 5000.0, False, 40.0) for seed in range(3))
    row = TargetCurve("LARS", (TargetPoint(32, runs, {"lr.base": 0.1}), TargetPoint(64, slow, {"lr.base": 0.2})))
    facts = replace(measure("mlperf/bert", ""), curves=[curve_record(row)])
    console = rich.console.Console(width=140, record=True, file=io.StringIO())
    console.print(targets.points(facts, facts.curves[0]))
    shown = console.export_text()
    first, second = (re.split("  +", line.strip()) for line in shown.splitlines()[-2:])
    assert first[:2] == ["32", "0.1"]
    assert (first[-1], second[-1]) == ("13", "> 40")


def test_laws_that_cannot_be_told_are_said_to_be(ask, tmp_path):
    (tmp_path / "two.yaml").write_text(
        "title: two\npoints: {32: {examples: {1000: 1}}, 64: {examples: {1100: 1}}, 128: {unreached: {2000: 1}}}"
    )
    (tmp_path / "one.yaml").write_text("title: one\npoints: {32: {examples: {1000: 1}}, 64: {unreached: {2000: 1}}}")
    (tmp_path / "flat.yaml").write_text(
        "title: flat\npoints: {32: {examples: {1000: 1}}, 64: {examples: {990: 1}}, 128: {examples: {980: 1}}}"
    )
    said = {name: ask("show", f"{name}.yaml")[1] for name in ("two", "one", "flat")}
    assert "there is no interval" in said["two"]
    assert "by the points perfect scaling ends between 64 and 128" in said["two"]
    assert "nothing is fitted" in said["one"]
    assert "B_crit without bound examples" in said["flat"]
    assert "no batch of these costs examples" in said["flat"]
