"""Parts of one's own under names of their own, for recipes:

    largebatch train examples/my_parts.yaml --with examples/my_parts.py
    largebatch train examples/my_parts.yaml --with examples/my_parts.py model.width=128 record.dir=runs/wider
    largebatch recipe show examples/my_parts.yaml --with examples/my_parts.py

What a function takes are its keys in a recipe. An installed package registers its parts without ``--with`` if it names
the module in its entry points of the group ``largebatch``.
"""

import dataclasses

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import largebatch as lb


@lb.datasets.register("tumours")
def tumours() -> lb.Dataset:
    """569 tumours by thirty measurements (Street, Wolberg and Mangasarian 1993): 400 to train on, 169 to test on."""
    found = load_breast_cancer()
    inputs = ((found.data - found.data.mean(axis=0)) / found.data.std(axis=0)).astype(np.float32)
    train, test = ((inputs[rows], found.target[rows]) for rows in (slice(400), slice(400, None)))
    return lb.Dataset(train, test)


@lb.models.register("gated")
def gated(num_classes: int, image_shape: tuple[int, ...], width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(image_shape[0], 2 * width), nn.GLU(), nn.Linear(width, num_classes))


@lb.tasks.register("recall")
@dataclasses.dataclass(frozen=True)
class Recall(lb.Classification):
    """Malignant tumours (class 0) count ``weight`` times; judged by how many of them are found."""

    weight: float = 3.0

    score = lb.Score("recall_percent", "recall", "%", more_is_better=True, tolerance=0.5)

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        weights = outputs.new_tensor([self.weight, 1.0])
        return cross_entropy(outputs, batch[1], weights, reduction="sum", label_smoothing=self.label_smoothing)

    def tally(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        malignant = batch[1] == 0
        found = malignant & (outputs.argmax(dim=1) == 0)
        return {**super().tally(outputs, batch), "malignant": malignant.sum(), "found": found.sum()}

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        return {**super().numbers(sums), "recall_percent": 100 * float(sums["found"] / sums["malignant"])}
