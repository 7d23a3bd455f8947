"""The optimizers a recipe can name: one file for each kind, found by :func:`largebatch.recipes.optimizers.table`.

A file holds the keys with their ranges, what others must know of the kind, and how it is built. Reading one loads no
torch. The mathematics is in :mod:`largebatch.optim`, or torch's own.
"""

from largebatch.recipes.optimizers import REGISTRY, AtTimm, Averaged, HalfLife, Moments, Optimizer, Surroundings

register = REGISTRY.register

__all__ = ["AtTimm", "Averaged", "HalfLife", "Moments", "Optimizer", "Surroundings", "register"]
