"""The same work in a world of any size, and what the ranks of it saw."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from largebatch import data
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train
from largebatch.steps import evaluate
from largebatch.tasks.classification import Classification


def work(folder: str) -> None:
    directory, device = Path(folder), torch.device("cpu")
    with distributed.group(device):
        world, rank = distributed.world_size(), distributed.rank()
        end = {}
        for file in sorted((directory / "recipes").glob("*.yaml")):
            run = config.load(file, [f"record.dir={directory}/world{world}/{file.stem}"])
            result = train(run, quiet=True)
            end[file.stem] = result.numbers
            plan = assemble(run, device).plan
            mine = [plan.examples_of(step, rank).indices for step in range(plan.steps)]
            joined = [np.concatenate(parts).tolist() for parts in zip(*distributed.gather(mine), strict=True)]
            end[file.stem]["examples"] = joined
        task = Classification()
        # exact evaluation of ragged shares, a batch larger than the split included
        split = data.build("digits").test
        for batch_size in (1, 7, 1000):
            linear = torch.nn.Linear(64, 10)
            model = torch.nn.Sequential(torch.nn.Flatten(), linear)
            torch.manual_seed(0)
            torch.nn.init.normal_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
            placement = data.Placement(device, torch.float32, False)
            forward = functools.partial(task.forward, model)
            found = evaluate.evaluate(model, task, forward, split.batches(rank, world, batch_size, placement), device)
            end[f"evaluate {batch_size}"] = {**found.numbers, "examples": found.examples}
        # how often the engine communicates: once per step, whatever the accumulation
        if world > 1:
            run = config.load(directory / "recipes" / "sgd.yaml", ["batch.micro_batch_size=10", "record.dir=/nowhere"])
            job = assemble(run, device)
            buckets = []
            hook: Any = allreduce_hook
            job.engine.parallel.register_comm_hook(None, lambda _, bucket: buckets.append(1) or hook(None, bucket))
            micros = next(iter(job.dataset.train.steps(job.plan, rank, 0, job.placement, 0)))
            for number, batch in enumerate(micros, start=1):
                last = number == job.plan.accumulation_steps
                job.engine.backward(task.loss(job.engine.forward(task, batch, last), batch) / 120)
            end["all-reduced buckets"] = [len(buckets), job.plan.accumulation_steps]
        if distributed.is_first():
            (directory / f"world{world}.json").write_text(json.dumps(end))
