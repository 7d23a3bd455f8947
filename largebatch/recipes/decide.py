"""Run + facts of the data + world + device -> :class:`~decided.Decided`. The arithmetic is derive.py's."""

from __future__ import annotations

from largebatch.plan.batch import BatchPlan
from largebatch.recipes import config, derive
from largebatch.recipes.combinations import check_combinations
from largebatch.recipes.decided import (
    Beside,
    DataFacts,
    Decided,
    Ema,
    Evaluating,
    LocalSteps,
    Marks,
    Noise,
    Recording,
    Sam,
    Saving,
    SwapRule,
)


def decide(run: config.Run, data: DataFacts, world_size: int, device: str) -> Decided:
    """Raises UserError for methods that contradict one another, and for numbers that do not fit.

    ``device`` is cpu or cuda.
    """
    precision = precision_of(run.precision, device)
    check_combinations(run, precision)
    largest = derive.largest_micro_batch(device, data.pixels)
    plan = derive.plan_of(run, data.examples, world_size, largest)
    lr = derive.learning_rate_of(run, plan)
    stretch = derive.stretch_of(run)
    keep = run.checkpoint.keep
    return Decided(
        name=run.name,
        title=run.title,
        directory=run.directory,
        seed=run.seed,
        device=device,
        precision=precision,
        data=run.data.name,
        task=task_name(run, data.task),
        model=run.model.model_dump(exclude={"weights"}),
        weights=run.model.weights,
        plan=plan,
        lr=lr,
        optimizer=run.optimizer,
        stretch=stretch,
        adascale_parts=derive.adascale_parts(run),
        sam=Sam(run.sam.rho, run.sam.m) if run.sam is not None else None,
        ema=Ema(run.ema.decay, run.ema.every_steps) if run.ema is not None else None,
        local=local_of(run, plan),
        swap=swap_of(run, plan, largest),
        noise=noise_of(run, plan),
        evaluating=Evaluating(
            at=Marks(plan, run.evaluate.every_epochs * stretch),
            batch_size=run.evaluate.batch_size,
            on="held_out" if run.data.hold_out else "test",
            training_set=run.evaluate.train,
            median_of=run.evaluate.median_of,
            recomputes=run.batch_norm.statistics == "precise",
            recomputed_examples=min(run.batch_norm.examples or data.examples, data.examples),
        ),
        saving=Saving(
            at=Marks(plan, run.checkpoint.every_epochs * stretch),
            keep_last=keep.last,
            keep_every_epochs=keep.every_epochs,
            keep_best=keep.best,
            asynchronous=run.checkpoint.asynchronous,
        ),
        recording=Recording(
            run.record.every_steps,
            run.record.layers_every_steps,
            run.record.directions_every_steps,
            run.record.ranks_every_steps,
            run.record.tensorboard,
        ),
        skipped_at_most=run.nonfinite_gradients.at_most,
        accepts_changed_data=run.data.if_changed == "accept",
        beside=tuple(beside_of(run, plan)),
    )


def task_name(run: config.Run, of_data: str) -> str:
    """What is learned: as the recipe says, else what the data set is for."""
    return run.task.name if run.task is not None else of_data


def precision_of(asked: str, device: str) -> str:
    if asked != "auto":
        return asked
    return "bf16" if device == "cuda" else "fp32"


def local_of(run: config.Run, plan: BatchPlan) -> LocalSteps | None:
    if not isinstance(run.averaging, config.PostLocalSgd):
        return None
    begin = derive.examples_at(derive.local_from_epoch(run), plan)
    return LocalSteps(run.averaging.workers, run.averaging.period, begin)


def swap_of(run: config.Run, plan: BatchPlan, largest: int) -> SwapRule | None:
    swap = run.averaging
    if not isinstance(swap, config.Swap):
        return None
    first = derive.worker_plan(run, plan.dataset_size, plan.world_size, largest)
    return SwapRule(swap.workers, swap.stop_at_train_accuracy, first, derive.schedule_of(swap.lr, first))


def noise_of(run: config.Run, plan: BatchPlan) -> Noise | None:
    small = tuple(derive.noise_part(run, stage, plan.world_size) for stage in plan.stages)
    section = run.record.noise_scale
    return None if section is None else Noise(section.every_steps, section.smoothing, small)


def beside_of(run: config.Run, plan: BatchPlan) -> list[Beside]:
    """What happens beside the loop, and inside batch norm."""
    epochs = plan.budget_examples / plan.dataset_size
    found = [
        Beside("batch.ramp", f"batch {s.global_batch_size:,} from epoch {s.first_example / plan.dataset_size:.4g}")
        for s in plan.stages[1:]
    ]
    sizes = run.data.image_size
    if sizes is not None and not sizes.is_constant:
        until = (sizes.until_epoch or 0) * derive.stretch_of(run)
        early = ", which the run does not reach" if until > epochs else ""
        found.append(Beside("data.image_size", f"images of {' '.join(derive.words_of_sizes(run) or ())}{early}"))
    if late := [epoch for epoch, _ in derive.growth_of(run)[0] if epoch >= epochs]:
        found.append(Beside("batch.ramp", f"no growth at epoch {derive.listed(late)}, after the end of the run"))
    if run.batch.bn_batch_size is not None:
        found.append(Beside("batch.bn_batch_size", f"batch norm over {run.batch.bn_batch_size} examples"))
    if run.batch_norm.statistics != "running":
        found.append(Beside("batch_norm", f"evaluated with {run.batch_norm.statistics} statistics"))
    if run.sam is not None:
        whose = "the global batch" if run.sam.m is None else f"each {run.sam.m} examples"
        found.append(Beside("sam", f"SAM, rho {run.sam.rho:g}, one perturbation for {whose}"))
    if run.ema is not None:
        every = steps_of(run.ema.every_steps)
        found.append(Beside("ema", f"EMA of the weights, decay {run.ema.decay:g} every {every}"))
    match run.averaging:
        case config.PostLocalSgd() as local:
            begin = derive.local_from_epoch(run)
            never = ", which is after the end of the run" if begin >= epochs else ""
            how = f"{local.workers} workers, averaged every {steps_of(local.period)}"
            found.append(Beside("averaging", f"post-local SGD from epoch {begin:g}{never}: {how}"))
        case config.Swap() as swap:
            peak, rule = derive.peak_of(swap.lr, swap.worker_batch_size)
            found.append(
                Beside(
                    "averaging",
                    f"SWAP: at {swap.stop_at_train_accuracy:g} % train accuracy {swap.workers} workers go on alone, "
                    f"batch {swap.worker_batch_size}, {swap.epochs:g} epochs each, peak lr {peak:g} ({rule})",
                )
            )
    return found


def steps_of(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"
