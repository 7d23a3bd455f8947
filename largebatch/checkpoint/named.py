"""``RUN``, ``RUN@120``, ``RUN@last``, ``RUN@best``: a checkpoint of a run by its name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from largebatch.checkpoint import manifest
from largebatch.checkpoint.manifest import Damaged, existing, step_of
from largebatch.errors import UserError
from largebatch.plan.score import score_of
from largebatch.recipes.paths import local, run_named
from largebatch.records import names

LAST, BEST = "last", "best"


class NamedCheckpoint(NamedTuple):
    directory: Path
    step: int | None  # None: the newest that is whole


def named(text: str | Path) -> NamedCheckpoint:
    """What is meant; UserError where there is no such run or checkpoint. Reads no tensor."""
    name, asked = run_named(str(text))
    directory = Path(local("the run", name))
    return NamedCheckpoint(directory, named_step(directory, asked, str(directory)))


def named_step(directory: Path, asked: str, where: str) -> int | None:
    """Of a checkpoint of the run in ``directory``, which refusals call ``where``."""
    if not (directory / names.RECIPE).is_file():
        raise UserError(
            f"{where} is no run: it has no {names.RECIPE}; name a run directory, such as runs/baseline, "
            "runs/baseline@best or runs/baseline@120"
        )
    return step_named(directory, asked)


def parted(text: str) -> tuple[Path, str]:
    """The folder, and which checkpoint; a folder whose own name has an ``@`` is taken as it is."""
    directory, asked = run_named(text)
    return Path(directory), asked


def step_named(directory: Path, asked: str) -> int | None:
    folder = directory / names.CHECKPOINTS
    steps = sorted(map(step_of, existing(folder)))
    if not steps:
        raise UserError(
            f"{directory} has no checkpoint; train it with checkpoint.every_epochs above 0, which saves the last "
            "weights, too"
        )
    if asked == LAST:
        return None
    if asked == BEST:
        return best_of(directory, steps)
    if not (asked.isascii() and asked.isdecimal() and int(asked) in steps):
        raise UserError(
            f"{directory} has no checkpoint {asked[:40]!r}; valid: {LAST}, {BEST}, {', '.join(map(str, steps))} "
            "(checkpoint.keep says how many stay)"
        )
    return int(asked)


def best_of(directory: Path, steps: list[int]) -> int:
    """The step of the checkpoint with the best score, of equal ones the later, of those that were evaluated."""
    judged: list[tuple[float, int]] = []
    for step in steps:
        try:
            facts = manifest.read(manifest.path_of(directory / names.CHECKPOINTS, step))
        except Damaged:
            continue
        score = score_of(facts)
        if (reached := facts.get(score.key)) is not None:
            judged.append((score.worth(reached), step))
    if not judged:
        raise UserError(
            f"{directory}@{BEST}: none of its checkpoints was evaluated at its step; valid: {LAST}, "
            f"{', '.join(map(str, steps))}"
        )
    return max(judged)[1]
