"""The names and settings that the transformers library has for the tensors of :mod:`largebatch.models.bert`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from largebatch.errors import UserError
from largebatch.models.bert import Bert, EncoderLayer

OF_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "norm": "output.LayerNorm",
}
OF_REST = {
    "tokens": "bert.embeddings.word_embeddings",
    "places": "bert.embeddings.position_embeddings",
    "segments": "bert.embeddings.token_type_embeddings",
    "norm": "bert.embeddings.LayerNorm",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "pooler": "bert.pooler.dense",
    "next": "cls.seq_relationship",
}


def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Ours -> theirs. The decoder's matrix is the embedding's, and has no entry of its own."""
    return {_theirs(name): tensor for name, tensor in state.items()}


def _theirs(name: str) -> str:
    if name == "bias":
        return "cls.predictions.bias"
    place, _, which = name.rpartition(".")
    if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", place):
        return f"bert.encoder.layer.{layer[1]}.{OF_LAYER[layer[2]]}.{which}"
    return f"{OF_REST[place]}.{which}"


def config_of(model: Bert) -> dict[str, Any]:
    """What their ``BertConfig`` is given. Raises UserError where they have no such model."""
    first = model.layers[0]
    assert isinstance(first, EncoderLayer)
    if first.pre:
        raise UserError(
            "model.norm = pre is no model of transformers' BertForMaskedLM, which has its norms after the residuals; "
            "valid: model.norm = post"
        )
    return {
        "vocab_size": model.vocabulary,
        "hidden_size": model.norm.normalized_shape[0],
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": first.attention.heads,
        "intermediate_size": first.inner.out_features,
        "max_position_embeddings": model.positions,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm.eps,
        "tie_word_embeddings": True,
    }


def decoder_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that tied tensors have in a file of theirs."""
    return {
        "cls.predictions.decoder.weight": state["tokens.weight"],
        "cls.predictions.decoder.bias": state["bias"],
    }
