"""Batch norm's statistics move with the optimizer's step; of one that was skipped nothing stays."""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.engines import Engine
from largebatch.models import batch_norm


class Buffers:
    """Those of an engine's model, from before a step to after it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sized_norms = any(isinstance(module, batch_norm.SizedNorm) for module in engine.model.modules())
        self.before: dict[str, Tensor] = {}  # where a step may be skipped

    def remember(self) -> None:
        if self.engine.skips_nonfinite:
            self.before = {name: buffer.clone() for name, buffer in self.engine.model.named_buffers()}

    def settle(self, skipped: bool) -> None:
        """What made a gradient infinite went through batch norm, too: it is forgotten."""
        if skipped:
            batch_norm.discard(self.engine.model)
            with torch.no_grad():
                for name, buffer in self.engine.model.named_buffers():
                    buffer.copy_(self.before[name])
        elif self.sized_norms:
            batch_norm.commit(self.engine.model)
