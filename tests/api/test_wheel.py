"""The package as people get it: a wheel, and nothing of the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import REPOSITORY, environment

pytestmark = pytest.mark.slow
PLUGIN = """
import torch
import largebatch as lb


@lb.models.register("from_a_plugin")
def from_a_plugin(num_classes: int, width: int = 4) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, num_classes))
"""
BROKEN = "1 / 0\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed package."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = shutil.ignore_patterns(
        ".git", ".venv*", "results", "comparisons", "runs", "build", "*.egg-info", "__pycache__"
    )
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=kept)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    words = [*pip, "--no-build-isolation", "--no-index", "--target", str(folder / "site"), str(source)]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert ended.returncode == 0, ended.stderr[-3000:]
    shutil.rmtree(source)
    return folder / "site"


def run(site: Path, folder: Path, *words: str, more: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = str(site) if more is None else f"{site}:{more}"
    env = {**environment(), "PYTHONPATH": path}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)


def test_it_holds_the_recipes_and_is_what_is_imported(site, tmp_path):
    ended = run(
        site, tmp_path, "-c", "import largebatch as lb; print(lb.__file__, lb.recipe('quickstart/lamb2019').name)"
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(site / "largebatch/__init__.py"), "lamb2019"]
    ended = run(site, tmp_path, "-m", "largebatch", "recipe", "show", "imagenet/goyal2017")
    assert "Goyal et al. 2017" in ended.stdout
    ended = run(site, tmp_path, "-m", "largebatch", "study", "show", "mlperf/resnet50")
    assert "B_crit 46,900 images" in ended.stdout


@pytest.mark.parametrize("example", sorted((REPOSITORY / "examples").glob("own_*.py")), ids=lambda path: path.stem)
def test_examples_run_without_the_checkout(site, tmp_path, example):
    shutil.copy(example, tmp_path)
    ended = run(site, tmp_path, example.name)
    assert ended.returncode == 0, ended.stderr[-3000:]


def plugin(folder: Path, text: str) -> Path:
    """An installed package with an entry point."""
    (folder / "a_plugin.py").write_text(text)
    facts = folder / "a_plugin-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[largebatch]\nparts = a_plugin\n")
    return folder


RECIPE = """
model: {name: from_a_plugin, width: 8}
data: {name: digits}
batch: {global_batch_size: 100}
optimizer: {name: sgd}
lr: {base: 0.1}
epochs: 1
"""


def test_what_an_installed_package_registers_is_known(site, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    more = tmp_path / "more"
    more.mkdir()
    plugin(more, PLUGIN)
    ended = run(site, tmp_path, "-m", "largebatch", "train", "recipe.yaml", more=more)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "from_a_plugin" in ended.stdout
    listed = run(site, tmp_path, "-m", "largebatch", "recipe", "list", more=more)
    assert "registered parts: model.name: from_a_plugin" in listed.stdout
    without = run(site, tmp_path, "-m", "largebatch", "train", "recipe.yaml", "record.dir=other")
    assert (without.returncode, "model.name = from_a_plugin is not known" in without.stderr) == (2, True)


def test_an_installed_package_that_does_not_import_is_one_sentence(site, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    more = tmp_path / "more"
    more.mkdir()
    plugin(more, BROKEN)
    ended = run(site, tmp_path, "-m", "largebatch", "train", "recipe.yaml", more=more)
    assert ended.returncode == 2
    assert ended.stderr == (
        "largebatch: a-plugin gives largebatch parts in a_plugin, which does not import: ZeroDivisionError: division "
        "by zero, in line 1 of a_plugin.py; mend or uninstall it\n"
    )
