"""The scripts of ``examples/`` that bring parts of their own: alone, on two ranks, with other engines, unchanged."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from programs import REPOSITORY, largebatch, torchrun
from torch import nn

import largebatch as lb
from largebatch.recipes import registry
from largebatch.run import parts as parts_of_a_run

EXAMPLES, PAGE = REPOSITORY / "examples", REPOSITORY / "docs/extending.md"
LEARNED = {  # what each reaches at least, or at most where less is better; guessing reaches half of it, or twice
    "finetune": 80.0,
    "own_dataset": 70.0,
    "own_loss": 85.0,
    "own_method": 85.0,
    "own_model": 75.0,
    "own_optimizer": 85.0,
    "own_task": 0.6,
}
SHORT = {"device": "cpu", "epochs": 1, "lr.warmup.epochs": 0, "record.to": []}


@pytest.fixture(autouse=True, scope="module")
def parts_as_found() -> Iterator[None]:
    """What the scripts register is there for these tests alone."""
    before = {key: dict(table.parts) for key, table in registry.ALL.items()}
    yield
    for key, table in registry.ALL.items():
        table.parts = before.get(key, {})
        for listener in table.listeners:
            listener()
    for name in [name for name in sys.modules if name.startswith("examples.")]:
        del sys.modules[name]


def ran(name: str, ranks: int, directory: Path, **overrides: Any) -> list[dict[str, Any]]:
    """What every rank returns."""
    keys = json.dumps({"precision": "fp64", **overrides})
    ended = pool.ranks(ranks, "worlds.scripts:trained", name, directory, keys)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(Path(f"{directory}.rank{rank}.json").read_text()) for rank in range(ranks)]


def measured(numbers: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in numbers.items() if re.match(r"(test|train)_", key) and value is not None}


@pytest.mark.worlds
@pytest.mark.parametrize("name", LEARNED)
def test_an_example_learns_and_is_the_same_on_two_ranks(tmp_path, name):
    """In float64; on two ranks the data set's items are read by processes, alone by the trainer."""
    workers = {"data.workers": 2} if name == "own_dataset" else {}
    [alone] = ran(name, 1, tmp_path / "alone", **dict.fromkeys(workers, 0))
    first, second = (measured(numbers) for numbers in ran(name, 2, tmp_path / "two", **workers))
    assert first == second == pytest.approx(measured(alone), rel=1e-6)
    assert first
    score, less = ("test_pinball", -1) if name == "own_task" else ("test_accuracy_percent", 1)
    assert less * first[score] > less * LEARNED[name]


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["own_model", "own_optimizer"])
@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"),
    [({"name": "fsdp"}, "fp64", 1e-9), ({"name": "deepspeed", "zero": 1}, "fp32", 1e-5)],
    ids=["fsdp", "zero"],
)
def test_own_parts_with_engines_that_cut_layers(tmp_path, name, engine, precision, tolerance):
    """DeepSpeed knows no float64."""
    if engine["name"] == "deepspeed":
        pytest.importorskip("deepspeed")
    keys = {"epochs": 2, "precision": precision}
    [alone] = ran(name, 1, tmp_path / "alone", **keys)
    cut = ran(name, 2, tmp_path / "cut", **keys, engine=engine)[0]
    for key in ("test_loss", "train_loss"):
        assert cut[key] == pytest.approx(alone[key], rel=tolerance)


@pytest.mark.parametrize("name", LEARNED)
def test_an_example_runs_in_this_process(tmp_path, name):
    script = importlib.import_module(f"examples.{name}")
    more = {"data.workers": 0} if name == "own_dataset" else {}
    result = script.main(**SHORT, **more, **{"record.dir": str(tmp_path / "run")})
    assert result.status == "finished"
    assert str(result).startswith(f"{result.score.name} ")


@pytest.mark.parametrize("name", ["own_method", "own_optimizer"])
def test_what_own_parts_keep_is_in_the_checkpoints(tmp_path, name, monkeypatch):
    """Stopped by Ctrl-C in the middle and called again: as if never stopped."""
    script = importlib.import_module(f"examples.{name}")
    keys = {**SHORT, "epochs": 3}
    straight = script.main(**keys, **{"record.dir": str(tmp_path / "straight")})
    with monkeypatch.context() as once:
        once.setitem(parts_of_a_run.everywhere, "interrupts", Interrupts)
        stopped = script.main(**keys, **{"record.dir": str(tmp_path / "stopped")})
    assert (stopped.status, stopped.numbers["steps"]) == ("stopped", 8)
    resumed = script.main(**keys, **{"record.dir": str(tmp_path / "stopped")})
    assert measured(resumed.numbers) == measured(straight.numbers)


