"""``diagnose step``: the seconds of a run's step beside those of the cluster model, on a machine that is named.

The run is taken as it lies in its folder; nothing is computed of its weights. The gradients are summed as the machine's
pace says, or where that is silent in the four bytes of each parameter.
"""

from __future__ import annotations

from pathlib import Path

from largebatch.errors import UserError
from largebatch.records.circumstances import circumstances_of
from largebatch.records.diagnoses import StepTimeRecord
from largebatch.report.run import RecordedRun, read_run
from largebatch.studies.cluster.fit import interval_of
from largebatch.studies.cluster.machine import Machine
from largebatch.studies.cluster.step import StepTime, step_time
from largebatch.studies.cluster.workload import data_parallel
from largebatch.studies.diagnose.opened import keep


def measure(directory: Path, machine: Machine, workload: str | None = None, command: str = "") -> StepTimeRecord:
    """Written to ``RUN/diagnostics/step.json``, where the report finds it."""
    run = read_run(directory, directory.name)
    seconds, ranks, micro, parts = _of_run(run, directory)
    name = workload or (run.recipe.model.name if run.recipe.model else "") or ""
    stated = machine.pace(name).gradient_bytes or 4.0 * (run.plan.parameters or 0)

    def of(other: Machine) -> StepTime:
        return step_time(other, data_parallel(other.pace(name), stated), ranks, micro, parts)

    time, bounds = of(machine), interval_of(machine, lambda other: of(other).total, ranks, name)
    record = StepTimeRecord(
        **circumstances_of(command), directory=str(directory), ranks=ranks, run=run.plan.name,
        title=run.plan.title, model=run.recipe.model.name if run.recipe.model else None,
        global_batch_size=run.plan.global_batch_size, micro_batch_size=micro, accumulation_steps=parts,
        cluster=machine.name, workload=name, precision=run.plan.precision,
        pace_precision=machine.pace(name).precision, seconds=seconds, model_seconds=time.total,
        model_seconds_low=bounds and bounds[0], model_seconds_high=bounds and bounds[1], compute_seconds=time.compute,
        fixed_seconds=time.fixed, communication_seconds=time.communication, exposed_seconds=time.exposed,
    )  # fmt: skip
    keep(directory, record)
    return record


def _of_run(run: RecordedRun, directory: Path) -> tuple[float, int, int, int]:
    """Seconds of a step, ranks, micro-batch and micro-batches."""
    if run.ramp or run.plan.phases:
        raise UserError(f"the steps of {directory} differ, by a ramp or phases; the model's is one step")
    seconds, plan = run.result.seconds_per_step, run.plan
    if seconds is None or not plan.micro_batch_size or not plan.accumulation_steps:
        raise UserError(f"{directory} does not say what its steps took; diagnose step needs a run that has ended")
    return seconds, int(plan.world_size or 1), int(plan.micro_batch_size), int(plan.accumulation_steps)


def sentence(record: StepTimeRecord) -> str:
    assert record.seconds
    assert record.model_seconds is not None
    off = record.model_seconds / record.seconds - 1
    low, high = record.model_seconds_low, record.model_seconds_high
    bounds = "" if low is None or high is None else f" ({1e3 * low:,.4g} to {1e3 * high:,.4g})"
    return (
        f"{record.directory}: a step took {1e3 * record.seconds:,.4g} ms; the model of {record.cluster} has "
        f"{1e3 * record.model_seconds:,.4g} ms{bounds}, {100 * off:+.1f} %{_other_precision(record)}"
    )


def _other_precision(record: StepTimeRecord) -> str:
    own, pace = record.precision, record.pace_precision
    if None in (own, pace) or own == pace:
        return ""
    return f"; its pace was measured in {pace}, and the run computed in {own}"
