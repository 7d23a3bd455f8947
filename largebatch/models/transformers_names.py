"""The names and settings that the transformers library has for the tensors of :mod:`largebatch.models.bert`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from largebatch.errors import UserError
from largebatch.models.bert import STD, Bert, EncoderLayer

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
    """Ours -> theirs, by name. The decoder's matrix is the embedding's, and has no entry of its own."""
    return {_theirs(name): tensor for name, tensor in state.items()}


def _theirs(name: str) -> str:
    if name == "bias":
        return "cls.predictions.bias"
    place, _, which = name.rpartition(".")
    if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", place):
        return f"bert.encoder.layer.{layer[1]}.{OF_LAYER[layer[2]]}.{which}"
    return f"{OF_REST[place]}.{which}"


def config_of(model: Bert) -> dict[str, Any]:
    """Their ``config.json``. Raises UserError where they have no such model."""
    first = model.layers[0]
    assert isinstance(first, EncoderLayer)
    if first.pre:
        raise UserError(
            "model.norm = pre is no model of transformers' BertForMaskedLM, which has its norms after the residuals; "
            "valid: model.norm = post"
        )
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM" if model.next is None else "BertForPreTraining"],
        "vocab_size": model.vocabulary,
        "hidden_size": model.norm.normalized_shape[0],
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": first.attention.heads,
        "intermediate_size": first.inner.out_features,
        "max_position_embeddings": model.positions,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.drop.p,
        "attention_probs_dropout_prob": first.attention.dropout,
        "initializer_range": STD,
        "layer_norm_eps": model.norm.eps,
        "tie_word_embeddings": True,
    }
