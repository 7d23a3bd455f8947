"""Recipes trained on ranks, all in one group."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.train import train


def train_all(folder: str) -> None:
    """``recipes.json`` has paths and overrides by name, ``ends.json`` how each of them ended."""
    directory = Path(folder)
    with distributed.group(torch.device("cpu")):
        ends = {}
        for name, (path, overrides) in json.loads((directory / "recipes.json").read_text()).items():
            try:
                result = train(config.load(path, overrides), quiet=True)
                ends[name] = {"status": result.status, **result.numbers}
            except UserError as refusal:  # the same on both ranks
                ends[name] = {"status": f"refused: {refusal}"}
        if distributed.is_first():
            (directory / "ends.json").write_text(json.dumps(ends))
