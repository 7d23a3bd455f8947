"""Numbers -> JSON lines, the scalars' writers, the log file, the terminal; and the run directory they live in.

    RUN/run.yaml  plan.json  metrics.jsonl  train.log  tensorboard/  checkpoints/  result.json

``report``, ``compare`` and ``diagnose`` read nothing else. Only rank zero writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import rich.console
import rich.progress

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.plan.score import ACCURACY, Score
from largebatch.recipes import strict_yaml
from largebatch.records import names
from largebatch.records.facts import writable, write_json
from largebatch.records.files import write_text
from largebatch.records.lines import Lines
from largebatch.records.run import LINES, AddedLine, LoggersRecord, PlanRecord, ResultRecord
from largebatch.records.typed import check_version, content, made, read
from largebatch.run.loggers.scalars import Scalars, ScalarWriter
from largebatch.terminal.console import tell
from largebatch.terminal.escapes import escaped

LOOKS, PAUSE = 10, 0.05  # a lock that is held is looked at again so often, after so many seconds
Recipe = dict[str, Any]
Kind = TypeVar("Kind")
BESIDE = ("step", "examples_seen")  # what a scalar's place is told by


def open_directory(
    directory: Path,
    written: Recipe,
    science: Recipe,
    science_of_file: Callable[[Path], Recipe],
    resume: str,
    why_not_on: Callable[[Path, Recipe], str | None] | None = None,
) -> None:
    """Make RUN and its ``run.yaml``, or recognise it as ours; collective, refused on every rank alike.

    ``written`` is the whole recipe; ``science`` the part of it that two runs must share to continue one another. Where
    they do not, ``why_not_on`` is asked of the file and its science, and says in words why the run there cannot go on
    as this one; None: it can, and the file becomes this recipe's.
    """
    on_first_rank(
        lambda: _open_directory(directory, written, science, science_of_file, resume, why_not_on),
        f"record.dir = {directory}",
    )


def on_first_rank(act: Callable[[], None], what: str) -> None:
    """``act`` on rank zero; where it fails to write ``what``, every rank raises the same sentence. Collective."""
    problem = None
    if distributed.is_first():
        try:
            act()
        except OSError as error:
            problem = f"{what} cannot be written: {error.strerror or error}"
        except UserError as error:
            problem = str(error)
    problem = distributed.gather(problem)[0]
    if problem:
        raise UserError(problem)


def _open_directory(
    directory: Path,
    written: Recipe,
    science: Recipe,
    science_of_file: Callable[[Path], Recipe],
    resume: str,
    why_not_on: Callable[[Path, Recipe], str | None] | None,
) -> None:
    file = directory / names.RECIPE
    if file.exists():
        if resume == "never":
            raise UserError(
                f"record.dir = {directory} already holds a run; resume=auto continues it, another record.dir leaves it"
            )
        try:
            there = science_of_file(file)
        except UserError as error:
            raise UserError(f"{file} is not readable as a run; choose another record.dir") from error
        if different := differences(there, science):
            why_not = why_not_on(file, there) if why_not_on is not None else ""
            if why_not is not None:
                saved = any((directory / names.CHECKPOINTS).glob("step-*"))
                onward = f", where --from {directory} begins with this run's weights" if saved else ""
                raise UserError(
                    f"record.dir = {directory} belongs to another config ({'; '.join(different)}){why_not}; "
                    f"choose another record.dir{onward}"
                )
            _becomes(directory, written)
        return
    if directory.exists() and not directory.is_dir():
        raise UserError(f"record.dir = {directory} is a file; choose a folder")
    if directory.exists() and any((directory / names.CHECKPOINTS).glob("step-*")):
        raise UserError(f"record.dir = {directory} holds checkpoints but no {names.RECIPE}; choose another record.dir")
    text = strict_yaml.written(written, f"record.dir = {directory}: {names.RECIPE}")
    directory.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _becomes(directory: Path, written: Recipe) -> None:
    """The run there goes on as ``written``. Whenever this is cut short, the same command goes on."""
    text = strict_yaml.written(written, f"record.dir = {directory}: {names.RECIPE}")
    with open(directory / names.METRICS, "ab") as file:
        _lock(file, directory)
        (directory / names.RESULT).unlink(missing_ok=True)  # first: it is the end of a run that there is no more
        write_text(directory / names.RECIPE, text)


def _lock(file: IO[bytes], directory: Path) -> None:
    """`largebatch runs` may have it for an instant, to see whether somebody trains there: so it is tried again."""
    for again in range(LOOKS, -1, -1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not again:
                raise UserError(f"record.dir = {directory} is being trained in by another process") from None
            time.sleep(PAUSE)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """``'lr.base: 0.1 there, 0.2 here'`` for every leaf that differs, at most three."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("name") != new.get("name"):  # another thing altogether: its own keys say nothing
            return [f"{key}.name: {old.get('name')} there, {new.get('name')} here"]
        found = []
        for name in sorted({*old, *new}):
            found += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found[:3]
    return [] if old == new else [f"{key}: {old} there, {new} here"]


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Inside, no other process trains in the run directory. Collective."""
    with contextlib.ExitStack() as held:

        def lock() -> None:
            _lock(held.enter_context(open(directory / names.METRICS, "ab")), directory)

        on_first_rank(lock, f"record.dir = {directory}")
        yield


class Recorder:
    """Where the loop sends its numbers. On ranks other than zero it does nothing.

    ``writers``: name -> who makes what writes the scalars, too.
    """

    def __init__(
        self,
        directory: Path,
        plan: PlanRecord,
        *,
        first_step: int,
        console: rich.console.Console,
        quiet: bool,
        writers: Mapping[str, Callable[[], ScalarWriter]] | None = None,
    ) -> None:
        self.active = distributed.is_first()
        self.console, self.quiet = console, quiet
        self._progress: rich.progress.Progress | None = None
        self._step = first_step
        self._scalars, self._told = Scalars(self.say, self._logger_failed), set[str]()
        on_first_rank(lambda: self._open(directory, plan), f"record.dir = {directory}")
        for name, make in (writers or {}).items() if self.active else ():
            self._scalars.open(name, make)
        if self.active and console.is_terminal:
            self._progress = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[now]}"),
                rich.progress.TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(str(plan.name), total=plan.steps, completed=first_step, now="")

    def _open(self, directory: Path, plan: PlanRecord) -> None:
        self._lines = Lines(directory / names.METRICS)
        self._lines.drop_torn_line()
        self._log = Lines(directory / names.LOG)
        write_json(directory / names.PLAN, content(plan))
        (directory / names.RESULT).unlink(missing_ok=True)

    def event(self, event: str, /, **facts: Any) -> None:
        """One line of metrics.jsonl, of a kind of LINES; its scalars are ``loss/training``, ``loss/test``, ..."""
        if not self.active:
            return
        line = content(made(LINES.get(event, AddedLine), facts), event=event)
        self._append(self._lines, json.dumps(writable(line), ensure_ascii=False))
        self._step = facts.get("step", self._step)
        whose = "layers" if event == "layers" else facts.get("split", "training")
        numbers = {key: value for key, value in facts.items() if key not in BESIDE and isinstance(value, float)}
        self._scalars.write(self._step, {f"{key}/{whose}": value for key, value in numbers.items()})

    def training(self, **numbers: Any) -> None:
        self.event("train", **numbers)
        if not self.active:
            return
        norm = f"  |g| {numbers['grad_norm']:.3g}" if numbers.get("grad_norm") is not None else ""
        loss = "none finite" if numbers["loss"] is None else f"{numbers['loss']:.4f}"
        now = f"loss {loss}  lr {numbers['lr']:.4g}{norm}  {numbers['examples_per_second']:,.0f} examples/s"
        self._write_log(f"step {numbers['step']}  epoch {numbers['epoch']:.3f}  {now}")
        if self._progress is not None:
            self._progress.update(self._task, completed=numbers["step"], now=now)

    def layers(
        self, step: int, examples_seen: int, summary: dict[str, float], by_layer: dict[str, dict[str, float]]
    ) -> None:
        """The summary over layers to metrics.jsonl; as scalars each number of each layer, too."""
        self.event("layers", step=step, examples_seen=examples_seen, **summary)
        if self.active:
            by_name = {f"{number}/{layer}": value for number, of in by_layer.items() for layer, value in of.items()}
            self._scalars.write(step, by_name)

    def ended(self, result: ResultRecord) -> None:
        """The run's result, for the writers that show one."""
        self._scalars.ended(writable(content(result)))

    def _logger_failed(self, name: str, problem: str, given_up: bool) -> None:
        """Told once; what follows stands in the log."""
        tell_it = self.say if name not in self._told else self.note
        tell_it(f"record.to: {name}: {problem}; the run goes on{' without it' if given_up else ''}")
        if given_up or name not in self._told:
            self._told.add(name)
            self.event("logger", step=self._step, logger=name, problem=problem, given_up=given_up)

    def picture(self, tag: str, pixels: Any, step: int) -> None:
        """``pixels`` (height, width, 3) uint8, for the writers that show pictures."""
        self._scalars.picture(step, tag, pixels)

    def say(self, text: str) -> None:
        """A sentence for the log and, unless ``quiet``, the terminal."""
        if self.active:
            self._write_log(text)
        if self.active and not self.quiet:
            tell(self.console, text)

    def note(self, text: str) -> None:
        """A sentence for the log alone."""
        if self.active:
            self._write_log(text)

    def _write_log(self, text: str) -> None:
        self._append(self._log, escaped(text))

    def _append(self, lines: Lines, text: str) -> None:
        """A disk without room does not end the training: its lines wait."""
        before = lines.problem
        lines.append(text)
        if lines.problem and not before:
            sentence = f"{lines.path} cannot be written: {lines.problem}; its lines wait until it can"
            tell(self.console, sentence)

    def unwritten(self) -> str | None:
        """Which lines find no room still, after another try; None where all are in their files."""
        for lines in (self._lines, self._log) if self.active else ():
            lines.flush()
            if lines.problem:
                return f"the last lines of {lines.path} cannot be written: {lines.problem}"
        return None

    def close(self) -> None:
        if not self.active:
            return
        if self._progress is not None:
            self._progress.stop()
        self._scalars.close()
        self._lines.close()
        self._log.close()


def identity(directory: Path) -> str:
    """The name by which services know the run, made once. Raises OSError."""
    there = _read(LoggersRecord, directory / names.LOGGERS)
    if there is None:
        there = LoggersRecord(id=secrets.token_hex(8))
        write_json(directory / names.LOGGERS, content(there))
    return there.id


def score_of_run(directory: Path) -> Score:
    """What the run is judged by."""
    plan = read_plan(directory)
    return ACCURACY if plan is None else plan.judged_by


def read_plan(directory: Path) -> PlanRecord | None:
    """``plan.json``, None where there is none or it is not whole; refused where a newer largebatch wrote it."""
    return _read(PlanRecord, directory / names.PLAN)


def read_result(directory: Path) -> ResultRecord | None:
    """``result.json``, None where there is none or it is not whole; refused where a newer largebatch wrote it."""
    return _read(ResultRecord, directory / names.RESULT)


def _read(kind: type[Kind], file: Path) -> Kind | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        check_version(kind, content, file)
    try:
        return read(kind, content, file)
    except UserError:
        return None
