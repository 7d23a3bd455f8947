"""Which of a checkpoint's weights are meant: trained, their moving average, or the mean of their latest snapshots."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from largebatch.checkpoint import Loaded
from largebatch.checkpoint.pieces import State
from largebatch.engines.states import whole_model
from largebatch.errors import UserError
from largebatch.methods.lawa import in_checkpoint
from largebatch.run.older import moving_average

NEEDS = {
    "ema": "no moving average, which takes a recipe with ema",
    "lawa": "no snapshots, which take a recipe with lawa, and a step after one",
}

WEIGHTS = ("trained", *NEEDS)


class ChosenWeights(NamedTuple):
    """By name, whole, with the buffers; running statistics are means over ranks."""

    tensors: dict[str, Tensor]
    stale: bool  # batch norm's statistics belong to other weights: an evaluation recomputes them


def chosen(loaded: Loaded, which: str, asked: str, with_statistics: bool = False) -> ChosenWeights:
    """``which`` of WEIGHTS; refused in a sentence about what was ``asked`` where the checkpoint has none.

    ``with_statistics``: refused where they are stale, too, for who has no examples to recompute them with.
    """
    if which not in WEIGHTS:
        raise UserError(f"{asked} is not known; valid: {', '.join(WEIGHTS)}")
    if which == "trained":
        return ChosenWeights(whole_model(loaded.state), False)
    if (found := average(loaded.state, which)) is None:
        valid = [one for one in WEIGHTS if one == "trained" or average(loaded.state, one) is not None]
        raise UserError(f"{asked}: {loaded.path} holds {NEEDS[which]}; valid there: {', '.join(valid)}")
    if found.stale and with_statistics:
        raise UserError(
            f"{asked}: {loaded.path} has no batch norm statistics of the mean, which an evaluation after its latest "
            "snapshot recomputes; choose a step that was evaluated"
        )
    return ChosenWeights(whole_model(loaded.state) | found.tensors, found.stale)


def average(state: State, which: str) -> ChosenWeights | None:
    """``ema`` or ``lawa`` without what it shares with the trained weights; None where there is none."""
    if which == "lawa":
        latest = in_checkpoint(state)
        return None if latest is None else ChosenWeights(*latest)
    found = moving_average(state)
    return None if found is None else ChosenWeights(found, False)
