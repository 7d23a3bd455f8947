"""``lb.compare``: what the command ``largebatch compare`` does, with parts of one's own where there are any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch import report
from largebatch.api.handed_over import Handed, standing_in
from largebatch.api.recipes import Overrides, plain, texts
from largebatch.api.training import at_home, command, one_at_a_time
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.records.comparison import SAMPLERS, SPACES, Tuning
from largebatch.report.summary import Comparison
from largebatch.studies import compare as studies
from largebatch.studies.reading import located
from largebatch.terminal.console import Console


def compare(
    recipes: Sequence[Any],
    out: str | Path = "comparisons/comparison",
    *,
    overrides: Overrides = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    tune: str | None = None,
    trials: int = 7,
    hold_out: int | None = None,
    sampler: str = "quasi_random",
    baseline: str | None = None,
    model: Any = None,
    dataset: Any = None,
    task: Any = None,
    optimizer: Any = None,
    verbose: bool = False,
) -> Comparison:
    """Many runs, one table, one report in the folder ``out``; those that were finished are kept. Collective.

    Args:
        recipes: as :func:`largebatch.recipe` takes or makes them; a row each, called by its name.
        overrides: of all of them.
        vary: key -> its values: a row for each.
        seeds: runs of a row, with seeds 0, 1, ...
        tune: ``"lr"`` searches every row's ``lr.base`` first, ``"search"`` what its recipe's section ``search`` names,
            by ``trials`` runs on ``hold_out`` training examples that are set aside (else a sixth).
        sampler: where the trials lie; ``"tpe"`` needs Optuna.
        baseline: the row compared with; else the smallest batch.
        model, dataset, task, optimizer: of every row, as in :func:`largebatch.train`.
        verbose: print a line for each run.

    Returns rows: means over seeds, differences from the baseline and their intervals. A run that was stopped (Ctrl-C
    and the like) ends the comparison, and the same call goes on. Raises UserError: a mistake, in one sentence.
    """
    tuning = _tuning(tune, trials, hold_out, sampler)
    handed = Handed(model, dataset, task, optimizer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        rows = [stack.enter_context(_row(one, handed)) for one in recipes]
        if not rows:
            raise UserError("lb.compare needs at least one recipe")
        first = rows[0] if isinstance(rows[0], config.Run) else config.load(rows[0])
        stack.enter_context(at_home(first, alone=True))
        with contextlib.suppress(studies.Interrupted):  # what was finished is kept
            studies.compare(
                rows,
                Path(out),
                vary=[f"{key}={','.join(_text(key, one) for one in values)}" for key, values in (vary or {}).items()],
                overrides=texts(overrides),
                seeds=seeds,
                tuning=tuning,
                baseline=baseline,
                command=command(),
                console=Console(quiet=not (verbose and distributed.is_first())),
            )
        if distributed.is_first():
            report.write(Path(out))
    return report.summarize(Path(out))


@contextlib.contextmanager
def _row(source: Any, handed: Handed) -> Iterator[Path | config.Run]:
    """A recipe's file as it stands, with its table; or the run with the parts that were handed over."""
    if isinstance(source, (str, Path)) and handed == Handed():
        yield located(str(source))
        return
    with standing_in(source, handed) as run:
        yield run


def _tuning(tune: str | None, trials: int, hold_out: int | None, sampler: str) -> Tuning | None:
    for argument, value, valid in (("tune", tune, (None, *SPACES)), ("sampler", sampler, SAMPLERS)):
        if value not in valid:
            raise UserError(f"{argument} = {value!r} is not known; valid: {', '.join(map(repr, filter(None, valid)))}")
    return Tuning(trials, hold_out, space=tune, sampler=sampler) if tune else None


def _text(key: str, value: Any) -> str:
    return config.setting(key, plain(key, value)).partition("=")[2]
