"""Whatever a service does, the run is the same: raising, hanging, dying, drawing; by fakes of its package."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pool
import pytest
from programs import weights_at_end
from worlds.logged import FACTS, LONG

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run import beforehand
from largebatch.run.loggers import process, service
from largebatch.run.loggers.mlflow import leaves, name_of
from largebatch.run.loggers.scalars import GivenUp, Said, Scalars, check_installed
from largebatch.run.train import train

FAKE = """
import os, random, time
import numpy

class Settings:
    model_fields = {}
    def __init__(self, **keys): pass

class Run:
    url, dir, summary = "https://fake", "", {}
    def define_metric(self, *names, **keys): pass
    def log(self, row):
        LOG
    def finish(self, exit_code):
        FINISH

def init(**keys):
    random.seed(1), numpy.random.seed(1), random.random(), numpy.random.rand()
    INIT
    return Run()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a package ``wandb`` of what its calls do."""

    def make(**bodies: str) -> None:
        text = FAKE
        for name in ("init", "log", "finish"):
            text = text.replace(name.upper(), bodies.get(name, "pass"))
        package = tmp_path / "fakes" / "wandb"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(package.parent))

    return make


def lines(directory: Path, event: str) -> list[dict]:
    every = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if line["event"] == event]


def learned(directory: Path) -> list[dict]:
    """What stands in the records but for the clock's numbers."""
    return [
        {key: value for key, value in line.items() if "second" not in key}
        for event in ("train", "evaluate")
        for line in lines(directory, event)
    ]


