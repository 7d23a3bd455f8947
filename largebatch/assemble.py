"""Run -> what the loop needs. Here, and in the other assembly rooms, the config is read; nowhere else."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rich.table
import torch
from torch import nn

from largebatch import batch, config, data, distributed, engines, models, optim, record, schedules
from largebatch.batch import BatchPlan
from largebatch.errors import UserError
from largebatch.optim import Treatment
from largebatch.schedules import Schedule

LARGEST_MICRO_BATCH = {"cpu": 512, "cuda": 2048}  # small images: measured on CPU, generous on CUDA
LARGEST_MICRO_BATCH_PIXELS = 256 * 224 * 224  # on CUDA for larger images


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """A schedule with the words that explain it."""

    schedule: Schedule
    rule: str
    warmup: str
    decay: str


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, built and ready: everything the loop touches."""

    run: config.Run
    device: torch.device
    precision: str
    dataset: data.Dataset
    placement: data.Placement
    plan: BatchPlan
    lr: LearningRate
    treatments: list[Treatment]
    engine: engines.Engine


def assemble(run: config.Run, device: torch.device) -> Job:
    dataset = dataset_of(run.data)
    plan = plan_of(run, len(dataset.train), dataset.image_shape, device)
    lr = learning_rate_of(run, plan)
    precision = precision_of(run.precision, device)
    arguments = run.model.arguments
    classes = arguments.pop("num_classes", dataset.num_classes)
    if classes != dataset.num_classes:
        raise UserError(
            f"model.num_classes = {classes} does not fit data.name = {run.data.name}, which has "
            f"{dataset.num_classes} classes"
        )
    model = models.build(run.model.name, dataset.num_classes, dataset.image_shape, run.seed, arguments)
    models.check(model, run.model.name, dataset.num_classes, dataset.image_shape)
    channels_last = run.channels_last
    if channels_last is None:
        channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
    settings = run.engine.model_dump(exclude={"name"})
    engine = engines.ENGINES[run.engine.name](device, precision, channels_last, run.compile, **settings)
    model = engine.place(model)
    table = optim.treatments(model, run.weight_decay.skip, getattr(run.optimizer, "skip_adaptation", None))
    groups = optim.parameter_groups(model, run.weight_decay.value, table)
    optimizer = optimizer_of(run.optimizer, groups, lr.schedule(0), precision, run.engine.name)
    engine.prepare(model, optimizer, plan, run.max_grad_norm)
    placement = data.Placement(device, engine.dtype, channels_last)
    return Job(run, device, precision, dataset, placement, plan, lr, table, engine)


def dataset_of(section: config.Data) -> data.Dataset:
    return data.build(section.name, **section.model_dump(exclude={"name"}))


def plan_of(run: config.Run, dataset_size: int, image_shape: tuple[int, int, int], device: torch.device) -> BatchPlan:
    largest = LARGEST_MICRO_BATCH[device.type]
    pixels = image_shape[1] * image_shape[2]
    if device.type == "cuda" and pixels > 64 * 64:
        largest = max(1, LARGEST_MICRO_BATCH_PIXELS // pixels)
    return batch.resolve(
        dataset_size=dataset_size,
        global_batch_size=run.batch.global_batch_size,
        micro_batch_size=run.batch.micro_batch_size,
        largest_micro_batch=largest,
        world_size=distributed.world_size(),
        epochs=run.epochs,
        steps=run.steps,
        seed=run.seed,
    )


def peak_of(lr: config.LearningRate, global_batch_size: int) -> tuple[float, str]:
    """The peak learning rate at this batch, and the arithmetic in words."""
    size, reference = global_batch_size, lr.reference_batch_size
    if lr.table is not None:
        peak = schedules.table_lr(lr.table, size, lr.interpolate)
        return peak, f"table: row {size} = {peak:g}"
    assert lr.base is not None
    peak = schedules.scaled_lr(lr.base, lr.scaling, size, reference)
    words = {
        "none": f"no scaling: {lr.base:g}",
        "linear": f"linear: {lr.base:g} × {size}/{reference} = {peak:g}",
        "sqrt": f"sqrt: {lr.base:g} × √({size}/{reference}) = {peak:g}",
    }
    return peak, words[lr.scaling]


def learning_rate_of(run: config.Run, plan: BatchPlan) -> LearningRate:
    lr, decay = run.lr, run.lr.decay
    peak, rule = peak_of(lr, plan.global_batch_size)
    epochs = plan.budget_examples / plan.dataset_size
    if lr.warmup.epochs >= epochs:
        raise UserError(f"lr.warmup.epochs = {lr.warmup.epochs:g} must be below the run's {epochs:.4g} epochs")
    start = min(lr.base or 0.0, peak) if lr.warmup.start == "base" else 0.0
    shape: dict[str, Any] = {"decay": decay.name}
    match decay:
        case config.StepsDecay():
            milestones = tuple(at * plan.dataset_size for at in decay.at_epochs)
            shape |= {"milestones": milestones, "factor": decay.factor}
            words = f"×{decay.factor:g} at epochs {', '.join(f'{at:g}' for at in decay.at_epochs)}"
        case config.PolynomialDecay():
            shape |= {"power": decay.power, "end": decay.end_lr}
            words = f"polynomial of power {decay.power:g} to {decay.end_lr:g}"
        case config.LinearDecay() | config.CosineDecay():
            shape |= {"end": decay.end_lr}
            words = f"{decay.name} to {decay.end_lr:g}"
        case _:
            words = "constant"
    schedule = Schedule(
        peak=peak,
        total=plan.budget_examples,
        warmup=lr.warmup.epochs * plan.dataset_size,
        start=start,
        **shape,
    )
    warmup = f"{lr.warmup.epochs:g} epochs from {start:g}" if lr.warmup.epochs else "none"
    return LearningRate(schedule, rule, warmup, words)


def precision_of(asked: str, device: torch.device) -> str:
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" else "fp32"


def optimizer_of(
    section: config.Optimizer, groups: Iterable[dict[str, Any]], lr: float, precision: str, engine: str = "ddp"
) -> torch.optim.Optimizer:
    """Groups carry their own weight decay and, for LARS and LAMB, whether they are adapted.

    torch's fused SGD leaves an uninitialised momentum buffer behind when the loss scaler skips the first step
    (seen with torch 2.15 on the CPU), so fp16 takes the foreach form.
    """
    fused = True if precision != "fp16" else None
    fused_sgd = None if engine == "fsdp" else fused  # torch's has no rule for DTensors
    groups = list(groups)
    if not groups:
        raise UserError("the model has no trainable parameters")
    arguments = section.model_dump(exclude={"name", "skip_adaptation"})
    match section:
        case config.Sgd():
            if section.nesterov and section.momentum == 0:
                raise UserError("optimizer.nesterov = true needs optimizer.momentum above 0")
            return torch.optim.SGD(groups, lr=lr, **arguments, fused=fused_sgd)
        case config.AdamW():
            betas = (section.beta1, section.beta2)
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=section.eps, fused=fused)
        case config.HeavyBall():
            return optim.HeavyBall(groups, lr=lr, **arguments)
        case config.Lars():
            return optim.Lars(groups, lr=lr, **arguments)
        case config.Lamb():
            return optim.Lamb(groups, lr=lr, **arguments)
    raise AssertionError(section)


