"""The doctor on ranks, of which one may be another machine: other packages, another clock, another folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import typer

from largebatch.cli.doctor import doctor
from largebatch.records import circumstances
from largebatch.studies.doctor import look, ranks


def alike(*words: str) -> None:
    """As the command line has it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(doctor)
    app(args=list(words))


def different(*words: str) -> None:
    """Rank 1 is somewhere else."""
    if os.environ["RANK"] == "1":
        elsewhere()
    alike(*words)


def elsewhere() -> None:
    Path("elsewhere/runs").mkdir(parents=True)
    os.chdir("elsewhere")
    found = circumstances.versions()
    circumstances.versions = lambda: found | {"timm": "0.0.1"}
    look.socket.gethostname = lambda: "other"
    ranks.FOLDER_SECONDS = 0.2
    ranks.time = SimpleNamespace(**{**vars(time), "time": lambda: time.time() + 90.0})  # type: ignore[assignment]
