"""What run directories tell of a machine's saves and stragglers, where nothing is stated.

**Saves.** δ is the median of the seconds for which the loop stood still, ℓ that of the seconds from then on until the
checkpoint was on the disk: 0 where the loop waited for it. Both are taken in proportion to the bytes of a checkpoint.

**Stragglers.** In a measured step of n ranks the slowest computed exp(σ·(Z₍n₎ − Z₍k₎)) times as long as the median
(of an even number the faster of two, k = ⌈n/2⌉), Z₍k₎ the k-th smallest of n standard normal values. So with the mean
over the measured steps

    σ = mean ln(slowest/median) / (E Z₍n₎ − E Z₍k₎)
    E Z₍k₎ = n·C(n − 1, k − 1)·∫ z·φ(z)·Φ(z)^{k − 1}·Φ(−z)^{n − k} dz

(David & Nagaraja 2003, Order Statistics, 3.1). It stands for both deviations of stragglers.py: the slowest rank of a
step may be slow for good or in this step alone, and one cluster is one draw of its devices. No torch.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scipy.integrate import quad
from scipy.special import gammaln, log_ndtr

from largebatch.errors import UserError
from largebatch.records import names
from largebatch.records.run import CheckpointLine, LineRecord, PlanRecord, RanksLine
from largebatch.records.typed import read
from largebatch.report.files import json_of, loaded, text_of
from largebatch.studies.cluster.failures import CheckpointTimes
from largebatch.studies.cluster.stragglers import Stragglers

Line = TypeVar("Line", bound=LineRecord)


@dataclass(frozen=True)
class ObservedSaves:
    """Medians over so many saves."""

    megabytes: float
    standing: float
    lag: float
    saves: int

    def times(self, megabytes: float, restart: float) -> CheckpointTimes:
        """Of checkpoints of another size, in proportion; ``restart`` has nothing to do with it."""
        factor = megabytes / self.megabytes
        return CheckpointTimes(self.standing * factor, self.lag * factor, restart)


def saves_of(path: Path) -> ObservedSaves:
    """Of the checkpoints that a run wrote, or of a file of facts of kind ``checkpoint_pause``."""
    if path.is_dir():
        saves = [line for line in _lines(path, CheckpointLine) if line.written]
    else:
        facts = json_of(path)
        if not isinstance(facts, dict) or facts.get("kind") != "checkpoint_pause" or not facts.get("saves"):
            raise UserError(f"{path} is neither a run directory nor facts of kind checkpoint_pause")
        saves = [read(CheckpointLine, line, path) for line in facts["saves"]]
    known = [
        (line.megabytes, line.seconds_standing, line.seconds_saving)
        for line in saves
        if line.megabytes and line.seconds_standing is not None and line.seconds_saving is not None
    ]
    if not known:
        raise UserError(f"{path} tells of no checkpoint that was written; a run with checkpoint.every_epochs does")
    megabytes, standing, saving = (statistics.median(values) for values in zip(*known, strict=True))
    return ObservedSaves(megabytes, standing, saving if standing < saving else 0.0, len(known))


def stragglers_of_run(folder: Path) -> Stragglers:
    """σ of a run with ``record.ranks_every_steps``."""
    ranks = read(PlanRecord, json_of(folder / names.PLAN), folder / names.PLAN).world_size or 1
    if ranks < 2:
        raise UserError(f"{folder} is a run of one rank, which waits for nobody; valid: two or more")
    seconds = [line.seconds for line in _lines(folder, RanksLine)]
    pairs = [(row.get("compute_seconds_most"), row.get("compute_seconds_median")) for row in seconds]
    logs = [math.log(most / median) for most, median in pairs if most and median]
    if not logs:
        raise UserError(
            f"{folder} tells of no rank's seconds of computing; a run with record.ranks_every_steps and engine ddp does"
        )
    return Stragglers(of_steps=statistics.fmean(logs) / (_normal(ranks, ranks) - _normal((ranks + 1) // 2, ranks)))


def _normal(place: int, number: int) -> float:
    """E Z₍k₎ of n."""
    ways = float(gammaln(number + 1) - gammaln(place) - gammaln(number - place + 1)) - 0.5 * math.log(2 * math.pi)

    def density(z: float) -> float:
        below, above = (place - 1) * float(log_ndtr(z)), (number - place) * float(log_ndtr(-z))
        return z * math.exp(ways + below + above - 0.5 * z * z)

    mean: Any = quad(density, -12, 12, points=[-4, -2, 0, 2, 4], limit=400)
    return float(mean[0])


def _lines(folder: Path, kind: type[Line]) -> list[Line]:
    """Those of one kind, the last of each step; a torn last line is passed over."""
    file, lines = folder / names.METRICS, {}
    for text in text_of(file).splitlines():
        try:
            line = loaded(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and line.get("event") == kind.EVENT:
            made = read(kind, line, file)
            lines[made.step] = made
    return list(lines.values())
