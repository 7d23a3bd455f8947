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

import torch

from largebatch import checkpoint
from largebatch.checkpoint import manifest
from largebatch.engines.states import whole_model

REPOSITORY = Path(__file__).parent.parent
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a launcher's variables; one thread per process."""
    kept = {key: value for key, value in os.environ.items() if key not in LAUNCHER}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


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


def saved(directory: Path) -> list[Path]:
    """The checkpoints of a run directory, oldest first."""
    return checkpoint.existing(directory / "checkpoints")[::-1]


def state_at_end(directory: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run directory holds, tensors whole."""
    newest = saved(directory)[-1]
    return checkpoint.state_of(newest, manifest.read(newest))


def weights_at_end(directory: Path) -> dict[str, torch.Tensor]:
    """The model as it would be judged: running statistics averaged over ranks."""
    return whole_model(state_at_end(directory))


def damage(path: Path, at: float = 0.5) -> None:
    """One bit of the checkpoint's largest file is another."""
    file = max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    file.write_bytes(content)


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
