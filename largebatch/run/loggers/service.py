"""A service's process as the trainer sees it: lines of JSON go in, what it says comes out, and nothing is waited for.

What the process does not take at once waits here, up to a size. One that says nothing of what it was told for minutes,
or that ends, is given up. At the run's end it has a while for what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from largebatch.machine import watchdog
from largebatch.run.loggers.scalars import GivenUp, Result, Said

PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from largebatch.run.loggers import process
process.main()
"""
PIPE_BYTES = 2**20
MOST_WAITING_BYTES = 2**25
SILENT_SECONDS = 300.0
FINISH_SECONDS = 60.0  # for a run that is over
LAST_SECONDS = 5.0  # from its last word to its end
STOP_SECONDS = 10.0  # for one that a signal stopped: whoever sent it may be about to kill


class ServiceProcess:
    """``facts``: what the process is told first (:class:`~largebatch.run.loggers.process.Facts`)."""

    def __init__(self, name: str, facts: Mapping[str, Any], finish_seconds: float = FINISH_SECONDS) -> None:
        self.name = name
        self.finish_seconds = finish_seconds
        self._waiting, self._unread = bytearray(), b""
        self._left_to_take = 0  # of the messages that it was sent
        self._since = 0.0  # when it last said something, or was told something while it had nothing to do
        self._said: list[Said] = []
        self._over = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, json.dumps([str(place) for place in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the trainer's
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._into, self._out_of = self._process.stdin.fileno(), self._process.stdout.fileno()
        with contextlib.suppress(OSError):  # more than the system allows a user
            fcntl.fcntl(self._into, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_BYTES)
        for end in (self._into, self._out_of):
            os.set_blocking(end, False)
        self._send({**facts, "finish_seconds": finish_seconds})

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._send({"step": step, "numbers": dict(numbers), "milliseconds": int(1000 * time.time())})

    def ended(self, result: Result) -> None:
        if result.get("status") == "stopped":
            self.finish_seconds = min(self.finish_seconds, STOP_SECONDS)
        self._send({"result": dict(result)})

    def heard(self) -> Iterable[Said]:
        """Raises GivenUp where there is nothing more to hope for."""
        if not self._over:
            self._push()
            self._hear()
            if self._left_to_take and time.monotonic() - self._since > SILENT_SECONDS:
                raise self._given_up(f"it has said nothing for {SILENT_SECONDS:.0f} s")
        unread, self._said = self._said, []
        return unread

    def close(self) -> None:
        until = time.monotonic() + self.finish_seconds
        stdin = self._process.stdin
        while not self._over:
            self._push()
            if not self._waiting and stdin is not None and not stdin.closed:
                stdin.close()
            watchdog.alive()
            left = until - time.monotonic()
            if left <= 0:
                raise self._given_up(f"it was not done {self.finish_seconds:g} s after the end of the run")
            select.select([self._out_of], [self._into] if self._waiting else [], [], min(left, 0.2))
            self._hear()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._over:
            return
        if not self._left_to_take:
            self._since = time.monotonic()
        self._left_to_take += 1
        self._waiting += json.dumps(message).encode() + b"\n"
        self._push()
        if len(self._waiting) > MOST_WAITING_BYTES:
            raise self._given_up(f"{MOST_WAITING_BYTES // 2**20} MiB wait for it")

    def _push(self) -> None:
        """As much as it takes without being waited for."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # one that is gone is noticed by what it says
            while self._waiting:
                del self._waiting[: os.write(self._into, bytes(self._waiting[:PIPE_BYTES]))]

    def _hear(self) -> None:
        """Raises GivenUp where it has ended before it should, or gives up."""
        with contextlib.suppress(BlockingIOError):
            while not self._over:
                part = os.read(self._out_of, PIPE_BYTES)
                if not part:
                    raise self._given_up("its process has ended")
                *lines, self._unread = (self._unread + part).split(b"\n")
                for line in lines:
                    self._since = time.monotonic()
                    self._understand(json.loads(line))

    def _understand(self, message: Mapping[str, Any]) -> None:
        self._left_to_take -= message.get("taken", 0)
        if "words" in message:
            self._said.append(Said(message["words"]))
        if "problem" in message:
            if message.get("gives_up"):
                raise self._given_up(message["problem"])
            self._said.append(Said(message["problem"], is_problem=True))
        if message.get("over"):
            self._end()

    def _given_up(self, problem: str) -> GivenUp:
        with contextlib.suppress(OSError):  # it is gone, or never was a group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._end()
        return GivenUp(problem)

    def _end(self) -> None:
        """It has said its last word, or gets no other."""
        self._over = True
        self._waiting.clear()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
        try:
            self._process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
