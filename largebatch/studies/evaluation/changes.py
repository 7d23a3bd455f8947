"""The recipe of a run that is there, with the keys that do not make another model of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records import names

CHANGEABLE = (
    "device", "precision", "channels_last", "timeout_minutes", "evaluate.batch_size", "data.root", "data.decode",
    "data.workers", "data.image_size",
)  # fmt: skip
"""Keys of a recipe that another machine, or another way to look at images, may ask for."""


def recipe_of_run(directory: Path, overrides: Sequence[str] = ()) -> config.Run:
    """Its ``run.yaml``, with keys that do not make another model of it."""
    for override in overrides:
        key = override.partition("=")[0]
        if key not in CHANGEABLE:
            raise UserError(f"{override[:60]}: {key[:40]} belongs to the training; valid: {', '.join(CHANGEABLE)}")
    return config.load(directory / names.RECIPE, list(overrides))
