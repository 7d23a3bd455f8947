"""Images per second of the trainer, what its step is made of, and what bounds it.

All contestants train in one process, in rounds; who begins alternates. The figure is the median over rounds of a ratio
within one round.

    trainer           the real loop with its data
    synthetic         the same loop on batches that lie ready on the device: the ceiling
    bare_loop         a plain PyTorch loop: the same model, optimizer and micro-batches (bare_loop.py). Of a set that
                      lives on the device it picks and normalises its own batches; else it has ready ones, and then the
                      trainer's loop on ready batches is what stands beside it
    timm              timm's model and loop on ready batches (timm_loop.py)
    transformers      of bert alone: its model in its Trainer, on the same sequences (transformers_loop.py)
    dataloader_loop   the bare loop over a DataLoader, for sets that live on the device (dataloader_loop.py)

Or the trainer stands beside itself under other keys: what they cost.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from largebatch.data import nested
from largebatch.data.resident import ResidentSplit, TensorSplit
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.models.bert import Bert
from largebatch.recipes import config
from largebatch.records.circumstances import circumstances_of
from largebatch.run.assemble import Job, assemble, model_of
from largebatch.studies.bench.throughput import dataloader_loop, flops, timm_loop, transformers_loop, turns
from largebatch.studies.bench.throughput.bare_loop import bare_loop, gathered
from largebatch.studies.bench.throughput.machine_load import Memory, busy_share
from largebatch.studies.bench.throughput.ready import Ready, ready
from largebatch.studies.bench.throughput.verdict import Measurements, verdict

DATALOADER_EXAMPLES = 20_000  # of one turn, at most: it is the slow one, and its rate is steady
WORKERS = (0, 2)  # of the DataLoader; the faster is taken


@dataclasses.dataclass
class TimedLoop:
    name: str
    examples: int  # of one turn
    seconds: Callable[[], float]  # of one turn
    what: str = ""  # what it does, in words
    beside: str = "trainer"  # which of our own it is compared with
    speeds: list[float] = dataclasses.field(default_factory=list)  # examples per second


def measure(
    run: config.Run,
    pairs: int,
    steps: int,
    command: str,
    beside: list[str] | None = None,
    dataloader: bool | None = None,
    compile_timm: bool | None = None,
) -> dict[str, Any]:
    """Facts of kind ``throughput``; every number with its unit in its name.

    ``beside`` are overrides laid over the recipe: with them the trainer takes the place of all other contestants.
    ``dataloader``: unset, where the set lives on the device. ``compile_timm``: unset, on CUDA or as the run does.
    """
    if distributed.world_size() > 1:
        raise UserError("bench throughput measures one process; start it without a launcher, or take bench scaling")
    if rates := [text for text in beside or [] if text.partition("=")[0].partition(".")[0] == "lr"]:
        raise UserError(f"--beside {rates[0]} has no effect: bench throughput fixes the learning rate")
    device = distributed.choose_device(run.device)
    memory = Memory(device)
    fixed, changed = turns.timed(run, steps)
    job = assemble(fixed, device)
    trainer = TimedLoop("trainer", steps * job.plan.global_batch_size, lambda: turns.trainer_seconds(job))
    facts: dict[str, Any] = {
        "kind": "throughput",
        "recipe": run.name,
        "model": run.model.name,
        "data": run.data.name,
        "input_shape": list(nested.tensors_of(job.dataset.largest(1))[0].shape[1:]),
        "device": device.type,
        "precision": job.decided.precision,
        "global_batch_size": job.plan.global_batch_size,
        "micro_batch_size": job.plan.micro_batch_size,
        "accumulation_steps": job.plan.accumulation_steps,
        "steps_timed": steps,
        "pairs": pairs,
        "changed": changed,
        **({"beside": beside} if beside else {}),
    }
    if beside:
        written = config.from_dict(config.overlay(run.as_written(), beside), f"{run.name} with --beside")
        other = assemble(turns.timed(written, steps)[0], device)
        there = TimedLoop("beside", steps * other.plan.global_batch_size, lambda: turns.trainer_seconds(other))
        facts |= of_contest([trainer, there], pairs)
    else:
        trainer.seconds()  # with nobody else there, it shows what memory it takes
        facts["memory"] = memory.facts()
        batches = ready(job)
        entered, left_out = others(job, batches, steps, dataloader, compile_timm)
        facts |= of_contest([trainer, *entered], pairs)
        facts |= {"left_out": left_out, "split": turns.split_of_step(job, steps)}
        facts["device_busy_share"] = busy_share(job, batches)
        facts["arithmetic"] = arithmetic(job, statistics.median(trainer.speeds))
        facts["verdict"] = verdict(known(facts))._asdict()
    return {
        **facts,
        **circumstances_of(command, device),
    }


def of_contest(contestants: list[TimedLoop], rounds: int) -> dict[str, Any]:
    """Each once to warm up, then in rounds; their speeds and our own over each of the others."""
    for contestant in contestants:
        contestant.seconds()
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            contestant.speeds.append(contestant.examples / contestant.seconds())
    facts: dict[str, Any] = {f"{c.name}_examples_per_second": c.speeds for c in contestants}
    facts["contestants"] = [{"name": c.name, "what": c.what, "compared_with": c.beside} for c in contestants]
    ours = {c.name: c.speeds for c in contestants if c.name in ("trainer", "synthetic")}
    for name, speeds in ours.items():
        for other in contestants[1 + list(ours).index(name) :]:
            ratios = [one / another for one, another in zip(speeds, other.speeds, strict=True)]
            facts[f"{name}_over_{other.name}"] = ratios
            facts[f"{name}_over_{other.name}_median"] = statistics.median(ratios)
    return facts


def others(
    job: Job, batches: Ready, steps: int, dataloader: bool | None, compile_timm: bool | None
) -> tuple[list[TimedLoop], dict[str, str]]:
    """Who stands beside the trainer, ready to be timed; and why others do not."""
    examples = steps * job.plan.global_batch_size
    on_ready = turns.with_training_set(job, batches)
    entered = [TimedLoop("synthetic", examples, lambda: turns.trainer_seconds(on_ready), "the trainer, ready batches")]
    left_out: dict[str, str] = {}
    if reason := what_a_bare_loop_lacks(job.run, job.decided.precision):
        left_out["bare_loop"] = reason
    else:
        entered.append(bare_contestant(job, batches, examples))
    try:
        compile = job.run.compile or job.device.type == "cuda" if compile_timm is None else compile_timm
        entered.append(timm_contestant(job, batches, examples, timm_loop.peer(job, compile)))
    except UserError as reason:
        left_out["timm"] = str(reason)
    if isinstance(job.engine.model, Bert):
        try:
            entered.append(transformers_contestant(job, batches, steps))
        except UserError as reason:
            left_out["transformers"] = str(reason)
    resident = isinstance(job.dataset.train, ResidentSplit) and job.dataset.train.policy is None
    if dataloader and not resident:
        train = job.dataset.train
        why = "does not live on the device; bench data measures loaders"
        if isinstance(train, TensorSplit):
            why = "has a policy" if isinstance(train, ResidentSplit) else "has no images"
        left_out["dataloader_loop"] = f"{job.run.data.name} {why}"
    elif dataloader is not False and resident:
        if "bare_loop" in left_out:
            left_out["dataloader_loop"] = left_out["bare_loop"]
        else:
            entered.append(dataloader_contestant(job, steps))
    return entered, left_out


def what_a_bare_loop_lacks(run: config.Run, precision: str) -> str | None:
    """Why the comparison would not be of like with like; None where it is."""
    asked = {
        "max_grad_norm": run.max_grad_norm is not None,
        **{method.where: method.CHANGES or method.saved(0) > 0 for method in run.methods.values()},
        "nonfinite_gradients.action = skip": run.nonfinite_gradients.action == "skip",
        "precision = fp16, which scales the loss": precision == "fp16",
        "engine.name = deepspeed": run.engine.name == "deepspeed",
    }
    lacking = [key for key, is_asked in asked.items() if is_asked]
    return f"it has no {', no '.join(lacking)}" if lacking else None


def own_job(job: Job) -> Job:
    """The same again with weights of its own; of CUDA graphs a plain loop knows nothing."""
    engine = job.run.engine
    if engine.name == "ddp":
        engine = engine.model_copy(update={"cuda_graphs": False})
    own = assemble(job.run.model_copy(update={"engine": engine}), job.device, job.dataset)
    own.engine.model.train()
    return own


def bare_contestant(job: Job, batches: Ready, examples: int) -> TimedLoop:
    own, split = own_job(job), job.dataset.train
    if isinstance(split, ResidentSplit) and split.augment == "none" and split.policy is None:
        stream, words, beside = lambda: gathered_steps(own, split), "picks and normalises its batches", "trainer"
    else:
        stream, words, beside = lambda: ready_steps(own, batches), "ready batches", "synthetic"
    seconds = lambda: turns.loop_seconds(own, stream(), lambda steps: train_barely(own, steps))  # noqa: E731
    return TimedLoop("bare_loop", examples, seconds, words, beside)


def timm_contestant(job: Job, batches: Ready, examples: int, peer: timm_loop.Peer) -> TimedLoop:
    def seconds() -> float:
        loop = lambda steps: timm_loop.timm_loop(peer, steps, job.plan.accumulation_steps, job.task)  # noqa: E731
        return turns.loop_seconds(job, ready_steps(job, batches), loop)

    return TimedLoop("timm", examples, seconds, f"{peer.what}, ready batches", "synthetic")


def transformers_contestant(job: Job, batches: Ready, steps: int) -> TimedLoop:
    transformers_loop.check(job)
    seconds = lambda: transformers_loop.trained_seconds(job, batches.kept, steps)  # noqa: E731
    return TimedLoop("transformers", steps * job.plan.global_batch_size, seconds, "its BERT in its Trainer, AdamW")


def dataloader_contestant(job: Job, steps: int) -> TimedLoop:
    """With as many workers as are faster in a first turn."""
    own, split, plan = own_job(job), job.dataset.train, job.plan
    assert isinstance(split, ResidentSplit)
    count = max(1, min(steps, DATALOADER_EXAMPLES // plan.global_batch_size))
    loaders = {w: dataloader_loop.loader(split, plan.micro_batch_size, w, job.placement) for w in WORKERS}

    def seconds(workers: int) -> float:
        stream = dataloader_loop.loaded(loaders[workers], turns.LEAD_IN + count, plan.accumulation_steps, job.placement)
        return turns.loop_seconds(own, stream, lambda steps: train_barely(own, steps))

    tried = {workers: count * plan.global_batch_size / seconds(workers) for workers in WORKERS}
    best = max(tried, key=lambda workers: tried[workers])
    rates = " and ".join(f"{rate:,.0f} with {workers} workers" for workers, rate in tried.items())
    what = f"DataLoader, {best} workers (tried: {rates}, examples/s), turns of {count} steps"
    return TimedLoop("dataloader_loop", count * plan.global_batch_size, lambda: seconds(best), what)


def train_barely(job: Job, steps: Iterator[Any]) -> None:
    engine = job.engine
    bare_loop(engine.parallel, job.task, engine.optimizer, steps, job.plan.global_batch_size, engine.autocast)


def ready_steps(job: Job, batches: Ready) -> Iterator[Any]:
    return batches.steps(job.plan, 0, 0, job.placement, job.run.seed)


def gathered_steps(job: Job, split: ResidentSplit) -> Iterator[Any]:
    images, labels = split.resident(job.device)
    dtype, plan = job.placement.dtype, job.plan
    layout = torch.channels_last if job.placement.channels_last else torch.contiguous_format
    mean, std = (255 * torch.tensor(values).view(-1, 1, 1).to(job.device, dtype) for values in split.statistics)
    return gathered(
        images.permute(0, 3, 1, 2), nested.cast(labels, dtype), mean, std, plan.global_batch_size,
        plan.micro_batch_size, plan.steps, dtype, layout,
    )  # fmt: skip


def arithmetic(job: Job, images_per_second: float) -> dict[str, Any]:
    """FLOPs of the model, peaks of the device, and how much of them the trainer reaches."""
    batch, device = job.dataset.largest(2), job.device  # two, for batch norm
    try:
        of_image = flops.of_one_example(model_of(job.run, job.task, job.dataset), job.task, batch)
    except (NotImplementedError, RuntimeError) as error:
        return {"not_counted_because": str(error).splitlines()[0]}
    passes = math.prod(decision.passes for decision in job.decided.methods.values())
    rate = passes * of_image.total * images_per_second
    peak = flops.measured_peak(device, job.decided.precision)
    known = (
        flops.datasheet_peak(torch.cuda.get_device_name(device), job.decided.precision)
        if device.type == "cuda"
        else None
    )
    of_mlperf = device.type == "cuda" and job.run.model.name.endswith("resnet50")
    of_mlperf = of_mlperf and nested.tensors_of(batch)[0].shape[-1] == flops.MLPERF_SIDE
    return {
        "forward_flop_per_image": of_image.forward,
        "backward_flop_per_image": of_image.backward,
        "passes": passes,
        "model_flop_per_second": rate,
        "measured_peak_flop_per_second": peak,
        "utilisation_of_measured_peak": rate / peak,
        "datasheet_peak_flop_per_second": known[0] if known else None,
        "datasheet": known[1] if known else None,
        "utilisation_of_datasheet_peak": rate / known[0] if known else None,
        "share_of_mlperf_rate": images_per_second / flops.MLPERF_IMAGES_PER_SECOND if of_mlperf else None,
    }


def known(facts: dict[str, Any]) -> Measurements:
    """What the verdict is drawn from."""
    exposed, waited, whole = (facts["split"][f"{part}_seconds"] for part in ("communication", "data", "step"))
    return Measurements(
        trainer_over_synthetic=facts["trainer_over_synthetic"],
        exposed_share=exposed / whole if exposed is not None and whole else None,
        busy_share=facts["device_busy_share"],
        utilisation=facts["arithmetic"].get("utilisation_of_measured_peak"),
        device=facts["device"],
        data_share=waited / whole if waited is not None and whole else None,
    )
