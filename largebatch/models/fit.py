"""Whether a model and its data go together: its passes are rehearsed once, before any time is spent.

Evaluation meets single images (the last ones of a share), training whole micro-batches; what holds for two images holds
for more. So an evaluation of one image and a training pass of at most two meet whatever torch would refuse in the
middle of a run: images too small for the network, a batch norm that gets one value for a channel, outputs of a form
that nobody could train on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from largebatch.errors import UserError
from largebatch.models.auxiliary import cross_entropy, logits_of

Shape = tuple[int, int, int]  # channels, height, width


def check(model: nn.Module, name: str, num_classes: int, image_shape: Shape, examples: int = 2) -> None:
    """Refuse a model that does not fit its data. ``examples`` that batch norm sees at least in training.

    Nothing of the model and no random state is changed by it.
    """
    kept = {key: buffer.clone() for key, buffer in model.named_buffers()}
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for in_mode, count in ((model.eval, 1), (model.train, min(examples, 2))):
                check_output(passed(in_mode(), name, image_shape, count), name, num_classes, count)
    finally:
        model.train(training)
        with torch.no_grad():
            for key, buffer in model.named_buffers():
                buffer.copy_(kept[key])


def passed(model: nn.Module, name: str, image_shape: Shape, count: int) -> Any:
    """What the model makes of ``count`` black images."""
    parameter = next(model.parameters())
    try:
        return model(torch.zeros(count, *image_shape, dtype=parameter.dtype, device=parameter.device))
    except UserError:
        raise
    except Exception as error:
        size = "×".join(map(str, image_shape))
        if model.training and count == 1 and "more than 1 value per channel" in str(error):
            raise UserError(
                f"a batch norm of model {name} would see one example of {size} (channels×height×width) in training, "
                "which is one value per channel and cannot be normalised; set batch.micro_batch_size, or "
                "batch.bn_batch_size where it is stated, to 2 or more"
            ) from error
        raise UserError(
            f"model {name} does not take images of {size} (channels×height×width)"
            f"{' in training' if model.training else ''}: {reason_of(error)}"
        ) from error


def check_output(output: Any, name: str, num_classes: int, count: int) -> None:
    logits = logits_of(output)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"model {name} gives a {type(output).__name__} per image; trained are models that give the logits of the "
            f"{num_classes} classes, and with auxiliary ones torchvision's googlenet and inception_v3"
        )
    if logits.shape != (count, num_classes):
        raise UserError(
            f"model {name} gives {tuple(logits.shape[1:])} per image; the data set has {num_classes} classes"
        )
    cross_entropy(output, torch.zeros(count, dtype=torch.long, device=logits.device))


def reason_of(error: Exception) -> str:
    """The first line that an error says, or its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
