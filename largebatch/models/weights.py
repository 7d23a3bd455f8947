"""Weights to begin with: a safetensors file, such as ``checkpoint export`` writes, or pretrained ones that are at hand.

Reading a safetensors file runs no code; what a file of torchvision's is, :mod:`.pretrained` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
from torch import Tensor, nn

from largebatch.errors import UserError
from largebatch.models import pretrained
from largebatch.models.heads import head_of

if TYPE_CHECKING:
    from largebatch.recipes.config.model import FirstWeights

FITTING = "it takes a safetensors file, such as `largebatch checkpoint export` writes"


def begin_with(model: nn.Module, name: str, weights: FirstWeights) -> None:
    """The tensors of a file in place of the model's: all, or all but its head's."""
    file = file_of(model, name, weights)
    pickled = weights.pretrained is not None and file.endswith(pretrained.PICKLED)
    tensors = pretrained.unpickled(file) if pickled else tensors_of(file)
    take_weights(
        model, tensors, f"model.weights = {file} does not fit model.name = {name}", fresh_of(model, name, weights)
    )


def file_of(model: nn.Module, name: str, weights: FirstWeights) -> str:
    return weights.file or pretrained.file_of(model, name, weights.pretrained or "")


def fresh_of(model: nn.Module, name: str, weights: FirstWeights) -> list[str]:
    """The layers that keep the weights they were initialised with."""
    if weights.head != "fresh":
        return []
    if not (head := head_of(model)):
        raise UserError(f"model.weights.head = fresh: model.name = {name} has no linear layer that could be its head")
    return head


def words_of(model: nn.Module, name: str, weights: FirstWeights, prepared: Mapping[str, Any]) -> str:
    """Whose weights, which tensors stayed fresh, and whether images were normalised otherwise than ``prepared``."""
    layers = fresh_of(model, name, weights)
    fresh = [tensor for tensor in model.state_dict() if belongs(tensor, layers)]
    otherwise = weights.pretrained and pretrained.normalised_otherwise(model, weights.pretrained, prepared)
    return weights.words + (f"; fresh: {', '.join(fresh)}" if fresh else "") + (otherwise or "")


def take_weights(
    model: nn.Module,
    tensors: dict[str, Tensor],
    misfit: str,
    fresh: Collection[str] = (),
    head: str = "model.weights.head",
) -> None:
    """The ``tensors`` in place of the model's, but for those of its ``fresh`` layers; refused (``misfit``, and what
    differs first) unless the names and shapes of all others are the same. ``head`` is the key that leaves a head out.

    As torch loads them: a layer may know its tensors by older names, and a batch norm's counter may be missing.
    """
    here = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    there = {key: tuple(tensor.shape) for key, tensor in tensors.items() if not belongs(key, fresh)}
    fitting = {key: tensors[key] for key, shape in there.items() if here.get(key, shape) == shape}
    try:
        lacking, strange = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise UserError(f"{misfit}: {str(error).splitlines()[-1].strip()}") from None
    for key in sorted({*lacking, *strange}):
        if belongs(key, fresh):
            continue
        if key in there and key in here:
            sentence = f"{misfit}: {key} is {there[key]} there and {here[key]} in the model"
        else:
            sentence = f"{misfit}: {'the model' if key in there else 'it'} has no {key}"
        in_head = belongs(key, head_of(model))
        raise UserError(sentence + (f"; {head} = fresh takes all but the head" if in_head else ""))


def belongs(tensor: str, layers: Collection[str]) -> bool:
    return any(not layer or tensor.startswith(f"{layer}.") for layer in layers)


def tensors_of(file: str) -> dict[str, Tensor]:
    """What a safetensors file holds."""
    if not Path(file).is_file():
        raise UserError(f"model.weights = {file}: there is no such file; {FITTING}")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # a method, no mapping
    except OSError as error:
        raise UserError(f"model.weights = {file} cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"model.weights = {file} is no safetensors file ({error}); {FITTING}") from None
