"""`make gpu-check` without a GPU: its rehearsal, its budget, its table, its wheels."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import json
import re
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check
import gpu_parts
import numpy as np
import pool
import pytest
import torch
from gpu_frame import Check, Failed, Figure, Part, compared, run_parts, wanted_of
from gpu_photographs import CLASSES, QUALITY, imagenet_like, made, photograph
from PIL import Image
from programs import REPOSITORY, environment

from largebatch.data.folder import scan

# What the README of results/gpu says is there; with what those packages bring.
IMAGE = {"torch", "torchvision", "timm", "triton", "tensorboard", "rich", "scipy", "matplotlib", "pytest"}
BROUGHT = {"numpy": "torchvision", "PIL": "torchvision", "packaging": "matplotlib", "huggingface_hub": "timm"}
BY_IMPORT = {"yaml": "PyYAML", "sklearn": "scikit-learn", "pydantic_core": "pydantic-core"}
ON_REQUEST = {  # behind a key or an extra, told in a sentence where they are missing
    "deepspeed", "mlperf_logging", "pyarrow", "nvidia", "webdataset", "pandas", "tokenizers", "transformers",
    "accelerate", "optuna", "wandb", "mlflow", "pytorch_optimizer",
}  # fmt: skip


@pytest.fixture
def check(tmp_path: Path) -> Check:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir(), work.mkdir()
    return Check(out, work, rehearse=True, deadline=time.monotonic() + 600, limit=time.monotonic() + 600)


def gives(*figures: Figure) -> Callable[[Check], list[Figure]]:
    return lambda check: list(figures)


def run(*words: object, **more: str) -> pool.Ended:
    return pool.run(REPOSITORY / "tests" / "gpu_check.py", *words, env=environment(**more), timeout=900)


# ---- the whole of it ----


@pytest.mark.worlds
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    ended = run("--out", tmp_path / "out")
    assert ended.returncode == 2
    assert ended.stderr.strip() == ("gpu-check: torch sees no CUDA device; --rehearse runs everything tiny on the CPU")
    assert "torch " in ended.stdout, "it says what it sees"


@pytest.mark.slow
def test_the_rehearsal_runs_every_part(tmp_path):
    ended = run("--rehearse", "--out", tmp_path, COLUMNS="120")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads((tmp_path / "check.json").read_text())
    assert result["rehearsed"]
    assert set(result["seconds"]) == {part.name for part in gpu_parts.parts(rehearse=True)}
    figures = {figure["what"]: figure for figure in result["figures"]}
    assert figures["ImageNet recipe, end to end"]["measured"].startswith(f"{gpu_parts.STEPS['rehearsed']} steps")
    assert figures["and after SIGTERM"]["measured"].startswith("at step ")
    assert {figure["met"] for figure in result["figures"]} <= {"rehearsed", "not run"}
    for name in ("throughput", "data", "optimizer", "batch-mnist", "throughput-mnist", "deterministic"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["command"].startswith("largebatch "), name
    for name in ("throughput", "data", "batch-mnist", "throughput-mnist", "deterministic"):
        assert f"{name}.json" in (tmp_path / "check.log").read_text()


@pytest.mark.worlds
def test_a_part_that_does_not_exist(tmp_path):
    ended = run("--only", "images,imagination", "--out", tmp_path)
    assert ended.returncode == 2
    assert "imagination is not a part; valid: images, training" in ended.stderr


# ---- parts, time, figures ----


def test_a_part_that_fails_does_not_stop_the_others(check):
    def fails(check: Check) -> list[Figure]:
        raise Failed("the reason")

    def breaks(check: Check) -> list[Figure]:
        raise KeyError("a number")

    parts = [
        Part("one", 1, fails, (("a", "≥ 1"),)),
        Part("two", 1, breaks),
        Part("three", 1, gives(Figure("b", "", "2", "–")), (("b", ""), ("c", "≤ 3"))),
    ]
    words: list[str] = []
    run_parts(parts, check, words.append)
    assert check.figures == [
        Figure("a", "≥ 1", "", "not run"), Figure("b", "", "2", "–"), Figure("c", "≤ 3", "", "not run"),
    ]  # fmt: skip
    assert check.failures == ["one: failed: the reason", "two: failed: KeyError('a number')"]
    assert [word.partition(" after")[0] for word in words] == [*check.failures, "three: done"]


def test_what_does_not_fit_is_left_out_with_a_word(check):
    check.deadline = time.monotonic() + 20
    long = Part("long", 50, gives(Figure("never", "", "", "–")), (("a", "≥ 1"),))
    words: list[str] = []
    run_parts([long, Part("short", 30, gives(Figure("b", "", "2", "–")))], check, words.append)
    assert [figure.met for figure in check.figures] == ["not run", "–"]
    assert re.fullmatch(r"long: left out: \d+ s are left, it may need 50", words[0])
    assert not check.failures


@pytest.mark.worlds
def test_a_command_that_takes_too_long_is_stopped_and_logged(check):
    check.limit = time.monotonic() + 1.5
    with pytest.raises(Failed, match="was stopped after"):
        check.python("-c", "import time; print('begun', flush=True); time.sleep(60)")
    assert "begun" in (check.out / "check.log").read_text()


@pytest.mark.worlds
def test_a_command_s_last_line_is_why_it_failed(check):
    with pytest.raises(Failed, match=r"largebatch train nowhere.yaml ... ended with 2: .* cannot read the recipe"):
        check.largebatch("train", "nowhere.yaml")


@pytest.mark.parametrize(
    ("bounds", "measured", "expected"),
    [
        ({"at_least": 1.15}, 1.2, ("≥ 1.15", "1.2", "yes")),
        ({"at_least": 1.15}, 1.1, ("≥ 1.15", "1.1", "no")),
        ({"at_most": 36}, 36.0, ("≤ 36", "36", "yes")),
        ({"at_most": 36}, 37.0, ("≤ 36", "37", "no")),
        ({}, 7760.2, ("", "7,760", "–")),
        ({"at_least": 8}, None, ("≥ 8", "", "not run")),
    ],
)
def test_a_figure_beside_what_is_wanted(bounds, measured, expected):
    assert compared("what", measured, **bounds) == Figure("what", *expected)


def test_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    gpu_check.show([compared("a [ratio]", 2.0, at_least=1), Figure("b", "≥ 3", "", "not run")])
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split() == ["figure", "wanted", "measured", "met"]
    assert [row.split() for row in rows[3:5]] == [
        ["a", "[ratio]", "≥", "1", "2", "yes"], ["b", "≥", "3", "not", "run"],
    ]  # fmt: skip


# ---- what is read from what came out ----

THROUGHPUT: dict[str, Any] = {
    "contestants": [
        {"name": "trainer", "compared_with": "trainer"},
        {"name": "synthetic", "compared_with": "trainer"},
        {"name": "bare_loop", "compared_with": "synthetic"},
        {"name": "timm", "compared_with": "synthetic"},
    ],
    "trainer_examples_per_second": [3000.0, 3880.0, 3900.0],
    "trainer_over_synthetic_median": 0.96,
    "trainer_over_bare_loop_median": 0.5,
    "synthetic_over_bare_loop_median": 0.99,
    "synthetic_over_timm_median": 1.2,
    "verdict": {"bound": "data", "sentence": "The data bound it."},
}


def test_the_figures_of_throughput():
    figures = {figure.what: (figure.measured, figure.met) for figure in gpu_parts.throughput_figures(THROUGHPUT, "x, ")}
    assert figures == {
        "x, packed data over batches that lie ready": ("0.96", "no"),
        "x, over the bare loop": ("0.99", "yes"),
        "x, over timm's loop": ("1.2", "yes"),
        "x, images/s": ("3,880", "–"),
        "x, images/s over 7,760 (MLPerf 4.0, per GPU)": ("0.5", "yes"),
        "x, what bounds it": ("The data bound it.", "–"),
    }


def test_a_bench_that_says_little_gives_few_figures():
    assert gpu_parts.throughput_figures({"kind": "throughput"}, "") == []
    assert gpu_parts.throughput_figures({"trainer_over_bare_loop": [0.9, 1.1, 1.0]}, "")[0].measured == "1"
    assert wanted_of({}) == []


def test_the_figures_of_batch():
    facts = {"sizes": [{"global_batch_size": size, "seconds_per_epoch": 0.2} for size in (1, 10, 1000)]}
    figures = gpu_parts.batch_figures(facts)
    assert [(figure.wanted, figure.met) for figure in figures] == [("≤ 36", "yes"), ("≤ 0.18", "no")]
    promised = {what for part in gpu_parts.parts(False) if part.name == "batch" for what, _ in part.promised}
    assert promised == {figure.what for figure in figures}


OUTPUT = """
tests/a/test_a.py::test_one PASSED                                       [ 10%]
tests/a/test_a.py::test_two[x y] FAILED                                  [ 20%]
tests/test_b.py::test_three[a - b] SKIPPED (no CUDA device here)         [ 30%]
tests/test_b.py::test_four ERROR                                         [ 40%]
==================================== ERRORS ====================================
_____________________ ERROR collecting tests/test_c.py ______________________
tests/test_c.py:1: in <module>
E   ModuleNotFoundError: No module named 'hypothesis'
_____________________ ERROR collecting tests/test_d.py ______________________
E   SyntaxError: invalid
______________________ ERROR at setup of test_four ______________________
E   ImportError: not of a whole file
=========================== short test summary info ============================
FAILED tests/a/test_a.py::test_two[x y] - AssertionError: no
ERROR tests/test_b.py::test_four - OSError: disk
ERROR tests/test_c.py
ERROR tests/test_d.py
"""


def test_the_outcomes_of_pytest():
    counts = gpu_parts.counted(OUTPUT)
    assert counts == {
        "passed": 1, "failed": 1, "errors": 2, "skipped": 1,
        "not_read": {"tests/test_c.py": "No module named 'hypothesis'"},
    }  # fmt: skip
    assert gpu_parts.said(counts) == (
        "1 passed, 1 failed, 2 errors, 1 skipped, tests/test_c.py not read: No module named 'hypothesis'"
    )


@pytest.mark.worlds
def test_pytest_s_own_output_is_read(check, tmp_path):
    """Failing, passing, skipping, not readable: as the pytest that is installed says it."""
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "@pytest.mark.parametrize('x', ['a b'])\ndef test_b(x): assert False\n"
        "@pytest.mark.skip(reason='no')\ndef test_c(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError\n"
        "def test_d(broken): pass\n"
    )
    (tmp_path / "test_y.py").write_text("import a_package_that_is_not_there\n")
    code, text = check.python(*gpu_parts.PYTEST, "-m", "", tmp_path / "test_x.py", tmp_path / "test_y.py")
    assert code == 1
    counts = gpu_parts.counted(text)
    (why,) = counts.pop("not_read").values()
    assert counts == {"passed": 1, "failed": 1, "errors": 1, "skipped": 1}
    assert "a_package_that_is_not_there" in why


# ---- photographs ----


def test_made_photographs_are_of_a_photograph_s_weight():
    """90 to 150 KB at ImageNet's mean size: a decoder has as much to do as with one."""
    for seed in (0, 1):
        file = io.BytesIO()
        pixels = photograph(np.random.default_rng(seed), 500, 375)
        assert pixels.shape == (375, 500, 3)
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        assert 90_000 < len(file.getvalue()) < 150_000


