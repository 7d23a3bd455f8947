"""The doctor: alone, on two ranks that disagree, and on facts that nobody has here."""

from __future__ import annotations

import copy
import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pool
import pytest
import typer
from programs import largebatch

from largebatch.cli.doctor import doctor as command
from largebatch.recipes import config
from largebatch.studies import doctor
from largebatch.studies.doctor import look
from largebatch.studies.doctor import ranks as together
from largebatch.studies.doctor.facts import size, spans
from largebatch.studies.doctor.judge import judge
from largebatch.studies.doctor.look import existing, open_on_all_interfaces

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_driver(monkeypatch):
    """NVIDIA's program is not asked for its version."""
    monkeypatch.setattr(look, "nvidia_driver", lambda: None)


@pytest.fixture
def healthy(tmp_path, monkeypatch, recipe) -> dict:
    """The facts of a recipe that would run, as one process sees them."""
    monkeypatch.chdir(tmp_path)
    facts = doctor.examine(config.load(recipe()), "largebatch doctor")
    assert facts["findings"] == []
    return facts


def changed(facts: dict, *keys: str, to: object) -> dict:
    """A copy with one value of rank zero changed."""
    other = copy.deepcopy(facts)
    section = other["ranks"][0]
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = to
    return other


def two(facts: dict) -> dict:
    """The same of two ranks on two hosts."""
    other = copy.deepcopy(facts)
    other["ranks"] += [copy.deepcopy(other["ranks"][0]) | {"rank": 1, "host": "b"}]
    other["ranks"][0]["host"] = "a"
    return other


def test_alone_with_a_recipe(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = recipe(batch__global_batch_size=60)
    command(file, ["batch.micro_batch_size=20"], tmp_path / "facts.json")
    printed = capsys.readouterr().out
    assert "60 = 1 × 20 × 3" in printed
    assert "nothing would go wrong" in printed
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["kind"] == "doctor"
    assert facts["findings"] == []
    assert facts["group"] is None
    assert facts["ranks"][0]["host"] == socket.gethostname()
    weights = 64 * 16 + 16 + 16 * 10 + 10
    assert facts["ranks"][0]["recipe"]["checkpoint_bytes"] == 2 * 4 * weights  # weights and momentum, float32
    assert facts["ranks"][0]["recipe"]["checkpoints_at_a_time"] == 3
    assert not list(tmp_path.rglob(".largebatch-doctor-*")), "it leaves nothing behind"
    assert not (tmp_path / "runs").exists()


def test_missing_data_is_found_and_told_as_train_would(recipe, tmp_path, capsys):
    missing = tmp_path / "nothing"
    with pytest.raises(typer.Exit) as ended:
        command(recipe(data__name="cifar10", data__root=str(missing)))
    assert ended.value.exit_code == 1
    assert f"data set cifar10 not found in {missing}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"batch": {"global_batch_size": 100, "micro_batch_size": 30}},
            "does not factor into 1 rank × micro-batches of 30; nearest that do: 90 or 120",
        ),
        ({"lr__warmup": {"epochs": 5}}, "lr.warmup.epochs = 5"),
        ({"model": {"name": "mlp", "weights": "nowhere.safetensors"}}, "nowhere.safetensors: there is no such file"),
        ({"model": {"name": "mlp", "frozen": ["stem"]}}, "no tensor of model.name = mlp has a name like 'stem'"),
        ({"device": "cuda"}, "device = cuda, but no CUDA device is visible here"),
    ],
)
def test_what_train_would_refuse_is_a_finding(recipe, changes, words, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    findings = doctor.examine(config.load(recipe(**changes)), "")["findings"]
    assert any(words in finding for finding in findings), findings


def test_a_full_disk(recipe, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**40, 2**40 - 9000, 9000))
    findings = doctor.examine(config.load(recipe()), "")["findings"]
    assert any("3 checkpoints of about 9.45 KiB each do not fit the 8.79 KiB free" in told for told in findings), (
        findings
    )
    assert any("the run folder" in told and "8.79 KiB free" in told for told in findings)
    assert any("the temporary folder" in told and "TMPDIR" in told for told in findings)


def test_a_folder_that_cannot_be_written(recipe):
    findings = doctor.examine(config.load(recipe(record__dir="/proc/run")), "")["findings"]
    assert any("the run folder /proc/run cannot be written" in told for told in findings)


