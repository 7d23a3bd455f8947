"""BERT: Devlin et al. 2018 (arXiv:1810.04805), for masked tokens and, if asked, for next sentences.

    h⁰ = LN(E_token + E_place + E_segment)                    dropout after it
    post-norm   a = LN(h + Attention(h)),  h' = LN(a + W₂ gelu(W₁ a))                             as published
    pre-norm    a = h + Attention(LN(h)),  h' = a + W₂ gelu(W₁ LN(a)),  a last LN, none on h⁰     Izsak et al. 2021
    logits_j    = E_token · LN(gelu(W h_j)) + b               at the places asked for alone, E_token the embedding's
    next        = W_n tanh(W_p h_[CLS])                       two numbers: the second segment follows, or does not

    size     layers   width   heads        whose
    tiny          2     128       2        Turc et al. 2019 (arXiv:1908.08962)
    mini          4     256       4
    small         4     512       8
    medium        8     512       8
    base         12     768      12        Devlin et al. 2018
    large        24    1024      16

gelu is exact, not its tanh; every weight begins as N(0, 0.02²) and every bias as 0 (the original cuts the normal at two
standard deviations; transformers' does not). The last matrix is the embedding itself, so its gradient is of both uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.errors import UserError, suggestion
from largebatch.models.recomputed import recompute

STD = 0.02


class Shape(NamedTuple):
    layers: int
    width: int
    heads: int


SHAPES = {
    "tiny": Shape(2, 128, 2),
    "mini": Shape(4, 256, 4),
    "small": Shape(4, 512, 8),
    "medium": Shape(8, 512, 8),
    "base": Shape(12, 768, 12),
    "large": Shape(24, 1024, 16),
}
NORMS = ("post", "pre")


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, hidden: Tensor, attended: Tensor | None) -> Tensor:
        """(m, L, width); ``attended`` (m, 1, 1, L) says which places are looked at."""
        count, length, width = hidden.shape
        q, k, v = (
            linear(hidden).view(count, length, self.heads, width // self.heads).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attended, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).reshape(count, length, width))


class EncoderLayer(nn.Module):
    """Attention, then two linear layers; each with its residual and its norm."""

    def __init__(self, width: int, heads: int, inner: int, norm: str, dropout: float, eps: float) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.attention = Attention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width, eps)
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, attended: Tensor | None) -> Tensor:
        if self.pre:
            hidden = hidden + self.drop(self.attention(self.attention_norm(hidden), attended))
            return hidden + self.drop(self.outer(F.gelu(self.inner(self.norm(hidden)))))
        hidden = self.attention_norm(hidden + self.drop(self.attention(hidden, attended)))
        return self.norm(hidden + self.drop(self.outer(F.gelu(self.inner(hidden)))))


class Bert(nn.Module):
    """``(tokens (m, L), positions (m, P))`` -> logits (m, P, V); with ``next_sentence`` also two numbers (m, 2)."""

    def __init__(
        self, vocabulary: int, shape: Shape, inner: int, positions: int, norm: str, dropout: float, eps: float,
        next_sentence: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        width = shape.width
        self.vocabulary, self.positions = vocabulary, positions
        self.tokens, self.places, self.segments = (nn.Embedding(count, width) for count in (vocabulary, positions, 2))
        self.norm = nn.LayerNorm(width, eps)  # of the embeddings, or the last
        self.drop = nn.Dropout(dropout)
        self.pre = norm == "pre"
        self.layers = nn.ModuleList(
            EncoderLayer(width, shape.heads, inner, norm, dropout, eps) for _ in range(shape.layers)
        )
        self.transform, self.transform_norm = nn.Linear(width, width), nn.LayerNorm(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.pooler = nn.Linear(width, width) if next_sentence else None
        self.next = nn.Linear(width, 2) if next_sentence else None
        self.apply(_begun)

    def forward(
        self, tokens: Tensor, positions: Tensor, segments: Tensor | None = None, attended: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        length = tokens.shape[1]
        if length > self.positions:
            raise UserError(
                f"data.length = {length} is above the model's positions; at most {self.positions}, or "
                f"model.positions={length}"
            )
        hidden = self.tokens(tokens) + self.places.weight[:length]
        hidden = hidden + (self.segments.weight[0] if segments is None else self.segments(segments))
        hidden = self.drop(hidden if self.pre else self.norm(hidden))
        mask = None if attended is None else attended[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        hidden = self.norm(hidden) if self.pre else hidden
        asked = hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[2]))
        logits = F.linear(self.transform_norm(F.gelu(self.transform(asked))), self.tokens.weight, self.bias)
        if self.pooler is None or self.next is None:
            return _in_full(logits)
        return _in_full(logits), _in_full(self.next(torch.tanh(self.pooler(hidden[:, 0]))))


def _in_full(outputs: Tensor) -> Tensor:
    """Float32 where autocast made less of it: a loss is summed in that."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def _begun(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def bert(
    num_classes: int,
    image_shape: tuple[int, ...],
    size: str | None = None,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    feed_forward: int | None = None,
    positions: int = 512,
    norm: str = "post",
    dropout: float = 0.1,
    eps: float = 1e-12,
    next_sentence: bool = False,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """``num_classes`` is the size of the vocabulary. A ``size``, or layers × width × heads; or a size with other
    numbers. ``feed_forward`` unset: four times the width. ``checkpoint_activations`` is what
    ``engine.activation_checkpointing = blocks`` is, as older recipes write it."""
    if size is None and None in (layers, width, heads):
        raise ValueError("it needs a size (such as base), or layers, width and heads")
    if size is not None and size not in SHAPES:
        raise ValueError(f"size = {size} is not known{suggestion(size, list(SHAPES))}")
    own = SHAPES[size] if size is not None else Shape(0, 0, 0)
    shape = Shape(
        *(of_size if stated is None else stated for of_size, stated in zip(own, (layers, width, heads), strict=True))
    )
    inner = 4 * shape.width if feed_forward is None else feed_forward
    for key, number in {**shape._asdict(), "feed_forward": inner, "positions": positions}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{key} = {number} should be a whole number of at least 1")
    if shape.width % shape.heads:
        raise ValueError(f"width = {shape.width} is no multiple of heads = {shape.heads}")
    if norm not in NORMS:
        raise ValueError(f"norm = {norm} is not known{suggestion(norm, list(NORMS))}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout} should be at least 0 and below 1")
    if len(image_shape) != 1:
        raise ValueError("it takes sequences of tokens, as data.name = text gives them")
    model = Bert(num_classes, shape, inner, positions, norm, dropout, eps, next_sentence)
    if checkpoint_activations:
        recompute(model, "bert")
    return model
