"""A state of another model or optimizer is refused in one sentence, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from largebatch.errors import UserError

State = dict[str, Any]  # as ``state_dict`` gives it
Group = dict[str, Any]  # of parameters, as torch has it: "params", "lr" and other settings by name


def load(
    optimizer: Optimizer, state_dict: State, check: Callable[[State], None], restore: Callable[[State], None]
) -> None:
    """torch's loading; ``check`` sees what all pre-hooks made of the state, ``restore`` comes before post-hooks."""
    seen: list[State] = []

    def last(_: Optimizer, state: State) -> None:
        check(state)
        seen.append(state)

    hooks = [
        optimizer.register_load_state_dict_pre_hook(last),
        optimizer.register_load_state_dict_post_hook(lambda _: restore(seen[-1]), prepend=True),
    ]
    try:
        Optimizer.load_state_dict(optimizer, state_dict)
    finally:
        for hook in hooks:
            hook.remove()


def check_groups(param_groups: list[Group], state_dict: State) -> dict[Any, Tensor]:
    """The parameter of each number in a state with as many groups of as many tensors."""
    groups = state_dict["param_groups"]
    sizes, wanted = [len(group["params"]) for group in groups], [len(group["params"]) for group in param_groups]
    if sizes != wanted:
        raise UserError(
            f"the state belongs to another model: its parameter groups hold {sizes} tensors, this optimizer's {wanted}"
        )
    numbers = [number for group in groups for number in group["params"]]
    return dict(zip(numbers, (p for group in param_groups for p in group["params"]), strict=True))


def check_settings(name: str, number: int, saved: Group, wanted: list[str]) -> None:
    if missing := [key for key in wanted if key not in saved]:
        raise UserError(
            f"the state belongs to another optimizer: its parameter group {number} has no {missing[0]}, which "
            f"{name} needs"
        )


def check_tensors(name: str, number: Any, saved: State, wanted: Sequence[str], shape: tuple[int, ...]) -> None:
    """One parameter's state has what is needed, and everything but its counter has the parameter's shape."""
    if saved and (missing := [key for key in wanted if key not in saved]):
        raise UserError(
            f"the state belongs to another optimizer: parameter {number} has {', '.join(map(str, saved))}, {name} "
            f"needs {', '.join(missing)} here"
        )
    for key, value in saved.items():
        if isinstance(value, Tensor) and key != "step" and tuple(value.shape) != shape:
            raise UserError(
                f"the state belongs to another model: parameter {number} has {key} of shape {tuple(value.shape)}, "
                f"here it is {shape}"
            )
