"""A folder that the transformers library loads: config.json, model.safetensors and, where it is known, vocab.txt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch import models
from largebatch.checkpoint.writer import save_tensors
from largebatch.errors import UserError
from largebatch.models.bert import Bert
from largebatch.models.transformers_names import config_of, renamed
from largebatch.records.files import sha256_of, whole, write_text


def write_folder(
    folder: Path, weights: dict[str, Tensor], model: dict[str, Any], vocabulary: Path | None, lower_case: bool
) -> list[str]:
    """The names of the files. ``model``: its name, arguments and ``num_classes``, as a manifest has them."""
    settings = settings_of(model)
    folder.mkdir(exist_ok=True)
    write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
    own = {name: tensor.float().contiguous().clone() for name, tensor in renamed(weights).items()}
    with whole(folder / "model.safetensors") as unfinished:
        save_tensors(unfinished, own, {"format": "pt"})
    written = ["config.json", "model.safetensors"]
    if vocabulary is not None:
        words = vocabulary.read_text(encoding="utf-8")
        write_text(folder / "vocab.txt", words)
        tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
        write_text(folder / "tokenizer_config.json", json.dumps(tokenizer, indent=2) + "\n")
        written += ["vocab.txt", "tokenizer_config.json"]
    return written


def settings_of(model: dict[str, Any]) -> dict[str, Any]:
    """Their config.json."""
    name, classes = model["name"], model["num_classes"]
    if name != "bert":
        raise UserError(f"--format transformers is for model.name = bert; the run's is {name}; valid: --format plain")
    arguments = {key: value for key, value in model.items() if key not in ("name", "num_classes")}
    with torch.device("meta"):
        built = models.build(name, classes, (1,), 0, arguments)
    assert isinstance(built, Bert)
    dropout = built.drop.p
    return {
        "architectures": ["BertForPreTraining" if built.pooler is not None else "BertForMaskedLM"],
        "model_type": "bert",
        **config_of(built),
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def vocabulary_of(root: Path | None, sha256: str | None) -> Path | None:
    """That of the pack which the run was trained on, if it still lies there."""
    path = None if root is None else root / "vocabulary.txt"
    return path if path is not None and path.is_file() and sha256_of(path) == sha256 else None
