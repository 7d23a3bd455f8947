"""The process is killed (SIGKILL) at every moment of one save, the removal of the old checkpoint included.

One program loads everything once and forks a child for each moment: the child trains and kills itself there, the next
child goes on to the end.
"""

from __future__ import annotations

import json
from typing import Any

import pool
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    import yaml
    from conftest import TINY

    folder = tmp_path_factory.mktemp("power")
    recipe = {
        **TINY,
        "model": {"name": "mlp", "width": 16, "depth": 1, "norm": True, "dropout": 0.3},
        "data": {"name": "digits", "augment": "flip"},
        "epochs": 3,
        "checkpoint": {"every_epochs": 1, "keep": 1},
        "record": {"every_steps": 1, "to": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ended = pool.run("worlds.power_cut:cut_everywhere", folder / "recipe.yaml", folder, timeout=500)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def test_every_stage_was_cut(cuts):
    where = [cut["where"] for cut in cuts]
    assert {
        "before mkdir", "before save_file", "half of save_file", "before fsync", "before write_text",
        "half of write_text", "before replace", "before rmtree", "half of rmtree", "after everything",
    } <= set(where)  # fmt: skip
    assert where.count("before replace") == 2, "the new one gets its name, the old one loses it"
    assert {cut["code"] for cut in cuts} == {-9}


def test_it_goes_on_from_what_was_acknowledged_or_newer_and_says_so(cuts):
    for cut in cuts:
        assert cut["went on"] == 0, cut
        [step] = cut["from"]
        assert step in (15, 30)
        assert step >= cut["acknowledged"], cut
        assert f"resumed at step {step} of 45" in cut["log"], cut
    by_stage = [cut["from"][0] for cut in cuts]
    assert by_stage == sorted(by_stage), "once the new one is there it stays"
    assert set(by_stage) == {15, 30}


def test_it_ends_with_the_same_bits_and_nothing_is_left_over(cuts):
    for cut in cuts:
        assert cut["same"], cut
        assert cut["left"] == ["step-00000045"], cut
