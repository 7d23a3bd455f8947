"""The pieces of use alone in a world of any size: what each gives, as lists of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset

from largebatch.data.sampler import ExactSampler, SeededDataset, ShareSampler
from largebatch.machine import distributed
from largebatch.steps import norms
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.noise_meter import NoiseMeter

MICRO, GLOBAL, STEPS = 4, 24, 3
Numbers = dict[str, list[float]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


def classified(count: int) -> TensorDataset:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=draws, dtype=torch.float64)
    return TensorDataset(inputs, (inputs @ torch.randn(6, 3, generator=draws, dtype=torch.float64)).argmax(1))


def tally(model: nn.Module, batch: Any) -> dict[str, Any]:
    return {"outputs": model(batch[0]).sum(0), "examples": len(batch[0])}


def parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, broadcast_buffers=False) if distributed.joined() else model


def evaluated() -> Numbers:
    """29 examples in batches of 5, so that ranks have unlike numbers of them; and 2, of which a third rank has none."""
    found: Numbers = {}
    sharded = network()
    if distributed.joined():
        fully_shard(sharded, mesh=init_device_mesh("cpu", (distributed.world_size(),)))
    for name, model in {"ddp": parallel(network()), "fsdp2": sharded}.items():
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        norm = plain[1]  # type: ignore[index]
        for buffer in (norm.running_mean, norm.running_var):
            buffer += distributed.rank() - (distributed.world_size() - 1) / 2  # whose mean over ranks is what it was
        for count in (29, 2):
            test = classified(count)
            sums = exact_sums(model, DataLoader(test, sampler=ShareSampler(test), batch_size=5), tally)
            found[f"evaluated, {name}, {count}"] = [*sums["outputs"].tolist(), float(sums["examples"])]
    return found


def trained() -> Numbers:
    """Batch norm over 8 of 24 examples, whoever holds them; the noise scale of micro-batches of 4."""
    train, model = classified(50), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms.convert_batch_norm(model, bn_batch_size=MICRO, micro_batch_size=MICRO, optimizer=optimizer)
    wrapped = parallel(model)
    sampler = ExactSampler(train, GLOBAL, steps=STEPS, micro_batch_size=MICRO)
    meter = NoiseMeter(wrapped, MICRO, GLOBAL)
    for micro_batches in sampler.steps(DataLoader(train, batch_sampler=sampler)):
        last = sampler.plan.accumulation_steps
        for number, (inputs, classes) in enumerate(micro_batches, start=1):
            with meter.micro_batch(last=number == last):
                (cross_entropy(wrapped(inputs), classes) / last).backward()
        optimizer.step()
        optimizer.zero_grad()
    estimate = meter.estimate()
    sums = exact_sums(wrapped, DataLoader(train, sampler=ShareSampler(train), batch_size=9), tally)
    norms.recompute_batch_norm(wrapped, DataLoader(classified(48), sampler=ShareSampler(range(48)), batch_size=MICRO))
    return {
        "trained": flattened(list(model.parameters())),
        "trained, evaluated": sums["outputs"].tolist(),
        "noise scale": [estimate.gradient_square, estimate.variance_trace, estimate.low],
        "recomputed": flattened([tensor.double() for tensor in model.buffers()]),
    }


def shared_norms() -> Numbers:
    """A part of 6 examples: in a world of any size as many as there are ranks have it together."""
    world, rank = distributed.world_size(), distributed.rank()
    examples, model = classified(6), network()
    norms.convert_batch_norm(model, bn_batch_size=6, micro_batch_size=6 // world)
    share = slice(rank * 6 // world, (rank + 1) * 6 // world)
    inputs, classes = (tensor[share] for tensor in examples.tensors)
    wrapped = parallel(model)
    (cross_entropy(wrapped(inputs), classes)).backward()
    return {"shared": flattened([parameter.grad for parameter in model.parameters() if parameter.grad is not None])}


class Drawn(Dataset[Tensor]):
    """Random numbers of an example."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int, generator: torch.Generator) -> Tensor:
        return torch.rand(1, generator=generator, dtype=torch.float64) + index


class Counting(ExactSampler):
    """It counts what it hands out."""

    handed_out = 0

    def __iter__(self) -> Iterator[list[Any]]:
        for asked in super().__iter__():
            self.handed_out += 1
            yield asked


def fetched() -> Numbers:
    """Two steps of 40, then on from the state with another number of workers; alone."""
    found: Numbers = {}
    for name, workers in (("no workers", (0, 0)), ("workers", (2, 1))):
        data, met = SeededDataset(Drawn(), seed=3), list[float]()
        sampler = Counting(range(100), 40, steps=6, micro_batch_size=10, positions=True, rank=0, world_size=1)
        for micro_batches in sampler.steps(DataLoader(data, batch_sampler=sampler, num_workers=workers[0])):
            met += [float(x) for batch in micro_batches for x in batch.flatten()]
            if sampler.step == 2:
                break
        state = sampler.state_dict()
        found[f"{name}, steps"] = [state["step"]]
        found[f"{name}, handed out"] = [sampler.handed_out]
        sampler = ExactSampler(range(100), 40, steps=6, micro_batch_size=20, positions=True, rank=0, world_size=1)
        sampler.load_state_dict(state)
        loader = DataLoader(data, batch_sampler=sampler, num_workers=workers[1])
        met += [float(x) for batch in loader for x in batch.flatten()]
        found[f"{name}, trained"] = met
    return found


def flattened(tensors: list[Tensor]) -> list[float]:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).tolist()


def work(folder: str) -> None:
    found: Numbers = {}
    with distributed.group(torch.device("cpu")):
        world, rank = distributed.world_size(), distributed.rank()
        for part in (evaluated, trained, shared_norms, fetched):
            found |= part()
    if rank == 0:
        (Path(folder) / f"world{world}.json").write_text(json.dumps(found))
