"""The terminal: no markup, no raw names, no sign that it cannot show (:mod:`largebatch.terminal.escapes`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
import rich.segment
import rich.text

from largebatch.terminal.escapes import as_encoded, escaped


class Console(rich.console.Console):
    """Rich's, whatever the texts hold that it is given, and whatever the terminal's encoding is."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **more})

    def render_str(self, text: str, **more: Any) -> rich.text.Text:
        """Escaped before anything is laid out: escapes take room."""
        return super().render_str(self._shown(text), **more)

    def render(self, *what: Any, **more: Any) -> Iterable[rich.segment.Segment]:
        for segment in super().render(*what, **more):
            shown = segment.text if segment.control else self._shown(segment.text)
            yield segment if shown == segment.text else segment._replace(text=shown)

    def _shown(self, text: str) -> str:
        return as_encoded(escaped(text, keep="\n"), self.encoding)


def tell(console: rich.console.Console, sentence: str) -> None:
    """On one line, however long and whatever it names."""
    console.print(escaped(sentence), markup=False, highlight=False, soft_wrap=True)
