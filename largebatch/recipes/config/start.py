"""The section of another run whose weights this one begins with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.keys import Section, Switch, path_of
from largebatch.recipes.paths import run_named

Weights = Literal["trained", "ema", "lawa"]  # ema: their moving average; lawa: the mean of their latest snapshots
WORDS = {"trained": "trained", "ema": "moving average", "lawa": "mean of the latest snapshots"}


def step_or_word(written: Any) -> Any:
    """``last``, ``best``, or a step above 0, be it as text."""
    is_step = isinstance(written, str) and written.isascii() and written.isdecimal()
    found = int(written) if is_step else written
    if found in ("last", "best") or (isinstance(found, int) and not isinstance(found, bool) and found > 0):
        return found
    raise ValueError(f"start.checkpoint = {shown(written)} is no checkpoint; valid: last, best or a step, such as 120")


class Start(Section):
    """Another run, one of its checkpoints, and what of it is taken; ``run: RUN@120`` is the run and the checkpoint."""

    run: Annotated[str, path_of("start.run")]  # its directory
    checkpoint: Annotated[str | int, BeforeValidator(step_or_word)] = "last"  # best, or a step
    weights: Weights = "trained"  # or an average of them
    optimizer: Switch = False  # its states, too; what it is told (lr, decay, betas) is this recipe's
    head: Literal["taken", "fresh"] = "taken"  # fresh: the layer that gives the outputs stays as it was initialised

    @property
    def words(self) -> str:
        taken = [f"the {WORDS[self.weights]}{' weights' * (self.weights == 'trained')}"]
        taken += ["the optimizer's states"] if self.optimizer else []
        return f"{' and '.join(taken)} of {self.run}@{self.checkpoint}"

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if run.model.weights is not None:
            yield "start.run and model.weights are both weights to begin with; leave one out"


def run_and_checkpoint(written: Any) -> Any:
    """``RUN``, ``RUN@120``, ``RUN@best`` as the section that they stand for."""
    if isinstance(written, str):
        written = {"run": written}
    if isinstance(written, dict):
        return parted(written)
    if written is not None and not isinstance(written, Start):
        raise ValueError(f"start = {shown(written)} should be a run directory or {{run: DIRECTORY, checkpoint: best}}")
    return written


def parted(written: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint behind the directory's name moves to its own key. Where that is there, the name is a folder's."""
    if not isinstance(name := written.get("run"), str):
        return written
    directory, checkpoint = run_named(name)
    if "checkpoint" not in written:
        return {**written, "run": directory, "checkpoint": checkpoint}
    if directory != name and os.path.isdir(os.path.expanduser(directory)):
        raise ValueError(
            f"start.run = {shown(name)} names a checkpoint, and so does start.checkpoint = "
            f"{shown(written['checkpoint'])}; leave one out"
        )
    return written


Beginning = Annotated[Start | None, BeforeValidator(run_and_checkpoint)]
