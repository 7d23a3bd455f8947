"""Every recipe of a folder, trained on these ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.train import train

ENGINES = {"fp16": "{name: ddp, all_reduce: fp16}", "bf16": "{name: ddp, all_reduce: bf16}"}


def train_all(folder: str) -> None:
    with distributed.group(torch.device("cpu")):
        for file in sorted(Path(folder).glob("*.yaml")):
            directory = f"{folder}/world{distributed.world_size()}/{file.stem}"
            train(config.load(file, [f"record.dir={directory}"]), quiet=True)


def train_in_engines(folder: str, *names: str) -> None:
    """In each engine; where gradients are summed in half precision the recipe with a moving average alone."""
    with distributed.group(torch.device("cpu"), alone=True):
        for name in names:
            for file in sorted(Path(folder).glob("*.yaml")):
                if name in ENGINES and file.stem != "ema":
                    continue
                engine = ENGINES.get(name, f"{{name: {name}}}")
                train(config.load(file, [f"engine={engine}", f"record.dir={folder}/{name}/{file.stem}"]), quiet=True)
