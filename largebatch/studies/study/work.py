"""A worker: it claims a run that nobody makes, makes it, and looks for the next, until none is left.

Any number of workers on any number of machines share the folder, each with a device of its own; none is the first. A
worker waits where all that is left are rounds that others are still at.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import rich.console

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.studies.compare import run_once
from largebatch.studies.study.folder import StudyFolder
from largebatch.studies.study.jobs import Cell, Outcomes, due, left, tried
from largebatch.terminal.console import tell

WAIT = 0.5  # [s] between two looks at a folder where others are at work


def work(folder: StudyFolder, command: str, console: rich.console.Console) -> None:
    """To the end of the study. Raises compare.Interrupted where a signal stopped a run."""
    if (ranks := distributed.world_size()) > 1:
        raise UserError(f"a study makes a run on one device, and here are {ranks} ranks; valid: --workers {ranks}")
    said: set[str] = set()
    while True:
        cells = folder.cells()
        outcomes = folder.outcomes(cells)
        tell_unreached(folder, cells, outcomes, said, console)
        if not any(left(cell, outcomes) for cell in cells):
            return
        if not make_one(folder, cells, outcomes, command, console):
            time.sleep(WAIT)


def make_one(
    folder: StudyFolder, cells: list[Cell], outcomes: Outcomes, command: str, console: rich.console.Console
) -> bool:
    """Whether there was one that nobody else was at."""
    for cell in cells:
        for job in due(cell, outcomes):
            with folder.claimed(job.folder) as mine:
                if mine and job.folder not in folder.outcomes([cell]):
                    run_once(cell.recipe, job.overrides, folder.out / job.folder, command, console)
                    return True
    return False


def tell_unreached(
    folder: StudyFolder, cells: list[Cell], outcomes: Outcomes, said: set[str], console: rich.console.Console
) -> None:
    """Early: a target that no trial of a cell's first round reached may be out of reach."""
    target = folder.study.target.score
    for cell in cells:
        trials = tried(cell, outcomes)
        first = (cell.tuning.trials + 1) // 2
        short = [trial.worth for trial in trials.values() if trial.worth is not None]
        if cell.folder in said or len(trials) < first or any(worth[0] for worth in short):
            continue
        said.add(cell.folder)
        best = (
            f"the best came to {cell.score.of(max(short)[1] * (1 if cell.score.more_is_better else -1))}"
            if short
            else "all failed"
        )
        tell(
            console,
            f"{cell.row} at batch {cell.batch:,}: none of the first {len(trials)} trials reached {target:g}; {best}",
        )


def work_beside(workers: int, arguments: list[str], devices: int) -> None:
    """As many processes of the same command, each with its share of the cores and a device of its own, if there are."""
    cores = max(1, (os.cpu_count() or 1) // workers)
    processes = []
    for number in range(workers):
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % devices)
        processes.append(subprocess.Popen([sys.executable, "-m", "largebatch", *arguments], env=environment))

    def hand_on(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [process.wait() for process in processes]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if any(code == 2 for code in codes):
        raise SystemExit(2)
    if lost := [code for code in codes if code]:
        raise UserError(f"{len(lost)} of {workers} workers ended early; the same command goes on where they were")
