"""Sharpness and spectrum of one small network over five batches, however many ranks share them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from largebatch.diagnostics.objective import Objective
from largebatch.diagnostics.sharpness import sharpness
from largebatch.diagnostics.spectrum import spectrum
from largebatch.machine import distributed


def measure(folder: str) -> None:
    """What every rank found, into ``worldN.pt``."""
    torch.manual_seed(0)
    with distributed.group(torch.device("cpu")):
        rank, world = distributed.rank(), distributed.world_size()
        images, labels = torch.randn(20, 6).double(), torch.randint(0, 3, (20,))
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
        parts = list(zip(images.split(4), labels.split(4), strict=True))
        v = torch.randn(sum(p.numel() for p in model.parameters())).double()
        end = {}
        for mode in ("batch", "running"):
            model.train(mode == "batch")
            loss = nn.CrossEntropyLoss(reduction="sum")
            objective = Objective(model, lambda: parts[rank::world], 20, loss, distributed.sum_)
            value, gradient = objective.value_and_gradient()
            found = sharpness(objective, dimensions=(None, 4))
            end[mode] = {
                "value": value,
                "gradient": gradient,
                "product": objective.hessian_product(v),
                "dense": spectrum(objective),
                "products": spectrum(objective, iterations=20, vectors=3, dense_up_to=0),
                "sharpness": [item["sharpness"] for item in found["keskar"]],
                "sam": found["sam"][0]["increase"],
            }
        every = distributed.gather(end)
        if rank == 0:
            torch.save(every, Path(folder) / f"world{world}.pt")
