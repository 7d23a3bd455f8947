"""What belongs to the whole process is left as it was found: random states, threads, number formats, environment.

A run inside has what it has on the command line, whatever a script has set: gradients, float32, the CPU as a default.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from largebatch.data import draws


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """Inside, anything may change; afterwards it is as it was before. Signals and the process group have their own."""
    states, of_cuda = draws.states(), _of_cuda(torch.cuda.get_rng_state_all)
    device, threads = _of_cuda(torch.cuda.current_device), torch.get_num_threads()
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    default_device = torch.get_default_device()
    environment = dict(os.environ)
    torch.set_default_dtype(torch.float32)
    if default_device.type != "cpu":  # to set one makes every call of torch slower
        torch.set_default_device(None)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        if default_device.type != "cpu":
            torch.set_default_device(default_device)
        draws.put_back(states)
        if of_cuda is not None:
            torch.cuda.set_rng_state_all(of_cuda)
        if device is not None:
            torch.cuda.set_device(device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)


def _of_cuda(ask: Any) -> Any:
    """Nothing where nobody has used CUDA: to ask would begin it."""
    return ask() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
