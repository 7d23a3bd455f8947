"""What a model is shown of its training examples before the first step, where it asks for some.

Such a model states ``first_examples``, and has ``begin_with(inputs)``, which sets weights from the inputs of so many
first examples of the training set, as an evaluation sees them. They are of no seed, rank or step, and what rank zero
makes of them holds on all. A run that goes on, or begins with weights of a file or of another run, has them already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from largebatch.data import Placement, Splits
from largebatch.machine import distributed, watchdog

AT_ONCE = 500


def show(model: nn.Module, dataset: Splits) -> None:
    """Collective, where the model asks for examples."""
    asked: Any = getattr(model, "first_examples", None)
    if not isinstance(asked, int):
        return
    placement = Placement(torch.device("cpu"), torch.float64, False)
    found: list[torch.Tensor] = []
    for inputs, _ in dataset.train.batches(0, 1, min(AT_ONCE, asked), placement):
        found.append(inputs)
        watchdog.alive()
        if len(found) * len(found[0]) >= asked:
            break
    begin: Any = model.begin_with
    begin(torch.cat(found)[:asked])
    distributed.same_as_on_first(model.state_dict().values())
