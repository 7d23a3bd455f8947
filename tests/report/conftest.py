"""Run and comparison folders written by hand, in the form that `train` and `compare` leave on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def write_run() -> Writer:
    """Write one run folder: (folder, accuracy, batch, seed, ...) -> folder."""
    return _write_run


@pytest.fixture(scope="session")
def write_comparison() -> Writer:
    """Write a comparison: (folder, {label: (batch, [accuracy or None, ...])}) -> folder; baseline first."""
    return _write_comparison


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
    (folder / "plan.json").write_text(json.dumps(plan | changed))
    records = []
    for step in range(1, steps + 1):
        at = {"step": step, "epoch": epochs * step / steps, "seconds": step / 8}
        records.append({"event": "train", **at, "lr": 0.1 * (1 - step / steps), "loss": 2 / step, "grad_norm": 1.0})
        reached = (80.0 if accuracy is None else accuracy) - 10 / step
        records.append({"event": "evaluate", **at, "split": split, "accuracy_percent": reached})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    failed = accuracy is None
    result = {
        "status": "failed" if failed else "finished", "reason": "loss is nan at step 17" if failed else None,
        "steps": steps, "test_accuracy_percent": accuracy, "evaluated_on": split,
        "train_accuracy_percent": None if failed else accuracy + 2, "seconds_per_step": 0.12,
        "seconds_per_epoch": 0.12 * steps / epochs, "seconds_total": 0.12 * steps,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def _write_comparison(folder: Path, rows: dict[str, tuple[int, list[float | None]]], **changed: Any) -> Path:
    listed = []
    for index, (label, (batch, accuracies)) in enumerate(rows.items()):
        for seed, accuracy in enumerate(accuracies):
            _write_run(folder / f"row-{index}" / f"seed-{seed}", accuracy, batch, seed)
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
