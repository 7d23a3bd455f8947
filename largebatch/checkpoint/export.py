"""Plain weights for others: a state dict in a file that timm, torchvision and safetensors read.

``.safetensors`` carries what is known of the model in its header, words by words; ``.pt`` is ``{"state_dict": ...,
"metadata": ...}``, which ``torch.load`` reads with ``weights_only``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch.checkpoint.writer import save_tensors
from largebatch.records.files import whole

SUFFIXES = (".safetensors", ".pt")


def write_weights(file: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Whole or not at all."""
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    with whole(file) as unfinished:
        if file.suffix == ".pt":
            torch.save({"state_dict": weights, "metadata": about}, unfinished)
        else:
            own = {name: tensor.clone() for name, tensor in weights.items()}  # tied weights share memory, files do not
            words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
            save_tensors(unfinished, own, {"format": "pt", **words})
