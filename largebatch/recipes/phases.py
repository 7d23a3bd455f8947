"""The phases of a run, decided: each with its place in the stream, its batch, its schedule and its settings; in words.

A batch ramp is phases of one clock, which :mod:`derive` lays out; a run without either is one phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from largebatch.errors import UserError
from largebatch.plan.batch import BatchPlan
from largebatch.plan.phases import Span, clocks
from largebatch.recipes import config, derive, moments, ramps
from largebatch.recipes.decided import ExplainedSchedule, Phase


def planned(
    run: config.Run,
    dataset_size: int,
    pixels: int,
    world_size: int,
    device: str,
    held: Mapping[int, int] | None = None,
) -> tuple[BatchPlan, tuple[Phase, ...]]:
    """The plan, with a stage for each phase. ``pixels``: of the largest image; ``device``: cpu or cuda; ``held``: the
    micro-batches that it was found to hold, by pixels."""
    if run.phases is None:
        plan = derive.plan_of(run, dataset_size, world_size, derive.largest_micro_batch(device, pixels, held))
        return plan, of_one_clock(run, plan)
    of_phases = config.of_phases(run)
    check_combinations(run, of_phases)
    largest = [derive.largest_micro_batch(device, derive.pixels_of(laid.data) or pixels, held) for laid in of_phases]
    plan, spans = derive.plan_of_phases(run, of_phases, dataset_size, world_size, largest)
    followed = clocks(spans, [phase.clock == "goes_on" for phase in run.phases])
    schedules = _schedules(of_phases, spans, followed, plan)
    return plan, tuple(
        Phase(
            span, stage, lr, clock, moments.at_batch(laid, stage.global_batch_size).optimizer,
            laid.weight_decay.value, laid.data.side, laid.data.length,
        )
        for laid, span, stage, lr, clock in zip(of_phases, spans, plan.stages, schedules, followed, strict=True)
    )  # fmt: skip


def of_one_clock(run: config.Run, plan: BatchPlan) -> tuple[Phase, ...]:
    """The stages of a plan, whose schedules have one clock."""
    of_stages = ramps.of_stages(run, plan, derive.learning_rate_of(run, plan))
    clock = Span(0, plan.steps, 0, plan.budget_examples)
    ends = [*plan.stages[1:], None]
    return tuple(
        Phase(
            Span(
                stage.first_step,
                (plan.steps if end is None else end.first_step) - stage.first_step,
                stage.first_example,
                plan.budget_examples if end is None else end.first_example,
            ),
            stage, lr, clock, moments.at_batch(run, stage.global_batch_size).optimizer, run.weight_decay.value,
        )
        for stage, end, lr in zip(plan.stages, ends, of_stages, strict=True)
    )  # fmt: skip


def _schedules(
    of_phases: Sequence[config.Run], spans: Sequence[Span], followed: Sequence[Span], plan: BatchPlan
) -> list[ExplainedSchedule]:
    """A new one where a clock begins; else that of the phase before."""
    found: list[ExplainedSchedule] = []
    for number, (laid, span, clock) in enumerate(zip(of_phases, spans, followed, strict=True), start=1):
        if span.first_step != clock.first_step:
            found.append(found[-1])
            continue
        with derive.in_phase(number):
            size = laid.batch.global_batch_size
            found.append(derive.schedule_over(laid.lr, size, clock, plan, whose="phase"))
    return found


def check_combinations(run: config.Run, of_phases: Sequence[config.Run]) -> None:
    """Refuse methods that phases do not go with."""
    for sentence in refusals(run, of_phases):
        raise UserError(sentence)


def refusals(run: config.Run, of_phases: Sequence[config.Run]) -> Iterator[str]:
    """Why phases do not go with what else the run asks for; each is one sentence with the keys."""
    batches = {(laid.batch.global_batch_size, laid.batch.micro_batch_size) for laid in of_phases}
    sides = {laid.data.size for laid in of_phases}
    of_size = "data.length" if run.data.length is not None else "data.image_size"
    sizes = run.data.image_size
    if run.batch.ramp is not None:
        yield "phases and batch.ramp both say when the batch changes; write the ramp as phases with clock: goes_on"
    if run.regime_adaptation is not None:
        yield "phases and regime_adaptation both say how long the run is; choose one"
    if sizes is not None and sizes.first != sizes.last:
        yield "phases and data.image_size that grows both say when the images change; give each phase its side"
    if any(laid.lr.layer_decay != run.lr.layer_decay for laid in of_phases):
        yield "lr.layer_decay holds for the whole run, and phases change it; write it outside of them"
    if any(laid.lr.scales != run.lr.scales for laid in of_phases):
        yield "lr.scales holds for the whole run, and phases change it; write it outside of them"
    for laid in of_phases:
        yield from laid.lr.misfits(laid.optimizer)
        for method in laid.methods.values():
            if method.clock(laid) is not None:
                yield f"phases and {method.where} both say how long the run is; choose one"
            if method.ALONE == "by turns" and len(batches) > 1:
                yield f"{method.where} divides one batch among its workers, phases change it; choose one"
            if method.ENDS_EARLY and len(sides) > 1:
                yield f"phases of several {of_size} need the whole plan, which {method.where} may end; choose one"
    for number, (phase, laid) in enumerate(zip(run.phases or (), of_phases, strict=True), start=1):
        if phase.clock == "goes_on" and len(batches) > 1 and laid.lr.scaling == moments.RULE:
            yield (
                f"phases.{number}.clock = goes_on keeps the lr of another batch, and lr.scaling = {moments.RULE} gives "
                "this one beta1, beta2 and eps of its own; choose one"
            )
    if run.batch_norm.statistics == "precise" and len(sides) > 1:
        yield "batch_norm.statistics = precise looks at images of one side, and phases have several; choose one"
    if getattr(run.engine, "cuda_graphs", False) and (len(batches) > 1 or (len(sides) > 1 and not run.compile)):
        what = "batch" if len(batches) > 1 else f"{of_size}, without compile = true"
        yield f"engine.cuda_graphs = true does not go with phases that change the {what}; leave engine.cuda_graphs out"
    if run.batch_norm.statistics == "last" and run.batch.bn_batch_size is None and max(len(batches), len(sides)) > 1:
        yield "batch_norm.statistics = last needs batch.bn_batch_size where phases change the micro-batch"
