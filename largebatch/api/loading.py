"""``lb.load``: a run directory as lists, and as frames where pandas is there. No torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.errors import UserError, suggestion
from largebatch.records.run import EvaluateLine, LineRecord, TrainLine
from largebatch.records.typed import content
from largebatch.report.run import RecordedRun, read_run

WHEN = ("step", "examples_seen", "epoch", "seconds")


@dataclass(frozen=True)
class RunCurve:
    """One number of a run over its course: five lists of one length."""

    name: str
    steps: list[int]
    examples: list[float | None]
    epochs: list[float | None]
    seconds: list[float | None]  # of training, up to there
    values: list[float | None]

    def frame(self) -> Any:
        """A ``pandas.DataFrame`` with the columns step, examples_seen, epoch, seconds and the curve's name."""
        columns = (self.steps, self.examples, self.epochs, self.seconds, self.values)
        return _pandas().DataFrame(dict(zip((*WHEN, self.name), columns, strict=True)))


@dataclass(frozen=True)
class LoadedRun:
    """What a run directory tells."""

    recorded: RecordedRun

    @property
    def directory(self) -> Path:
        return self.recorded.path

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped`` or ``unfinished``."""
        return self.recorded.status

    @property
    def recipe(self) -> str:
        """Its ``run.yaml``."""
        return self.recorded.recipe_text

    @property
    def plan(self) -> dict[str, Any]:
        """What was decided before it began: ``plan.json``."""
        return content(self.recorded.plan)

    @property
    def result(self) -> dict[str, Any]:
        """How it ended: ``result.json``."""
        return content(self.recorded.result)

    @property
    def score(self) -> float | None:
        """What it is judged by, at its end."""
        return self.recorded.reached()

    @property
    def curves(self) -> list[str]:
        """The names that :meth:`curve` knows: of training as they are, of evaluations with their split before them."""
        return sorted({name for _, numbers in self._lines for name in numbers})

    @functools.cached_property
    def _lines(self) -> list[tuple[LineRecord, dict[str, float | None]]]:
        """Each with its numbers by the names of their curves."""
        return [(line, numbers) for line in self.recorded.lines if (numbers := _numbers(line))]

    def curve(self, name: str) -> RunCurve:
        """``test_accuracy_percent``, ``loss`` and the like, at every step that it was recorded at."""
        if name not in (curves := self.curves):
            raise UserError(f"{self.directory} has no curve {name[:60]}{suggestion(name, curves)}")
        rows = [(line, numbers[name]) for line, numbers in self._lines if name in numbers]
        columns = [[getattr(line, key) for line, _ in rows] for key in WHEN]
        return RunCurve(name, *columns, [value for _, value in rows])  # type: ignore[call-arg]

    def frame(self) -> Any:
        """All curves as a ``pandas.DataFrame``: a row for each step that anything was recorded at."""
        pandas = _pandas()
        frames = [self.curve(name).frame().set_index("step") for name in self.curves]
        whole = pandas.DataFrame()
        for frame in frames:
            whole = whole.combine_first(frame)
        return whole.reset_index()


def _numbers(line: LineRecord) -> dict[str, float | None]:
    """By the names of their curves."""
    if isinstance(line, EvaluateLine):
        return {f"{line.split}_{key}": value for key, value in line.numbers.items()}
    if not isinstance(line, TrainLine):
        return {}
    numbers: dict[str, Any] = content(line)
    return {key: value for key, value in numbers.items() if key not in ("version", *WHEN)}


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise UserError("a frame needs pandas, which is not installed; curve(...) gives lists without it") from None
    return pandas


def load(directory: str | Path) -> LoadedRun:
    """A run directory, finished or not.

    Raises:
        UserError: it is none, or a file in it cannot be read; one sentence.
    """
    path = Path(directory)
    return LoadedRun(read_run(path, str(path)))
