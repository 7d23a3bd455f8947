"""Tables that leave columns out where a terminal has no room for them: a number that is cut is another number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

GAPS = (2, 1)


@dataclass(frozen=True)
class RankedColumn:
    """The higher its ``rank``, the earlier it is left out; of equal ones the last."""

    title: str
    rank: int = 0
    left: bool = False
    """Its cells begin at the same place; those of numbers end there."""


@dataclass(frozen=True)
class RankedTable:
    """Rows of cells, of one or more lines each; a blank line where a row is None. Print it with ``crop=False``."""

    columns: Sequence[RankedColumn]
    rows: Sequence[Sequence[str] | None]
    title: str = ""
    more: str = field(default="")
    """Where the columns are that have no room."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        widths = [
            max(widest(column.title), *(widest(row[place]) for row in self.rows if row is not None), 0)
            for place, column in enumerate(self.columns)
        ]
        ranks = [column.rank for column in self.columns]
        gap = next((gap for gap in GAPS if len(kept(widths, ranks, options.max_width, gap)) == len(ranks)), GAPS[-1])
        places = kept(widths, ranks, options.max_width, gap)
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, title=self.title or None, title_justify="left")
        table.width = sum(widths[place] for place in places) + gap * (len(places) - 1)
        for place in places:
            column = self.columns[place]
            table.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*(Text(row[place]) for place in places))
        yield table
        if absent := [one.title for place, one in enumerate(self.columns) if one.title and place not in places]:
            yield Text(f"no room for: {', '.join(absent)}{f'; {self.more}' if self.more else ''}", style="dim")


def widest(text: str) -> int:
    """In characters of a terminal, of any line."""
    return max(map(cell_len, text.split("\n")))


def kept(widths: Sequence[int], ranks: Sequence[int], room: int, gap: int) -> list[int]:
    """Places of the columns that have room beside one another; the first always."""
    places = list(range(len(widths)))
    for place in _in_order(ranks):
        if sum(widths[one] for one in places) + gap * (len(places) - 1) <= room:
            break
        places.remove(place)
    return places


def shared(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """So wide are columns that would be ``widths`` and share less room: the widest gives way first, none below its
    ``least``."""
    found = list(widths)
    while sum(found) > room:
        giving = [place for place, width in enumerate(found) if width > least[place]]
        if not giving:
            break
        found[max(giving, key=found.__getitem__)] -= 1
    return found


def _in_order(ranks: Sequence[int]) -> Iterator[int]:
    """Who goes first."""
    yield from sorted(range(1, len(ranks)), key=lambda place: (-ranks[place], -place))
