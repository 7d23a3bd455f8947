"""The plans of results/plan are those that today's program reads."""

from __future__ import annotations

import json

import pytest
from programs import REPOSITORY

from largebatch.records.plan import ClusterPlanRecord
from largebatch.records.typed import read

FOLDER = REPOSITORY / "results" / "plan"


@pytest.mark.parametrize("name", ["goyal", "lamb", "bert"])
def test_a_plan_is_read_and_its_table_is_beside_it(name):
    facts = read(ClusterPlanRecord, json.loads((FOLDER / f"{name}.json").read_text()), name)
    table = (FOLDER / f"{name}.txt").read_text()
    assert facts.points
    assert f"{max(point.global_batch_size for point in facts.points):,}" in table
    assert "ms/step" in table
