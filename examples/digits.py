"""What the loops here train on: 1,500 digits of 8×8 that come with scikit-learn, and a network for them, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from largebatch import data, models
from largebatch.optim import Lamb, parameter_groups, treatments

FLOAT64 = data.Placement(torch.device("cpu"), torch.float64)
SCHEDULE = {
    "base": 0.03,
    "scaling": "sqrt",
    "reference_batch_size": 50,
    "warmup": {"epochs": 1},
    "decay": {"name": "cosine"},
}
BATCH, MICRO_BATCH, EPOCHS = 150, 25, 3


def splits() -> tuple[TensorDataset, TensorDataset]:
    """To train on and to test on: images (N, 1, 8, 8) of mean 0 and standard deviation 1, classes (N,)."""
    digits = data.build("digits")
    train, test = (next(iter(split.batches(0, 1, len(split), FLOAT64))) for split in (digits.train, digits.test))
    return TensorDataset(*train), TensorDataset(*test)


def network() -> nn.Module:
    return models.build("mlp", 10, (1, 8, 8), seed=0, arguments={"width": 32, "depth": 1}).double()


def lamb(model: nn.Module) -> Lamb:
    """Norms and biases are neither decayed nor adapted, as in a recipe that does not say otherwise."""
    table = treatments(model, skip_decay=("norm", "bias"), skip_adaptation=("norm", "bias"))
    return Lamb(parameter_groups(model, weight_decay=0.01, table=table), lr=0.01)


def tally(model: nn.Module, batch: list[Tensor]) -> dict[str, Tensor | int]:
    """What an evaluation adds up."""
    images, labels = batch
    logits = model(images)
    correct = (logits.argmax(dim=1) == labels).sum()
    return {"loss": F.cross_entropy(logits, labels, reduction="sum"), "correct": correct, "examples": len(labels)}


def told(sums: dict[str, Tensor]) -> str:
    loss, percent = sums["loss"] / sums["examples"], 100 * sums["correct"] / sums["examples"]
    return f"loss {loss:.4f}, {percent:.2f} % of {int(sums['examples'])} right"
