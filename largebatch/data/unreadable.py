"""Training images that cannot be read: how many a run may meet, and which they were.

Another image stands in for each (:mod:`largebatch.data.workers`), so that one broken file among a million does not
end a run of days. Files are counted once, however often they are met. A rank knows its own at once, and those of the
others from the recording marks on. A resumed run counts anew, because files may have been mended.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable

from largebatch.errors import LocalError, UserError

Reasons = dict[str, str]  # file -> why it cannot be read

_OF_MACHINE = {  # failures that say nothing about the image, and may pass
    errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip


def is_machine_failure(failure: Exception) -> bool:
    """Whether the machine failed, and not the image."""
    return isinstance(failure, MemoryError) or getattr(failure, "errno", None) in _OF_MACHINE


class Unreadable:
    """The unreadable files of a training set of ``examples`` images, of which ``at_most_share`` may be."""

    def __init__(self, examples: int, at_most_share: float) -> None:
        self.examples, self.at_most_share = examples, at_most_share
        self.at_most = math.floor(at_most_share * examples + 1e-9)
        self.met: Reasons = {}  # by this rank, or told by another
        self._fresh: Reasons = {}  # by this rank, since the last take_fresh
        self._joined: Reasons = {}  # known to every rank

    @property
    def share(self) -> float:
        return len(self.met) / self.examples

    def add(self, reasons: Reasons) -> None:
        """What this rank met; refused where it is one file too many, whatever the others met."""
        for file, reason in reasons.items():
            if file not in self.met:
                self.met[file] = self._fresh[file] = reason
                if len(self.met) > self.at_most:
                    raise LocalError(self._refusal(file, reason))

    def take_fresh(self) -> Reasons:
        """What this rank met since the last call, for :meth:`join` on every rank."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def join(self, of_ranks: Iterable[Reasons]) -> Reasons:
        """Take what all ranks met, in rank order; the files that are new to them together, refused as above."""
        new: Reasons = {}
        for found in of_ranks:
            new |= {file: reason for file, reason in found.items() if file not in self._joined}
        self._joined |= new
        self.met |= new
        if new and len(self.met) > self.at_most:
            raise UserError(self._refusal(*list(new.items())[-1]))
        return new

    def _refusal(self, file: str, reason: str) -> str:
        sentence = f"{file} cannot be read as an image: {reason}"
        if not self.at_most_share:
            return f"{sentence}; data.unreadable_share = 0 allows none, 0.001 would allow one in a thousand"
        return (
            f"{sentence}; that makes {len(self.met)} of {self.examples} training images, {100 * self.share:.3g} %, and "
            f"data.unreadable_share = {self.at_most_share:g} allows {self.at_most}"
        )
