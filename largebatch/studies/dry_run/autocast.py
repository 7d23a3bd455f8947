"""CUDA's autocast on the CPU's: what the one holds in float32 and the other does not, as far as memory notices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

AGAIN = (Tensor.backward, torch.autograd.grad)  # in which a recomputed pass runs, and torch has left the mode
FLOAT32_ON_CUDA = (F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax)


class AsOnCuda(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in AGAIN:
            with self:
                return func(*args, **(kwargs or {}))
        if func in FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        return func(*args, **(kwargs or {}))
