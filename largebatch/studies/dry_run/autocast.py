"""CUDA's autocast on the CPU's: what the one holds in float32 and the other does not, as far as memory notices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FLOAT32_ON_CUDA = (F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax)


class AsOnCuda(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, forward passes are, and those that a backward pass makes again, for which torch leaves the mode."""
    mode, run = AsOnCuda(), torch.autograd._engine_run_backward

    def again(*arguments: Any, **named: Any) -> Any:
        with mode:
            return run(*arguments, **named)

    torch.autograd._engine_run_backward = again
    try:
        with mode:
            yield
    finally:
        torch.autograd._engine_run_backward = run
