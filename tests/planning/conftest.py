"""The command, in a folder with a recipe, a machine and points."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import yaml
from planning.clusters import machine_file

POINTS = """
title: digits
unit: digits
points:
  25: {examples: {1000: 1}}
  100: {examples: {2000: 1}}
  200: {examples: {4000: 1}}
"""


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Path:
    """Traces of all tests here: the second plan of a recipe makes none."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def ask(tmp_path, monkeypatch, front_door, recipe, kept):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LARGEBATCH_CACHE", str(kept))
    Path("points.yaml").write_text(POINTS)
    Path("cluster.yaml").write_text(yaml.safe_dump(machine_file()))
    recipe()
    return functools.partial(front_door, "plan")
