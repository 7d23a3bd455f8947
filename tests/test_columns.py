"""Tables of the terminal: a column is left out whole, no number is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.terminal.columns import RankedColumn, RankedTable, kept, shared
from largebatch.terminal.console import Console

TABLE = RankedTable(
    [RankedColumn("batch"), RankedColumn("steps", 2), RankedColumn("examples", 1), RankedColumn("", 3, left=True)],
    [["65,536", "1,000,000", "123,456,789", "knee"], None, ["8", "2", "3", ""]],
    more="--json has them",
)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=8), st.integers(1, 40))
def test_the_highest_ranks_go_first_and_only_as_many_as_have_to(columns, room):
    widths, ranks = zip(*columns, strict=True)
    places = kept(widths, ranks, room, 1)
    assert places[0] == 0
    gone = [place for place in range(len(widths)) if place not in places]
    assert all(ranks[one] >= ranks[other] for one in gone for other in places[1:])
    needed = sum(widths[place] for place in places) + len(places) - 1
    assert needed <= room or places == [0]
    if gone:
        last = min(gone, key=lambda place: (ranks[place], place))
        assert needed + 1 + widths[last] > room


@pytest.mark.parametrize(
    ("width", "heading", "first", "said"),
    [
        (80, "batch steps examples", "65,536 1,000,000 123,456,789 knee", ""),
        (33, "batch steps examples", "65,536 1,000,000 123,456,789 knee", ""),  # with gaps of one
        (29, "batch steps examples", "65,536 1,000,000 123,456,789", ""),
        (18, "batch examples", "65,536 123,456,789", "no room for: steps; --json has them"),
        (5, "batch", "65,536", "no room for: steps, examples; --json has them"),
    ],
)
def test_no_number_is_cut(capsys, width, heading, first, said):
    Console(width=width).print(TABLE, crop=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == heading.split()
    assert lines[1].split() == first.split()
    rest = "".join(lines[2:]).replace(" ", "")
    assert rest.endswith(said.replace(" ", ""))
    assert ("noroom" in rest) == bool(said)


@pytest.mark.parametrize(
    ("widths", "least", "room", "wanted"),
    [
        ([10, 5, 3], [1, 1, 1], 18, [10, 5, 3]),
        ([10, 5, 3], [1, 1, 1], 12, [4, 5, 3]),
        ([10, 5, 3], [1, 1, 1], 6, [2, 2, 2]),
        ([10, 5, 3], [10, 2, 2], 15, [10, 2, 3]),
        ([10, 5, 3], [10, 5, 3], 4, [10, 5, 3]),  # none has less than it needs
    ],
)
def test_the_widest_gives_way_first_and_none_below_its_least(widths, least, room, wanted):
    assert shared(widths, least, room) == wanted
