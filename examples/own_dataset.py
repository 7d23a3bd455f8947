"""A data set with augmentation, read by two processes: digits that are moved by a pixel, each in its own way.

    python examples/own_dataset.py
    torchrun --nproc-per-node 2 examples/own_dataset.py     # the same crops, whatever the ranks and the processes

What is drawn for an example comes from its ``generator``, which belongs to the seed and the example's place in the run.
"""

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

import largebatch as lb

RECIPE = {
    "name": "own_dataset",
    "model": {"name": "mlp", "width": 64, "depth": 2},
    "data.workers": 2,
    "batch.global_batch_size": 300,
    "epochs": 20,
    "optimizer.name": "lamb",
    "lr": {"base": 0.06, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}},
}


class Moved(Dataset):
    classes = tuple("0123456789")  # tells a recipe's model how many outputs it needs

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, generator: Generator) -> tuple[Tensor, Tensor]:
        down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
        return pad(self.images[index], (1, 1, 1, 1))[:, down : down + 8, right : right + 8], self.labels[index]


def main(**overrides: object) -> lb.Result:
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target)
    train, test = Moved(images[:1500], labels[:1500]), (images[1500:], labels[1500:])
    return lb.train(lb.recipe(RECIPE, overrides), dataset=lb.Dataset(train, test))


if __name__ == "__main__":
    print(main())
