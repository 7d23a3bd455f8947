"""A run that begins with another run's weights, whatever engine and world trained those.

The weights are the judged ones: the mean of all workers, running statistics that are means over ranks. Of the
optimizer its states are taken, by the layer's name, and none of its settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from largebatch import checkpoint
from largebatch.checkpoint import Loaded
from largebatch.checkpoint.named import named_step
from largebatch.checkpoint.pieces import State
from largebatch.engines import Engine
from largebatch.errors import UserError
from largebatch.models.heads import head_of
from largebatch.models.weights import take_weights
from largebatch.records import names
from largebatch.run.chosen import chosen
from largebatch.run.record import differences

OTHERWISE = "name another start.checkpoint, or leave start out"


class StartingPoint(NamedTuple):
    """What of a checkpoint a run begins with."""

    start: Any  # a section of largebatch/recipes/config/start.py
    path: Path
    facts: dict[str, Any]  # its manifest
    state: State
    fresh: list[str]  # layers of this run's model that begin anew

    @property
    def words(self) -> str:
        anew = f"; fresh: {', '.join(self.fresh)}" if self.fresh else ""
        return f"{self.start.words}, step {self.facts['step']:,}{anew}"


def opened(start: Any) -> Loaded:
    """The checkpoint that a section ``start`` names. Collective."""
    directory = Path(start.run)
    step = named_step(directory, str(start.checkpoint), f"start.run = {start.run}")
    loaded = checkpoint.load_newest(directory / names.CHECKPOINTS, step, OTHERWISE)
    assert loaded is not None  # named_step refuses a run without
    return loaded


def weights_into(model: nn.Module, described: dict[str, Any], start: Any, loaded: Loaded) -> StartingPoint:
    """The weights of a checkpoint in place of the model's; ``described``: its name, arguments and outputs.

    Refused, and what differs is named, where it is another model.
    """
    found = chosen(loaded, start.weights, f"start.weights = {start.weights}", with_statistics=True)
    fresh: list[str] = []
    if start.head == "fresh" and not (fresh := head_of(model)):
        raise UserError(
            f"start.head = fresh: model.name = {described['name']} has no linear layer that could be its head"
        )
    others = differences(loaded.facts["model"], described, "model")
    which = f" ({'; '.join(others)})" if others else ""
    misfit = f"start.run = {start.run} is a run of another model{which}"
    take_weights(model, found.tensors, misfit, fresh, "start.head")
    return StartingPoint(start, loaded.path, loaded.facts, loaded.state, fresh)


def states_into(engine: Engine, point: StartingPoint) -> None:
    """The states of its optimizer in place of the engine's, where they are asked for."""
    if not point.start.optimizer:
        return
    try:
        engine.begin_with_states(point.state["optimizer"], point.fresh)
    except UserError as problem:
        raise UserError(f"start.optimizer = true: {problem}; start.optimizer = false takes the weights alone") from None
