"""The rounds of a search: each looks where the best of those before it lies.

The first half of the trials are spread over the whole space, the recipe's own values the first of them; of those that
are left half again, and so on, around the best so far: in a space moved along every axis where the best lies within a
tenth of an edge of what was tried, and half as wide along the others (Nado et al. 2021 narrow by hand, in two rounds).
Trials that failed count as trials, and as the worst; where all failed the space goes down. The recipe's own values
stand alone before their round, so that the others of it can be given up by what they needed.

A round is a function of the trials before it, so it may be divided among workers, and asked for again after a kill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from largebatch.studies.search.points import SAMPLERS
from largebatch.studies.search.space import Allowed, Space, Values
from largebatch.studies.search.trial import Trial, best

LEAST = 3  # trials of a round, where there are so many


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """A search: what decides its trials beside their outcomes."""

    space: Space
    begin: Values | None  # the first trial: the recipe's own; None: it has none of some key
    budgets: tuple[int, ...]  # trials; those of an addition come after all before
    allowed: Allowed
    sampler: str = "quasi_random"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Round:
    number: int
    space: Space
    first: int  # the number of its first trial
    values: tuple[Values, ...]  # of its trials


def sizes(budget: int) -> list[int]:
    """Trials of each round: 16 are 8, 4, 4; seven are 4 and 3."""
    rounds: list[int] = []
    while (left := budget - sum(rounds)) > 0:
        size = max(-(-left // 2), min(LEAST, left))
        rounds.append(left if left - size < LEAST - 1 else size)
    return rounds


def rounds(plan: SearchPlan, trials: Mapping[int, Trial]) -> Iterator[Round]:
    """Those that can be known from the ``trials`` that ended, by number: all before the last one given are whole."""
    space, first = plan.space, 0
    for number, size in enumerate(size for budget in plan.budgets for size in sizes(budget)):
        if any(one not in trials for one in range(first)):
            return
        before = [trials[one] for one in range(first)]
        if number:
            space, values = _after(space, before, plan.allowed), []
            tried = top.values if (top := best(before)) else None
        else:
            tried = plan.begin
            values = [] if tried is None else [tried]
        values += SAMPLERS[plan.sampler](space, before, tried, size - len(values), (plan.seed, number))
        alone = int(number == 0 and tried is not None)
        if alone:
            yield Round(number, space, first, tuple(values[:1]))
        if size > alone and (not alone or 0 in trials):
            yield Round(number, space, first + alone, tuple(values[alone:]))
        first += size


def _after(space: Space, before: Sequence[Trial], allowed: Allowed) -> Space:
    top = best(before)
    return space.lowered() if top is None else space.around(top.values, [trial.values for trial in before], allowed)


def edges(space: Space, trials: Sequence[Trial]) -> tuple[str, ...]:
    """The keys whose best value lies at an edge of all that was tried."""
    top = best(trials)
    return () if top is None else space.edges(top.values, [trial.values for trial in trials])
