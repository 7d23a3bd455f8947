"""``lb.train``: a run with parts of one's own, in a process that goes on afterwards as before."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from largebatch.api.handed_over import Handed, standing_in
from largebatch.api.recipes import recipe
from largebatch.errors import UserError
from largebatch.machine import distributed, launched
from largebatch.machine.as_found import as_found
from largebatch.recipes import config
from largebatch.recipes.paths import run_named
from largebatch.run import train as running
from largebatch.run.account import Result
from largebatch.run.parts import Added
from largebatch.terminal.console import Console

Recipe = config.Run | str | Path | Mapping[str, Any]


def train(
    run: Recipe,
    *,
    model: Any = None,
    dataset: Any = None,
    task: Any = None,
    optimizer: Any = None,
    parts: Added | None = None,
    from_: str | Path | None = None,
    with_optimizer: bool = False,
    verbose: bool = False,
) -> Result:
    """Train one run, alone or as one rank of many under torchrun, DeepSpeed's launcher or srun. Collective.

    Args:
        run: a recipe, as :func:`largebatch.recipe` takes or makes it. A part that is left out is the recipe's.
        model: a ``nn.Module``, which has the trained weights afterwards, whatever engine trained a copy of it; or a
            function that makes one, given ``num_classes`` and ``image_shape`` if it has parameters of these names.
            All ranks begin with rank 0's weights.
        dataset: a :class:`largebatch.Dataset`.
        task: a :class:`largebatch.Task`: the loss, summed over the examples, and the score.
        optimizer: what takes parameter groups and ``lr`` and gives a ``torch.optim.Optimizer``, such as torch's
            classes, or ``functools.partial`` of one. Those of torch that step element by element are known to be exact
            where an engine cuts layers; register others with ``shard_safe=True``
            (``lb.optimizers.register``), else such engines refuse them.
        parts: name -> function of the built job that makes a :class:`largebatch.Part`, which stands beside the steps.
        from_: another run, whose weights this one begins with: ``"runs/a"``, ``"runs/a@120"`` or ``"runs/a@best"``, as
            ``start`` in a recipe.
        with_optimizer: and with the states of its optimizer.
        verbose: print what the command ``largebatch train`` prints. Otherwise nothing is printed.

    Returns:
        How it ended: ``result.status`` is ``finished``, ``failed`` (it diverged) or ``stopped``. Ctrl-C, SIGTERM and
        SIGUSR1 stop it after the step, with a checkpoint; ``result.signal`` says which, and the same call goes on.

    Raises:
        UserError: a mistake, in one sentence with the key, the value and what would be valid.
        Lost: other ranks are gone.

    The run directory (``result.directory``) holds what any run's does; its manifests say file and SHA-256 of the code
    of own parts, and a resume with other code says so. Process group, signals, threads, default dtype, environment and
    random states are left as they were found.
    """
    if from_ is not None:
        directory, asked = run_named(str(from_))
        start = {"start.run": directory, "start.checkpoint": asked}
        run = recipe(run, start | ({"start.optimizer": True} if with_optimizer else {}))
    handed = Handed(model, dataset, task, optimizer)
    console = Console() if verbose else Console(quiet=True)
    with prepared(run, handed) as standing:
        return running.train(
            standing,
            command=command(),
            console=console if distributed.is_first() else Console(quiet=True),
            quiet=not verbose,
            parts=parts,
            into=model if isinstance(model, nn.Module) else None,
        )


@contextlib.contextmanager
def prepared(run: Recipe, handed: Handed) -> Iterator[config.Run]:
    """The run with its parts, in a process group."""
    with one_at_a_time(), standing_in(run, handed) as standing, at_home(standing, alone=standing.engine.name != "ddp"):
        yield standing


_running = threading.RLock()


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Random states, the process group and the names of parts belong to the whole process."""
    if not _running.acquire(blocking=False):
        raise UserError("another thread of this process trains already; one run at a time, or another process for each")
    try:
        yield
    finally:
        _running.release()


def command() -> str:
    """What a record says that it was started with."""
    from_file = hasattr(sys.modules["__main__"], "__file__")
    return shlex.join(["python", *sys.argv]) if from_file else "typed into a session"


@contextlib.contextmanager
def at_home(run: config.Run, alone: bool) -> Iterator[None]:
    """Inside, a process group as the launcher asks for, or of one if ``alone``; afterwards everything is as it was."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "a process that reads data imports this script, which would train again: put the call under "
            'if __name__ == "__main__":, or set data.workers = 0'
        )
    with as_found():
        launched.adopt(os.environ)
        with distributed.group(distributed.choose_device(run.device), 1.5 * run.timeout_minutes, alone=alone):
            yield
