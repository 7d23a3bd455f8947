"""Programs that kill themselves at a chosen moment (SIGKILL: nobody cleans up), and otherwise train as a user's do.

The pool calls them by name (pool.py), torchrun by ``-m worlds.kills FUNCTION ARGUMENTS``; arguments arrive as strings.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import safetensors.torch
from beside import add

from largebatch import cli
from largebatch.data.resident import ResidentSplit
from largebatch.machine import distributed
from largebatch.run.assemble import Job
from largebatch.steps.step import Step


class Moment(NamedTuple):
    """When a part of the run is called, or before a call of this function of the product.

    It is met on ranks other than the first unless those never come there.
    """

    place: str
    on_first: bool = False


MOMENTS = {
    "between a gradient and its step": Moment("with_gradient"),
    "while a save is copied": Moment("largebatch.checkpoint.writer:Writer.copied"),
    "in the middle of a file": Moment("largebatch.checkpoint.writer:save_tensors", on_first=True),
    "between a save and its name": Moment("largebatch.checkpoint.writer:take_name", on_first=True),
    "before old checkpoints go": Moment("largebatch.checkpoint.writer:remove_old", on_first=True),
    "while an old checkpoint goes": Moment("largebatch.checkpoint.writer:put_aside", on_first=True),
    "in an evaluation": Moment("largebatch.run.measure:evaluate"),
    "before the evaluation at the end": Moment("afterwards"),
    "between the last save and the result": Moment("largebatch.run.account:Account.result", on_first=True),
    # of some methods only
    "at weights uphill": Moment("largebatch.optim.sam:Perturbation.undo"),
    "between the gain and its step": Moment("largebatch.optim.adascale:AdaScaleAverages.advance"),
    "between a step and its moving average": Moment("largebatch.methods.ema:MovingAverageOfRun.after"),
    "while statistics are recomputed": Moment("largebatch.models.batch_norm:recomputed_statistics"),
    "before workers are averaged": Moment("largebatch.engines.workers:Workers.average"),
    "where SWAP's workers begin": Moment("largebatch.methods.swap:SwapOfRun.begin"),
    "in the steps of a worker of SWAP": Moment("largebatch.methods.swap:SwapOfRun.step"),
    "between two workers of SWAP": Moment("largebatch.methods.swap:SwapOfRun.run_round"),
    "before SWAP's average": Moment("largebatch.methods.swap:SwapOfRun.average"),
}


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def train(*arguments: str) -> None:
    """``largebatch train ARGUMENTS``"""
    sys.argv = ["largebatch", "train", *arguments]
    cli.main()


def before(place: str, act: Callable[..., None]) -> None:
    """From now on ``act`` is called with the arguments of every call of ``module:name``, before it."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *above, last = name.split(".")
    for part in above:
        owner = getattr(owner, part)
    original = getattr(owner, last)

    def acts(*arguments: Any, **more: Any) -> Any:
        act(*arguments, **more)
        return original(*arguments, **more)

    setattr(owner, last, acts)


def killed(moment: str, nth: str, *arguments: str) -> None:
    """Dies at the ``nth`` occurrence of a moment: the last rank, or the first where the moment is the first's."""
    place, on_first = MOMENTS[moment]
    passed = 0

    def count(*inputs: Any, **_: Any) -> None:
        nonlocal passed
        passed += 1
        if passed == int(nth) and distributed.rank() == (0 if on_first else distributed.world_size() - 1):
            if moment == "in the middle of a file":
                file, tensors = inputs[:2]
                content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
                Path(file).write_bytes(content[: len(content) // 2])
            die()

    if ":" in place:
        before(place, count)
    else:
        add(**{place: count})
    train(*arguments)


def at_step(step: int, rank: int, act: Callable[[], None]) -> None:
    def look(job: Job, here: Step) -> None:
        if here.number == step and distributed.rank() == rank:
            act()

    add(before=look)


def killed_at_step(step: str, *arguments: str) -> None:
    """All ranks die before the same step."""

    def look(job: Job, here: Step) -> None:
        if here.number == int(step):
            die()

    add(before=look)
    train(*arguments)


def killed_after_calls(step: str, calls: str, rank: str, *arguments: str) -> None:
    """A rank dies so many calls of any function after the begin of a step: in the loop or in the thread that saves."""
    left = int(calls)

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            die()

    def begin() -> None:
        threading.setprofile(count)
        sys.setprofile(count)

    at_step(int(step), int(rank), begin)
    train(*arguments)


def killed_in_every_life(seed: str, kills: str, steps: str, *arguments: str) -> None:
    """Under torchrun: in each of the first lives a rank, step and call that the seed gives; then to the end."""
    life, count, each = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(kills), int(steps) // int(kills)
    if life == count:
        train(*arguments)
        return
    chance = random.Random(f"{seed} {life}")
    step, calls, rank = each * life + chance.randrange(1, each), chance.randrange(3000), chance.randrange(2)
    print(f"life {life}: rank {rank} is killed {calls} calls after step {step}", flush=True)
    killed_after_calls(str(step), str(calls), str(rank), *arguments)


def signalled(number: str, step: str, rank: str, *arguments: str) -> None:
    """A rank sends itself a signal before a step of the first life."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        at_step(int(step), int(rank), lambda: os.kill(os.getpid(), int(number)))
    train(*arguments)


def asleep_in_its_data(*arguments: str) -> None:
    """Rank 1 never gets the data of step 21, in its first life."""
    steps = ResidentSplit.steps

    def sleeps(self: ResidentSplit, *of_steps: Any) -> Any:
        for number, item in enumerate(steps(self, *of_steps)):
            if number == 20 and distributed.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                time.sleep(1000)
            yield item

    ResidentSplit.steps = sleeps  # type: ignore[method-assign]
    train(*arguments)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
