"""The methods a recipe can ask for beside its optimizer, one file each: keys, refusals, words, and a part of the run.

Reading one loads no torch: what needs it imports it where a part is built or at work. The mathematics is in
:mod:`largebatch.optim` and :mod:`largebatch.diagnostics`.
"""

from largebatch.recipes.methods import (
    REGISTRY,
    AveragedEvery,
    Decision,
    GainClock,
    Method,
    MicroBatchWish,
    Recorded,
    in_steps,
)
from largebatch.steps.part import Beyond, Built, Diverged, Part, PartRecorder, Running

__all__ = [
    "AveragedEvery",
    "Beyond",
    "Built",
    "Decision",
    "Diverged",
    "GainClock",
    "Method",
    "MicroBatchWish",
    "Part",
    "PartRecorder",
    "Recorded",
    "Running",
    "in_steps",
    "register",
]

from largebatch.recipes import config  # noqa: F401  # last: with its sections all methods are read

register = REGISTRY.register
