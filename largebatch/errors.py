"""The one exception that means "the user can mend this".

Every room may raise it. Some catch it to try another way, or to add whose mistake it is; one that nobody catches
ends in ``cli``, which prints its sentence and exits with code 2. The sentence names the key, the value and what would
be valid.
"""

from __future__ import annotations

from pathlib import Path

from largebatch.terminal.escapes import escaped


class UserError(ValueError):
    """A mistake in a recipe, a command or a data set, told in one sentence on one line that any terminal shows."""

    def __init__(self, sentence: str) -> None:
        super().__init__(escaped(" ".join(sentence.split())))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: IPython asks for it by this name."""
        return [str(self)]


class LocalError(UserError):
    """A mistake that only some ranks meet, such as an image that cannot be read: each that meets it tells it."""


class Lost(Exception):
    """The other ranks, or a machine's service, are gone: this process can only end, and be started anew."""


def first_words(error: Exception) -> str:
    """The first line that an error of another project says, or its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def in_one_line(error: BaseException) -> str:
    """``ZeroDivisionError: division by zero, in line 7``; an error of ours as it stands."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}, in line {error.lineno} of {Path(error.filename or '?').name}"
    words = first_words(error) if isinstance(error, Exception) else str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f", in line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name}"
    return f"{type(error).__name__}: {words}{where}"


def suggestion(word: str, valid: list[str]) -> str:
    """``'; did you mean X?'`` for the closest valid word, else ``'; valid: ...'``."""
    import difflib

    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; valid: {', '.join(sorted(valid))}" if 0 < len(valid) <= 20 else ""
