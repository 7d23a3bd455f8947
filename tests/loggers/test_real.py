"""The services' own packages, offline: what they have of a run is what TensorBoard has, read back from their files."""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool
import pytest
from programs import weights_at_end
from worlds.logged import LONG

from largebatch.recipes import config
from largebatch.run import beforehand
from largebatch.run.train import train

Scalar = tuple[str, int, float]  # name, step, value

pytestmark = [pytest.mark.worlds, pytest.mark.usefixtures("undisturbed")]


@pytest.fixture
def undisturbed(monkeypatch, tmp_path):
    """Of this machine's own settings."""
    for key in ("WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(beforehand, "FINISH_SECONDS", LONG)


def lines(directory: Path, event: str) -> list[dict]:
    every = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if line["event"] == event]


def of_tensorboard(directory: Path) -> set[Scalar]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {(name, one.step, one.value) for name in board.Tags()["scalars"] for one in board.Scalars(name)}


def records(file: Path) -> Iterator[Any]:
    """Of a ``.wandb`` file: the log format of LevelDB, behind a head of 7 bytes; a record is a protobuf message."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            (record := Record()).ParseFromString(parts)
            parts = b""
            yield record


def key_of(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def history(file: Path) -> list[dict[str, Any]]:
    return [
        {key_of(item): json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]


def of_wandb(file: Path) -> set[Scalar]:
    return {
        (name, row["step"], value)
        for row in history(file)
        for name, value in row.items()
        if not name.startswith("_") and name != "step"
    }


def wandb_files(directory: Path) -> list[Path]:
    return sorted((directory / "wandb").glob("offline-run-*/*.wandb"))


def same(some: set[Scalar], others: set[Scalar]) -> None:
    """TensorBoard's are float32."""
    assert {(name, step) for name, step, _ in some} == {(name, step) for name, step, _ in others}
    values = {(name, step): value for name, step, value in others}
    for name, step, value in some:
        assert value == pytest.approx(values[name, step], rel=1e-6), (name, step)


def client_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow.tracking")
    return mlflow.MlflowClient(tracking_uri=(directory.parent / "mlruns").as_uri())


def of_mlflow(client: Any, run: Any) -> set[Scalar]:
    return {
        (one.key, one.step, one.value)
        for key in run.data.metrics
        if not key.startswith("result/")
        for one in client.get_metric_history(run.info.run_id, key)
    }


def only_run(client: Any, experiment: str = "largebatch") -> Any:
    [run] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


LAYERS = {
    "optimizer": {"name": "lars"},
    "lr__base": 5.0,
    "weight_decay": {"value": 1e-3},
    "record__layers_every_steps": 7,
}


def test_all_have_the_same_numbers_and_the_run_is_the_one_without(recipe, monkeypatch, one_thread):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    plain = train(config.load(recipe("plain", **LAYERS)), quiet=True)
    to = {"record__to": ["tensorboard", "wandb", "mlflow"], "record__wandb": {"tags": ["a", "b"], "group": "c"}}
    logged = train(config.load(recipe("logged", **LAYERS, **to)), quiet=True)
    assert logged.status == "finished"
    assert not lines(logged.directory, "logger")
    expected = weights_at_end(plain.directory)
    assert all(tensor.equal(expected[name]) for name, tensor in weights_at_end(logged.directory).items())
    assert [line["loss"] for line in lines(logged.directory, "train")] == [
        line["loss"] for line in lines(plain.directory, "train")
    ]

    board = of_tensorboard(logged.directory)
    assert {"loss/training", "accuracy_percent/test", "trust_ratio/1.weight"} <= {name for name, _, _ in board}
    [file] = wandb_files(logged.directory)
    same(of_wandb(file), board)
    client = client_of(logged.directory, monkeypatch)
    run = only_run(client)
    same(of_mlflow(client, run), board)
    check_run_of_wandb(file, logged)
    check_run_of_mlflow(run, logged)


def check_run_of_wandb(file: Path, logged: Any) -> None:
    """Its configuration, its summary, and how it ended."""
    by_kind: dict[str, list[Any]] = {}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        by_kind.setdefault(kind, []).append(getattr(record, kind))
    begun = by_kind["run"][0]
    written = config.load(logged.directory / "run.yaml").as_written()
    config_there = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert {key: value for key, value in config_there.items() if key != "_wandb"} == written
    assert begun.run_id == json.loads((logged.directory / "loggers.json").read_text())["id"]
    assert (begun.project, begun.display_name, begun.run_group) == ("largebatch", "logged", "c")
    assert list(begun.tags) == ["a", "b"]
    summary = {key_of(item): json.loads(item.value_json) for one in by_kind["summary"] for item in one.update}
    numbers = logged.numbers
    assert summary["result/test_accuracy_percent"] == numbers["test_accuracy_percent"]
    assert summary["result/status"] == "finished"
    assert summary["report"] == str(logged.directory.resolve().parent / "report" / "report.html")
    assert by_kind["exit"][-1].exit_code == 0


