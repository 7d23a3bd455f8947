"""Forward and backward of a micro-batch as CUDA graphs: the host says "again" once instead of launching every kernel.

It pays where the kernels are so short that the host cannot launch them fast enough: small images, small micro-batches.
torch captures both passes for one shape (``torch.cuda.make_graphed_callables``); anything else (another shape,
evaluation) takes the model's own forward. Gradients then lie in the graph's memory, so a step may have one
micro-batch only: a second replay would write over the first one's gradient.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.errors import UserError

DEVICE = "cuda"
# What other threads ask of CUDA meanwhile, such as a loader's pinned memory, is none of the capture's business.
ALONE: dict[str, Any] = (
    {"capture_error_mode": "thread_local"}
    if "capture_error_mode" in inspect.signature(torch.cuda.make_graphed_callables).parameters
    else {}
)


def capture(model: nn.Module, images: Tensor, half: torch.dtype | None) -> None:
    """Give ``model`` a forward that replays for images of this shape and layout, in training. Once for a model.

    ``half`` is what autocast computes in, if it is on: its cache of cast weights cannot live in a graph. The warm-up
    passes that torch makes leave no trace: running statistics and the generator are put back.
    """
    own = model.forward
    sample = images.detach().clone()  # the graph reads its input here
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    generator = torch.cuda.get_rng_state(images.device)
    try:
        with torch.autocast(DEVICE, half, enabled=half is not None, cache_enabled=False):
            torch.cuda.make_graphed_callables(model, (sample,), **ALONE)
    except RuntimeError as error:
        raise UserError(
            f"engine.cuda_graphs = true: the model cannot be captured ({str(error).splitlines()[0]}); leave the key out"
        ) from error
    torch.cuda.set_rng_state(generator, images.device)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    replay = model.forward

    def forward(given: Tensor) -> Tensor:
        fits = model.training and torch.is_grad_enabled() and same_layout(given, sample)
        return replay(given) if fits else own(given)

    model.forward = forward


def same_layout(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype
