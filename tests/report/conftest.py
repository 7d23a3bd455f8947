"""Run and comparison folders written by hand, in the form that `train` and `compare` leave on disk."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from largebatch.plan.score import ACCURACY, Score

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def write_run() -> Writer:
    """Write one run folder: (folder, accuracy, batch, seed, ...) -> folder; the number is of the ``score``, if any."""
    return _write_run


@pytest.fixture(scope="session")
def write_comparison() -> Writer:
    """Write a comparison: (folder, {label: (batch, [accuracy or None, ...])}) -> folder; baseline first."""
    return _write_comparison


@pytest.fixture(scope="session")
def troubles() -> Callable[[str], list[str]]:
    """Texts of a page's or a file's pictures that lie on one another or leave the picture."""
    return _troubles


def _troubles(page: str) -> list[str]:
    found = []
    for picture in re.findall(r'<svg [^>]*viewBox="0 0 .*?</svg>', page, re.DOTALL):
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture).groups())
        boxes = [
            _box(*text) for text in re.findall(r'<text style="([^"]*)" x="([^"]*)" y="([^"]*)"[^>]*>(.+?)<', picture)
        ]
        for index, (left, top, right, bottom, text) in enumerate(boxes):
            if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
                found.append(f"{text!r} leaves the picture")
            found += [
                f"{text!r} lies on {other[4]!r}"
                for other in boxes[:index]
                if left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
            ]
    return found


def _box(style: str, x: str, y: str, text: str) -> tuple[float, float, float, float, str]:
    """Of its letters in the font that the layout was made for: left, top, right, bottom."""
    size, text = float(re.search(r"font(?:-size)?:[^;]*?([\d.]+)px", style)[1]), html.unescape(text)
    font = FontProperties(family="DejaVu Sans", weight="bold" if "bold" in style or "700" in style else "normal")
    width = TextPath((0, 0), text, size=size, prop=font).get_extents().width if text.strip() else 0
    anchor = re.search(r"text-anchor:\s*(\w+)", style)
    left = float(x) - {"middle": width / 2, "end": width}.get(anchor[1] if anchor else "", 0)
    return left, float(y) - 0.72 * size, left + width, float(y) + 0.15 * size, text


def _write_run(folder: Path, accuracy: float | None = 90.0, batch: int = 64, seed: int = 0, **changed: Any) -> Path:
    folder.mkdir(parents=True)
    steps, examples = changed.pop("steps", 6400 // batch), 6400
    split, epochs = changed.pop("evaluated_on", "test"), changed.pop("epochs", 10.0)
    name = changed.pop("name", folder.parent.name)
    (folder / "run.yaml").write_text(changed.pop("config", f"name: {json.dumps(name)}\nmodel: {{name: tiny_cnn}}\n"))
    plan = {
        "name": name, "dataset": "digits", "dataset_size": 640, "test_size": 100, "global_batch_size": batch,
        "steps": steps, "budget_examples": examples, "epochs": epochs, "lr": {"peak": batch / 640},
        "parameters": 1234, "device": "cpu", "precision": "fp32", "engine": "ddp", "world_size": 1,
        "seed": seed, "commit": "abc123",
        "command": f"largebatch train {seed}", "machine": {"host_cpu": "Some CPU", "cores": 2, "gpu": None},
        "versions": {"python": "3.11.7", "torch": "2.15.0"}, "started": "2026-11-21T21:30:00+00:00",
    }  # fmt: skip
    events, diagnostics = changed.pop("events", []), changed.pop("diagnostics", [])
    score, beside = Score(**changed.get("score", ACCURACY._asdict())), changed.pop("beside", {})
    (folder / "plan.json").write_text(json.dumps(plan | changed))
    records = []
    for step in range(1, steps + 1):
        at = {"step": step, "epoch": epochs * step / steps, "seconds": step / 8}
        records.append({"event": "train", **at, "lr": 0.1 * (1 - step / steps), "loss": 2 / step, "grad_norm": 1.0})
        reached = (80.0 if accuracy is None else accuracy) - (10 if score.more_is_better else -10) / step
        records.append({"event": "evaluate", **at, "split": split, score.key: reached})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, *events]))
    for facts in diagnostics:
        (folder / "diagnostics").mkdir(exist_ok=True)
        (folder / "diagnostics" / f"{facts['kind']}.json").write_text(json.dumps(facts))
    failed = accuracy is None
    result = {
        "status": "failed" if failed else "finished", "reason": "loss is nan at step 17" if failed else None,
        "steps": steps, f"test_{score.key}": accuracy, "evaluated_on": split,
        f"train_{score.key}": None if failed else accuracy + 2 if score.more_is_better else 0.9 * accuracy,
        "seconds_per_step": 0.12, "seconds_per_epoch": 0.12 * steps / epochs, "seconds_total": 0.12 * steps,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result | beside))
    return folder


def _write_comparison(folder: Path, rows: dict[str, tuple[int, list[float | None]]], **changed: Any) -> Path:
    listed, of_runs = [], changed.pop("of_runs", {})
    for index, (label, (batch, accuracies)) in enumerate(rows.items()):
        for seed, accuracy in enumerate(accuracies):
            _write_run(folder / f"row-{index}" / f"seed-{seed}", accuracy, batch, seed, **of_runs)
        listed.append(
            {
                "id": f"row-{index}",
                "label": label,
                "config": f"configs/row-{index}.yaml",
                "overrides": [],
                "runs": [f"row-{index}/seed-{seed}" for seed in range(len(accuracies))],
                "learning_rate_search": None,
                "expect": None,
            }
        )
    data = {
        "name": "study",
        "command": "largebatch compare",
        "baseline": "row-0",
        "rows": listed,
        "notes": ["Fair."],
    }
    (folder / "comparison.json").write_text(json.dumps(data | changed))
    return folder
