"""Fixtures shared by all tests: small recipes, and no leaks from one test to the next."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from programs import LAUNCHER

TINY: dict[str, Any] = {  # 1,500 digits of 8×8 that scikit-learn ships: seconds, and no download
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "digits"},
    "batch": {"global_batch_size": 100},
    "epochs": 2,
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "lr": {"base": 0.1, "decay": {"name": "cosine"}},
    "record": {"tensorboard": False},
}

Write = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
        if "real_data" in item.keywords and not os.environ.get("LARGEBATCH_DATA"):
            item.add_marker(pytest.mark.skip(reason="LARGEBATCH_DATA is not set"))


@pytest.fixture
def recipe(tmp_path: Path) -> Write:
    """Writes the tiny recipe, changed by dotted keys, and returns its path."""

    def write(name: str = "tiny", **changes: Any) -> Path:
        written = yaml.safe_load(yaml.safe_dump(TINY))
        written["record"]["dir"] = str(tmp_path / "runs" / name)
        for key, value in changes.items():
            section, (*above, last) = written, key.split("__")
            for part in above:
                section = section.setdefault(part, {})
            section[last] = value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(written))
        return path

    return write


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    yield
    assert not dist.is_initialized(), "the test left a process group behind"
    left = [key for key in LAUNCHER if key in os.environ]
    assert not left, f"the test left a launcher's variables behind: {left}"