RAISES, SLEEPS, DIES = 'raise OSError("no network")', "time.sleep(1000)", "os._exit(3)"
CASES: dict[str, tuple[dict[str, str], float, str | None]] = {  # what it does, seconds it gets at the end, what is told
    "nothing wrong": ({}, LONG, None),
    "init raises": ({"init": RAISES}, LONG, "OSError: no network"),
    "init sleeps": ({"init": SLEEPS}, 0.5, "it was not done 0.5 s after the end of the run"),
    "init dies": ({"init": DIES}, LONG, "its process has ended"),
    "init leaves": ({"init": "raise SystemExit(2)"}, LONG, "SystemExit: 2"),
    "log sleeps": ({"log": SLEEPS}, 0.5, "it was not done 0.5 s after the end of the run"),
    "log dies": ({"log": DIES}, LONG, "its process has ended"),
    "finish raises": ({"finish": RAISES}, LONG, "OSError: no network"),
    "finish sleeps": ({"finish": SLEEPS}, 0.5, "it was not done 0.5 s after the end of the run"),
    "finish dies": ({"finish": DIES}, LONG, "its process has ended"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    """The same run without any logger."""
    return {"directory": tmp_path_factory.mktemp("alone") / "run"}


@pytest.mark.worlds
@pytest.mark.parametrize("case", CASES)
def test_whatever_it_does_the_run_is_the_same(case, recipe, fake, alone, monkeypatch, one_thread):
    bodies, seconds, told = CASES[case]
    if not alone["directory"].exists():
        train(config.load(recipe("alone"), [f"record.dir={alone['directory']}"]), quiet=True)
    fake(**bodies)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(beforehand, "FINISH_SECONDS", seconds)
    result = train(config.load(recipe("beside", record__to="wandb")), quiet=True)
    assert result.status == "finished"
    assert result.reason is None
    assert learned(result.directory) == learned(alone["directory"])
    expected = weights_at_end(alone["directory"])
    assert all(tensor.equal(expected[name]) for name, tensor in weights_at_end(result.directory).items())
    problems = lines(result.directory, "logger")
    assert [line["logger"] for line in problems] == ["wandb"] * (told is not None)
    log = (result.directory / "train.log").read_text()
    assert log.count("record.to: wandb: ") == (told is not None)
    if told is None:
        assert "wandb: https://fake" in log
    else:
        assert told in problems[0]["problem"]


@pytest.mark.worlds
def test_what_cannot_be_written_is_tried_again_and_given_up_in_the_end(recipe, fake, monkeypatch):
    fake(log=RAISES)
    before, importing, after = service.PROGRAM.rpartition("from largebatch.run.loggers import process\n")
    monkeypatch.setattr(service, "PROGRAM", f"{before}{importing}process.PAUSE_SECONDS = 0.001\n{after}")
    result = train(config.load(recipe("beside", record__to="wandb")), quiet=True)
    assert result.status == "finished"
    problems = lines(result.directory, "logger")
    assert [(line["problem"].partition(",")[0], line["given_up"]) for line in problems] == [
        ("OSError: no network", False), ("OSError: no network", True),
    ]  # fmt: skip
    log = (result.directory / "train.log").read_text()
    assert log.count("OSError: no network") == process.TRIES
    assert log.count("the run goes on without it") == 1


@pytest.mark.worlds
def test_one_that_says_nothing_for_long_is_given_up_in_the_middle_of_the_run(recipe, fake, monkeypatch):
    fake(init=SLEEPS)
    monkeypatch.setattr(service, "SILENT_SECONDS", 0.0)
    result = train(config.load(recipe("beside", record__to="wandb", record__every_steps=1)), quiet=True)
    [problem] = lines(result.directory, "logger")
    assert problem["given_up"]
    assert "said nothing for 0 s" in problem["problem"]
    assert problem["step"] < 30


@pytest.mark.worlds
def test_what_waits_for_one_that_hangs_has_an_end(fake, monkeypatch, tmp_path):
    fake(init=SLEEPS)
    monkeypatch.setattr(service, "MOST_WAITING_BYTES", 2**16)
    hung = service.ServiceProcess("wandb", {**FACTS, "trainer": os.getpid()}, 1.0)
    numbers = {f"trust_ratio/{layer}": 1.0 for layer in range(1000)}
    given_up = None
    for step in range(1000):
        try:
            hung.write(step, numbers)
        except GivenUp as problem:
            given_up = str(problem)
            break
    assert given_up is not None
    assert "MiB wait for it" in given_up
    assert hung._process.returncode is not None, "its process is gone"
    hung.write(1, {"loss/training": 1.0})  # as if nothing were


@pytest.mark.worlds
def test_the_process_ends_soon_after_its_trainer(fake, tmp_path):
    """Whatever it does then."""
    fake(init=f'open({str(tmp_path / "begun")!r}, "w").write(str(os.getpid())); {SLEEPS}')
    trainer = pool.start("worlds.logged:with_a_service", tmp_path / "fakes")
    begun = tmp_path / "begun"
    while not (begun.exists() and begun.read_text()):
        assert trainer.poll() is None
        time.sleep(0.05)
    trainer.kill()
    trainer.wait()
    child = int(begun.read_text())
    until = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < until
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Breaks:
    """A writer that raises where it is told to."""

    def __init__(self, name: str, at: str = "") -> None:
        self.name, self.at, self.rows = name, at, []
        self._raise("make")

    def _raise(self, where: str) -> None:
        if where == self.at:
            raise RuntimeError("broken")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._raise("write")
        self.rows.append((step, dict(numbers)))

    def ended(self, result: Mapping[str, Any]) -> None:
        self._raise("ended")

    def close(self) -> None:
        self._raise("close")

    def heard(self) -> Iterable[Said]:
        self._raise("heard")
        return ()


@pytest.mark.parametrize("at", ["make", "write", "ended", "close", "heard"])
def test_one_that_raises_is_told_once_and_the_others_go_on(at):
    told: list[tuple[str, str, bool]] = []
    scalars = Scalars(lambda words: None, lambda *problem: told.append(problem))
    well = Breaks("well")
    scalars.open("broken", lambda: Breaks("broken", at))
    scalars.open("well", lambda: well)
    for step in (1, 2):
        scalars.write(step, {"loss/training": 0.5})
    scalars.ended({"status": "finished"})
    scalars.close()
    assert [(name, words.partition(",")[0], given_up) for name, words, given_up in told] == [
        ("broken", "RuntimeError: broken", True)
    ]
    assert well.rows == [(1, {"loss/training": 0.5}), (2, {"loss/training": 0.5})]


def test_a_message_may_come_in_parts():
    out_of, into = os.pipe()
    try:
        inbox = process.Inbox(out_of)
        os.write(into, b'{"service": "wandb"}\n{"step": 1}\n{"st')
        assert inbox.first() == {"service": "wandb"}
        assert inbox.take() == [{"step": 1}]
        os.write(into, b'ep": 2}\n{"step": 3}\n')
        assert inbox.take() == [{"step": 2}, {"step": 3}]
    finally:
        os.close(into)
    assert inbox.take() is None
    os.close(out_of)


def test_a_package_that_is_missing_is_told_before_anything_begins(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()  # as wandb leaves it where it was started
    with pytest.raises(UserError, match=r"record.to names wandb, .*; valid: pip install 'largebatch\[wandb\]'"):
        check_installed(["tensorboard", "wandb"])


def test_such_a_recipe_ends_with_two(recipe, monkeypatch, front_door):
    monkeypatch.setattr("largebatch.run.loggers.scalars.is_installed", lambda module: False)
    path = recipe("missing", record__to=["mlflow"])
    code, _, complained = front_door("train", path)
    assert code == 2
    assert complained.count("\n") == 1
    assert "pip install 'largebatch[mlflow]' (or mlflow-skinny alone)" in complained
    assert not config.load(path).directory.exists()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({}, ("tensorboard",)),
        ({"to": "wandb"}, ("wandb",)),
        ({"to": ["mlflow", "tensorboard"]}, ("mlflow", "tensorboard")),
        ({"to": None}, ()),
        ({"to": []}, ()),
        ({"tensorboard": True}, ("tensorboard",)),  # as recipes said it before
        ({"tensorboard": False}, ()),
        ({"tensorboard": False, "to": ["wandb"]}, ("wandb",)),
        ({"tensorboard": None, "to": ["wandb"]}, ("wandb",)),
    ],
)
def test_who_gets_the_scalars(recipe, written, read):
    run = config.load(recipe(record=written))
    assert run.record.to == read
    assert "tensorboard" not in run.as_written()["record"]
    assert config.from_dict(run.as_written()).record == run.record


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"to": ["wandb", "wandb"]}, r"record.to = \['wandb', 'wandb'\] names one twice"),
        ({"to": "wanb"}, "record.to.0 = 'wanb' is not known; valid: tensorboard, wandb or mlflow"),
        ({"to": 3}, "record.to = 3 should be a list"),
        ({"tensorboard": "yes"}, r"write record.to=\[tensorboard\]"),
        ({"tensorboard": True, "to": ["wandb"]}, "write record.tensorboard=null"),
        ({"wandb": {"projekt": "a"}}, "unknown key record.wandb.projekt; did you mean project"),
        ({"wandb": {"mode": "of"}}, "record.wandb.mode = 'of' is not known; valid: online, offline or disabled"),
        ({"mlflow": {"tracking_uri": ""}}, "record.mlflow.tracking_uri = ''"),
    ],
)
def test_what_a_recipe_cannot_say(recipe, written, words):
    with pytest.raises(UserError, match=words):
        config.load(recipe(record=written))


def test_names_and_parameters_as_mlflow_takes_them():
    assert name_of("trust_ratio/blocks[0].weight:a") == "trust_ratio/blocks_0_.weight_a"
    assert name_of("/../a//b") == "a/b"
    written = {"lr": {"base": 0.1, "decay": {"name": "cosine"}}, "title": None, "skip": ["norm"], "flag": True}
    assert dict(leaves(written)) == {"lr.base": "0.1", "lr.decay.name": "cosine", "skip": '["norm"]', "flag": "true"}
