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
import torch

from largebatch.data.processes import processors
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.machine.signals import stopped_with
from largebatch.studies.compare import run_once
from largebatch.studies.search.rounds import sizes
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
                    words = f"{cell.row} at batch {cell.batch:,}"
                    run_once(cell.recipe, job.overrides, folder.out / job.folder, command, console, words)
                    return True
    return False


def tell_unreached(
    folder: StudyFolder, cells: list[Cell], outcomes: Outcomes, said: set[str], console: rich.console.Console
) -> None:
    """Early: a target that no trial of a cell's first round reached may be out of reach."""
    for cell in cells:
        trials, first = tried(cell, outcomes), range(sizes(cell.tuning.trials)[0])
        if cell.folder in said or any(number not in trials for number in first):
            continue
        said.add(cell.folder)
        results = [result for number in first if (result := outcomes.get(cell.trial_folder(number))) is not None]
        if any(result.target is not None and result.target.reached for result in results):
            continue
        scores = [result.target.best for result in results if result.target and result.target.best is not None]
        best = f"the best came to {cell.score.of(max(scores, key=cell.score.worth))}" if scores else "all failed"
        target = cell.score.of(folder.study.target.score)
        tell(
            console,
            f"{cell.row} at batch {cell.batch:,}: none of the first {len(first)} trials reached {target}; {best}",
        )


def work_beside(workers: int, arguments: list[str]) -> None:
    """As many processes of the same command, each with its share of the cores and a device of its own, if there are."""
    threads, devices = max(1, processors() // workers), _devices()
    processes = []
    for number in range(workers):
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        command = [sys.executable, "-m", "largebatch", *arguments]
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
    noticed: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        noticed.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [process.wait() for process in processes]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noticed:
        raise SystemExit(stopped_with(noticed[0]))
    if 2 in codes:
        raise SystemExit(2)
    if lost := [code for code in codes if code]:
        raise UserError(f"{len(lost)} of {workers} workers ended early; the same command goes on where they were")


def _devices() -> list[str]:
    """As CUDA_VISIBLE_DEVICES has them."""
    if (stated := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in stated.split(",") if device]
    return [str(number) for number in range(torch.cuda.device_count())]
