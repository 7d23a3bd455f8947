"""The best few trials again, under more seeds: one seed chooses within its noise.

Each of the finalists, the best trials by what one seed told, is run under ``SEEDS`` seeds in all, its trial the first,
and the best mean is chosen. With a target that is first how many of the seeds reach it, then the mean of the examples
of those that did; where none does, of the best scores.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from largebatch.studies.search.trial import Trial, best

SEEDS = 3
Worth = tuple[float, ...]


def finalists(trials: Sequence[Trial], number: int) -> list[int]:
    """Numbers of the best trials that ended, the best first; of equal values the earlier trial alone."""
    found: list[int] = []
    for place in sorted(range(len(trials)), key=lambda place: (trials[place].worth is None, _falling(trials[place]))):
        if trials[place].worth is not None and trials[place].values not in [trials[one].values for one in found]:
            found.append(place)
    return found[:number]


def _falling(trial: Trial) -> Worth:
    return tuple(-part for part in trial.worth or ())


def mean_worth(worths: Sequence[Worth | None]) -> Worth | None:
    """None where a seed failed."""
    known = [worth for worth in worths if worth is not None]
    if not known or len(known) < len(worths):
        return None
    share = statistics.fmean(worth[0] for worth in known)
    if len(known[0]) == 1:
        return (share,)
    reached = max(worth[0] for worth in known)
    return share, statistics.fmean(worth[1] for worth in known if worth[0] == reached)


def champion(trials: Sequence[Trial], worths: Mapping[int, Sequence[Worth | None]]) -> Trial | None:
    """Of the finalists by number, with what each of their seeds was worth; where all failed, the best trial."""
    known = [Trial(trials[number].values, mean_worth(of_seeds)) for number, of_seeds in worths.items()]
    return best(known) or best(trials)
