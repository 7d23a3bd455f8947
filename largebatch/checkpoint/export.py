"""Plain weights for others: a state dict in a file that timm, torchvision and safetensors read.

``.safetensors`` carries what is known of the model in its header, words by words; ``.pt`` is ``{"state_dict": ...,
"metadata": ...}``, which ``torch.load`` reads with ``weights_only``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

SUFFIXES = (".safetensors", ".pt")


def write_weights(file: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Whole or not at all."""
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        if file.suffix == ".pt":
            torch.save({"state_dict": weights, "metadata": about}, unfinished)
        else:
            own = {name: tensor.clone() for name, tensor in weights.items()}  # tied weights share memory, files do not
            words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
            safetensors.torch.save_file(own, unfinished, metadata={"format": "pt", **words})
            unfinished.chmod(0o644)  # the library leaves it to its owner alone
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
