"""Fine-tuning without any hub: a network that knows ten digits learns which are odd from sixty of them.

    python examples/finetune.py
    torchrun --nproc-per-node 2 examples/finetune.py

``model.weights`` takes a safetensors file, such as ``largebatch checkpoint export`` writes as well: all tensors, or all
but the head's. What ``model.frozen`` names is not trained.
"""

import os

import numpy as np
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import largebatch as lb

RECIPE = {
    "name": "finetune",
    "batch.global_batch_size": 200,
    "epochs": 40,
    "optimizer.name": "lamb",
    "lr": {"base": 0.03, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}},
}


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images).relu()).relu())


def digits(first: int, last: int, classes: int = 10) -> lb.Dataset:
    """Of scikit-learn's 1,797 these to train on, and the last 737 to test on; with two classes 1 is odd."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels % classes
    return lb.Dataset((images[first:last], labels[first:last]), (images[1060:], labels[1060:]))


def main(**overrides: object) -> lb.Result:
    run = lb.recipe(RECIPE, overrides)
    model, file = Net(num_classes=10), run.directory / "ten.safetensors"
    lb.train(lb.recipe(run, {"record.dir": str(run.directory / "ten")}), model=model, dataset=digits(0, 1000))
    if os.environ.get("RANK", "0") == "0":
        save_file(model.state_dict(), file)
    small = {"batch.global_batch_size": 60, "record.dir": str(run.directory / "odd")}
    weights = {"model.weights": {"file": str(file), "head": "fresh"}, "model.frozen": ["first"]}
    return lb.train(lb.recipe(run, small | weights), model=Net, dataset=digits(1000, 1060, classes=2))


if __name__ == "__main__":
    print(main())
