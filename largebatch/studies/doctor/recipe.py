"""What a recipe needs of the machine, found by the very functions that ``train`` calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from largebatch.checkpoint import existing
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config, refusals
from largebatch.recipes.decide import decide, precision_of
from largebatch.recipes.phases_read_aloud import facts_of
from largebatch.records import names
from largebatch.run.assemble import data_facts, dataset_of, model_of, task_of
from largebatch.studies.doctor.facts import Examined, size
from largebatch.studies.doctor.look import free
from largebatch.studies.doctor.services import of_services


def of_recipe(run: config.Run, device: torch.device, folder: Path) -> tuple[Examined, list[str]]:
    """What the recipe needs and what stands against it, by the very functions that ``train`` calls."""
    complaints: list[str] = []

    def attempt(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except UserError as error:
            complaints.append(str(error))
            return None

    facts: Examined = {"name": run.name, "data": run.data.name, "dataset_source": None, "batch": None, "services": {}}
    if distributed.is_first():  # who alone records
        facts["services"], against = of_services(run)
        complaints += against
    attempt(lambda: refusals.check(run, precision_of(run.precision, device.type)))
    dataset = attempt(lambda: dataset_of(run))
    if dataset is None:
        return facts, complaints
    facts["dataset_source"] = dataset.source
    decided = attempt(lambda: decide(run, data_facts(dataset), distributed.world_size(), device.type))
    if decided is not None:
        plan = decided.plan
        facts["batch"] = {
            "global_batch_size": plan.global_batch_size,
            "world_size": plan.world_size,
            "micro_batch_size": plan.micro_batch_size,
            "accumulation_steps": plan.accumulation_steps,
            "steps": plan.steps,
            "phases": facts_of(decided) if run.phases is not None else [],
        }
    if distributed.is_first() and run.checkpoint.every_epochs:
        begun = existing(run.directory / names.CHECKPOINTS)
        model = attempt(lambda: model_of(run, task_of(run, dataset), dataset, None if begun else run.model.weights))
        if model is not None:
            shapes = [tuple(parameter.shape) for parameter in model.parameters()]
            one, files = checkpoint_bytes(run, shapes), checkpoint_files(run)
            facts |= {"checkpoint_bytes": one, "checkpoints_at_a_time": files}
            if one * files > free(folder):
                complaints.append(
                    f"{files} checkpoints of about {size(one)} each do not fit the {size(free(folder))} free in "
                    f"{folder}; lower checkpoint.keep or choose another record.dir"
                )
    return facts, complaints


def checkpoint_bytes(run: config.Run, shapes: list[tuple[int, ...]]) -> int:
    """Weights of these shapes, what the optimizer keeps of each, and what methods do, in float32."""
    weights, kept = (sum(map(of, shapes)) for of in (math.prod, run.optimizer.kept))
    beside = sum(method.saved(kept / weights) for method in run.methods.values())
    return round(4 * (weights + kept + weights * beside))


def checkpoint_files(run: config.Run) -> int:
    """How many lie on the disk at most: those that stay and the one being written."""
    keep = run.checkpoint.keep
    for_good = int((run.epochs or 0) / keep.every_epochs) if keep.every_epochs else 0
    return keep.last + keep.best + for_good + 1