@pytest.mark.worlds
def test_a_folder_as_imagenet_s(tmp_path):
    files, word = made(tmp_path / "made", 3, 32, 24)
    assert word == "3 made-up photographs of 32x24"
    imagenet_like(tmp_path / "set", files, per_class=2)
    for split, count in (("train", 2), ("val", 1)):
        images = sorted((tmp_path / "set" / split).glob("*/*.JPEG"))
        assert len(images) == count * CLASSES
        assert {image.read_bytes() for image in images[:10]} == {file.read_bytes() for file in files}
    assert len(scan(tmp_path / "set" / "train").names) == 2 * CLASSES


# ---- wheels ----


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str) -> set[str]:
    """Names of what an installed package requires, extras left aside."""
    required = importlib.metadata.requires(name) or []
    return {plain(re.match(r"[\w.-]+", line)[0]) for line in required if "extra ==" not in line}  # type: ignore[index]


def pinned() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {plain(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def not_the_pinned() -> list[str]:
    """Wheels of which another version is installed, whose needs may be others."""
    there = {plain(each.name): each.version for each in importlib.metadata.distributions()}
    return [name for name in map(plain, gpu_check.WHEELS) if there.get(name) != pinned()[name]]


OF_THE_PINNED = pytest.mark.skipif(bool(not_the_pinned()), reason="the wheels are those of constraints.txt")


@OF_THE_PINNED
def test_every_wheel_is_a_need_of_ours_or_of_one_of_those():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    ours = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    allowed = {plain(re.match(r"[\w.-]+", line)[0]) for line in ours}  # type: ignore[index]
    waiting = [name for name in map(plain, gpu_check.WHEELS) if name in allowed]
    assert waiting
    while waiting:
        more = needs(waiting.pop()) & set(map(plain, gpu_check.WHEELS)) - allowed
        allowed |= more
        waiting += more
    assert set(map(plain, gpu_check.WHEELS)) <= allowed


def test_no_wheel_is_on_the_machine_or_without_a_pinned_version():
    assert not set(map(plain, gpu_check.WHEELS)) & IMAGE
    assert set(map(plain, gpu_check.WHEELS)) <= set(pinned())


@OF_THE_PINNED
def test_what_the_wheels_need_is_a_wheel_or_on_the_machine():
    there = set(map(plain, gpu_check.WHEELS)) | IMAGE
    for name in IMAGE:
        there |= needs(name)
    for name in gpu_check.WHEELS:
        assert needs(name) <= there | {"colorama"}, name  # colorama: on Windows


def third_party(folder: Path) -> set[str]:
    """Top names that the files import and that are neither Python's nor ours."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"largebatch"}


@pytest.mark.worlds
def test_everything_the_package_imports_is_on_the_machine_or_a_wheel():
    there = IMAGE | set(BROUGHT) | ON_REQUEST | {plain(name) for name in gpu_check.WHEELS}
    missing = {name for name in third_party(REPOSITORY / "largebatch") if plain(BY_IMPORT.get(name, name)) not in there}
    assert missing - set(BROUGHT) - ON_REQUEST == set()


@pytest.mark.worlds
def test_the_tests_marked_gpu_import_nothing_else_either():
    """Of files that are read where only the image and the wheels are."""
    there = IMAGE | {plain(name) for name in gpu_check.WHEELS}
    own = {file.stem for file in (REPOSITORY / "tests").rglob("*.py")} | {"tests", "optim", "worlds"}
    for file in (REPOSITORY / "tests").rglob("test_*.py"):
        if "mark.gpu" not in file.read_text() or file.name == Path(__file__).name:
            continue
        at_the_top = {
            name.partition(".")[0]
            for node in ast.parse(file.read_text()).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        odd = at_the_top - set(sys.stdlib_module_names) - {"largebatch"} - own - set(BROUGHT)
        assert {name for name in odd if plain(BY_IMPORT.get(name, name)) not in there} == set(), file


@pytest.mark.worlds
def test_a_folder_without_wheels_is_a_sentence(tmp_path):
    ended = run("--wheels", tmp_path, "--out", tmp_path / "out")
    assert ended.returncode == 2
    assert f"{tmp_path} holds no wheels" in ended.stderr
