"""The phases of a run as ``plan.json`` and the pages hold them, and in words."""

from __future__ import annotations

from typing import Any

from largebatch.plan.batch import Stage
from largebatch.recipes.decided import Decided, Phase


def facts_of(decided: Decided) -> list[dict[str, Any]]:
    """A row for each phase; one for a run without phases."""
    size = decided.plan.dataset_size
    return [
        {
            "epoch": phase.span.first_example / size,
            "until_epoch": phase.span.until / size,
            "step": phase.span.first_step,
            "steps": phase.span.steps,
            "global_batch_size": phase.stage.global_batch_size,
            "micro_batch_size": phase.stage.micro_batch_size,
            "accumulation_steps": phase.stage.accumulation_steps,
            "image_size": phase.side,
            "length": phase.length,
            "lr": "goes on" if goes_on(phase) else phase.lr.words,
            "peak_lr": phase.lr.schedule.peak,
            "weight_decay": phase.weight_decay,
            "optimizer": settings_of(decided, phase),
        }
        for phase in decided.phases
    ]


def words_of(decided: Decided, phase: Phase) -> str:
    """What is printed before time is spent, in a line."""
    parts = [when(decided, phase), f"batch {batch_words(decided.plan.world_size, phase.stage)}"]
    if phase.side is not None:
        parts.append(f"images of {phase.side} pixels a side")
    if phase.length is not None:
        parts.append(f"sequences of {phase.length} tokens")
    parts.append("lr goes on" if goes_on(phase) else f"lr {phase.lr.words.replace('; ', ', ')}")
    if len({other.weight_decay for other in decided.phases}) > 1:
        parts.append(f"weight decay {phase.weight_decay:g}")
    return "; ".join([*parts, *(f"{key} {value}" for key, value in settings_of(decided, phase).items())])


def when(decided: Decided, phase: Phase) -> str:
    """``epochs 0 to 0.8, steps 1 to 5``"""
    span, size = phase.span, decided.plan.dataset_size
    end = decided.plan.examples_before(span.first_step + span.steps) / size
    steps = f"steps {span.first_step + 1:,} to {span.first_step + span.steps:,}"
    return f"epochs {span.first_example / size:.4g} to {end:.4g}, {steps}"


def batch_words(world_size: int, stage: Stage) -> str:
    made_of = f"{world_size} × {stage.micro_batch_size:,} × {stage.accumulation_steps}"
    return f"{stage.global_batch_size:,} = {made_of}"


def goes_on(phase: Phase) -> bool:
    """Whether its lr follows a clock that began before it."""
    return phase.clock.first_step != phase.span.first_step


def settings_of(decided: Decided, phase: Phase) -> dict[str, Any]:
    """Those of the optimizer that are not the recipe's own, be it that a rule made them for this batch."""
    own = decided.stated.model_dump(mode="json")
    return {key: value for key, value in phase.optimizer.model_dump(mode="json").items() if value != own.get(key)}
