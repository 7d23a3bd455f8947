"""Whether a model and its data go together: its passes are rehearsed once, before any time is spent.

Evaluation meets single images (the last ones of a share), training whole micro-batches; what holds for two images holds
for more. So an evaluation of one image and a training pass of at most two meet whatever torch would refuse in the
middle of a run: images too small for the network, a batch norm that gets one value for a channel, outputs of a form
that nobody could train on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from largebatch.data.nested import Batch, cast, examples_of, mapped, tensors_of
from largebatch.errors import UserError, first_words
from largebatch.tasks.task import Task, check_loss, check_numbers, check_sum


def check(model: nn.Module, name: str, task: Task, blank: Batch, outputs: int | None, examples: int = 2) -> list[str]:
    """Refuse a model that does not fit its data. ``blank`` is a batch of two examples, for which the data set wants
    ``outputs`` numbers each, where it says so; ``examples`` are what batch norm sees at least in training.

    Nothing of the model and no random state is changed by it. The keys of the numbers that an evaluation will give.
    """
    kept = {key: buffer.clone() for key, buffer in model.named_buffers()}
    training = model.training
    parameter = next(model.parameters())
    blank = cast(mapped(lambda tensor: tensor.to(parameter.device), blank), parameter.dtype)
    keys: list[str] = []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for in_mode, count in ((model.eval, 1), (model.train, min(examples, 2))):
                batch = mapped(lambda tensor, count=count: tensor[:count], blank)
                found = passed(in_mode(), name, task, batch)
                task.check_outputs(found, batch, name, outputs)
                check_loss(task, found, batch)
                check_sum(task, found, batch)
                keys = keys or check_numbers(task, found, batch)
    finally:
        model.train(training)
        with torch.no_grad():
            for key, buffer in model.named_buffers():
                buffer.copy_(kept[key])
    return keys


def moving_buffers(model: nn.Module, name: str, task: Task, blank: Batch) -> set[str]:
    """The names of those that a training pass of ``blank`` moves. Afterwards all are as they were."""
    kept = {key: buffer.clone() for key, buffer in model.named_buffers()}
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            passed(model.train(), name, task, cast(blank, next(model.parameters()).dtype))
        return {key for key, buffer in model.named_buffers() if not torch.equal(buffer, kept[key])}
    finally:
        model.train(training)
        with torch.no_grad():
            for key, buffer in model.named_buffers():
                buffer.copy_(kept[key])


def passed(model: nn.Module, name: str, task: Task, batch: Batch) -> Any:
    """What the model makes of a blank batch."""
    try:
        return task.forward(model, batch)
    except UserError:
        raise
    except Exception as error:
        inputs = in_words(batch)
        if model.training and examples_of(batch) == 1 and "more than 1 value per channel" in str(error):
            raise UserError(
                f"a batch norm of model {name} would see one example of {inputs.partition(' of ')[2]} in training, "
                "which is one value per channel and cannot be normalised; set batch.micro_batch_size, or "
                "batch.bn_batch_size where it is stated, to 2 or more"
            ) from error
        raise UserError(
            f"model {name} does not take {inputs}{' in training' if model.training else ''}: {first_words(error)}"
        ) from error


def in_words(batch: Batch) -> str:
    """What one example is made of: ``images of 3×32×32 (channels×height×width)``."""
    shape = tuple(tensors_of(batch)[0].shape[1:])
    size = "×".join(map(str, shape))
    return f"images of {size} (channels×height×width)" if len(shape) == 3 else f"inputs of {size or 'one number'}"
