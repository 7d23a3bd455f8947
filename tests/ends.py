"""Whether two runs ended alike, bit by bit: every recorded step and evaluation, the result, everything saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from programs import state_at_end


def events(directory: Path, event: str) -> list[dict[str, Any]]:
    """Whole lines; the program may be writing the next one."""
    file = directory / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []
    return [line for line in map(json.loads, whole) if line["event"] == event]


def of_every_step(directory: Path) -> dict[int, tuple[Any, ...]]:
    """The last line of each counts."""
    lines = events(directory, "train")
    return {line["step"]: tuple(line[key] for key in ("examples_seen", "lr", "loss", "grad_norm")) for line in lines}


def of_every_evaluation(directory: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    lines = events(directory, "evaluate")
    numbers = [{key: value for key, value in line.items() if key not in ("seconds", "time")} for line in lines]
    return {(line["split"], line["step"]): tuple(sorted(line.items())) for line in numbers}


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    match tree:
        case dict():
            pairs = list(tree.items())
        case list() | tuple():
            pairs = list(enumerate(tree))
        case _:
            return {name: tree}
    return {key: leaf for part, below in pairs for key, leaf in leaves(below, f"{name}/{part}").items()}


def state(directory: Path) -> dict[str, Any]:
    """Weights, optimizer, running statistics, random states, what methods remember; but for the seconds it took."""
    found = leaves({key: value for key, value in state_at_end(directory).items() if key != "progress"})
    return {name: leaf for name, leaf in found.items() if name.rpartition("/")[2] not in ("seconds", "device_seconds")}


def everything(directory: Path) -> dict[str, Any]:
    numbers = {key: value for key, value in leaves(result(directory)).items() if "second" not in key}
    found: dict[str, Any] = {f"result {key}": value for key, value in numbers.items()}
    found |= {f"step {step}": numbers for step, numbers in of_every_step(directory).items()}
    found |= {f"evaluation {which}": numbers for which, numbers in of_every_evaluation(directory).items()}
    return found | {f"state {name}": leaf for name, leaf in state(directory).items()}


def different(one: Path, other: Path) -> list[str]:
    """What is not the same bit by bit; both are to be of the same engine, world and number of threads."""
    these, those = everything(one), everything(other)
    return sorted(these.keys() ^ those.keys()) + [
        name for name in sorted(these.keys() & those.keys()) if not same(these[name], those[name])
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other