class Interrupts(lb.Part):
    """A Ctrl-C in the middle of step 8."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def with_gradient(self, turn: Any) -> None:
        if turn.number == 7:
            signal.raise_signal(signal.SIGINT)


def test_an_example_is_short_and_says_how_it_is_run():
    for name in [*LEARNED, "my_parts"]:
        text = (EXAMPLES / f"{name}.py").read_text()
        described = ast.get_docstring(ast.parse(text)) or ""
        assert len(text.splitlines()) <= 60, name
        if name == "my_parts":
            assert "largebatch train examples/my_parts.yaml --with examples/my_parts.py\n" in described
        else:
            assert f"python examples/{name}.py" in described
            assert f"torchrun --nproc-per-node 2 examples/{name}.py" in described
            assert text.endswith('\n\nif __name__ == "__main__":\n    print(main())\n')


@pytest.mark.worlds
def test_parts_from_the_command_line(tmp_path):
    """The commands of the page, in its order; and the same on two ranks."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    [commands] = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    for line in commands.splitlines():
        ended = largebatch(*shlex.split(line)[1:], cwd=tmp_path)
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
    words = ("train", "examples/my_parts.yaml", "--with", "examples/my_parts.py", "device=cpu", "precision=fp64")
    for ranks, folder in ((1, "alone"), (2, "two")):
        ended = torchrun(ranks, "-m", "largebatch", *words, f"record.dir={folder}", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    one, other = (measured(lb.load(tmp_path / folder).result) for folder in ("alone", "two"))
    assert one == pytest.approx(other, rel=1e-9)
    assert one["test_recall_percent"] > 80
    listed = largebatch("recipe", "list", *words[2:4], cwd=tmp_path).stdout
    assert "registered parts: data.name: tumours; model.name: gated; task.name: recall" in " ".join(listed.split())
    without = largebatch(*words[:2], cwd=tmp_path)
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "tumours" in without.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_an_example_runs_as_it_stands_alone_and_under_torchrun(tmp_path, name):
    """Unchanged, in an empty folder; every rank prints what it reached."""
    script = EXAMPLES / f"{name}.py"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    for folder, words, times in (("alone", (script,), 1), ("two", (*launch, script), 2)):
        (tmp_path / folder).mkdir()
        ended = pool.run(*words, cwd=tmp_path / folder)
        assert ended.returncode == 0, ended.stderr
        assert len(re.findall(r"[a-z ]+ [\d.]+( %)? on test after \d+ steps, ", ended.stdout)) == times
        assert (tmp_path / folder / "runs" / name).is_dir()


@pytest.mark.worlds
def test_the_notebook_runs(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    homes = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR")
    environment = pool.environment(**{name: str(tmp_path) for name in homes})
    ended = pool.run("worlds.scripts:execute_notebook", tmp_path, 4, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    told = "".join(line for output in outputs for line in output.get("text", []) if output.get("name") == "stdout")
    for line in (
        r"momentum at 50: 120 steps of 50 = 2 × 25 × 1",
        r"LAMB at 500: 12 steps of 500 = 2 × 250 × 1",
        r"accuracy [\d.]+ % on test after 120 steps, ",
        r"LAMB at 500: [\d.]+ ± [\d.]+ % after 12 steps",
    ):
        assert re.search(line, told), told
    assert any("image/png" in output.get("data", {}) for output in outputs)
    [report] = [line for line in told.splitlines() if line.endswith("report.html")]
    assert "typed into a session" in (Path(report).with_name("report.md")).read_text()


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert not any(cell["metadata"] for cell in cells)


def test_the_page_shows_what_the_examples_hold():
    """Below the name of a script, all blocks of a section are its lines."""
    page = PAGE.read_text()
    shown: dict[str, list[str]] = {}
    for section in page.split("\n## "):
        _, *parts = re.split(r"^\[`examples/([\w.]+)`\]", section, flags=re.M)
        for name, part in zip(parts[::2], parts[1::2], strict=True):
            shown[name] = re.findall(r"^```(?:python|yaml)\n(.*?)^```", part, re.M | re.S)
    assert shown.keys() == {f"{name}.py" for name in LEARNED} | {"my_parts.py", "my_parts.yaml"}
    for name, blocks in shown.items():
        assert blocks, name
        script = (EXAMPLES / name).read_text()
        for block in blocks:
            assert block in script or textwrap.indent(block, "    ") in script, f"{name} does not hold\n{block}"
    linked = set(re.findall(r"\(\.\./examples/([\w.]+)\)", page))
    assert linked == shown.keys() | {"notebook.ipynb"}


def test_the_first_lines_of_the_page_run(tmp_path, monkeypatch, capsys):
    [first, *_] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    part = torch.rand(4096, 4), torch.arange(4096) % 3
    names = {"my_model": nn.Linear(4, 3), "train": part, "test": part, "MyTask": lb.Classification}
    exec(compile(first, "extending.md", "exec"), {**names, "my_builder": torch.optim.AdamW, "__name__": "page"})
    assert re.match(r"accuracy [\d.]+ % on test after 10 steps, .*; runs/lamb2019", capsys.readouterr().out)


def test_the_script_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    [script] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {"__name__": "README"})
    assert re.match(r"accuracy \d\d\.\d\d % on test after 120 steps, .*; runs/run \[\d", capsys.readouterr().out)
