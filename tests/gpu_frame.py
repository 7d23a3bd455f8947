"""What `make gpu-check` is made of: parts with a time limit each, and the figures they give.

A part is a few commands of the project in processes of their own. One that fails or does not fit into the time left is
told, its figures stand in the table as not run, and the others go on.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent


class Figure(NamedTuple):
    """A row of the table. ``met``: yes, no, not run, or – where nothing is wanted of it."""

    what: str
    wanted: str
    measured: str
    met: str


class Part(NamedTuple):
    """``run`` gives its figures; it may take ``seconds`` and is left out where less than half of that is left."""

    name: str
    seconds: float
    run: Callable[[Check], list[Figure]]
    promised: tuple[tuple[str, str], ...] = ()  # (what, wanted), in the table in any case


class Failed(Exception):
    """A part cannot go on; the sentence says why."""


@dataclass
class Check:
    """What the parts share: where things lie, how long there is, what came out."""

    out: Path
    work: Path
    rehearse: bool
    deadline: float  # of time.monotonic()
    site: Path | None = None  # the unpacked wheels
    limit: float = 0.0  # of the part that runs
    figures: list[Figure] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def environment(self) -> dict[str, str]:
        path = [str(place) for place in (self.site, REPOSITORY) if place] + os.environ.get("PYTHONPATH", "").split(":")
        return os.environ | {"PYTHONPATH": ":".join(filter(None, path)), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}

    def python(self, *words: object, stop_when: Callable[[], bool] | None = None) -> tuple[int, str]:
        """Exit code and output of this Python with ``words``; the output goes to check.log as well.

        Raises Failed when the part's time is up. ``stop_when``: asked now and then; SIGTERM once it is true.
        """
        command = [sys.executable, *map(str, words)]
        output = self.work / "output.txt"
        begun = time.monotonic()
        until = min(self.limit, self.deadline)
        with output.open("wb") as into:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=self.environment(), stdout=into, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                while process.poll() is None and time.monotonic() < until:
                    if stop_when and stop_when():
                        process.terminate()
                        stop_when = None
                    time.sleep(0.05)
            finally:
                in_time = process.poll() is not None
                if not in_time:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        text = output.read_text(errors="replace")
        with (self.out / "check.log").open("a") as log:
            log.write(f"\n$ {shlex.join(map(str, words))}\n{text}[{time.monotonic() - begun:.1f} s]\n")
        if not in_time:
            raise Failed(f"{shlex.join(map(str, words[:4]))} ... was stopped after {time.monotonic() - begun:.0f} s")
        return process.returncode, text

    def largebatch(self, *words: object) -> str:
        code, text = self.python("-m", "largebatch", *words)
        if code:
            raise Failed(f"largebatch {shlex.join(map(str, words[:3]))} ... ended with {code}: {last_line(text)}")
        return text

    def bench(self, name: str, *words: object) -> dict[str, Any]:
        """What `largebatch bench` writes, kept under ``name``."""
        file = self.out / f"{name}.json"
        file.unlink(missing_ok=True)
        self.largebatch("bench", *words, "--json", file)
        return json.loads(file.read_text())


def last_line(text: str) -> str:
    """Why a command failed: its own sentence, or else whatever it said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("largebatch: ")), lines[-1] if lines else "no word")


def run_parts(parts: list[Part], check: Check, say: Callable[[str], None] = print) -> None:
    for part in parts:
        if check.left < part.seconds / 2:
            word = f"left out: {check.left:.0f} s are left, it may need {part.seconds:.0f}"
            check.figures += unmet(part, [])
            check.facts.setdefault("left_out", {})[part.name] = word
            say(f"{part.name}: {word}")
            continue
        begun = time.monotonic()
        check.limit = begun + part.seconds
        try:
            found, word = part.run(check), "done"
        except Exception as reason:  # whatever it is, the other parts have something to say
            found, word = [], f"failed: {reason if isinstance(reason, Failed) else repr(reason)}"
            check.failures.append(f"{part.name}: {word}")
        check.figures += found + unmet(part, found)
        check.facts.setdefault("seconds", {})[part.name] = round(time.monotonic() - begun, 1)
        say(f"{part.name}: {word} after {time.monotonic() - begun:.0f} s")


def unmet(part: Part, found: list[Figure]) -> list[Figure]:
    """What the part promised and did not give."""
    given = {figure.what for figure in found}
    return [Figure(what, wanted, "", "not run") for what, wanted in part.promised if what not in given]


def compared(what: str, measured: float | None, at_least: float | None = None, at_most: float | None = None) -> Figure:
    wanted = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}" if at_most is not None else ""
    if measured is None:
        return Figure(what, wanted, "", "not run")
    met = "–"
    if at_least is not None or at_most is not None:
        met = "yes" if (at_least is None or measured >= at_least) and (at_most is None or measured <= at_most) else "no"
    return Figure(what, wanted, f"{measured:,.0f}" if abs(measured) >= 1000 else f"{measured:.3g}", met)


def wanted_of(facts: Mapping[str, Any]) -> list[Figure]:
    """The ``wanted`` list that a bench writes beside its numbers."""
    return [
        compared(row["what"], row.get("measured"), row.get("at_least"), row.get("at_most"))
        for row in facts.get("wanted") or []
    ]
