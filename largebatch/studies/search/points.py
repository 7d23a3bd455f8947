"""Where trials lie: points that fill the space evenly, or those of which a model of the trials before expects most.

quasi_random    a Sobol sequence (by SciPy), turned round (Cranley and Patterson 1976) so that its first point is one
                that was tried; AlgoPerf and Nado et al. 2021 search by such points
tpe             the tree-structured Parzen estimator (Bergstra et al. 2011, by Optuna), of the rounds before

Both are functions of the seed and of the trials: whoever asks again, on whatever machine, gets the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import qmc

from largebatch.errors import UserError
from largebatch.studies.search.space import Axis, Choice, Space, Values
from largebatch.studies.search.trial import Trial

MOST_BITS = 8  # as many points, to the power of two, are looked at for those that were not tried

Seed = tuple[int, ...]
Sampler = Callable[[Space, Sequence[Trial], Values | None, int, Seed], list[Values]]


def quasi_random(space: Space, before: Sequence[Trial], tried: Values | None, count: int, seed: Seed) -> list[Values]:
    """The ``count`` points after ``tried``, if it lies in the space, else after one of the seed's; none twice where the
    space has so many."""
    dimensions = len(space.axes)
    begin = space.point(tried) if tried is not None else None
    shift = np.random.default_rng(seed).random(dimensions) if begin is None else np.array(begin)
    known = [trial.values for trial in before] + ([tried] if tried is not None else [])
    fresh, again = list[Values](), list[Values]()
    bits = (count + len(known)).bit_length()
    while len(fresh) < count and bits <= MOST_BITS:
        bits += 1
        fresh, again = [], []
        for point in (qmc.Sobol(dimensions, scramble=False).random_base2(bits) + shift) % 1.0:
            values = space.values(point)
            (again if any(space.close(values, other) for other in [*known, *fresh]) else fresh).append(values)
            if len(fresh) == count:
                break
    return [*fresh, *again][:count]


def tpe(space: Space, before: Sequence[Trial], tried: Values | None, count: int, seed: Seed) -> list[Values]:
    """Trials outside the space teach nothing; before the first one there is nothing to learn from."""
    if not any(trial.worth is not None for trial in before):
        return quasi_random(space, before, tried, count, seed)
    optuna = _optuna()
    number = int(np.random.default_rng(seed).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(n_startup_trials=0, multivariate=True, constant_liar=True, seed=number)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {axis.key: _distribution(optuna, axis) for axis in space.axes}
    ranks = {worth: rank for rank, worth in enumerate(sorted({trial.worth or () for trial in before}))}
    for trial in before:
        if space.point(trial.values) is not None:
            params = {axis.key: _param(axis, trial.values[axis.key]) for axis in space.axes}
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=distributions, value=float(ranks[trial.worth or ()])
                )
            )
    asked = [study.ask(distributions).params for _ in range(count)]
    return [{axis.key: _value(axis, params[axis.key]) for axis in space.axes} for params in asked]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"the sampler tpe needs Optuna: pip install 'largebatch[tune]' ({error})") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, axis: Axis | Choice) -> Any:
    if isinstance(axis, Choice):
        return optuna.distributions.CategoricalDistribution(range(len(axis.values)))
    return optuna.distributions.FloatDistribution(0.0, 1.0)


def _param(axis: Axis | Choice, value: Any) -> float | int:
    return axis.values.index(value) if isinstance(axis, Choice) else axis.place(value)


def _value(axis: Axis | Choice, param: Any) -> Any:
    return axis.values[param] if isinstance(axis, Choice) else axis.value(param)


SAMPLERS: dict[str, Sampler] = {"quasi_random": quasi_random, "tpe": tpe}
