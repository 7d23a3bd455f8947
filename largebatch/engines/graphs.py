"""Forward and backward of a micro-batch as CUDA graphs: the host says "again" once instead of launching every kernel.

It pays where the kernels are so short that the host cannot launch them fast enough: small images, small micro-batches.
torch captures both passes for one shape (``torch.cuda.make_graphed_callables``); anything else (another shape,
evaluation) takes the model's own forward. Gradients then lie in the graph's memory, so a step may have one
micro-batch only: a second replay would write over the first one's gradient.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from largebatch.data.nested import Batch
from largebatch.errors import UserError
from largebatch.tasks.task import Task

DEVICE = "cuda"
# What other threads ask of CUDA meanwhile, such as a loader's pinned memory, is none of the capture's business.
ALONE: dict[str, Any] = (
    {"capture_error_mode": "thread_local"}
    if "capture_error_mode" in inspect.signature(torch.cuda.make_graphed_callables).parameters
    else {}
)


class _Called(Exception):
    """A model was called, and is not to run."""


def arguments_of(model: nn.Module, task: Task, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``task`` calls the model with; the model does not run."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append((given, named))
        raise _Called

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with contextlib.suppress(_Called):
            task.forward(model, batch)
    finally:
        handle.remove()
    return found[0]


class _Flat(nn.Module):
    """A model as a function of the tensors in its arguments, one after another, which is what torch captures."""

    def __init__(self, model: nn.Module, arguments: Any) -> None:
        super().__init__()
        self.model, self.original = model, model.forward
        self.spec = tree_flatten(arguments)[1]

    def forward(self, *tensors: Tensor) -> Any:
        given, named = tree_unflatten(list(tensors), self.spec)
        return self.original(*given, **named)


def capture(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]], half: torch.dtype | None) -> None:
    """Give ``model`` a forward that replays for tensors of these shapes and layouts, in training. Once for a model.

    ``arguments``: as :func:`arguments_of` finds them. ``half`` is what autocast computes in, if it is on: its cache of
    cast weights cannot live in a graph. The warm-up passes that torch makes leave no trace: running statistics and the
    generator are put back.
    """
    leaves, spec = tree_flatten(arguments)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise UserError("engine.cuda_graphs = true: the model is called with more than tensors; leave the key out")
    own = model.forward
    flat = _Flat(model, arguments)
    samples = [leaf.detach().clone() for leaf in leaves]  # the graph reads its input here
    device = samples[0].device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    generator = torch.cuda.get_rng_state(device)
    try:
        with torch.autocast(DEVICE, half, enabled=half is not None, cache_enabled=False):
            torch.cuda.make_graphed_callables(flat, tuple(samples), **ALONE)
    except RuntimeError as error:
        raise UserError(
            f"engine.cuda_graphs = true: the model cannot be captured ({str(error).splitlines()[0]}); leave the key out"
        ) from error
    torch.cuda.set_rng_state(generator, device)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)

    def forward(*given: Any, **named: Any) -> Any:
        leaves, form = tree_flatten((given, named))
        fits = model.training and torch.is_grad_enabled() and form == spec and all(map(same_layout, leaves, samples))
        return flat(*leaves) if fits else own(*given, **named)

    model.forward = forward


def same_layout(one: Any, other: Tensor) -> bool:
    return (
        isinstance(one, Tensor)
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )
