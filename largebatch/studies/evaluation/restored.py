"""A checkpoint -> the model of its run, as the run itself judges it: in the run's precision and memory layout.

Any machine and number of ranks may do it: checkpoints hold whole weights, the mean of all workers where there were
several, and running statistics that are means over ranks. Neither the optimizer nor the engine is built.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from largebatch import checkpoint, data
from largebatch.checkpoint.named import NamedCheckpoint
from largebatch.data.nested import Batch
from largebatch.engines import Ddp
from largebatch.engines.engine import check_names
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.decide import precision_of
from largebatch.records import names
from largebatch.run.chosen import chosen
from largebatch.studies.evaluation.changes import recipe_of_run
from largebatch.tasks.task import Task

OTHERWISE = "name another checkpoint with @; `largebatch checkpoint verify` tells which are whole"


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """What a checkpoint says, before any model is built of it."""

    directory: Path
    run: config.Run
    step: int  # of the checkpoint
    facts: dict[str, Any]  # its manifest
    tensors: dict[str, Tensor]
    which: str  # trained, ema, lawa
    stale: bool  # batch norm's statistics are still to be recomputed for them
    complaints: list[str]

    @property
    def outputs(self) -> int | None:
        return self.facts["model"].get("num_classes")

    @property
    def classes(self) -> list[str]:
        """What the outputs are called; [] where nobody says."""
        return list(self.facts.get("input", {}).get("classes") or [])


def weights_of(
    at: NamedCheckpoint, which: str = "trained", run: config.Run | None = None, with_statistics: bool = False
) -> SavedWeights:
    """The weights of a checkpoint, trained or an average; ``run``: its recipe, where the caller has it. Collective.

    Refused ``with_statistics`` where those of batch norm would have to be recomputed.
    """
    run = run or recipe_of_run(at.directory)
    loaded = checkpoint.load_newest(at.directory / names.CHECKPOINTS, at.step, OTHERWISE)
    if loaded is None:
        raise UserError(f"{at.directory} has no checkpoint; checkpoint.every_epochs above 0 saves some")
    found = chosen(loaded, which, f"--weights {which}", with_statistics)
    step = checkpoint.step_of(loaded.path)
    return SavedWeights(at.directory, run, step, loaded.facts, found.tensors, which, found.stale, loaded.complaints)


class Restored:
    """A model that answers."""

    def __init__(self, model: nn.Module, task: Task, run: config.Run, device: torch.device) -> None:
        precision = precision_of(run.precision, device.type)
        channels_last = run.channels_last
        if channels_last is None:
            channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
        self.task, self.engine = task, Ddp(device, precision, channels_last, compile=False)
        self.engine.model = self.engine.place(model).eval()
        self.placement = data.Placement(device, self.engine.dtype, channels_last)
        self.views = run.evaluate.views  # as evaluations of the run had them

    @property
    def model(self) -> nn.Module:
        return self.engine.model

    def __call__(self, batch: Batch) -> Any:
        """Its outputs, in full precision; nothing is communicated."""
        return self.engine.predict(self.task, batch)


def filled(model: nn.Module, weights: SavedWeights) -> nn.Module:
    """The built model with a checkpoint's weights."""
    check_names(weights.tensors, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict(weights.tensors)
    return model
