"""The weights of a run, whole, for who goes on with the model in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from largebatch import checkpoint
from largebatch.engines import states
from largebatch.engines.engine import check_names
from largebatch.errors import UserError
from largebatch.records import names
from largebatch.run.loop import Loop


def of_run(loop: Loop) -> dict[str, Tensor]:
    """Those that are judged, by name, on the CPU; running statistics are means over ranks. Collective."""
    engine = loop.engine
    with contextlib.ExitStack() as shown:
        for part in loop.parts.values():
            shown.enter_context(part.shown())
        shown.enter_context(engine.whole_model())
        found = [*engine.model.named_parameters(remove_duplicate=False), *engine.model.named_buffers()]
        return {name: tensor.detach().cpu().clone() for name, tensor in found}


def of_newest_checkpoint(directory: Path) -> dict[str, Tensor]:
    found = checkpoint.load_newest(directory / names.CHECKPOINTS)
    if found is None:
        raise UserError(
            f"record.dir = {directory} is finished, and kept no checkpoint that the model could take its weights from; "
            "choose another record.dir"
        )
    return states.whole_model(found.state)


def give(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """In place, wherever and in whatever number format its tensors are."""
    wanted = module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    check_names({name: weights[name] for name in weights if name in wanted}, shapes)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(weights[name])
