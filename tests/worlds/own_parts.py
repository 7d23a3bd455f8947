"""Parts of one's own: a model of two inputs, sets whose items are dicts, a task; and runs of them on each rank."""

from __future__ import annotations

import json
import os
import random
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import largebatch as lb

TRAINED_ON, TESTED_ON = 240, 50
RECIPE: dict[str, Any] = {
    "name": "own",
    "batch": {"global_batch_size": 48},
    "epochs": 2,
    "optimizer": {"name": "lamb"},
    "lr": {"base": 0.02, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}},
    "weight_decay": {"value": 0.01},
    "record": {"to": [], "every_steps": 1},
    "device": "cpu",
}


class TwoInputs(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 8)
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(torch.cat([self.left(left), self.right(right)], dim=1))))


class Pairs(Dataset):
    """Items are dicts; nothing is drawn."""

    def __init__(self, count: int = TRAINED_ON) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        numbers = np.random.Generator(np.random.PCG64(index)).normal(size=7)
        return {"left": numbers[:4], "right": torch.from_numpy(numbers[4:]), "label": int(numbers.sum() > 0)}


class ByGenerator(Pairs):
    """Augmented with the generator that it is given."""

    def __getitem__(self, index: int, generator: torch.Generator | None = None) -> dict[str, Any]:
        item = super().__getitem__(index)
        assert generator is not None
        return {**item, "left": item["left"] + 0.5 * torch.randn(4, generator=generator, dtype=torch.float64).numpy()}


class ByGlobalState(Pairs):
    """Augmented with whatever the global generators give, as torchvision's transforms are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        drawn = [torch.randn(()).item(), np.random.normal(), random.gauss(0, 1), 0.0]  # noqa: NPY002
        return {**item, "left": item["left"] + 0.5 * np.array(drawn)}


class OnlyNumber(Pairs):
    def __getitem__(self, index: int) -> Any:
        return index


class SameSide(lb.Task):
    """Which side of zero the sum lies on, of batches that are dicts."""

    score: ClassVar[lb.Score] = lb.Score("right_percent", "right", unit="%", more_is_better=True, tolerance=1.0)

    def forward(self, model: Any, batch: Any) -> Any:
        return model(batch["left"], batch["right"])

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch["label"], reduction="sum")

    def tally(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        return {"loss": self.loss(outputs, batch), "right": (outputs.argmax(1) == batch["label"]).sum()}

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        return {
            "loss": float(sums["loss"] / sums["examples"]),
            "right_percent": 100 * float(sums["right"] / sums["examples"]),
        }


SETS = {"plain": Pairs, "generator": ByGenerator, "global": ByGlobalState}


def dataset_of(kind: str = "plain", task: Any = None) -> lb.Dataset:
    test = ByGenerator(TESTED_ON) if kind == "generator" else Pairs(TESTED_ON)
    return lb.Dataset(SETS[kind](), test, task=task or SameSide(), outputs=2)


def run_of(folder: Path | str, **keys: Any) -> lb.Run:
    return lb.recipe(RECIPE, {"record.dir": str(folder), **{key.replace("__", "."): keys[key] for key in keys}})


def train(folder: str, kind: str, overrides: str = "{}", optimizer: str = "", seed: str = "0") -> None:
    """A run with all parts; the module's weights at its end, of each rank, beside the run."""
    rank = int(os.environ.get("RANK", 0))
    model = TwoInputs(int(seed) + rank)  # another one on every rank: rank zero's counts
    run = lb.recipe(run_of(folder), json.loads(overrides))
    builder = getattr(torch.optim, optimizer) if optimizer else None
    result = lb.train(run, model=model, dataset=dataset_of(kind), optimizer=builder, parts=PARTS)
    assert result.status == "finished", result.reason
    numbers = lb.evaluate(run, model=model, dataset=dataset_of(kind))
    assert numbers["right_percent"] == result.reached
    torch.save({name: tensor.double() for name, tensor in model.state_dict().items()}, f"{folder}.rank{rank}.pt")


class Killed(lb.Part):
    """Ends the process where an environment says so, once."""

    def __init__(self, job: Any) -> None:
        self.step = int(os.environ.get("KILL_AFTER_STEP", -1))

    def after(self, step: Any) -> None:
        if step.number + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


PARTS = {"killed": Killed}


def train_uneven(folder: str) -> None:
    """Rank 1 has another set."""
    rank = int(os.environ["RANK"])
    data = lb.Dataset(Pairs(TRAINED_ON + rank), Pairs(TESTED_ON), task=SameSide())
    lb.train(run_of(folder), model=TwoInputs(), dataset=data)


def train_by_turns(folder: str) -> None:
    """Groups are joined and left again."""
    engines = ["ddp", "fsdp", "ddp", *(["deepspeed"] * 2 if find_spec("deepspeed") else [])]
    for number, engine in enumerate(engines):
        run = run_of(f"{folder}/{number}", engine__name=engine)
        assert lb.train(run, model=TwoInputs(), dataset=dataset_of()).status == "finished"
        assert not torch.distributed.is_initialized()
