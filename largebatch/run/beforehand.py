"""What is told and recorded of a run before time is spent: the lines of the terminal, ``plan.json``, MLPerf's facts."""

from __future__ import annotations

import datetime
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.table

from largebatch.data.preparation import prepared
from largebatch.models import batch_norm, frozen, recomputed
from largebatch.models import weights as first_weights
from largebatch.optim import Treatment
from largebatch.plan.batch import BatchPlan
from largebatch.recipes import config, derive
from largebatch.recipes.phases_read_aloud import facts_of, words_of
from largebatch.records import mllog, names
from largebatch.records.circumstances import circumstances_of
from largebatch.records.run import PhaseRecord, PlannedRate, PlanRecord
from largebatch.run.assemble import Job
from largebatch.run.loggers.scalars import ScalarWriter
from largebatch.run.loggers.service import FINISH_SECONDS, ServiceProcess
from largebatch.run.loggers.tensorboard import TensorBoard
from largebatch.run.record import identity


def planned(job: Job, command: str, code: dict[str, Any]) -> PlanRecord:
    """What was decided before time was spent."""
    plan, run, decided = job.plan, job.run, job.decided
    return PlanRecord(
        name=run.name,
        title=run.title,
        task=decided.task,
        score=job.task.score,
        dataset=run.data.name,
        dataset_source=job.dataset.source,
        dataset_size=plan.dataset_size,
        test_size=len(job.dataset.test),
        global_batch_size=plan.global_batch_size,
        micro_batch_size=plan.micro_batch_size,
        accumulation_steps=plan.accumulation_steps,
        micro_batch_trial=job.trial,
        bn_batch_size=run.batch.bn_batch_size,
        methods=decided.beside_words,
        ramp=ramp_of(plan),
        phases=[PhaseRecord(**facts) for facts in facts_of(decided)],
        world_size=plan.world_size,
        steps=plan.steps,
        budget_examples=plan.budget_examples,
        epochs=plan.budget_examples / plan.dataset_size,
        lr=PlannedRate(
            peak=decided.peak_lr,
            rule=decided.lr.rule,
            warmup=decided.lr.warmup,
            decay=decided.lr.decay,
        ),
        parameters=sum(p.numel() for p in job.engine.model.parameters()),
        device=str(job.device),
        precision=decided.precision,
        engine=run.engine.name,
        engine_settings=job.engine.description,
        activation_checkpointing=recomputed.words_of(job.engine.model) or None,
        seed=run.seed,
        **circumstances_of(command, job.device),
        code=code or None,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def ramp_of(plan: BatchPlan) -> list[list[float]]:
    """Pairs of an epoch and the batch from then on."""
    return [[stage.first_example / plan.dataset_size, stage.global_batch_size] for stage in plan.stages[1:]]


def writers_of_scalars(job: Job, directory: Path, first_step: int) -> dict[str, Callable[[], ScalarWriter]]:
    """By the names of ``record.to``; each is made on the first rank, when it is called."""
    from largebatch import report

    run = job.run

    def service(name: str) -> ServiceProcess:
        return ServiceProcess(
            name,
            {
                "service": name,
                "settings": getattr(run.record, name).model_dump(mode="json"),
                "id": identity(directory),
                "name": run.name,
                "directory": str(directory.resolve()),
                "report": str(report.beside(directory)),
                "config": run.as_written(),
                "trainer": os.getpid(),
            },
            min(FINISH_SECONDS, 30 * run.timeout_minutes),  # half of what other ranks wait
        )

    def board() -> TensorBoard:
        return TensorBoard(directory / names.TENSORBOARD, first_step)

    makers = {name: functools.partial(service, name) for name in job.decided.recording.to}
    return {**makers, "tensorboard": board} if "tensorboard" in makers else {**makers}


def mlperf_facts(job: Job) -> mllog.MlperfRun:
    """What MLPerf's log says of a run before it starts."""
    run, plan = job.run, job.plan
    keys = run.optimizer.model_dump()
    imagenet = run.data.name == "imagenet" and not run.data.hold_out and run.model.name.endswith("resnet50")
    schedule = job.decided.lr.schedule
    warmup = schedule.warmup / plan.dataset_size
    return mllog.MlperfRun(
        seed=run.seed,
        global_batch_size=plan.global_batch_size,
        gradient_accumulation_steps=plan.accumulation_steps,
        train_samples=plan.dataset_size,
        eval_samples=len(job.dataset.test),
        bn_span=run.batch.bn_batch_size or plan.micro_batch_size,
        optimizer=run.optimizer.name,
        peak_lr=job.decided.peak_lr,
        end_lr=run.lr.decay.end,
        decay_power=run.lr.decay.polynomial,
        decay_steps=plan.first_step_at(schedule.decay_span[1]) - plan.first_step_at(schedule.warmup),
        warmup_epochs=warmup,
        momentum=keys.get("momentum", 0.0),
        weight_decay=run.weight_decay.value,
        epsilon=keys.get("eps") or 0.0,
        evaluate_every_epochs=run.evaluate.every_epochs,
        target=mllog.RESNET_TARGET if imagenet else None,
        benchmark="resnet" if imagenet else run.data.name,
        methods=beside_the_reference(run),
    )


def beside_the_reference(run: config.Run) -> tuple[str, ...]:
    """The keys by which a run trains otherwise than MLPerf's reference implementation of ResNet-50."""
    asked = {
        **{method.where: method.CHANGES for method in run.methods.values()},
        "batch.ramp": run.batch.ramp is not None,
        "phases": run.phases is not None,
        "data.image_size that grows": run.data.image_size is not None and not run.data.image_size.is_constant,
        **dict.fromkeys(derive.words_of_augmentation(run), True),
        "model.weights": run.model.weights is not None,
        "start": run.start is not None,
        "model.frozen": bool(run.model.frozen),
        f"batch_norm.statistics = {run.batch_norm.statistics}": run.batch_norm.statistics != "running",
        "max_grad_norm": run.max_grad_norm is not None,
    }
    return (*(key for key, is_so in asked.items() if is_so), *run.optimizer.beside_the_reference())


def decisions(job: Job, directory: Path) -> dict[str, str]:
    """What is printed before time is spent, a line each."""
    decided, run, model = job.decided, job.run, job.engine.model
    parameters = sum(p.numel() for p in model.parameters())
    decayed = sum(row.decayed for row in job.treatments)
    adapted = sum(row.adapted for row in job.treatments)
    matrices = sum(row.orthogonalised for row in job.treatments)
    orthogonalised = f"; {matrices} orthogonalised as matrices" if matrices else ""
    if run.phases is None:
        of_batches = {"batch": f"{decided.batch_words}{unsized_norms(job)}", "lr": decided.lr.words}
    else:
        of_batches = {"phases": f"{len(decided.phases)}, in ranks × micro-batch × accumulation{unsized_norms(job)}"}
        of_batches |= {f"phase {n}": words_of(decided, phase) for n, phase in enumerate(decided.phases, start=1)}
    weights = ""
    if run.model.weights is not None:
        weights = first_weights.words_of(model, run.model.name, run.model.weights, prepared(job.dataset))
    if job.starting_point is not None:
        weights = job.starting_point.words
    lines = {
        "run": f"{run.name}, seed {run.seed}, in {directory}",
        "model": f"{run.model.name}, {parameters:,} parameters",
        "weights": weights,
        "frozen": frozen.words_of(model) if run.model.frozen else "",
        "data": f"{decided.data}: {decided.plan.dataset_size:,} to train, {len(job.dataset.test):,} to evaluate "
        f"({job.dataset.source}; {', '.join(f'{key} {value}' for key, value in job.dataset.facts.items())})",
        **of_batches,
        "budget": decided.budget_words,
        "optimizer": f"{run.optimizer.words}; weight decay {run.weight_decay.value:g} on {decayed} of "
        f"{len(job.treatments)} tensors; {adapted} adapted layer by layer{orthogonalised}",
        "beside": decided.beside_words,
        "memory": "; ".join(filter(None, (recomputed.words_of(model), job.trial and job.trial.words))),
        "machine": f"{job.device}, {decided.precision}, engine {job.engine.description}",
    }
    return {key: text for key, text in lines.items() if text}


def unsized_norms(job: Job) -> str:
    """What batch norm sees where the recipe does not say."""
    plain = any(not isinstance(m, batch_norm.SizedNorm) for m in batch_norm.batch_norms(job.engine.model))
    sizes = ", ".join(f"{size:,}" for size in dict.fromkeys(stage.micro_batch_size for stage in job.plan.stages))
    return f"; batch norm over the micro-batch of {sizes}" if plain else ""


def table_of_tensors(treatments: list[Treatment]) -> rich.table.Table:
    """Which tensors are decayed, adapted and, if any, orthogonalised, a row for each treatment of each kind.

    The log has every tensor.

    Of the kind ``own`` the model itself says that they are not decayed.
    """
    table = rich.table.Table(box=None, padding=(0, 2), pad_edge=False)
    asked = ("decayed", "adapted", *(["orthogonalised"] if any(row.orthogonalised for row in treatments) else []))
    for column in ("tensors", "count", "elements", *asked):
        justify = "right" if column in ("count", "elements") else "left"
        table.add_column(column, justify=justify, no_wrap=True, min_width=len(column))
    table.add_column("which", no_wrap=True)
    rows: dict[tuple[Any, ...], list[Treatment]] = {}
    for row in treatments:
        rows.setdefault((row.kind, *(getattr(row, flag) for flag in asked)), []).append(row)
    for (kind, *flags), alike in rows.items():
        elements = sum(math.prod(row.shape) for row in alike)
        yes = ["yes" if flag else "no" for flag in flags]
        which = alike[0].name if len(alike) == 1 else f"{alike[0].name} … {alike[-1].name}"
        table.add_row(kind, f"{len(alike):,}", f"{elements:,}", *yes, which)
    return table
