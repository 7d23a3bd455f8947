"""A loss of one's own: focal loss, which cares less for what is right already (Lin et al. 2017, arXiv:1708.02002).

    python examples/own_loss.py
    torchrun --nproc-per-node 2 examples/own_loss.py

A loss is *summed* over its batch, and the step divides by the examples of the global batch: so neither ranks nor
micro-batches change it. One that is a mean is refused before time is spent.
"""

import dataclasses

from torch import Tensor
from torch.nn.functional import log_softmax

import largebatch as lb

RECIPE = {
    "name": "own_loss",
    "model": {"name": "mlp", "width": 64, "depth": 2},
    "data.name": "digits",
    "batch.global_batch_size": 300,
    "epochs": 10,
    "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "lr": {"base": 0.2, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}},
}


@dataclasses.dataclass(frozen=True)
class Focal(lb.Classification):
    """− Σᵢ (1 − pᵢ)^γ · log pᵢ        pᵢ: the probability that the model gives to the right class"""

    gamma: float = 2.0

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        _, labels = batch
        right = log_softmax(outputs, dim=1).gather(1, labels[:, None])
        return -((1 - right.exp()) ** self.gamma * right).sum()


def main(**overrides: object) -> lb.Result:
    return lb.train(lb.recipe(RECIPE, overrides), task=Focal(gamma=2.0))


if __name__ == "__main__":
    print(main())
