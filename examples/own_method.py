"""A method of one's own, which stands beside the steps: Lookahead (Zhang et al. 2019, arXiv:1907.08610).

    python examples/own_method.py
    torchrun --nproc-per-node 2 examples/own_method.py

Its keys stand in a recipe, its part follows the steps; what the part saves is in every checkpoint.
"""

from typing import Any

import largebatch as lb

RECIPE = {
    "name": "own_method",
    "model": {"name": "mlp", "width": 64, "depth": 2},
    "data.name": "digits",
    "batch.global_batch_size": 300,
    "epochs": 20,
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "lookahead": {"every_steps": 5, "share": 0.5},
    "lr": {"base": 0.2, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}},
}


@lb.methods.register("lookahead")
class Lookahead(lb.Method):
    """Every k steps slow weights follow, slow ← slow + α·(fast − slow), and the fast ones begin there anew."""

    KEY = "lookahead"  # where it stands in a recipe
    WHOLE = True  # every rank needs whole weights: engines that cut them are refused
    every_steps: int = 5
    share: float = 0.5

    def part(self, job: Any) -> lb.Part:
        return SlowWeights(self, job)


class SlowWeights(lb.Part):
    def __init__(self, keys: Lookahead, job: Any) -> None:
        self.keys, self.fast = keys, [weight.detach() for weight in job.engine.model.parameters()]
        self.slow = [weight.clone() for weight in self.fast]

    def after(self, step: Any) -> None:
        if (step.number + 1) % self.keys.every_steps == 0:
            for slow, fast in zip(self.slow, self.fast, strict=True):
                fast.copy_(slow.lerp_(fast, self.keys.share))

    def save(self) -> dict[str, Any]:
        return {"slow": self.slow}

    def load(self, state: dict[str, Any], of_ranks: list[Any]) -> None:
        self.slow = [slow.copy_(saved) for slow, saved in zip(self.slow, state["slow"], strict=True)]


def main(**overrides: object) -> lb.Result:
    return lb.train(lb.recipe(RECIPE, overrides))


if __name__ == "__main__":
    print(main())
