"""TensorBoard's event files, by torch's own writer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from largebatch.run.loggers.scalars import GivenUp, Result, Said


@contextlib.contextmanager
def told_as_failure() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # the writer's thread could not write
        raise GivenUp(f"its file cannot be written: {error.strerror or error}") from error


class TensorBoard:
    """``first_step``: what an earlier session wrote from there on is hidden."""

    name = "tensorboard"

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        with told_as_failure():
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: Any) -> None:
        with told_as_failure():
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def ended(self, result: Result) -> None:
        """TensorBoard knows no result."""

    def heard(self) -> Iterable[Said]:
        return ()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._board.close()
