"""A service's process from within: takes lines of JSON, hands them to the service, says how that went.

It outlives a trainer that is killed for as long as the service needs to put away what it was told, and no longer.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict

from largebatch.errors import in_one_line
from largebatch.records import names

READ_BYTES = 2**20
TRIES = 5  # of what could not be written, before the service is given up
PAUSE_SECONDS = 1.0  # twice as long before the second, four times before the third, ...
LOGGED = {"wandb": "WandbRun", "mlflow": "MlflowRun"}  # module of this folder -> its class


class Facts(TypedDict):
    """What a service is told first."""

    service: str
    settings: dict[str, Any]  # of the recipe's section for it
    id: str  # of the run directory; the same when the run goes on
    name: str
    directory: str
    report: str  # where `largebatch report` will put its page
    config: dict[str, Any]  # the recipe, whole
    trainer: int  # process id
    finish_seconds: float


class Row(TypedDict):
    """The scalars of a step."""

    step: int
    numbers: dict[str, float]
    milliseconds: int  # since 1970


class LoggedRun(Protocol):
    """A run as a service has it."""

    def __init__(self, facts: Facts) -> None: ...

    def begin(self) -> tuple[str, str | None]:
        """Where the run is seen, and what went wrong that could be helped."""
        ...

    def write(self, rows: list[Row]) -> None: ...

    def end(self, result: Mapping[str, Any] | None) -> None:
        """None: the trainer was killed, or failed outside of its steps."""
        ...


class Inbox:
    """Messages, a line each."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._unread = descriptor, b""
        self._ready: list[Any] = []

    def take(self) -> list[Any] | None:
        """All that are there, after the first that comes; None: there is no more."""
        while not self._ready:
            part = os.read(self._descriptor, READ_BYTES)
            if not part:
                return None
            *lines, self._unread = (self._unread + part).split(b"\n")
            self._ready = [json.loads(line) for line in lines]
        taken, self._ready = self._ready, []
        return taken

    def first(self) -> Any:
        taken = self.take()
        if taken is None:
            sys.exit()  # the trainer is gone before it said what it wants
        message, *self._ready = taken
        return message


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the trainer, whose end is the end of what is read
    into, out_of = os.dup(0), os.dup(1)
    silent = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # what a service prints is for nobody, and its processes share no pipe
        os.dup2(silent, standard)

    def say(**message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens
            os.write(out_of, json.dumps(message).encode() + b"\n")

    inbox = Inbox(into)
    facts: Facts = inbox.first()
    threading.Thread(target=outlive, args=(facts["trainer"], facts["finish_seconds"]), daemon=True).start()
    try:
        module = importlib.import_module(f"{__package__}.{facts['service']}")
        run: LoggedRun = getattr(module, LOGGED[facts["service"]])(facts)
        after_the_one_before(Path(facts["directory"]) / names.LOGGERS, facts)
        words, problem = run.begin()
    except (Exception, SystemExit) as error:
        say(problem=in_one_line(error), gives_up=True)
        return
    say(taken=1, words=words, **({"problem": problem} if problem else {}))
    serve(run, inbox, say)


def after_the_one_before(file: Path, facts: Facts) -> None:
    """Wait for the process of a trainer that was killed: what it still says must not come after what we say.

    For as long as it has; each service locks a byte of ``file``, to its own end.
    """
    until, byte = time.monotonic() + facts["finish_seconds"], list(LOGGED).index(facts["service"])
    with contextlib.suppress(OSError):  # the file system knows no locks
        descriptor = os.open(file, os.O_RDWR)
        while time.monotonic() < until:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                return
            except BlockingIOError:
                time.sleep(0.1)


def outlive(trainer: int, seconds: float) -> None:
    """End this process and those of the service ``seconds`` after their trainer."""
    while os.getppid() == trainer:
        time.sleep(1)
    time.sleep(seconds)
    os.killpg(0, signal.SIGKILL)


def serve(run: LoggedRun, inbox: Inbox, say: Callable[..., None]) -> None:
    """Until the run's result comes, or nothing more can."""
    rows: list[Row] = []
    result, failures, last = None, 0, False
    while not last:
        batch = inbox.take()
        rows += [message for message in batch or () if "step" in message]
        result = next((message["result"] for message in batch or () if "result" in message), None)
        last = batch is None or result is not None
        while rows:
            try:
                run.write(rows)
                rows, failures = [], 0
            except (Exception, SystemExit) as error:
                failures += 1
                say(problem=in_one_line(error), gives_up=failures == TRIES)
                if failures == TRIES:
                    return
                time.sleep(PAUSE_SECONDS * 2**failures)
                if not last:
                    break  # once more with what comes next
        say(taken=len(batch or ()))
    try:
        run.end(result)
    except (Exception, SystemExit) as error:
        say(problem=in_one_line(error))
    say(over=True)
