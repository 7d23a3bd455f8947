"""Weights to begin with: a safetensors file, such as ``checkpoint export`` writes. Reading it runs no code."""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from largebatch.errors import UserError


def take_weights(model: nn.Module, file: str, name: str) -> None:
    """The tensors of ``file`` in place of the model's; refused unless names and shapes are the same."""
    found = tensors_of(file)
    wanted = model.state_dict()
    for key in sorted(wanted.keys() | found.keys()):
        there, here = (tuple(tensors[key].shape) if key in tensors else None for tensors in (found, wanted))
        if there != here:
            raise UserError(
                f"model.weights = {file} does not fit model.name = {name}: "
                + (f"it has no {key}" if there is None else f"the model has no {key}" if here is None else "")
                + (f"{key} is {there} there and {here} in the model" if there is not None and here is not None else "")
            )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(found[key])


def tensors_of(file: str) -> dict[str, Tensor]:
    """What a safetensors file holds."""
    takes = "it takes a safetensors file, such as `largebatch checkpoint export` writes"
    if not Path(file).is_file():
        raise UserError(f"model.weights = {file}: there is no such file; {takes}")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # a method, no mapping
    except OSError as error:
        raise UserError(f"model.weights = {file} cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"model.weights = {file} is no safetensors file ({error}); {takes}") from None
