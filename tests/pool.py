"""Programs and ranks without the price of a start: forked from one process that has imported what takes long.

    ended = pool.run("-m", "largebatch", "train", path)          # as behind `python`
    ended = pool.ranks(2, "worlds.engines:compare", folder)      # a function by its name, on each of two ranks
    program = pool.start("-m", "largebatch", "train", path)      # goes on beside the test: poll, wait, kill

Each is a process of its own with its own environment and one thread, unless OMP_NUM_THREADS is given. Ranks get what a
launcher says (RANK, WORLD_SIZE, ...); one that fails ends the others, as torchrun would.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent
LAUNCHER = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
PORTS = range(20000, 32768)  # below those that the system gives to whoever asks for any
TIMEOUT = 300.0  # seconds
PAUSE = 0.003  # seconds between two looks
GRACE = 5.0  # seconds that ranks have after another one failed, and again after SIGTERM


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a launcher's variables; one thread per process."""
    kept = {key: value for key, value in os.environ.items() if key not in LAUNCHER}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")]))
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


class Ended(NamedTuple):
    """As subprocess.CompletedProcess. Of several ranks: the first code that is not 0, what all of them wrote."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """One that was started: what subprocess.Popen offers, with its output in files."""

    def __init__(self, pid: int, stdout: Path, stderr: Path) -> None:
        self.pid = pid
        self._files = stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = zygote().ended(self.pid)
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int:
        late = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > late:
                self.kill()
                raise TimeoutError(f"no end after {timeout:g} s; it wrote\n{self.stdout}\n{self.stderr}")
            time.sleep(PAUSE)
        assert self.returncode is not None
        return self.returncode

    @property
    def stdout(self) -> str:
        return self._files[0].read_text(errors="surrogateescape")

    @property
    def stderr(self) -> str:
        return self._files[1].read_text(errors="surrogateescape")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, timeout: float = TIMEOUT) -> Ended:
        return Ended(self.wait(timeout), self.stdout, self.stderr)


def start(*words: object, cwd: Path | str | None = None, env: dict[str, str] | None = None) -> Program:
    """``python WORDS`` in a process of its own; the words are as zygote.py reads them."""
    folder = Path(tempfile.mkdtemp(prefix="output-", dir=zygote().folder.name))
    files = folder / "stdout", folder / "stderr"
    for file in files:
        file.touch()
    pid = zygote().ask(
        {
            "words": [str(word) for word in words],
            "cwd": str(cwd or os.getcwd()),
            "environment": environment() if env is None else env,
            "stdout": str(files[0]),
            "stderr": str(files[1]),
        }
    )
    return Program(pid, *files)


def run(
    *words: object, cwd: Path | str | None = None, env: dict[str, str] | None = None, timeout: float = TIMEOUT
) -> Ended:
    """:func:`start`, to its end."""
    return start(*words, cwd=cwd, env=env).ended(timeout)


def start_ranks(count: int, *words: object, cwd: Path | str | None = None, **more: str) -> list[Program]:
    """The same program on each of ``count`` ranks of one host, joined on loopback by a port of their own."""
    port = str(free_port())
    return [
        start(
            *words,
            cwd=cwd,
            env=environment(
                **{
                    "RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(count),
                    "GROUP_WORLD_SIZE": "1",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    **more,
                }
            ),
        )
        for rank in range(count)
    ]


def ranks(count: int, *words: object, cwd: Path | str | None = None, timeout: float = TIMEOUT, **more: str) -> Ended:
    """:func:`start_ranks`, to the end of all."""
    return all_ended(start_ranks(count, *words, cwd=cwd, **more), timeout)


def all_ended(programs: Sequence[Program], timeout: float = TIMEOUT) -> Ended:
    """The first failure counts; who goes on after it is asked to stop, then made to."""
    late = time.monotonic() + timeout
    failed, stops = 0, [(GRACE, signal.SIGTERM), (GRACE, signal.SIGKILL)]
    while running := [program for program in programs if program.poll() is None]:
        codes = [program.returncode for program in programs if program.returncode]
        if codes and not failed:
            failed, late = codes[0], time.monotonic() + stops[0][0]
        if time.monotonic() > late:
            for program in running:
                program.send_signal(stops[0][1] if failed else signal.SIGKILL)
            if not failed:
                wrote = "\n".join(program.stdout + program.stderr for program in programs)
                raise TimeoutError(f"no end after {timeout:g} s; the ranks wrote\n{wrote}")
            stops = stops[1:] or stops
            late = time.monotonic() + stops[0][0]
        time.sleep(PAUSE)
    failed = failed or next((program.returncode for program in programs if program.returncode), 0) or 0
    return Ended(failed, "".join(p.stdout for p in programs), "".join(p.stderr for p in programs))


def free_port(counter: Path | None = None) -> int:
    """One that nobody listens at now and that no other test is given: all tests of this user count in one file."""
    with open(counter or Path(tempfile.gettempdir()) / f"largebatch-tests-port-{os.getuid()}", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        last = int(file.read() or random.SystemRandom().choice(PORTS))
        for tried in range(1, len(PORTS) + 1):
            port = PORTS[(last + tried - PORTS.start) % len(PORTS)]
            if bindable(port):
                file.truncate(0)
                file.write(str(port))
                return port
    raise RuntimeError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


class Zygote:
    """The process of zygote.py, seen from here."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="largebatch-tests-")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._unread = b""
        self._codes: dict[int, int] = {}
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> int:
        """The process number of what was started."""
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.flush()
        while True:
            for answer in self._read(wait=True):
                if "started" in answer:
                    return answer["started"]

    def ended(self, pid: int) -> int | None:
        """Its exit code, once; None while it runs. Minus the signal's number if one ended it."""
        self._read(wait=False)
        return self._codes.pop(pid, None)

    def _read(self, wait: bool) -> list[dict[str, Any]]:
        """What it said since; who ended is kept."""
        os.set_blocking(self._answers.fileno(), wait)
        piece = self._answers.read1(1 << 16) if wait else self._answers.read(1 << 16)  # type: ignore[attr-defined]
        if piece == b"":
            raise RuntimeError(f"the tests' zygote is gone: exit code {self._process.wait()}")
        *lines, self._unread = (self._unread + (piece or b"")).split(b"\n")
        said = [json.loads(line) for line in lines]
        self._codes |= {answer["ended"]: answer["code"] for answer in said if "ended" in answer}
        return said

    def close(self) -> None:
        self._requests.close()
        self._process.wait(TIMEOUT)
        self._answers.close()
        self.folder.cleanup()


_zygote: Zygote | None = None


def zygote() -> Zygote:
    """Started when first needed, by this process."""
    global _zygote
    if _zygote is None:
        _zygote = Zygote()
    return _zygote
