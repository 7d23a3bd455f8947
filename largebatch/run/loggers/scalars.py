"""One list of scalars, several writers. One that fails is told once, and the run goes on without it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from largebatch.errors import UserError, in_one_line

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}  # service, which is its module's name -> what pip installs
Result = Mapping[str, Any]


class Said(NamedTuple):
    """What a service has to say of itself, such as where the run is seen."""

    words: str
    is_problem: bool = False  # which it may get over


class ScalarWriter(Protocol):
    """Whatever it raises, its run goes on without it."""

    name: str

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """The scalars of a step by name; a step may come again, and may lie before one that came."""
        ...

    def ended(self, result: Result) -> None:
        """What ``result.json`` holds."""
        ...

    def close(self) -> None:
        """Waits for what is not yet written, for a while."""
        ...

    def heard(self) -> Iterable[Said]:
        """What is new."""
        ...


@runtime_checkable
class PictureWriter(ScalarWriter, Protocol):
    """One that shows pictures, too."""

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """``pixels`` (height, width, 3) uint8."""
        ...


class GivenUp(Exception):
    """Why a writer writes no more, in words."""


def check_installed(services: Iterable[str]) -> None:
    """Refuse services whose package is not there; nothing of theirs is imported."""
    for service in services:
        if service in PACKAGES and not is_installed(service):
            raise UserError(
                f"record.to names {service}, whose package is not installed; valid: pip install "
                f"'largebatch[{service}]' (or {PACKAGES[service]} alone), or record.to without {service}"
            )


def is_installed(module: str) -> bool:
    """A folder of that name, as wandb leaves it where it was started, is no package."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


class Scalars:
    """``tell`` gets sentences; ``failed`` a writer's name, a problem in words, and whether it was given up for it."""

    def __init__(self, tell: Callable[[str], None], failed: Callable[[str, str, bool], None]) -> None:
        self.writers: list[ScalarWriter] = []
        self._tell, self._failed = tell, failed

    def open(self, name: str, make: Callable[[], ScalarWriter]) -> None:
        try:
            self.writers.append(make())
        except Exception as error:
            self._failed(name, in_one_line(error), True)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for writer in list(self.writers):
            if not numbers or self._guarded(writer, functools.partial(writer.write, step, numbers)):
                self._guarded(writer, functools.partial(self._hear, writer))

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """``pixels`` (height, width, 3) uint8, to those who show pictures."""
        for writer in list(self.writers):
            if isinstance(writer, PictureWriter):
                self._guarded(writer, functools.partial(writer.picture, step, name, pixels))

    def ended(self, result: Result) -> None:
        for writer in list(self.writers):
            self._guarded(writer, functools.partial(writer.ended, result))

    def close(self) -> None:
        for writer in list(self.writers):
            if self._guarded(writer, writer.close):
                self._guarded(writer, functools.partial(self._hear, writer))
        self.writers.clear()

    def _hear(self, writer: ScalarWriter) -> None:
        for words, is_problem in writer.heard():
            if is_problem:
                self._failed(writer.name, words, False)
            else:
                self._tell(f"{writer.name}: {words}")

    def _guarded(self, writer: ScalarWriter, act: Callable[[], None]) -> bool:
        """Whether it went well; else the writer is no longer one of ours."""
        try:
            act()
            return True
        except Exception as error:
            self.writers = [other for other in self.writers if other is not writer]
            with contextlib.suppress(Exception):
                self._hear(writer)  # what it said before
            self._failed(writer.name, str(error) if isinstance(error, GivenUp) else in_one_line(error), True)
            return False
