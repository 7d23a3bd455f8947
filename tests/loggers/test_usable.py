"""What the doctor says of the services that a recipe names."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from largebatch.recipes import config
from largebatch.run.loggers import scalars
from largebatch.studies.doctor.lines import _words_of_recipe
from largebatch.studies.doctor.services import of_services, unreachable


@pytest.fixture(autouse=True)
def installed(monkeypatch, tmp_path):
    """As if both packages were there, and nothing of this machine's settings."""
    monkeypatch.setattr(scalars, "is_installed", lambda module: True)
    for key in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def closed() -> str:
    """An address at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


def test_who_answers_and_who_does_not(closed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert unreachable(f"http://127.0.0.1:{server.getsockname()[1]}") is None
    assert unreachable(closed) == "Connection refused"
    assert unreachable("file:///runs/mlruns") is None
    assert unreachable("sqlite:///mlflow.db") is None


def test_what_needs_no_network_is_usable(recipe):
    run = config.load(recipe(record__to=["wandb", "mlflow"], record__wandb={"mode": "offline"}))
    words, complaints = of_services(run)
    assert not complaints
    assert words["wandb"].endswith(", offline")
    assert words["mlflow"].endswith(f", {(Path(run.directory).parent / 'mlruns').as_uri()}")
    facts = {"name": "a", "data": "b", "dataset_source": "c", "batch": None, "services": words}
    assert _words_of_recipe(facts)["record.to"] == f"wandb {words['wandb']}; mlflow {words['mlflow']}"


def test_nothing_is_looked_at_that_is_not_asked_for(recipe):
    assert of_services(config.load(recipe(record__to=["tensorboard"]))) == ({}, [])


def test_a_package_that_is_missing(recipe, monkeypatch):
    monkeypatch.setattr(scalars, "is_installed", lambda module: module != "mlflow")
    words, [complaint] = of_services(config.load(recipe(record__to=["mlflow"])))
    assert not words
    assert "pip install 'largebatch[mlflow]'" in complaint


def test_a_server_that_does_not_answer(recipe, monkeypatch, closed):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed)
    _, [complaint] = of_services(config.load(recipe(record__to=["mlflow"])))
    assert f"{closed} cannot be reached from here (Connection refused)" in complaint


def test_wandb_online_asks_for_a_key_and_a_server(recipe, monkeypatch, closed, tmp_path):
    run = config.load(recipe(record__to=["wandb"]))
    monkeypatch.setenv("WANDB_BASE_URL", closed)
    _, [complaint] = of_services(run)
    assert "no key of it is known here" in complaint
    assert "record.wandb.mode=offline" in complaint
    (tmp_path / "netrc").write_text(f"machine {closed.removeprefix('http://')} login user password {'0' * 40}\n")
    _, [complaint] = of_services(run)
    assert "its server cannot be reached from here (Connection refused)" in complaint
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert of_services(run)[1] == []
