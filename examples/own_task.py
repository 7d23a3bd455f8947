"""A task of one's own: how far diabetes will go within a year, as a range that holds four patients of five.

    python examples/own_task.py
    torchrun --nproc-per-node 2 examples/own_task.py

A task is a loss summed over examples, what an evaluation adds up over all of them and over ranks, the numbers that
follow from the sums, and the score among them that a run is judged by.
"""

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

import largebatch as lb

RECIPE = {
    "name": "own_task",
    "model": {"name": "mlp", "width": 32, "depth": 1},
    "batch.global_batch_size": 88,
    "epochs": 40,
    "optimizer.name": "lamb",
    "weight_decay.value": 0.1,
    "lr": {"base": 0.02, "warmup": {"epochs": 2}, "decay": {"name": "cosine"}},
}


class Quantiles(lb.Task):
    """Σ max(q·(y − z), (q − 1)·(y − z)) over the quantiles q (Koenker and Bassett 1978, Econometrica 46)."""

    score = lb.Score("pinball", "pinball loss", more_is_better=False, tolerance=0.01)

    def __init__(self, quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)) -> None:
        self.quantiles = torch.tensor(quantiles)

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        quantiles, above = self.quantiles.to(outputs), batch[1] - outputs
        return torch.maximum(quantiles * above, (quantiles - 1) * above).sum()

    def tally(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        within = (outputs[:, :1] <= batch[1]) & (batch[1] <= outputs[:, -1:])
        return {"pinball": self.loss(outputs, batch), "within": within.sum()}

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        pinball, within = (float(sums[key] / sums["examples"]) for key in ("pinball", "within"))
        return {"loss": pinball, "pinball": pinball, "within_percent": 100 * within}


def main(**overrides: object) -> lb.Result:
    inputs, far = load_diabetes(return_X_y=True)
    inputs, far = inputs / inputs.std(axis=0), (far[:, None] - far.mean()) / far.std()
    examples = tuple(array.astype(np.float32) for array in (inputs, far))
    train, test = (tuple(array[rows] for array in examples) for rows in (slice(352), slice(352, None)))
    return lb.train(lb.recipe(RECIPE, overrides), dataset=lb.Dataset(train, test, outputs=3), task=Quantiles())


if __name__ == "__main__":
    print(main())
