"""A model with two inputs: which of two handwritten digits is the larger one?

python examples/own_model.py
torchrun --nproc-per-node 2 examples/own_model.py       # the same weights, whatever the ranks and the engine
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import largebatch as lb

RECIPE = {
    "name": "own_model",
    "batch.global_batch_size": 400,
    "epochs": 8,
    "optimizer.name": "lamb",
    "lr": {"base": 0.02, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}},
}


class Larger(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.compared = nn.Linear(2 * width, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.compared(torch.cat([self.seen(left), self.seen(right)], dim=1))


class Comparison(lb.Classification):
    """Batches are ({"left": images, "right": images}, classes), and the model wants its inputs one by one."""

    def forward(self, model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        inputs, _ = batch
        return model(inputs["left"], inputs["right"])


def pairs(images: np.ndarray, digits: np.ndarray, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """So many pairs; class 1 where the right digit is the larger one."""
    left, right = np.random.default_rng(seed=0).integers(len(digits), size=(2, count))
    return {"left": images[left], "right": images[right]}, (digits[right] > digits[left]).astype(np.int64)


def main(**overrides: object) -> lb.Result:
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    train, test = pairs(images[:1400], digits.target[:1400], 8000), pairs(images[1400:], digits.target[1400:], 1000)
    run = lb.recipe(RECIPE, overrides)
    return lb.train(run, model=Larger, dataset=lb.Dataset(train, test), task=Comparison())


if __name__ == "__main__":
    print(main())
