"""What a load needs does not grow with the ranks of a host."""

from __future__ import annotations

import json
from pathlib import Path

import pool
import pytest

pytestmark = [
    pytest.mark.worlds,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a moment"),
]
LAYERS = 8
STATES = LAYERS * 1024**2 * 4 * 2 / 1e6  # MB: AdamW's; the weights are there before


def test_all_ranks_together_make_the_states_once(tmp_path):
    """Each used to join every tensor of the checkpoint, and to keep it: with two ranks, four times as much."""
    for what in ("save", "load"):
        ended = pool.ranks(2, "worlds.load_memory:work", what, "fsdp", tmp_path, LAYERS)
        assert ended.returncode == 0, ended.stderr[-4000:]
    of_ranks = json.loads((tmp_path / "memory.json").read_text())
    assert STATES / 2 < sum(grown["own"] for grown in of_ranks) < 2 * STATES
