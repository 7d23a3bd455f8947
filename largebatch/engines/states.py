"""Optimizer states without an engine: by the layer's name, from and to whatever cuts them.

    {"optimizer": "Lars", "layers": {"conv1.weight": {"momentum_buffer": Tensor}, ...},
     "groups": [{"names": [...], "lr": 0.1, ...}, ...]}

An optimizer's parameter is a layer (a plain tensor), a layer's shard (a DTensor), or a flat tensor with pieces of many
layers (ZeRO), whose :class:`~largebatch.optim.shards.Partition` says where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from largebatch.checkpoint import pieces
from largebatch.checkpoint.pieces import Piece, Pieces, State
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.optim.shards import Partition, local

NOT_SAVED = ("params", "names", "foreach", "fused", "capturable", "differentiable")  # the machine's


class Layout(NamedTuple):
    """By ``id`` of the optimizer's parameter: the name of the layer, or the table of a flat partition."""

    names: dict[int, str]
    partitions: dict[int, Partition]

    def layers(self, parameter: Tensor) -> list[tuple[str, tuple[int, ...]]]:
        partition = self.partitions.get(id(parameter))
        return list(partition.layers) if partition else [(self.names[id(parameter)], tuple(parameter.shape))]


def held(optimizer: Optimizer, layout: Layout) -> State:
    """What is here of every state: whole tensors, or :class:`~pieces.Pieces`. Neither copied nor sent."""
    of_layers: dict[str, dict[str, Any]] = {}
    groups = []
    for group in optimizer.param_groups:
        names: list[str] = []
        for parameter in group["params"]:
            names += [name for name, _ in layout.layers(parameter)]
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                for name, of_layer in held_values(parameter, value, layout):
                    of_layers.setdefault(name, {})[key] = of_layer
        groups.append({"names": names, **{key: value for key, value in group.items() if key not in NOT_SAVED}})
    return {"optimizer": type(optimizer).__name__, "layers": of_layers, "groups": groups}


def held_values(parameter: Tensor, value: Any, layout: Layout) -> Iterator[tuple[str, Any]]:
    """(layer's name, what is here of its state); numbers and counters belong to each layer alike."""
    partition = layout.partitions.get(id(parameter))
    if isinstance(value, dict):  # of a flat partition: by the layer's name, whole on every rank
        yield from value.items()
        return
    cut_up = partition is not None and isinstance(value, Tensor) and value.shape == parameter.shape
    for number, (name, shape) in enumerate(layout.layers(parameter)):
        if partition is not None and cut_up:
            of_layer = [segment for segment in partition.segments if segment.layer == number]
            here = tuple(Piece(s.start, value[s.offset : s.offset + s.length].detach()) for s in of_layer)
            yield name, Pieces(shape, value.dtype, here)
        else:
            yield name, pieces.held(value.detach()) if isinstance(value, Tensor) else value


def held_weights(model: nn.Module) -> dict[str, Tensor | Pieces]:
    """What is here of every parameter, by name."""
    return {name: pieces.held(parameter.detach()) for name, parameter in model.named_parameters(remove_duplicate=False)}


def copied(tree: Any) -> Any:
    """Tensors in a tree of mappings and lists, copied to the CPU."""
    match tree:
        case Tensor():
            return tree.detach().cpu().clone()
        case dict():
            return {key: copied(value) for key, value in tree.items()}
        case list():
            return [copied(value) for value in tree]
    return tree


def judged_model(state: State) -> dict[str, Tensor | Pieces]:
    """The model in a checkpoint's state as it is judged: running statistics are the means over ranks."""
    of_ranks = [own["statistics"] for own in state["ranks"]]
    return {**state["model"], **mean_statistics(of_ranks)}


def whole_model(state: State) -> dict[str, Tensor]:
    """:func:`judged_model`, for who has it all to himself."""
    return {name: pieces.whole(saved) for name, saved in judged_model(state).items()}


