"""Runs of seconds, trained in this process, and what they wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY

from largebatch.recipes import config
from largebatch.run.train import train

NUMBERS = ("loss", "accuracy_percent", "squared_error", "r2")


def recipe_of(folder: Path, **keys: Any) -> dict[str, Any]:
    return {"name": folder.name, **TINY, "record": {"dir": str(folder), "to": []}, **keys}


def trained(folder: Path, **keys: Any) -> Path:
    """The tiny recipe with other keys, trained to its end in ``folder``."""
    assert train(config.from_dict(recipe_of(folder, **keys)), quiet=True).status == "finished"
    return folder


def recorded(run: Path, step: int, split: str) -> dict[str, float]:
    """What the run wrote down of an evaluation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [line] = [one for one in lines if one["event"] == "evaluate" and (one["step"], one["split"]) == (step, split)]
    return {key: line[key] for key in NUMBERS if key in line}


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as opened:
        return dict(opened)
