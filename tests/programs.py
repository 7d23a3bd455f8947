"""The program as a user starts it: in a process of its own, alone or under torchrun."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a launcher's variables; one thread per process."""
    kept = {key: value for key, value in os.environ.items() if key not in LAUNCHER}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


def largebatch(*arguments: object, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "largebatch", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=cwd, env=environment(**more),
    )  # fmt: skip


def torchrun(ranks: int, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc-per-node RANKS ARGUMENTS`` on loopback with a free port."""
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
            *map(str, arguments),
        ],
        capture_output=True, text=True, timeout=300, cwd=cwd, env=environment(),
    )  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets a chance to clean up."""


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Inside, a run in this process dies when it has done so many steps: Killed comes out."""
    from largebatch.train import Loop

    one_step = Loop.one_step

    def dies(self: Any, micro_batches: Any, measure: bool) -> None:
        if self.step == step:
            raise Killed
        one_step(self, micro_batches, measure)

    Loop.one_step = dies  # type: ignore[method-assign]
    try:
        yield
    finally:
        Loop.one_step = one_step  # type: ignore[method-assign]


def wait_for_first_line(process: subprocess.Popen[str], file: Path) -> None:
    """Until the program has recorded something, so that it is known to be in its loop."""
    while process.poll() is None and not (file.exists() and file.read_text()):
        time.sleep(0.005)
    assert process.poll() is None, "the program ended before it recorded anything"