def check_run_of_mlflow(run: Any, logged: Any) -> None:
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "logged"
    assert run.data.params["lr.base"] == "5.0"
    assert run.data.params["optimizer.name"] == "lars"
    assert run.data.metrics["result/test_accuracy_percent"] == logged.numbers["test_accuracy_percent"]
    assert run.data.tags["result/status"] == "finished"
    assert run.data.tags["report"].endswith("/report/report.html")
    assert run.data.tags["largebatch.id"] == json.loads((logged.directory / "loggers.json").read_text())["id"]


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_run_that_is_killed_goes_on_in_the_same_one(recipe, service, monkeypatch, one_thread):
    """Nothing that was recorded before the kill is lost, and the steps made again have the same numbers."""
    pytest.importorskip(service)
    often = {
        "record__every_steps": 1,
        "record__to": [service],
        "checkpoint": {"every_epochs": 0.2, "asynchronous": False},
    }
    whole = train(config.load(recipe("whole", **often)), quiet=True)
    path = recipe("killed", **often)
    directory = config.load(path).directory
    assert pool.start("worlds.logged:killed_after", path, 20).wait() == -signal.SIGKILL
    assert train(config.load(path), quiet=True).status == "finished"
    assert len(lines(directory, "resume")) == 1
    assert not lines(directory, "logger")
    if service == "wandb":
        files = wandb_files(directory)
        assert len(files) == 2
        [identity] = {record.run.run_id for file in files for record in records(file) if record.run.run_id}
        assert identity == json.loads((directory / "loggers.json").read_text())["id"]
        scalars = set.union(*map(of_wandb, files))
        expected = of_wandb(*wandb_files(whole.directory))
        assert max(step for name, step, _ in of_wandb(files[0]) if name == "loss/training") == 20
    else:
        client = client_of(directory, monkeypatch)
        runs = client.search_runs([client.get_experiment_by_name("largebatch").experiment_id])
        by_name = {run.info.run_name: run for run in runs}
        assert by_name.keys() == {"whole", "killed"}
        assert len(runs) == 2, "it is the same run"
        assert by_name["killed"].info.status == "FINISHED"
        scalars, expected = (of_mlflow(client, by_name[name]) for name in ("killed", "whole"))
    learned = {"loss/training", "lr/training", "loss/test", "accuracy_percent/test"}
    some, others = ({one for one in found if one[0] in learned} for found in (scalars, expected))
    assert some == others


def test_a_longer_run_goes_on_in_the_same_one_of_mlflow(recipe, monkeypatch):
    """Whose parameters cannot change: what did is a tag."""
    pytest.importorskip("mlflow")
    path = recipe("longer", record__to="mlflow", lr={"base": 0.1, "decay": {"name": "constant"}}, epochs=1)
    directory = config.load(path).directory
    train(config.load(path), quiet=True)
    assert train(config.load(path, ["epochs=2"]), quiet=True).status == "finished"
    assert not lines(directory, "logger")
    run = only_run(client_of(directory, monkeypatch))
    assert run.data.params["epochs"] == "1.0"
    assert run.data.tags["resumed/epochs"] == "2.0"


def test_mlflow_in_a_place_that_the_recipe_names(recipe, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    place = (tmp_path / "elsewhere").as_uri()
    named = {"record__mlflow": {"tracking_uri": place, "experiment": "digits"}}
    train(config.load(recipe("named", record__to="mlflow", **named)), quiet=True)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    assert only_run(MlflowClient(tracking_uri=place), "digits").info.run_name == "named"
    assert not (tmp_path / "runs" / "mlruns").exists()


def test_a_server_that_is_not_there_harms_nothing(recipe, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = train(config.load(recipe("alone", record__to="mlflow")), quiet=True)
    assert result.status == "finished"
    [problem] = lines(result.directory, "logger")
    assert problem["given_up"]
    assert "127.0.0.1" in problem["problem"]


def test_wandb_without_a_key_is_kept_offline_and_says_so(recipe, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    result = train(config.load(recipe("alone", record__to="wandb")), quiet=True)
    assert result.status == "finished"
    [problem] = lines(result.directory, "logger")
    assert not problem["given_up"]
    assert "the run is kept offline" in problem["problem"]
    [file] = wandb_files(result.directory)
    steps = {line["step"] for line in lines(result.directory, "train")}
    assert {step for name, step, _ in of_wandb(file) if name == "loss/training"} == steps


def test_only_the_first_rank_records(recipe):
    pytest.importorskip("wandb")
    path = recipe("two", record__to="wandb")
    ended = pool.ranks(2, "worlds.logged:trained", path)
    assert ended.returncode == 0, ended.stderr
    assert len(wandb_files(config.load(path).directory)) == 1
    assert "wandb: offline in" in ended.stdout


def test_disabled_is_disabled(recipe):
    pytest.importorskip("wandb")
    result = train(config.load(recipe("off", record__to="wandb", record__wandb={"mode": "disabled"})), quiet=True)
    assert not lines(result.directory, "logger")
    assert not wandb_files(result.directory)
