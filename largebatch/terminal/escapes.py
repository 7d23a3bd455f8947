"""Where text leaves the program: for a terminal, a log or a file of UTF-8, whatever names it holds.

Names come from strangers' folders and archives: they may not be UTF-8, and may hold escape sequences, line breaks or
signs that turn the reading direction. Such characters are shown as ``\\x1b``, ``\\u202e`` or ``\\xff``. A terminal that
cannot show a sign of ours is given another: nothing that is told ends what is done.
"""

from __future__ import annotations

import codecs
import io
import re
import sys

_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_SIMILAR = {"×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "≈": "~", "≤": "<=", "≥": ">=", "·": ".", "‖": "|"}
_HANDLER = "largebatch.similar"


def escaped(text: str, keep: str = "") -> str:
    """``text`` on one line, without what a terminal would obey; ``keep``: such characters that may stay."""
    return _UNSEEN.sub(lambda match: match[0] if match[0] in keep else _code(match[0]), text)


def as_utf8(text: str) -> str:
    """``text`` as UTF-8 can hold it: bytes of a name that were none are escaped."""
    return re.sub(r"[\ud800-\udfff]", lambda match: _code(match[0]), text)


def _code(sign: str) -> str:
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(sign) or sign.encode("unicode_escape").decode()


def as_encoded(text: str, encoding: str) -> str:
    """``text`` as a terminal of that encoding can show it."""
    try:
        return text.encode(encoding, _HANDLER).decode(encoding)
    except LookupError:
        return text


def _similar(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_SIMILAR.get(sign) or (_code(sign) if _UNSEEN.match(sign) else "?") for sign in signs), error.end


codecs.register_error(_HANDLER, _similar)


def forgiving() -> None:
    """What is printed to stdout and stderr is from now on never more than they can show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