@pytest.mark.worlds
def test_two_ranks_agree(tmp_path, recipe):
    ended = pool.ranks(2, "worlds.doctor:alike", recipe(), "--json", tmp_path / "facts.json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("nothing would go wrong") == 1
    assert "100 = 2 × 50 × 1" in ended.stdout
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["group"]["backend"] == "gloo"
    assert [one["bytes"] for one in facts["group"]["all_reduce"]] == [4, 2**20, 2**24]
    assert all(one["seconds_median"] > 0 for one in facts["group"]["all_reduce"])
    assert [rank["rank"] for rank in facts["ranks"]] == [0, 1]
    assert facts["run_folder"]["unseen_by_ranks"] == []


@pytest.mark.worlds
def test_two_ranks_that_differ(tmp_path, recipe):
    (tmp_path / "runs").mkdir()
    file = recipe(batch__global_batch_size=75, record__dir="runs/one")
    ended = pool.ranks(2, "worlds.doctor:different", file, "--json", tmp_path / "facts.json", cwd=tmp_path)
    assert ended.returncode == 1
    findings = json.loads((tmp_path / "facts.json").read_text())["findings"]
    assert findings[0].startswith("batch.global_batch_size = 75"), "said of all hosts, so without their names"
    assert any("timm differs between ranks (0.0.1 for rank 1; " in told for told in findings)
    assert any(told.startswith("clocks differ by 9") for told in findings)
    assert any("runs/one is not the same for all: rank 1 on other does not see" in told for told in findings)
    assert len(findings) == 4, findings
    assert "4 things would go wrong" in ended.stdout


@pytest.mark.worlds
def test_ranks_that_never_meet(monkeypatch, capsys):
    port = pool.free_port()
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(together, "JOIN_MINUTES", 0.02)
    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 1
    assert f"the 2 ranks at 127.0.0.1:{port} did not come together" in capsys.readouterr().err
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key)


@pytest.mark.parametrize(
    ("keys", "to", "words"),
    [
        (("device", "problem"), "local rank 1 has no CUDA device", "local rank 1 has no CUDA device"),
        (("device", "driver"), "550.54", "the NVIDIA driver 550.54 is there, but torch"),
        (("open_files",), 256, "ulimit -n"),
        (("environment",), {"PET_NNODES": "2"}, "start launch/torchrun.sh"),
        (("environment",), {"GLOO_SOCKET_IFNAME": "ib0"}, "GLOO_SOCKET_IFNAME = ib0 names no interface here; valid: "),
        (("complaints",), ["data set x not found"], "data set x not found"),
    ],
)
def test_what_one_rank_sees_wrong(healthy, keys, to, words):
    facts = changed(healthy, *keys, to=to)
    facts["ranks"][0]["device"]["visible"] = 0
    assert [words in told for told in judge(facts)] == [True]
    of_both = judge(changed(two(healthy), *keys, to=to))
    assert len(of_both) == 1
    assert of_both[0].startswith("on a: "), "only one of the hosts"


@pytest.mark.parametrize("written", ["^docker,lo", "=lo", "l", "nothing,lo"])
def test_how_nccl_names_interfaces(healthy, written):
    facts = changed(healthy, "environment", to={"NCCL_SOCKET_IFNAME": written})
    facts["ranks"][0]["interfaces"] = ["lo", "eth0"]
    assert judge(facts) == []


def test_small_shared_memory_matters_where_it_is_used(healthy):
    facts = changed(healthy, "shared_memory_bytes", to=64 * 2**20)
    assert judge(facts) == []
    facts["image_folder"] = True
    assert [("64 MiB" in told, "--shm-size" in told) for told in judge(facts)] == [(True, True)]


def test_what_only_all_ranks_show(healthy):
    facts = two(healthy)
    facts["ranks"][1]["device"] |= {"type": "cuda", "uuid": "x", "visible": 1}
    facts["group"] = {"backend": "nccl", "problem": "unhandled system error", "all_reduce": []}
    findings = judge(facts)
    assert "rank 0 has no CUDA device and others have" in findings[0]
    assert "an all-reduce over nccl failed: unhandled system error" in findings[1]
    for rank in facts["ranks"]:
        rank["host"], rank["threads"], rank["cores"] = "a", 8, 8
        rank["device"] |= {"type": "cuda", "uuid": "x", "visible": 1}
    facts["group"] = None
    assert judge(facts) == ["two ranks have the same CUDA device; start at most one rank per device"]
    for rank in facts["ranks"]:
        rank["device"] = healthy["ranks"][0]["device"]
    assert judge(facts) == ["2 ranks take 16 threads on 8 cores; set OMP_NUM_THREADS=4"]


def test_hosts_are_told_apart(healthy):
    facts = two(healthy)
    facts["ranks"][1]["temporary_folder"] = "/scratch"
    facts["clock_difference_seconds"] = 0.0
    facts["group"] = {"backend": "gloo", "problem": None, "all_reduce": []}
    said = doctor.lines(facts)
    assert said["hosts"] == "a: rank 0; b: rank 1"
    assert said["disk"].count("; b: /scratch ") == 1
    assert ";" not in said["open files"]


def test_an_open_port_is_seen():
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert open_on_all_interfaces(port)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert not open_on_all_interfaces(listening.getsockname()[1])


def test_words():
    assert [size(count) for count in (0, 4, 1000, 64 * 2**20, 1.5 * 2**30, 3 * 2**40, None)] == [
        "0 B", "4 B", "1000 B", "64 MiB", "1.5 GiB", "3 TiB", "unknown",
    ]  # fmt: skip
    assert [spans(ranks) for ranks in ([3], [0, 1, 2, 3, 8], [5, 4, 9])] == ["3", "0-3, 8", "4-5, 9"]


def test_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(Path("a/b")) == Path()


@pytest.mark.worlds
def test_the_command_is_there():
    ended = largebatch("doctor", "--help")
    assert ended.returncode == 0
    assert "--json" in ended.stdout
