"""What an optimizer is that knows its layers wherever an engine has put them: whole, cut, or in flat partitions.

It keeps torch's contract (groups, hooks, copies, states), finds this rank's parts of its layers (:class:`Shards`), and
refuses flat partitions that nobody has described. Parameters in bfloat16 or float16 get a float32 master weight in
their state: the arithmetic is done there and the parameter is its rounding, for a step shorter than the parameter's
last digit would otherwise be lost.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from largebatch.errors import UserError
from largebatch.optim import loading
from largebatch.optim.contract import check_numbers, check_wrappers
from largebatch.optim.loading import Group, State
from largebatch.optim.shards import HALF, Partition, Shards, shards_of

Shapes = list[tuple[int, ...]]


class ShardedOptimizer(Optimizer, abc.ABC):
    """Each says which states it keeps of the tensors of a group, and whether its step needs whole layers."""

    BESIDE: tuple[str, ...] = ()  # further states, not of their parameter's shape
    LATER: Mapping[str, Any] = {}  # settings that older states do not have, and what they were then
    form: str = "auto"
    max_grad_norm: float | None = None

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.partitions: dict[int, Partition] = {}
        self._kept: dict[int, Shards] = {}  # by group: what is here of its layers, while that does not change
        self._shapes: dict[int, Shapes] = {}  # by group: of its layers when it was given
        super().__init__(params, defaults)

    @abc.abstractmethod
    def buffers_of(self, group: Group) -> tuple[str, ...]:
        """The states of a tensor of the group, each of its shape."""

    @abc.abstractmethod
    def counts(self, group: Group) -> bool:
        """Whether updates are counted per tensor, in the state "step"."""

    @abc.abstractmethod
    def measures(self, group: Group) -> bool:
        """Whether its step depends on more than single elements, so that its tensors must be layers, not pieces."""

    def partitions_of(self, group: Group) -> dict[int, Partition]:
        """The tables of the group's flat tensors, by ``id``, that a step walks layer by layer."""
        return self.partitions

    def settings_of(self, group: Group) -> Group:
        """The group with its settings by the names that this optimizer keeps them by."""
        return group

    def forget_layout(self) -> None:
        """What was made for tensors that may have changed."""

    def use_partition(self, parameter: Tensor, partition: Partition) -> None:
        """``parameter`` is a flat tensor that holds pieces of layers; ZeRO's engines say so before the first step."""
        self.partitions[id(parameter)] = partition
        self.forget_layout()

    def load_state_dict(self, state_dict: State) -> None:
        """Refuses, before anything is changed, a state of another model or optimizer (UserError)."""
        loading.load(self, state_dict, self._check_state, self._keep_types)
        self.forget_layout()

    def _check_state(self, state_dict: State) -> None:
        loading.check_groups(self.param_groups, state_dict)
        for number, (saved, own) in enumerate(zip(state_dict["param_groups"], self.param_groups, strict=True)):
            wanted = [key for key in self.defaults if key in own]
            loading.check_settings(type(self).__name__, number, {**self.LATER, **self.settings_of(saved)}, wanted)
            for index, parameter in zip(saved["params"], own["params"], strict=True):
                self._check_tensors(index, state_dict["state"].get(index, {}), own, parameter)

    def _check_tensors(self, index: Any, saved: State, group: Group, parameter: Tensor) -> None:
        of_shape = {key: value for key, value in saved.items() if key not in self.BESIDE}
        loading.check_tensors(type(self).__name__, index, of_shape, self.buffers_of(group), tuple(parameter.shape))

    def _keep_types(self, state_dict: State) -> None:
        """torch has rounded every state to the parameter's type; of half precision ours are more exact."""
        for saved_group, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            names = (*self.buffers_of(group), *self.BESIDE, "master_weight")
            for number, parameter in zip(saved_group["params"], group["params"], strict=True):
                saved = state_dict["state"].get(number, {})
                if parameter.dtype in HALF:
                    kept = {name: saved[name] for name in names if name in saved}
                    self.state[parameter] |= {name: value.clone().to(parameter.device) for name, value in kept.items()}

    @_disable_dynamo
    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(self.settings_of(param_group))
        self.forget_layout()
        try:
            self._check_group(len(self.param_groups) - 1, self.param_groups[-1])
        except UserError:
            self.param_groups.pop()
            raise
        self._shapes[id(self.param_groups[-1])] = shapes_of(self.param_groups[-1])

    def _check_group(self, number: int, group: Group) -> None:
        check_numbers(number, group)
        check_wrappers(type(self).__name__, group["params"], self.measures(group), self.max_grad_norm)

    def _shards(self, number: int, group: Group, parameters: list[Tensor]) -> Shards:
        """What is here of the layers of those ``parameters`` of the group that have a gradient."""
        given, now = self._shapes.setdefault(id(group), shapes_of(group)), shapes_of(group)
        if now != given and not all(id(p) in self.partitions for p in group["params"]):
            raise UserError(
                f"{type(self).__name__} was given layers of shapes {given[:3]}..., and now finds {now[:3]} in "
                f"parameter group {number}: an engine has put flat partitions in their place; tell where the "
                "layers lie with use_partition (largebatch.engines.deepspeed.show_layers does it for ZeRO)"
            )
        check_wrappers(type(self).__name__, parameters, self.measures(group), self.max_grad_norm)
        kept = self._kept.get(id(group))
        if kept is not None and kept.still_of(parameters, self.state):
            kept.grads = [p.grad for p in kept.parameters if p.grad is not None]
            return kept
        first = sum(len(before["params"]) for before in self.param_groups[:number])
        buffers, counted = self.buffers_of(group), self.counts(group)
        found = shards_of(group, parameters, self.state, buffers, counted, self.partitions_of(group), first)
        if found.whole_tensors:
            self._kept[id(group)] = found
        return found

    def __getstate__(self) -> State:
        kept = {"form": self.form, "max_grad_norm": self.max_grad_norm}
        return {**super().__getstate__(), **kept, "partitions": {}, "_kept": {}, "_shapes": {}}  # type: ignore[misc]

    def __setstate__(self, state: State) -> None:
        """Of a copy, and of a state that is loaded: then the groups are new dictionaries, in the order of the old."""
        known = [self._shapes.get(id(group)) for group in self.__dict__.get("param_groups", [])]
        super().__setstate__(state)
        self.param_groups[:] = [{**self.LATER, **self.settings_of(group)} for group in self.param_groups]
        known += [None] * (len(self.param_groups) - len(known))
        self._kept = {}
        self._shapes = {
            id(group): shapes or shapes_of(group) for group, shapes in zip(self.param_groups, known, strict=True)
        }


def shapes_of(group: Group) -> Shapes:
    return [tuple(parameter.shape) for parameter in group["params"]]
