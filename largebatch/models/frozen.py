"""What of a model is not trained: tensors by the patterns of their names.

A frozen weight has no gradient and is none of the optimizer's. A norm whose running statistics are among the tensors
that a pattern names normalises by them, in training as in an evaluation, and leaves them as they are: nothing averages
them over ranks or makes them anew. Dropout stays what it is.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator

from torch import Tensor, nn

from largebatch.errors import UserError, suggestion
from largebatch.optim.groups import matches

STATISTICS = ("running_mean", "running_var")


class FrozenNorm(nn.Module):
    """What :func:`freeze` makes of a norm: in evaluation mode, whatever the mode of the model around it."""

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)  # what is in it, such as timm's activation, goes on
        self.training = False
        return self


def freeze(model: nn.Module, name: str, patterns: Collection[str]) -> None:
    """Nothing that the patterns name is trained from now on; they are those of ``weight_decay.skip``."""
    if not patterns:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    norms = dict(_statistics(model))
    for pattern in patterns:
        if not any(matches(tensor, [pattern]) for tensor in (*parameters, *norms)):
            raise UserError(
                f"model.frozen: no tensor of model.name = {name} has a name like {pattern!r}"
                f"{suggestion(pattern, [*parameters, *(layer for layer, _ in model.named_children())])}"
            )
    for tensor, parameter in parameters.items():
        if matches(tensor, patterns):
            parameter.requires_grad_(False)
    for tensor, norm in norms.items():
        if matches(tensor, patterns) and not isinstance(norm, FrozenNorm):
            norm.__class__ = _frozen(type(norm))
            norm.train(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(
            f"model.frozen = [{', '.join(patterns)}] freezes all of model.name = {name}; leave something to train"
        )


def still(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are not trained and the statistics that do not move, by name."""
    weights = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kept = {name for name, norm in _statistics(model) if isinstance(norm, FrozenNorm)}
    return weights | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def words_of(model: nn.Module) -> str:
    """How much is frozen, and what becomes of its norms."""
    weights = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    norms = sum(isinstance(module, FrozenNorm) for module in model.modules())
    by = f"; {norms} norm{'s' * (norms > 1)} by running statistics, which stay" if norms else ""
    return f"{len(weights):,} weights of {sum(parameter.numel() for parameter in weights):,} numbers{by}"


def _statistics(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Running statistics by name, each with its norm."""
    for prefix, module in model.named_modules():
        for tensor in STATISTICS:
            if module._buffers.get(tensor) is not None:
                yield (f"{prefix}.{tensor}" if prefix else tensor), module


@functools.cache
def _frozen(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Frozen{kind.__name__}", (FrozenNorm, kind), {})
