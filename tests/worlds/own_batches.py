"""Batches that are no pair of images and labels: a dict of tokens, a mask and weights, in every engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch import engines, optim
from largebatch.data.nested import Batch
from largebatch.machine import distributed
from largebatch.plan import batch
from largebatch.plan.score import Score
from largebatch.tasks.task import Task

STEPS, GLOBAL, LENGTH, WORDS = 4, 8, 5, 11
SETTINGS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {},
    "deepspeed": {"zero": 1},
    "deepspeed bf16": {"zero": 1, "weights": "bf16"},
}


class Words(nn.Module):
    """The mean embedding of the tokens that a mask leaves, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 6)
        self.head = nn.Linear(6, 3)
        self.met: list[str] = []

    def forward(self, ids: Tensor, *, mask: Tensor, scale: Tensor) -> dict[str, Tensor]:
        self.met = [str(part.dtype).removeprefix("torch.") for part in (ids, mask, scale)]
        kept = self.table(ids) * mask[:, :, None]
        return {"logits": self.head(kept.sum(1) / mask.sum(1, keepdim=True) * scale[:, None])}


class Named(Task):
    score = Score("loss", "loss", more_is_better=False)

    def forward(self, model: Any, batch: Batch) -> Any:
        return model(batch["ids"], mask=batch["more"][0], scale=batch["more"][1])

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs["logits"], batch["label"], reduction="sum")

    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(outputs, batch)}

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        return {"loss": float(sums["loss"] / sums["examples"])}


def drawn(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    mask = torch.rand(GLOBAL, LENGTH, generator=generator) > 0.3
    mask[:, 0] = True
    return {
        "ids": torch.randint(WORDS, (GLOBAL, LENGTH), generator=generator),
        "more": (mask, torch.rand(GLOBAL, generator=generator)),
        "label": torch.randint(3, (GLOBAL,), generator=generator),
    }


def train_with_all(folder: str) -> None:
    from largebatch.data.nested import rows_of

    device, task = torch.device("cpu"), Named()
    found: dict[str, Any] = {}
    with distributed.group(device):
        world, rank = distributed.world_size(), distributed.rank()
        micro = GLOBAL // world // 2
        for name, settings in SETTINGS.items():
            kind = name.partition(" ")[0]
            torch.manual_seed(0)
            precision = "bf16" if settings.get("weights") == "bf16" else "fp32"
            engine = engines.ENGINES[kind](device, precision, False, False, **settings)
            engine.shard_safe = True
            model = engine.place(Words())
            table = optim.treatments(model, (), None)
            groups = optim.parameter_groups(model, 0.0, table)
            plan = batch.resolve(
                dataset_size=GLOBAL, global_batch_size=GLOBAL, world_size=world, micro_batch_size=micro, steps=STEPS
            )
            engine.prepare(model, torch.optim.SGD(groups, 0.1, 0.9), plan, None)
            losses = []
            for step in range(STEPS):
                given = drawn(step)
                loss = torch.zeros((), dtype=torch.float64)
                for part in range(2):
                    mine = rows_of(given, slice((rank * 2 + part) * micro, (rank * 2 + part + 1) * micro))
                    outputs = engine.forward(task, mine, last=part == 1)
                    summed = task.loss(outputs, mine) / GLOBAL
                    engine.backward(summed)
                    loss += summed.detach().double()
                engine.step()
                losses.append(float(distributed.sum_(loss)))
            found[name] = {"losses": losses, "met": model.met, "outputs": str(outputs["logits"].dtype)}
    if rank == 0:
        (Path(folder) / f"world{world}.json").write_text(json.dumps(found))
