"""configs/studies/ingredients, results/ingredients: each row is its control and what its name says, and was run so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from programs import REPOSITORY

from largebatch.recipes import config

FOLDER = REPOSITORY / "configs" / "studies" / "ingredients"
RESULTS = REPOSITORY / "results" / "ingredients"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
MIX, BOTH = {"data.mix.mixup": 0.2}, {"data.mix.mixup": 0.2, "data.mix.cutmix": 1.0}
EMA = {"ema.decay": 0.99, "ema.warmup": True}
ADDED: dict[str, dict[str, Any]] = {
    "baseline": {},
    "flips": {"data.augment": "flip"},
    "flips-shifts": {"data.augment": "crop_flip"},
    "rand-augment": {"data.policy": "rand_augment-n2-m9"},
    "trivial-augment": {"data.policy": "trivial_augment_wide"},
    "erasing": {"data.erase.probability": 0.5},
    "mixup": MIX,
    "cutmix": {"data.mix.cutmix": 1.0},
    "switch": BOTH,
    "bce": {"loss.name": "bce", "loss.classes": "sum"},
    "smoothing": {"loss.label_smoothing": 0.1},
    "ema": EMA,
    "test-flips": {"evaluate.flips": True},
}
TOGETHER = ("flips-shifts", "trivial-augment", "erasing", "switch", "smoothing", "ema", "test-flips")
A3 = {
    "data.augment": "crop_flip", "data.policy": "timm/rand-m6-mstd0.5-inc1", "data.mix.mixup": 0.1,
    "data.mix.cutmix": 1.0, "loss.name": "bce",
}  # fmt: skip

NOT_YET_RUN = {"lamb", "lamb-a3"}


def flat(section: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(section, dict):
        yield above, section
        return
    for key, value in section.items():
        yield from flat(value, f"{above}.{key}" if above else key)


def written(name: str) -> dict[str, Any]:
    """Its keys as read from the file, but for its name and title."""
    return {key: value for key, value in flat(config.load(FILES[name], []).as_set()) if key not in ("name", "title")}


@pytest.mark.parametrize(
    ("name", "control", "added"),
    [
        *((name, "baseline", added) for name, added in ADDED.items()),
        ("together", "baseline", {key: value for name in TOGETHER for key, value in ADDED[name].items()}),
        ("lamb-a3", "lamb", A3),
    ],
)
def test_a_file_is_its_control_and_what_it_adds(name, control, added):
    without, present = written(control), written(name)
    changed = {key: value for key, value in present.items() if without.get(key) != value}
    assert changed == added
    assert not without.keys() - present.keys()


def test_every_file_is_looked_at():
    assert set(FILES) == {*ADDED, "together", "lamb", "lamb-a3"}


def test_the_results_are_of_these_files_with_three_seeds():
    facts = json.loads((RESULTS / "comparison.json").read_text())
    assert {row["id"] for row in facts["rows"]} == set(FILES) - NOT_YET_RUN
    assert (facts["baseline"], facts["seeds"]) == ("baseline", [0, 1, 2])
    report = (RESULTS / "report.md").read_text()
    for row in facts["rows"]:
        assert row["label"] == config.load(FILES[row["id"]], []).title
        assert f"| {row['label']}" in report
