"""Rows whose runs had a target."""

from __future__ import annotations

import json
from typing import Any

from largebatch.report import summarize
from largebatch.report.fairness import fairness
from largebatch.report.page import html
from largebatch.report.table import every_run


def point(score: float, steps: float) -> dict[str, Any]:
    return {
        "score": score, "steps": steps, "examples": 64 * steps, "epochs": steps / 10, "seconds": steps / 8,
        "device_seconds": steps / 4,
    }  # fmt: skip


def target(*points: dict[str, Any] | None) -> dict[str, Any]:
    before, mark, between, last = points
    return {
        "score": 85.0, "patience": 1, "reached": mark is not None, "best": 86.0, "before": before, "mark": mark,
        "interpolated": between, "last": last,
    }  # fmt: skip


def test_every_run_shows_its_target(tmp_path, write_run):
    reached = target(point(80.0, 1200), point(90.0, 1300), point(85.0, 1250), point(90.0, 1300))
    for name, beside in (
        ("reached", {"target": reached}),
        ("missed", {"target": target(None, None, None, point(84.0, 10))}),
        ("free", {}),
    ):
        write_run(tmp_path / name, 86.0, beside=beside, name="r")
    comparison = summarize([tmp_path / name for name in ("reached", "missed", "free")])
    table = every_run(comparison)
    first = next(index for index, column in enumerate(table.columns) if column.title == "target")
    assert [column.heading for column in table.columns[first : first + 3]] == [
        "target", "steps to it", "training to it, s",
    ]  # fmt: skip
    assert [line.cells[first : first + 3] for line in table.lines] == [
        ("85.00 %", "1,250", "156.2"),
        ("85.00 %", "not reached", "–"),
        ("–", "–", "–"),
    ]
    assert fairness(comparison)[-1].startswith("Not the same target: 85.00 % (")
    assert "steps to it" in html(comparison)
    alone = summarize(tmp_path / "free")
    assert "target" not in [column.title for column in every_run(alone).columns]
    assert not [sentence for sentence in fairness(alone) if "target" in sentence.lower()]
    assert fairness(summarize(tmp_path / "reached"))[-1] == "Target: 85.00 %."


def test_a_damaged_target_is_none(tmp_path, write_run):
    write_run(tmp_path / "run", 86.0, beside={"target": "soon"})
    assert summarize(tmp_path / "run").runs[0].result.target is None
    assert json.loads((tmp_path / "run" / "result.json").read_text())["target"] == "soon"
