"""The tables of results/simulation and of its page are those of the files beside them."""

from __future__ import annotations

import importlib.util
import json

import pytest
from programs import REPOSITORY

from largebatch.records.simulation import SimulationRecord
from largebatch.records.typed import read

FOLDER = REPOSITORY / "results" / "simulation"
PAGES = (FOLDER / "README.md", REPOSITORY / "docs" / "planning_simulation.md")


def facts_of(name):
    return read(SimulationRecord, json.loads((FOLDER / f"{name}.json").read_text()), name)


def lost(slowdown):
    return f"{100 * (1 - 1 / slowdown):.2f} %"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_table_of_failures(page):
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ") and " steps | " in line]
    assert len(rows) == 6
    records = [facts_of("measured-restart"), facts_of("slow-restart")]
    for row in rows:
        devices, _, saves, *shares = (cell.strip() for cell in row.strip("|").split("|"))
        pair = [next(one.failures for one in facts.clusters if f"{one.devices:,}" == devices) for facts in records]
        assert saves == f"{pair[0].steps_between_saves:,} steps" == f"{pair[1].steps_between_saves:,} steps"
        assert shares == [lost(one) for each in pair for one in (each.slowdown, each.simulated_slowdown)]


def test_what_is_said_of_how_far_both_agree():
    for name, most in (("measured-restart", 0.02), ("slow-restart", 0.14)):
        for one in facts_of(name).clusters:
            apart = one.failures.simulated_slowdown - one.failures.slowdown
            assert 100 * abs(apart / one.failures.slowdown) < most
            assert abs(apart) < 1.7 * one.failures.simulated_slowdown_error
            assert 100 * abs(one.simulated_step_seconds / one.slowed_step_seconds - 1) < 0.07
    largest = facts_of("slow-restart").clusters[-1]
    assert (largest.devices, f"{1000 * largest.slowed_step_seconds:.2f}") == (100_000, "10.02")
    assert f"{1000 * largest.step_seconds:.2f}" == "9.49"


def test_the_deviations_are_what_their_script_makes(capsys):
    spec = importlib.util.spec_from_file_location("deviations", FOLDER / "deviations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert capsys.readouterr().out == (FOLDER / "deviations.md").read_text()
