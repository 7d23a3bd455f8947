"""What all tests share: small recipes, no leaks from one test to the next, and what their tiers promise (tiers.py)."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiers
import torch
import torch.distributed as dist
import yaml
from hypothesis import settings
from programs import LAUNCHER

TINY: dict[str, Any] = {  # 1,500 digits of 8×8 that scikit-learn ships: seconds, and no download
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "digits"},
    "batch": {"global_batch_size": 100},
    "epochs": 2,
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "lr": {"base": 0.1, "decay": {"name": "cosine"}},
    "record": {"to": []},
}

Write = Callable[..., Path]

# hypothesis takes the same examples every time: a test's outcome is the code's alone. tests/test_fuzz.py draws new ones
# in the slow tier; `--hypothesis-profile=default` draws them anywhere.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="of the order of files and of --sample; else drawn")
    parser.addoption("--sample", type=int, default=None, help="so many of the chosen tests, drawn")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = int.from_bytes(os.urandom(2))


def pytest_report_header(config: pytest.Config) -> str:
    threads, hashes = torch.get_num_threads(), os.environ.get("PYTHONHASHSEED", "random")
    return f"--seed={config.option.seed} PYTHONHASHSEED={hashes}; {threads} threads, torch {torch.__version__}"


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = tiers.ordered(items, config.option.seed)
    if (count := config.option.sample) is not None:
        drawn = tiers.sampled(items, count, config.option.seed)
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = drawn
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
        if "real_data" in item.keywords and not os.environ.get("LARGEBATCH_DATA"):
            item.add_marker(pytest.mark.skip(reason="LARGEBATCH_DATA is not set"))


def pytest_collection_finish() -> None:
    """What was imported stays: a collection of garbage does not look through all of it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


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


@pytest.fixture
def front_door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The program in this process, by its words: exit code, what it printed, what it complained of."""

    def answer(*words: object) -> tuple[int, str, str]:
        from largebatch import cli

        monkeypatch.setattr(sys, "argv", ["largebatch", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return answer


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many products of small matrices: further threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    yield
    assert not dist.is_initialized(), "the test left a process group behind"
    left = [key for key in LAUNCHER if key in os.environ]
    assert not left, f"the test left a launcher's variables behind: {left}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    tiers.started.clear()  # what a fixture of the module starts counts for the first test that asks for it
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    tiers.check(item)
