"""Pretrained weights by the names that timm and torchvision have for them, where their file is at hand.

Nothing is downloaded.

timm          a tag of the architecture (``a1_in1k``): a safetensors file in the cache of huggingface_hub
torchvision   a member of the model's weights (``IMAGENET1K_V2``): a file in torch.hub's folder, written by torch.save

torchvision publishes no safetensors. Its file is unpickled, as the only one that this project unpickles: under the name
that torchvision itself gives it, if its SHA-256 begins with the digits in that name, and by torch's unpickler that
makes tensors and plain containers alone (``weights_only``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.errors import UserError, first_words, suggestion
from largebatch.records.files import sha256_of

PICKLED = (".pth", ".pt")
KEY = "model.weights.pretrained"
DIGITS = re.compile(r"-([0-9a-f]{8,64})\.")  # of the SHA-256, as torch.hub looks for them in a file's name


def file_of(model: nn.Module, name: str, tag: str) -> str:
    """The file of the weights that are called ``tag`` for a model; UserError where it is not at hand."""
    plain = name.rpartition("/")[2]
    if isinstance(of_timm := getattr(model, "pretrained_cfg", None), dict):
        return _of_timm(of_timm.get("architecture") or plain, tag)
    from torchvision import models

    if plain in models.list_models(module=models):
        return _of_torchvision(plain, tag)
    raise UserError(
        f"{KEY} = {tag[:60]} says nothing for model.name = {name[:60]}; valid: models of timm and torchvision, or a "
        "safetensors file as model.weights.file"
    )


def unpickled(file: str) -> dict[str, Tensor]:
    """What a file of torchvision's holds."""
    digits = DIGITS.search(Path(file).name)
    if digits is None or not sha256_of(Path(file)).startswith(digits[1]):
        raise UserError(f"{file} is damaged or another file: its SHA-256 does not begin as its name says")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        raise UserError(f"{file} cannot be read: {first_words(error)}") from None
    if not (isinstance(found, dict) and all(isinstance(tensor, Tensor) for tensor in found.values())):
        raise UserError(f"{file} holds something else than tensors by name")
    return dict(found)


def normalised_otherwise(model: nn.Module, tag: str, prepared: Mapping[str, Any]) -> str | None:
    """Where timm's weights were trained on images of another mean and deviation than the run's: what they were."""
    import timm

    of_timm = getattr(model, "pretrained_cfg", None)
    published: Any = timm.get_pretrained_cfg(f"{of_timm['architecture']}.{tag}") if isinstance(of_timm, dict) else None
    if published is None or all(list(getattr(published, key)) == prepared.get(key) for key in ("mean", "std")):
        return None
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (published.mean, published.std))
    return f"; they know images of mean {mean} and deviation {std}, and the run's are normalised otherwise"


def _of_timm(architecture: str, tag: str) -> str:
    import huggingface_hub
    import timm
    from huggingface_hub import constants

    valid = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag not in valid:
        raise UserError(f"{KEY} = {tag[:60]} is no tag of timm's {architecture}{_among(tag, valid)}")
    config: Any = timm.get_pretrained_cfg(f"{architecture}.{tag}")
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    file = config.hf_hub_filename or constants.SAFETENSORS_SINGLE_FILE
    if not repository or not file.endswith(".safetensors"):
        raise UserError(f"{KEY} = {tag}: timm has no safetensors file of it, and nothing else of timm's is read")
    where = {"cache_dir": constants.HF_HUB_CACHE, "revision": revision or None}
    found = huggingface_hub.try_to_load_from_cache(repository, file, **where)
    if isinstance(found, str):
        return found
    address = huggingface_hub.hf_hub_url(repository, file, revision=revision or None)
    raise UserError(
        f"{KEY} = {tag}: {file} of {repository} is not in {constants.HF_HUB_CACHE}, and nothing is downloaded here; "
        f"`hf download {repository} {file}` puts it there, or get it from {address} and name it as model.weights.file"
    )


def _of_torchvision(plain: str, tag: str) -> str:
    from torchvision.models import get_model_weights

    of_model: Any = get_model_weights(plain)  # DEFAULT, which means others with other versions, is not among them
    addresses = {one.name: one.url for one in of_model}
    if tag not in addresses:
        raise UserError(f"{KEY} = {tag[:60]} is none of torchvision's weights of {plain}{_among(tag, list(addresses))}")
    address = addresses[tag]
    folder = Path(torch.hub.get_dir(), "checkpoints")
    file = folder / address.rpartition("/")[2]
    if not file.is_file():
        raise UserError(
            f"{KEY} = {tag}: {file.name} is not in {folder}, and nothing is downloaded here; get it from {address}"
        )
    return str(file)


def _among(tag: str, valid: list[str]) -> str:
    return suggestion(tag, valid) if valid else "; there are none"
