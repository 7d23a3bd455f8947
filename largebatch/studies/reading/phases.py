"""The rows of ``recipe show`` about the phases of a recipe."""

from __future__ import annotations

from collections.abc import Callable

from largebatch.recipes import config
from largebatch.recipes.decided import Decided, Phase
from largebatch.recipes.phases_read_aloud import batch_words, goes_on, settings_of, when

Row = tuple[str, str, str, str]


def rows_of_phases(run: config.Run, decided: Decided, origin: Callable[..., str]) -> list[Row]:
    """Of each phase when it is, and what it changes; ``origin``: where a key of the recipe was written."""
    rows: list[Row] = []
    for number, (phase, keys) in enumerate(zip(decided.phases, run.phases or (), strict=True), start=1):

        def of(*asked: str, number: int = number) -> str:
            return origin(*(f"phases.{number}.{key}" for key in asked), *asked)

        end = ", ".join(f"{key} = {value:g}" for key, value in keys.ends.items())
        rows.append((f"phase {number}", when(decided, phase), end or "to the end", origin(f"phases.{number}")))
        rows += _rows(decided, phase, of)
    return rows


def _rows(decided: Decided, phase: Phase, of: Callable[..., str]) -> list[Row]:
    plan = decided.plan
    rows = [
        (
            "  global batch",
            batch_words(plan.world_size, phase.stage),
            "ranks × micro-batch × accumulation",
            of("batch.global_batch_size"),
        )
    ]
    if phase.side is not None:
        rows.append(("  images", f"{phase.side}", "pixels a side", of("data.image_size")))
    if phase.length is not None:
        rows.append(("  sequences", f"{phase.length}", "tokens", of("data.length")))
    if goes_on(phase):
        rows.append(("  lr", "goes on", "in the schedule of the phase before", of("clock")))
    else:
        lr = phase.lr
        keys = ("lr.base", "lr.table", "lr.scaling", "lr.reference_batch_size", "lr.noise_scale")
        rows.append(("  peak lr", f"{lr.schedule.peak:g}", lr.rule, of(*keys)))
        rows.append(("  warm-up", lr.warmup, "from the first step of the phase", of("lr.warmup")))
        to_the_end = lr.schedule.decay_span[1] == lr.schedule.total
        rows.append(("  decay", lr.decay, "to the end of its clock" if to_the_end else "", of("lr.decay")))
    if len({other.weight_decay for other in decided.phases}) > 1:
        rows.append(("  weight decay", f"{phase.weight_decay:g}", "", of("weight_decay.value")))
    for key, value in settings_of(decided, phase).items():
        rows.append((f"  {key}", f"{value:g}" if isinstance(value, float) else str(value), "", of(f"optimizer.{key}")))
    return rows
