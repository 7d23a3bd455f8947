"""Batch norm over examples of several ranks: four ranks of 3 examples beside one process with all 12."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.models.batch_norm import commit, recomputed_statistics, sized

MICRO, STEPS = 3, 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Flatten(),
        nn.Linear(75, 4), nn.BatchNorm1d(4, momentum=0.3),
    ).double()  # fmt: skip


def images(step: int, micro: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + micro)
    return torch.randn(4 * MICRO, 2, 9, 9, dtype=torch.float64, generator=generator) * (1 + step + micro) + 1


def loss_of(y: Tensor, first: int, count: int) -> Tensor:
    weights = torch.linspace(-1, 2, count * 4, dtype=y.dtype).view(count, 4)
    return (y * weights[first : first + len(y)]).sum()


def train(model: nn.Module, parallel: nn.Module, mine: slice, scale: int) -> dict[str, Tensor]:
    """Two micro-batches a step; what there is to compare."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = {}
    for step in range(STEPS):
        for micro in range(2):
            x = images(step, micro)[mine].requires_grad_()
            y = parallel(x)
            (loss_of(y, mine.start, 4 * MICRO) * scale).backward()
            assert x.grad is not None
            seen[f"output {step} {micro}"] = y.detach()
            seen[f"input gradient {step} {micro}"] = x.grad / scale
        seen[f"gradients {step}"] = torch.cat([whole(p.grad).flatten() for p in model.parameters()])
        optimizer.step()
        optimizer.zero_grad()
        commit(model)
    return seen


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def statistics(model: nn.Module, average: bool) -> list[Tensor]:
    own = [b.clone() for _, b in model.named_buffers()]
    return [distributed.mean_(b) if average and b.is_floating_point() else b for b in own]


def difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    return float(((found - wanted).abs() / (1 + wanted.abs())).max())


def work(folder: str) -> None:
    """What was found, the worst of all ranks, into ``end.json``."""
    with distributed.group(torch.device("cpu")):
        rank = distributed.rank()
        mine = slice(rank * MICRO, (rank + 1) * MICRO)
        pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
        worst = dict(differences(mine, pair)) | {"recomputed": recomputed(mine)}
        same = same_bits(mine, pair)
        types, told = in_half_precision(mine, pair)
        everyone = distributed.gather(worst)
        if distributed.is_first():
            worst = {key: max(one[key] for one in everyone) for key in worst}
            end = {"worst": worst, "same": same, "types": types, "told": told}
            (Path(folder) / "end.json").write_text(json.dumps(end))


def differences(mine: slice, pair: Any) -> Iterator[tuple[str, float]]:
    """Over 2 ranks, over all 4 by the default group, and over one: one process with all 12 examples is the measure."""
    for name, size, group, count in (("pairs", 6, pair, 2), ("all", 12, None, 4), ("own", 3, pair, 2)):
        alone = sized(network(), size, 12)
        wanted = train(alone, alone, slice(0, 12), 1)
        for engine in ("ddp", "fsdp"):
            model: Any = sized(network(), size, MICRO, group, count)
            if engine == "ddp":
                parallel = DistributedDataParallel(model, broadcast_buffers=False)
            else:
                for part in (model[0], model[6], model):
                    fully_shard(part)
                parallel = model
            worst: dict[str, float] = {}
            for key, value in train(model, parallel, mine, 4).items():
                target = wanted[key] if key.startswith("gradients") else wanted[key][mine]
                kind = f"{name} {engine} {key.split()[0]}"
                worst[kind] = max(worst.get(kind, 0.0), difference(value, target))
            yield from worst.items()
            pairs = zip(statistics(model, True), statistics(alone, False), strict=True)
            yield f"{name} {engine} statistics", max(difference(*both) for both in pairs)
            weights = zip(model.parameters(), alone.parameters(), strict=True)
            yield f"{name} {engine} weights", max(difference(whole(p.detach()), q.detach()) for p, q in weights)


def same_bits(mine: slice, pair: Any) -> list[bool]:
    """Within the first pair, within the second, and between them."""
    model = sized(network(), 6, MICRO, pair, 2)
    model(images(0, 0)[mine])
    commit(model)
    of_all = distributed.gather([b.tolist() for b in model.buffers()])
    return [of_all[0] == of_all[1], of_all[2] == of_all[3], of_all[0] == of_all[2]]


def recomputed(mine: slice) -> float:
    """Precise statistics of all ranks' examples beside those of one process."""
    many, alone = sized(network(), 3, MICRO), sized(network(), 3, 12)
    with recomputed_statistics(many, distributed.sum_):
        many(images(0, 0)[mine])
    with recomputed_statistics(alone):
        alone(images(0, 0))
    return max(difference(*both) for both in zip(many.buffers(), alone.buffers(), strict=True))


def in_half_precision(mine: slice, pair: Any) -> tuple[list[Any], list[str]]:
    """It keeps its type and layout and has float32 statistics; what it refuses."""
    model: Any = sized(network().float(), 6, MICRO, pair, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(images(0, 0)[mine].float())
    y.float().square().sum().backward()
    last = model[1](images(0, 0).bfloat16()[mine][:, [0, 1, 0, 1]].to(memory_format=torch.channels_last))
    types: list[Any] = [str(t.dtype) for t in (y, model[1].sums, last)]
    types += [last.is_contiguous(memory_format=torch.channels_last)]
    types += [all(p.grad.isfinite().all() for p in model.parameters())]
    told = []
    for wrong in (lambda: model(images(0, 0).float()), lambda: sized(network(), 12, MICRO, pair, 4)):
        try:
            wrong()
        except UserError as error:
            told.append(str(error))
    return [bool(t) if isinstance(t, Tensor) else t for t in types], told
