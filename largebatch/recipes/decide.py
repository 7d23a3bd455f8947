"""Run + facts of the data + world + device -> :class:`~decided.Decided`. The arithmetic is derive.py's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from largebatch.plan import batch
from largebatch.plan.batch import BatchPlan
from largebatch.recipes import config, derive, micro_batch, moments, phases, refusals, registry
from largebatch.recipes.decided import Adapting, Beside, DataFacts, Decided, Evaluating, Marks, Recording, Saving
from largebatch.recipes.methods import Decision
from largebatch.recipes.registry import Code


def decide(
    run: config.Run, data: DataFacts, world_size: int, device: str, held: Mapping[int, int] | None = None
) -> Decided:
    """Raises UserError for methods that contradict one another, and for numbers that do not fit.

    ``device`` is cpu or cuda; ``held`` are the micro-batches that it was found to hold, by the pixels of an example.
    """
    precision = precision_of(run.precision, device)
    refusals.check(run, precision)
    largest = derive.largest_micro_batch(device, data.pixels, held)
    plan, of_phases = phases.planned(run, data.examples, data.pixels, world_size, device, held)
    decisions = {name: method.decide(run, plan, largest) for name, method in run.methods.items()}
    stretch = run.stretch
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
        model=run.model.model_dump(exclude={"weights", "frozen"}),
        weights=run.model.weights,
        start=run.start,
        code=code_of_parts(run, data.task),
        plan=plan,
        phases=of_phases,
        optimizer=moments.at_batch(run, run.batch.global_batch_size).optimizer,
        stated=run.optimizer,
        weight_decay=run.weight_decay.value,
        stretch=stretch,
        clock=derive.clock_of(run),
        methods=decisions,
        adapting=adapting_of(run, plan),
        evaluating=Evaluating(
            at=Marks(plan, run.evaluate.every_epochs * stretch),
            batch_size=run.evaluate.batch_size,
            on="held_out" if run.data.hold_out else "test",
            training_set=run.evaluate.train,
            median_of=run.evaluate.median_of,
            recomputes=run.recomputes_statistics,
            recomputed_examples=min(run.batch_norm.examples or data.examples, data.examples),
            views=run.evaluate.views,
        ),
        saving=Saving(
            at=Marks(plan, run.checkpoint.every_epochs * stretch),
            keep_last=keep.last,
            keep_every_epochs=keep.every_epochs,
            keep_best=keep.best,
            asynchronous=run.checkpoint.asynchronous,
        ),
        recording=Recording(run.record.every_steps, run.record.to),
        skipped_at_most=run.nonfinite_gradients.at_most,
        accepts_changed_data=run.data.if_changed == "accept",
        trying=micro_batch.trying(run, plan, data.pixels),
        beside=(*beside_of(run, plan), *words_of(run, decisions)),
    )


def grown(decided: Decided, run: config.Run, growth: Sequence[tuple[int, int]]) -> Decided:
    """The same of a run whose batch has grown: (steps done, global batch from then on), one after another.

    Nothing is refused, and nothing changes of the steps before each.
    """
    plan = batch.grown(decided.plan, growth)
    decisions = {name: decision.grown(plan) for name, decision in decided.methods.items()}
    return dataclasses.replace(
        decided,
        plan=plan,
        phases=phases.of_one_clock(run, plan),
        methods=decisions,
        adapting=adapting_of(run, plan),
        evaluating=decided.evaluating._replace(at=decided.evaluating.at._replace(plan=plan)),
        saving=decided.saving._replace(at=decided.saving.at._replace(plan=plan)),
        beside=(*beside_of(run, plan), *words_of(run, decisions)),
    )


def adapting_of(run: config.Run, plan: BatchPlan) -> Adapting | None:
    ramp = run.batch.ramp
    if ramp is None or ramp.rule != "adaptive":
        return None
    return Adapting(Marks(plan, ramp.asked_every * run.stretch), ramp)


def code_of_parts(run: config.Run, task: str) -> dict[str, Code]:
    """Of those that are registered, by the key of the recipe that names them."""
    kinds = {
        "model.name": run.model.name,
        "data.name": run.data.name,
        "task.name": task_name(run, task),
        "optimizer.name": run.optimizer.name,
    }
    named = [*((key, key, name) for key, name in kinds.items())]
    named += [("methods", method.where, name) for name, method in run.methods.items()]
    found = ((where, registry.code(key, name)) for key, where, name in named)
    return {where: code for where, code in found if code is not None}


def task_name(run: config.Run, of_data: str) -> str:
    """What is learned: as the recipe says, else what the data set is for."""
    return run.task.name if run.task is not None else of_data


def precision_of(asked: str, device: str) -> str:
    if asked != "auto":
        return asked
    return "bf16" if device == "cuda" else "fp32"


def moments_beside(run: config.Run, plan: BatchPlan) -> list[Beside]:
    """What β and ε are at each batch, where they follow it."""
    of_stages = (run,) * len(plan.stages) if run.phases is None else config.of_phases(run)
    found = [
        moments.at_batch(laid, stage.global_batch_size) for laid, stage in zip(of_stages, plan.stages, strict=True)
    ]
    return [Beside(key, words) for key, words in dict.fromkeys((at.key, at.words) for at in found) if key is not None]


def words_of(run: config.Run, decisions: dict[str, Decision]) -> list[Beside]:
    words = {method.KEY: decisions[name].words for name, method in run.methods.items()}
    return [Beside(key, sentence) for key, sentence in words.items() if sentence is not None]


def beside_of(run: config.Run, plan: BatchPlan) -> list[Beside]:
    """What happens to batches and images, and inside batch norm."""
    epochs = plan.budget_examples / plan.dataset_size
    found = [
        Beside("batch.ramp", f"batch {s.global_batch_size:,} from epoch {s.first_example / plan.dataset_size:.4g}")
        for s in (plan.stages[1:] if run.phases is None else ())
    ]
    if (ramp := run.batch.ramp) is not None and ramp.rule == "adaptive":
        found.insert(0, Beside("batch.ramp", ramp.words))
    if run.phases is not None:
        sizes = [f"{phase.batch.global_batch_size:,}" for phase in config.of_phases(run)]
        found.append(Beside("phases", f"{len(sizes)} phase{'s' * (len(sizes) > 1)} of batch {', '.join(sizes)}"))
    found += moments_beside(run, plan)
    sizes = run.data.image_size
    if sizes is not None and not sizes.is_constant:
        until = (sizes.until_epoch or 0) * run.stretch
        early = ", which the run does not reach" if until > epochs else ""
        found.append(Beside("data.image_size", f"images of {' '.join(derive.words_of_sizes(run) or ())}{early}"))
    found += [Beside(key, words) for key, words in derive.words_of_augmentation(run).items()]
    found += [Beside(key, words) for key, words in derive.words_of_test_views(run).items()]
    if run.lr.layer_decay is not None:
        found.append(Beside("lr.layer_decay", f"lr × {run.lr.layer_decay:g} for each layer below the last"))
    for pattern, one in run.lr.scales.items():
        found.append(Beside("lr.scales", f"lr of {pattern} {one.words}"))
    if late := [epoch for epoch, _ in derive.growth_of(run)[0] if epoch >= epochs]:
        found.append(Beside("batch.ramp", f"no growth at epoch {derive.listed(late)}, after the end of the run"))
    if run.model.frozen:
        found.append(Beside("model.frozen", f"frozen {', '.join(run.model.frozen)}"))
    if run.batch.bn_batch_size is not None:
        found.append(Beside("batch.bn_batch_size", f"batch norm over {run.batch.bn_batch_size} examples"))
    if run.batch_norm.statistics != "running":
        found.append(Beside("batch_norm", f"evaluated with {run.batch_norm.statistics} statistics"))
    return found
