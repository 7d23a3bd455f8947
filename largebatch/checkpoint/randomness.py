"""What only dropout and the like draw from: it differs between ranks; data and weights do not use it."""

from __future__ import annotations

import torch

from largebatch.checkpoint.pieces import State
from largebatch.machine import distributed


def state() -> State:
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(of_ranks: list[State], seed: int, step: int) -> None:
    """This rank's state in the same world; in another world a fresh one keyed by (seed, step, rank)."""
    if len(of_ranks) == distributed.world_size():
        own = of_ranks[distributed.rank()]
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
    else:
        seed_rank(seed, step)


def seed_rank(seed: int, step: int = 0) -> None:
    mixed = (seed * 1_000_003 + step) * 65_537 + distributed.rank() + 1
    torch.manual_seed(mixed % 2**63)
