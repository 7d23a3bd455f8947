"""An optimizer of one's own: AdaBelief (Zhuang et al. 2020, arXiv:2010.07468), under any engine.

    python examples/own_optimizer.py
    torchrun --nproc-per-node 2 examples/own_optimizer.py

``shard_safe`` says that it steps element by element, so that a shard of a layer steps as it would in the whole: without
it FSDP and ZeRO refuse it. What its builder takes beside parameters and ``lr`` are its keys in a recipe.
"""

from collections.abc import Iterable
from typing import Any

import torch

import largebatch as lb

RECIPE = {
    "name": "own_optimizer",
    "model": {"name": "mlp", "width": 64, "depth": 2},
    "data.name": "digits",
    "batch.global_batch_size": 300,
    "epochs": 10,
    "optimizer": {"name": "adabelief", "beta2": 0.99},
    "weight_decay.value": 0.01,
    "lr": {"base": 0.01, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}},
}


@lb.optimizers.register("adabelief", shard_safe=True)
class AdaBelief(torch.optim.Optimizer):
    """m ← β₁m + (1 − β₁)g; s ← β₂s + (1 − β₂)(g − m)² + ε; w ← w − lr·(m̂ / (√ŝ + ε) + λw)"""

    def __init__(self, params: Iterable[Any], lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, beta1, beta2, eps = (group[key] for key in ("lr", "beta1", "beta2", "eps"))
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(weight), "s": torch.zeros_like(weight)}
                state["step"] += 1
                m = state["m"].lerp_(weight.grad, 1 - beta1)
                s = state["s"].mul_(beta2).add_((weight.grad - m).square(), alpha=1 - beta2).add_(eps)
                corrected = (s / (1 - beta2 ** state["step"])).sqrt_().add_(eps).mul_(1 - beta1 ** state["step"])
                weight.mul_(1 - lr * group["weight_decay"]).addcdiv_(m, corrected, value=-lr)


def main(**overrides: object) -> lb.Result:
    return lb.train(lb.recipe(RECIPE, overrides))


if __name__ == "__main__":
    print(main())
