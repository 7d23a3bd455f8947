"""The weights that a run trains, as this rank holds them: averaged, moved, saved and loaded beside the model's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from largebatch.checkpoint import pieces
from largebatch.checkpoint.pieces import Pieces
from largebatch.engines import Engine
from largebatch.optim.shards import local


class TrainedWeights:
    """Tensors that go with them are as sharded as they are, and in their order."""

    def __init__(self, engine: Engine) -> None:
        self.named = [(name, weight) for name, weight in engine.model.named_parameters() if weight.requires_grad]

    def live(self) -> list[Tensor]:
        return [local(weight).detach() for _, weight in self.named]

    def saved(self, tensors: Sequence[Tensor]) -> dict[str, Tensor | Pieces]:
        """``tensors`` as a checkpoint holds them, by the weights' names."""
        pairs = zip(self.named, tensors, strict=True)
        return {name: pieces.of_parameter(weight, tensor) for (name, weight), tensor in pairs}

    def take(self, tensors: Sequence[Tensor], saved: dict[str, Tensor | Pieces]) -> None:
        """``tensors`` become what a checkpoint holds."""
        for (name, weight), tensor in zip(self.named, tensors, strict=True):
            pieces.take(tensor, weight, saved[name])