def statistics_of_this_rank(of_ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Its own, where the world is that which saved; else the means."""
    same_world = len(of_ranks) == distributed.world_size()
    return of_ranks[distributed.rank()] if same_world else mean_statistics(of_ranks)


def mean_statistics(of_ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(of_ranks) == 1:
        return of_ranks[0]
    return {name: torch.stack([own[name] for own in of_ranks]).mean(dim=0) for name in of_ranks[0]}


def take_weights(model: nn.Module, saved: dict[str, Tensor | Pieces]) -> None:
    """Every parameter its part of the saved weights by name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            pieces.take(local(parameter), parameter, saved[name])


def cut(partition: Partition, saved: Mapping[str, Tensor | Pieces], into: Tensor) -> Tensor:
    """Fills the flat tensor with this rank's ranges of the saved layers."""
    for segment in partition.segments:
        layer = saved[partition.layers[segment.layer][0]]
        pieces.fill(into[segment.offset :][: segment.length], layer, segment.start)
    return into


def check(optimizer: Optimizer, layout: Layout, saved: State) -> None:
    """The checkpoint's optimizer is this one, over the same layers."""
    if saved["optimizer"] != type(optimizer).__name__:
        raise UserError(
            f"the checkpoint belongs to another optimizer: it was saved by {saved['optimizer']}, "
            f"this run uses {type(optimizer).__name__}"
        )
    there = {name for group in saved["groups"] for name in group["names"]}
    here = {name for group in optimizer.param_groups for p in group["params"] for name, _ in layout.layers(p)}
    if there != here:
        name = sorted(there ^ here)[0]
        where = "only the checkpoint has" if name in there else "the checkpoint lacks"
        raise UserError(f"the checkpoint belongs to another model or optimizer: {where} the states of {name}")


def scattered(optimizer: Optimizer, layout: Layout, saved: State) -> State:
    """What ``optimizer.load_state_dict`` takes: every parameter's part of what :func:`held` gave on all ranks."""
    settings = {tuple(sorted(group["names"])): group for group in saved["groups"]}
    state: dict[int, dict[str, Any]] = {}
    groups = []
    number = 0
    for group in optimizer.param_groups:
        names = [name for parameter in group["params"] for name, _ in layout.layers(parameter)]
        before = settings.get(tuple(sorted(names)), {})
        indices = []
        for parameter in group["params"]:
            parts = part_of(parameter, saved["layers"], layout)
            if parts:
                state[number] = parts
            indices.append(number)
            number += 1
        kept = {key: group[key] for key in group if key != "params"}
        groups.append({**kept, **{k: v for k, v in before.items() if k not in NOT_SAVED}, "params": indices})
    return {"state": state, "param_groups": groups}


def part_of(parameter: Tensor, layers: dict[str, dict[str, Any]], layout: Layout) -> dict[str, Any]:
    partition = layout.partitions.get(id(parameter))
    if partition is None:
        of_layer = layers.get(layout.names[id(parameter)], {})
        return {key: like(parameter, value) for key, value in of_layer.items()}
    own = {name: layers.get(name, {}) for name, _ in partition.layers}
    shapes = dict(partition.layers)
    found: dict[str, Any] = {}
    for key, example in next((of_layer for of_layer in own.values() if of_layer), {}).items():
        # a layer never stepped has none: zeros, which take no memory
        values = {
            name: of_layer.get(key, torch.zeros(()).expand(math.prod(shapes[name]))) for name, of_layer in own.items()
        }
        if isinstance(example, Tensor) and of_rows(key, own, shapes):
            found[key] = {
                name: pieces.whole(of_layer[key]).clone() for name, of_layer in own.items() if key in of_layer
            }
        elif isinstance(example, Tensor) and example.dim() == 0:
            found[key] = counter(key, [of_layer.get(key, torch.zeros(())) for of_layer in own.values()])
        elif isinstance(example, Tensor | Pieces):
            found[key] = cut(partition, values, torch.zeros_like(parameter))
        else:
            found[key] = example
    return found


def like(parameter: Tensor, value: Any) -> Any:
    """Cut as the parameter is, and laid out in memory as it is: torch's fused kernels walk memory and do not ask."""
    if isinstance(value, list):
        return [like(parameter, one) for one in value]
    if not isinstance(value, Tensor | Pieces):
        return value
    if tuple(value.shape) != tuple(parameter.shape):
        return pieces.whole(value).clone()  # out of the mapped file
    mine = torch.empty_like(local(parameter), dtype=value.dtype, memory_format=torch.preserve_format)
    pieces.take(mine, parameter, value)
    if not isinstance(parameter, DTensor):
        return mine
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(mine, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def of_rows(key: str, layers: dict[str, dict[str, Any]], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a state is no tensor of its layer's shape, but has numbers of some of its axes."""
    return any(
        isinstance(state := of_layer.get(key), Tensor) and state.dim() and tuple(state.shape) != shapes[name]
        for name, of_layer in layers.items()
    )


def counter(key: str, values: list[Tensor]) -> Tensor:
    """A flat partition has one counter for all its layers."""
    distinct = {float(value) for value in values}
    if len(distinct) > 1:
        raise UserError(
            f"the checkpoint's layers differ in {key!r} ({', '.join(f'{v:g}' for v in sorted(distinct)[:3])}): "
            "ZeRO keeps one count for all of them; resume with engine.name = ddp or fsdp"
        )
    return torch.tensor(distinct.pop())
