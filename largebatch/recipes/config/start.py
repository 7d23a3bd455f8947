"""The section of another run whose weights this one begins with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.keys import Section, Switch, path_of

NAMED = re.compile("(?P<run>.+)@(?P<checkpoint>last|best|[0-9]+)", re.S)


def step_or_word(written: Any) -> Any:
    """``last``, ``best``, or a step above 0, be it as text."""
    is_step = isinstance(written, str) and written.isascii() and written.isdecimal()
    found = int(written) if is_step else written
    if found in ("last", "best") or (isinstance(found, int) and not isinstance(found, bool) and found > 0):
        return found
    raise ValueError(f"start.checkpoint = {shown(written)} is no checkpoint; valid: last, best or a step, such as 120")


class Start(Section):
    """Another run, one of its checkpoints, and what of it is taken; ``RUN@120`` is the run and the checkpoint."""

    run: Annotated[str, path_of("start.run")]  # its directory
    checkpoint: Annotated[str | int, BeforeValidator(step_or_word)] = "last"  # best, or a step
    weights: Literal["trained", "ema"] = "trained"  # ema: their moving average
    optimizer: Switch = False  # its states, too; what it is told (lr, decay, betas) is this recipe's
    head: Literal["taken", "fresh"] = "taken"  # fresh: the layer that gives the outputs stays as it was initialised

    @property
    def words(self) -> str:
        taken = [f"the {self.weights} weights" if self.weights == "trained" else "the moving average"]
        taken += ["the optimizer's states"] if self.optimizer else []
        return f"{' and '.join(taken)} of {self.run}@{self.checkpoint}"

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if run.model.weights is not None:
            yield "start.run and model.weights are both weights to begin with; leave one out"


def run_and_checkpoint(written: Any) -> Any:
    """``RUN``, ``RUN@120``, ``RUN@best`` as the section that they stand for."""
    if isinstance(written, str):
        parts = NAMED.fullmatch(written)
        return parts.groupdict() if parts else {"run": written}
    if written is not None and not isinstance(written, (dict, Start)):
        raise ValueError(f"start = {shown(written)} should be a run directory or {{run: DIRECTORY, checkpoint: best}}")
    return written


Beginning = Annotated[Start | None, BeforeValidator(run_and_checkpoint)]