def plan_facts(job: Job, command: str) -> dict[str, Any]:
    """What was decided before time was spent; the content of ``plan.json``."""
    plan, run = job.plan, job.run
    return {
        "name": run.name,
        "title": run.title,
        "dataset": run.data.name,
        "dataset_source": job.dataset.source,
        "dataset_size": plan.dataset_size,
        "test_size": len(job.dataset.test),
        "global_batch_size": plan.global_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "world_size": plan.world_size,
        "steps": plan.steps,
        "budget_examples": plan.budget_examples,
        "epochs": plan.budget_examples / plan.dataset_size,
        "lr": {
            "peak": job.lr.schedule.peak,
            "rule": job.lr.rule,
            "warmup": job.lr.warmup,
            "decay": job.lr.decay,
        },
        "parameters": sum(p.numel() for p in job.engine.model.parameters()),
        "device": str(job.device),
        "precision": job.precision,
        "engine": run.engine.name,
        "engine_settings": job.engine.description,
        "seed": run.seed,
        "command": command,
        "machine": record.machine(job.device),
        "versions": record.versions(),
        "commit": record.commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def decisions(job: Job, directory: Path) -> dict[str, str]:
    """What is printed before time is spent, a line each."""
    plan, run = job.plan, job.run
    parameters = sum(p.numel() for p in job.engine.model.parameters())
    decayed = sum(row.decayed for row in job.treatments)
    adapted = sum(row.adapted for row in job.treatments)
    made_of = f"{plan.world_size} × {plan.micro_batch_size} × {plan.accumulation_steps}"
    return {
        "run": f"{run.name}, seed {run.seed}, in {directory}",
        "model": f"{run.model.name}, {parameters:,} parameters",
        "data": f"{run.data.name}: {plan.dataset_size:,} to train, {len(job.dataset.test):,} to evaluate "
        f"({job.dataset.source}; {', '.join(f'{key} {value}' for key, value in job.dataset.facts.items())})",
        "batch": f"{plan.global_batch_size:,} = {made_of} (ranks × micro-batch × accumulation)",
        "budget": f"{plan.steps:,} steps, {plan.budget_examples / plan.dataset_size:.4g} epochs",
        "lr": f"{job.lr.rule}; warm-up {job.lr.warmup}; decay {job.lr.decay}",
        "optimizer": f"{run.optimizer.name}; weight decay {run.weight_decay.value:g} on {decayed} of "
        f"{len(job.treatments)} tensors; {adapted} adapted layer by layer",
        "machine": f"{job.device}, {job.precision}, engine {job.engine.description}",
    }


def table_of_tensors(treatments: list[Treatment]) -> rich.table.Table:
    """Which tensors are decayed and adapted, a row for each treatment of each kind; the log has every tensor."""
    table = rich.table.Table(box=None, padding=(0, 2), pad_edge=False)
    for column in ("tensors", "count", "elements", "decayed", "adapted"):
        justify = "right" if column in ("count", "elements") else "left"
        table.add_column(column, justify=justify, no_wrap=True, min_width=len(column))
    table.add_column("which", no_wrap=True)
    rows: dict[tuple[str, bool, bool], list[Treatment]] = {}
    for row in treatments:
        rows.setdefault((row.kind, row.decayed, row.adapted), []).append(row)
    for (kind, decayed, adapted), alike in rows.items():
        elements = sum(math.prod(row.shape) for row in alike)
        yes = ["yes" if flag else "no" for flag in (decayed, adapted)]
        which = alike[0].name if len(alike) == 1 else f"{alike[0].name} … {alike[-1].name}"
        table.add_row(kind, f"{len(alike):,}", f"{elements:,}", *yes, which)
    return table
