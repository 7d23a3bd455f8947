"""The commands around checkpoints: what they show, what they find, and weights that others load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from click.testing import Result
from programs import damage, largebatch, saved, weights_at_end
from typer.testing import CliRunner

from largebatch.checkpoint import manifest, step_of
from largebatch.cli.checkpoint import app
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.train import train


def command(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints and a moving average."""
    import yaml
    from conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    recipe = {
        **TINY,
        "model": {"name": "mlp", "width": 8, "depth": 1, "norm": True},
        "ema": {"decay": 0.9},
        "record": {"dir": str(folder / "run"), "to": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train(config.load(folder / "recipe.yaml"), quiet=True).status == "finished"
    return folder / "run"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def run(copied, monkeypatch) -> Path:
    """Where whoever asks for data or CUDA fails."""
    monkeypatch.setattr("largebatch.data.build", None)
    monkeypatch.setattr("torch.cuda.is_available", None)
    return copied


@pytest.mark.worlds
def test_show_says_what_is_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = command("show", run, "--json", tmp_path / "facts.json")
    assert shown.exit_code == 0
    head, *rows, last = shown.output.splitlines()
    assert head.split() == ["step", "epoch", "examples", "accuracy", "size", "ranks", "engine", "saved", "commit"]
    assert [row.split()[:3] for row in rows] == [["15", "1", "1,500"], ["30", "2", "3,000"]]
    assert last == f"numbers: {tmp_path / 'facts.json'}"
    result = json.loads((run / "result.json").read_text())
    assert f"{result['test_accuracy_percent']:.2f} %" in rows[1]
    facts = json.loads((tmp_path / "facts.json").read_text())["checkpoints"]
    assert [row["step"] for row in facts] == [15, 30]
    assert facts[1]["accuracy_percent"] == result["test_accuracy_percent"]
    assert facts[1]["bytes"] == sum(file.stat().st_size for file in saved(run)[1].glob("*.safetensors"))
    assert facts[1]["machine"]["world_size"] == 1


@pytest.mark.worlds
def test_show_tells_what_is_damaged(run):
    (saved(run)[0] / "rank-00000.safetensors").write_bytes(b"")
    shown = command("show", run)
    assert shown.exit_code == 0
    assert "step 15 is damaged: rank-00000.safetensors has 0 bytes, not " in shown.output
    (saved(run)[1] / "manifest.json").unlink()
    shown = command("show", run)
    assert shown.output.splitlines()[-1] == "step 30 is damaged: it has no manifest.json"


def test_verify_reads_every_byte(run):
    whole = command("verify", run)
    assert whole.exit_code == 0
    assert [line.partition(":")[0] for line in whole.output.splitlines()] == [str(path) for path in saved(run)]
    assert all(": whole, 2 files, " in line for line in whole.output.splitlines())
    damage(saved(run)[0])
    found = command("verify", run)
    assert found.exit_code == 1
    first, second = found.output.splitlines()
    assert first == f"{saved(run)[0]}: damaged: the checksum of rank-00000.safetensors does not fit"
    assert ": whole" in second
    assert command("verify", run, "--step", 15).exit_code == 1
    assert command("verify", run, "--step", 30).exit_code == 0


@pytest.mark.worlds
def test_the_front_door(run, tmp_path):
    damage(saved(run)[1])
    found = largebatch("checkpoint", "verify", run)
    assert (found.returncode, found.stderr) == (1, "")
    assert "step-00000030: damaged: the checksum of" in found.stdout
    missing = largebatch("checkpoint", "export", tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"largebatch: {tmp_path} is no run: it has no run.yaml; ")
    assert missing.stderr.count("\n") == 1
    assert largebatch("checkpoint", "export", run, "--step", 15).stderr == ""
    assert (run / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show", "{run}/nowhere"], "{run}/nowhere is no run: it has no run.yaml; name a run directory"),
        (["verify", "{run}", "--step", "7"], r"--step 7: {run} has no such checkpoint; there are 15, 30"),
        (["export", "{run}", "--step", "7"], r"--step 7: {run} has no such checkpoint; there are 15, 30"),
        (["export", "{run}", "--out", "{run}/no/w.pt"], "--out {run}/no/w.pt: the folder {run}/no does not exist"),
        (["export", "{run}", "--out", "{run}/w.bin"], r"--out {run}/w.bin should end in .safetensors or .pt"),
        (["export", "{run}", "--out", "{run}/d.pt"], "--out {run}/d.pt cannot be written: Is a directory"),
        (["show", "{run}", "--json", "{run}/no/f.json"], "--json {run}/no/f.json: the folder {run}/no does not exist"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_mistakes_are_sentences(run, words, sentence):
    (run / "d.pt").mkdir()
    with pytest.raises(UserError, match=sentence.format(run=run)):
        command(*(word.format(run=run) for word in words))
    assert not list(run.glob("*.unfinished"))


@pytest.mark.parametrize("what", ["show", "verify", "export"])
def test_a_run_without_checkpoints_is_a_sentence(run, what):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"has no checkpoint; checkpoint\.every_epochs above 0 saves some"):
        command(what, run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-00000010.pt").touch()
    with pytest.raises(UserError, match="has no checkpoint, only such of an earlier version"):
        command(what, run)


def test_export_takes_the_newest_that_is_whole_and_says_so(run):
    damage(saved(run)[1])
    out = run / "w.pt"
    ended = command("export", run, "--out", out)
    assert ended.exit_code == 0
    assert (
        "checkpoint step-00000030 cannot be read (the checksum of rank-00000.safetensors does not fit)" in ended.output
    )
    assert torch.load(out)["metadata"]["step"] == 15
    with pytest.raises(UserError, match="step-00000030 cannot be read: .*; name another step with --step"):
        command("export", run, "--step", 30)


def test_the_file_says_what_is_in_it(run):
    assert command("export", run).exit_code == 0
    with safetensors.safe_open(run / "weights.safetensors", framework="pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = weights_at_end(run)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    result = json.loads((run / "result.json").read_text())
    assert (about["model"], json.loads(about["arguments"])) == ("mlp", {"width": 8, "depth": 1, "norm": True})
    assert (about["num_classes"], json.loads(about["classes"])) == ("10", list("0123456789"))
    assert (json.loads(about["mean"]), json.loads(about["std"])) == ([0.3053], [0.3759])
    assert float(about["accuracy_percent"]) == result["test_accuracy_percent"]
    assert (about["run"], about["step"], about["weights"]) == ("recipe", "30", "trained")
    assert about["commit"]


def test_the_moving_average(copied):
    run = copied
    assert command("export", run, "--weights", "ema", "--out", run / "ema.pt").exit_code == 0
    found = torch.load(run / "ema.pt")
    facts = manifest.read(saved(run)[-1])
    result = json.loads((run / "result.json").read_text())
    assert found["metadata"]["weights"] == "moving average"
    assert found["metadata"]["accuracy_percent"] == result["ema_test_accuracy_percent"] != facts["accuracy_percent"]
    trained = weights_at_end(run)
    assert found["state_dict"].keys() == trained.keys()
    floats = [name for name, tensor in trained.items() if tensor.is_floating_point()]
    assert not any(torch.equal(found["state_dict"][name], trained[name]) for name in floats)
    assert accuracy(found["state_dict"]) == pytest.approx(result["ema_test_accuracy_percent"])
    assert accuracy(trained) == pytest.approx(result["test_accuracy_percent"])


def accuracy(weights: dict[str, torch.Tensor]) -> float:
    """Percent of the test digits, by the model built afresh."""
    from largebatch import data, models

    split = data.build("digits").test
    model = models.build("mlp", 10, (1, 8, 8), 0, {"width": 8, "depth": 1, "norm": True}).eval()
    model.load_state_dict(weights)
    [(images, labels)] = split.batches(0, 1, 1000, data.Placement(torch.device("cpu")))
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).double().mean())


def test_the_mean_of_the_latest_snapshots(recipe):
    """With its own statistics of batch norm; where the newest snapshot was not evaluated there are none."""
    model = {"name": "mlp", "width": 8, "depth": 1, "norm": True}
    more = {"lawa": {"latest": 2, "every_steps": 4}, "checkpoint": {"every_epochs": 0.2, "keep": 9}}
    path = recipe(steps=10, epochs=None, model=model, evaluate={"every_epochs": 5}, **more)
    assert train(config.load(path), quiet=True).status == "finished"
    run = config.load(path).directory
    assert command("export", run, "--weights", "lawa").exit_code == 0
    with safetensors.safe_open(run / "weights-lawa.safetensors", framework="pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    result = json.loads((run / "result.json").read_text())
    assert about["weights"] == "mean of the latest snapshots"
    assert float(about["accuracy_percent"]) == result["lawa_test_accuracy_percent"]
    assert accuracy(weights) == pytest.approx(result["lawa_test_accuracy_percent"])
    first, *_, before_the_last, _ = [step_of(path) for path in saved(run)]
    for words, said in (
        (("lawa", "--step", before_the_last), r"--weights lawa: .* has no batch norm statistics of the mean"),
        (("lawa", "--step", first), r"--weights lawa: .* holds no snapshots"),
        (("swa",), r"--weights swa is not known; valid: trained, ema, lawa"),
    ):
        with pytest.raises(UserError, match=said):
            command("export", run, "--weights", *words)


def test_without_a_moving_average_there_is_a_sentence(recipe, tmp_path):
    assert train(config.load(recipe(steps=2, epochs=None)), quiet=True).status == "finished"
    with pytest.raises(UserError, match=r"--weights ema: .*step-00000002 holds no moving average"):
        command("export", tmp_path / "runs" / "tiny", "--weights", "ema")


@pytest.mark.worlds
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_timm_and_torchvision_load_it(recipe, tmp_path, name, suffix):
    import timm
    import torchvision

    from largebatch.studies.diagnose.opened import opened

    changes: dict[str, Any] = {
        "model": {"name": name},
        "data": {"name": "synthetic", "examples": 16, "image_size": 32},
        "batch__global_batch_size": 8,
        "epochs": 1,
    }
    run = config.load(recipe(**changes))
    assert train(run, quiet=True).status == "finished"
    file = tmp_path / f"weights{suffix}"
    assert command("export", run.directory, "--out", file).exit_code == 0
    if name.startswith("timm"):
        model = timm.create_model("resnet18", num_classes=10, checkpoint_path=str(file))
    else:
        from safetensors.torch import load_file

        model = torchvision.models.resnet18(num_classes=10)
        weights = load_file(file) if suffix == ".safetensors" else torch.load(file)["state_dict"]
        model.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 32, 32)
    ours = opened(run.directory, torch.device("cpu")).model
    with torch.no_grad():
        assert torch.equal(model.eval()(images), ours(images))
        assert not torch.equal(timm.create_model("resnet18", num_classes=10).eval()(images), ours(images))


@pytest.mark.worlds
def test_the_module_loads_no_torch():
    code = "import largebatch.cli.checkpoint, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
