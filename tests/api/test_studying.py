"""``lb.study``: parts of one's own at several batches, and the same study again from its folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import largebatch as lb

pytestmark = pytest.mark.worlds
KEYS: dict[str, Any] = {
    "name": "own",
    "batches": [25, 100],
    "target": {"score": 80},
    "epochs": 3,
    "every_epochs": 0.5,
    "trials": 3,
    "seeds": 2,
    "hold_out": 300,
    "search": {"lr.base": {"log": [0.02, 2]}},
}
SMALL = {
    "name": "small", "batch.global_batch_size": 25, "epochs": 3, "optimizer": {"name": "sgd", "momentum": 0.9},
    "lr.base": 0.1, "record.to": [],
}  # fmt: skip


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits() -> lb.Dataset:
    images, classes = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16, dtype=torch.float32)
    return lb.Dataset((inputs[:1500], torch.tensor(classes[:1500])), (inputs[1500:], torch.tensor(classes[1500:])))


def test_a_network_of_ones_own_is_studied_and_goes_on(tmp_path):
    def studied(**more: Any) -> Any:
        keys = {**KEYS, **more, "recipes": [SMALL, {"recipe": {**SMALL, "lr.base": 0.05}, "id": "slow"}]}
        return lb.study(keys, tmp_path / "out", model=Net, dataset=digits())

    facts = studied()
    assert [curve.label for curve in facts.curves] == ["small", "slow"]
    for curve in facts.curves:
        assert [(point.global_batch_size, point.runs) for point in curve.points] == [(25, 2), (100, 2)]
        assert [one.trials for one in curve.searched] == [3, 3]
    assert "own/Net" in (tmp_path / "out" / "study.json").read_text()
    assert (tmp_path / "out" / "report.html").is_file()
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("result.json")}
    assert len(made) == 2 * 2 * (3 + 2)
    again = studied()
    assert again.curves == facts.curves
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("result.json")} == made
    with pytest.raises(lb.UserError, match="holds another version of the study"):
        studied(trials=4)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"recipes": []}, "recipes = .* should name at least one"),
        ({"recipes": [SMALL], "batches": [100, 25]}, "must be sizes that ascend"),
        ({"recipes": [SMALL], "traget": {"score": 1}}, "unknown key traget; did you mean target"),
    ],
)
def test_mistakes_are_a_sentence(keys, sentence, tmp_path):
    with pytest.raises(lb.UserError, match=sentence):
        lb.study({**KEYS, **keys}, tmp_path / "out", model=Net, dataset=digits())
