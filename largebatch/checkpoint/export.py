"""Plain weights for others: a state dict in a file that timm, torchvision and safetensors read.

``.safetensors`` carries what is known of the model in its header, words by words; ``.pt`` is ``{"state_dict": ...,
"metadata": ...}``, which ``torch.load`` reads with ``weights_only``. A folder for transformers holds such a file under
that library's names, beside the settings of its model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch.checkpoint.writer import save_tensors
from largebatch.records.files import whole, write_text

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


def write_folder(
    folder: Path, weights: dict[str, Tensor], about: dict[str, Any], settings: dict[str, Any], vocabulary: Path | None
) -> None:
    """What ``from_pretrained`` of transformers is given: ``model.safetensors``, ``config.json`` and, if it is known,
    ``vocab.txt`` with a ``tokenizer_config.json``.

    Each file whole or not at all, ``config.json`` last: without it the folder is none of theirs.
    """
    folder.mkdir(exist_ok=True)
    write_weights(folder / "model.safetensors", weights, about)
    if vocabulary is not None:
        with whole(folder / "vocab.txt") as unfinished:
            shutil.copyfile(vocabulary, unfinished)
        tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": not about.get("cased", False)}
        write_text(folder / "tokenizer_config.json", json.dumps(tokenizer, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
