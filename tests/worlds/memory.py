"""On two ranks: runs with activation checkpointing beside those without, and micro-batches that are tried."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_recipes import PLAIN
from programs import weights_at_end

from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run import micro_batch
from largebatch.run.micro_batch import pass_over
from largebatch.run.train import train

NET = {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.3}
WIDE = {"name": "wide_resnet", "depth": 10, "width": 4, "dropout": 0.3}  # of several blocks that FSDP gathers
PHOTOS = {"name": "synthetic", "image_shape": [3, 8, 8], "num_classes": 4, "examples": 24}
CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, several buckets and half sums": {"model": WIDE, "engine": {"all_reduce": "bf16"}, "precision": "fp32"},
    "synchronised": {"batch": {"global_batch_size": 8, "bn_batch_size": 8}},
    "sam": {"sam": {"rho": 0.1}},
    "adascale": {
        "lr": {"base": 0.05, "scaling": "adascale", "reference_batch_size": 2}, "model": {**NET, "dropout": 0.0},
    },
    "fsdp": {"model": WIDE, "engine": {"name": "fsdp"}},
    "fsdp, coarse": {"model": WIDE, "engine": {"name": "fsdp", "activation_checkpointing": ["1", "2", "3", "4"]}},
    "fsdp, fine": {"model": WIDE, "engine": {"name": "fsdp", "activation_checkpointing": ["*.body"]}},
    "zero 1": {"engine": {"name": "deepspeed", "zero": 1}, "precision": "fp32"},
    "zero 2": {"engine": {"name": "deepspeed", "zero": 2}, "precision": "fp32"},
}  # fmt: skip


def recomputed(folder: str) -> None:
    """What differs, by case."""
    told: dict[str, list[str]] = {}
    with distributed.group(torch.device("cpu")):
        for case, changes in CASES.items():
            engine = changes.get("engine", {})
            if engine.get("name") == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
                continue
            ends = []
            for again in (None, engine.get("activation_checkpointing", "blocks")):
                where = Path(folder) / case / ("with" if again else "without")
                written = {
                    **PLAIN, "name": "memory", "model": NET, "data": PHOTOS, "epochs": None, "steps": 2,
                    "batch": {"global_batch_size": 8, "micro_batch_size": 2}, "lr": {"base": 0.05},
                    "checkpoint": {"every_epochs": 100}, "evaluate": {"every_epochs": 100}, **changes,
                    "engine": {**engine, "activation_checkpointing": again},
                    "record": {"tensorboard": False, "dir": str(where)},
                }  # fmt: skip
                result = train(config.from_dict(written), quiet=True)
                assert result.status == "finished", (case, result.reason)
                ends.append(weights_at_end(where))
            without, there = ends
            assert without.keys() == there.keys()
            told[case] = [name for name in without if not torch.equal(without[name], there[name])]
    if distributed.rank() == 0:
        (Path(folder) / "told.json").write_text(json.dumps(told))


class Pretended:
    """The memory of a device on which more than ``most`` examples do not fit."""

    def __init__(self, whole: int, free: Callable[[int], float]) -> None:
        self.bytes, self.free, self.tried = whole, free, list[int]()

    def clear(self) -> None: ...

    def free_share(self) -> float:
        return self.free(self.tried[-1])


def pretended_device(
    monkeypatch: Any,
    most: int,
    free: Callable[[int], float] = lambda micro: 0.5,
    whole: int = 2**34,
    error: Exception | None = None,
) -> Pretended:
    """The CPU has such a memory, and after the first steps of a trial it is too small: the worst moment."""
    device, really = Pretended(whole, free), pass_over

    def runs_out(steps: Any, number: int, micro: int) -> None:
        device.tried.append(micro)
        really(steps, number, micro)
        if micro > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")

    monkeypatch.setattr(micro_batch, "memory_of", lambda _: device)
    monkeypatch.setattr(micro_batch, "pass_over", runs_out)
    return device


def tried(folder: str) -> None:
    """Rank 1 holds six examples and rank 0 twenty; and a run in which six are stated."""
    with distributed.group(torch.device("cpu")):
        for name, micro in (("tried", "auto"), ("stated", 6)):
            with pytest.MonkeyPatch.context() as patch:
                pretended_device(patch, most=20 if distributed.is_first() else 6)
                trained_with(Path(folder) / name, micro)


def trained_with(folder: Path, micro: int | str) -> None:
    written = {
        **PLAIN, "name": folder.name, "model": {"name": "tiny_cnn", "channels": [4, 6], "dropout": 0.2},
        "batch": {"global_batch_size": 48, "bn_batch_size": 2, "micro_batch_size": micro}, "epochs": None, "steps": 5,
        "lr": {"base": 0.05}, "optimizer": {"name": "lamb"}, "checkpoint": {"every_epochs": 0.1},
        "evaluate": {"every_epochs": 100}, "record": {"tensorboard": False, "dir": str(folder)},
    }  # fmt: skip
    result = train(config.from_dict(written), quiet=True)
    assert result.status == "finished", result.reason
