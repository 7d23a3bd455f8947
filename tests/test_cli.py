"""The front door: what bad input gets, seen from outside. One sentence, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from programs import largebatch, torchrun

from largebatch import cli

Ask = Callable[..., tuple[int, str, str]]

BAD = [
    ({"lr": {"bse": 0.1}}, [], "unknown key lr.bse; did you mean base?"),
    ({}, ["lr.base=-1"], "lr.base = -1 should be greater than 0"),
    ({}, ["batch.micro_batch_size=64"], "into 1 rank × micro-batches of 64; nearest that do: 64 or 128"),
    ({}, ["batch.global_batch_size=1021"], "no divisor between 1 and 512 for a micro-batch; nearest that do: 512 or"),
    ({}, ["batch.global_batch_size=1501"], "larger than the training set; at most 1500 examples"),
    ({}, ["model.num_classes=7"], "model.num_classes = 7 does not fit data.name = digits, which has 10 classes"),
    ({}, ["data={name: mnist, root: ROOT}"], "is truncated or corrupt: its header says 60000 images of 28x28"),
    ({}, ["record.dir=/proc/nowhere"], "record.dir = /proc/nowhere cannot be written"),
    ({}, ["lr.warmup.epochs=9"], "lr.warmup.epochs = 9 must be below the run's"),
    ({}, ["data.name=dgits"], "is not a data set; did you mean digits?"),
    ({}, ["model={name: torchvision/resnet18}"], "takes 3 channels, the images have 1"),
    ({}, ["model={name: torchvision/alexnet}", "data={name: synthetic, image_shape: [3, 8, 8]}"],
     "does not take images of 3×8×8"),
    ({"phases": [{"until_epoch": 1}, {"until_epoch": 0.5}, {}]}, [],
     "phases.2 leaves no step: it would begin at epoch 1"),
    ({"phases": [{"until_epoch": 3}, {}]}, [], "phases.2 leaves no step: it would begin at epoch 3"),
    ({"phases": [{"data.name": "mnist"}]}, [],
     "phases.1.data.name cannot change during a run; a phase may change batch."),
    ({}, ["optimizer={name: sgd, momentum: 0, nesterov: true}"], "optimizer.nesterov = true needs optimizer.momentum"),
    ({}, ["optimizer={name: lars, variant: timm, momentum_correction: true}"], "needs the lr inside the buffer"),
]  # fmt: skip
if not torch.cuda.is_available():
    BAD.append(({}, ["device=cuda"], "device = cuda, but no CUDA device is visible here"))


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The front door in this process: exit code, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LARGEBATCH_DATA", str(tmp_path))

    def answer(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["largebatch", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return code, *capsys.readouterr()

    return answer


@pytest.mark.worlds
def test_bad_input_gets_one_sentence_code_2_and_writes_nothing(recipe, tmp_path, ask):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        file = tmp_path / "MNIST" / "raw" / f"{part}-ubyte.gz"
        file.write_bytes(gzip.compress(b"\x00\x00\x08\x03\x00\x00\xea\x60\x00\x00\x00\x1c\x00\x00\x00\x1c" + b"abc"))
    questions = [
        ["train", str(recipe(f"bad{n}", **changes)), *(o.replace("ROOT", str(tmp_path)) for o in overrides)]
        for n, (changes, overrides, _) in enumerate(BAD)
    ]
    for question, (_, overrides, sentence) in zip(questions, BAD, strict=True):
        code, out, err = ask(*question)
        assert code == 2, (overrides, out, err)
        assert len(err.splitlines()) == 1, err
        assert err.startswith("largebatch: ")
        assert sentence in err, f"expected {sentence!r} in {err!r}"
        assert out == ""
    assert not (tmp_path / "runs").exists(), "nothing was written"


@pytest.mark.worlds
def test_truncated_and_missing_data_name_the_file(recipe, tmp_path, ask):
    raw = tmp_path / "MNIST" / "raw"
    path = recipe("mnist", data={"name": "mnist"})
    code, _, missing = ask("train", str(path))
    assert code == 2
    assert "run `largebatch data fetch mnist`" in missing
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        header = b"\x00\x00\x08\x03\x00\x00\xea\x60\x00\x00\x00\x1c\x00\x00\x00\x1c"
        (raw / f"{part}-ubyte.gz").write_bytes(gzip.compress(header + b"abc"))
    code, _, truncated = ask("train", str(path))
    assert code == 2
    assert "train-images-idx3-ubyte.gz" in truncated
    assert re.search(r"47,?040,?0\d\d", truncated), truncated


@pytest.mark.worlds
def test_commands_that_do_not_exist_or_fit(tmp_path, recipe, ask):
    questions = [
        ["trian", "x.yaml"], ["train"], ["train", str(tmp_path / "none.yaml")], ["compare", "lr.base=1"],
        ["compare", str(recipe()), "--tune", "momentum"], ["compare", str(recipe()), "--seeds", "0"],
        ["report", str(tmp_path / "nothing")], ["data", "fetch", "mnits"], ["bench", "throughput"],
    ]  # fmt: skip
    for question in questions:
        code, _, err = ask(*question)
        assert code == 2, question
        assert err.strip(), question
        assert "Traceback" not in err


@pytest.mark.worlds
def test_an_unwritable_run_folder_is_refused_also_for_users_who_are_not_root(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    ended = largebatch("train", recipe(), f"record.dir={tmp_path}/file/run")
    assert ended.returncode == 2
    assert f"record.dir = {tmp_path}/file/run cannot be written: Not a directory" in ended.stderr
    ended = largebatch("train", recipe(), f"record.dir={tmp_path}/file")
    assert ended.returncode == 2
    assert "is a file; choose a folder" in ended.stderr


@pytest.mark.worlds
def test_train_prints_what_it_decided_before_and_the_result_after(recipe):
    ended = largebatch("train", recipe(lr={"base": 0.05, "reference_batch_size": 50, "scaling": "linear"}))
    assert ended.returncode == 0
    assert "linear: 0.05 × 100/50 = 0.1" in ended.stdout
    assert "100 = 1 × 100 × 1 (ranks × micro-batch × accumulation)" in ended.stdout
    assert re.search(r"\d\d\.\d\d % on test after 30 steps", ended.stdout.splitlines()[-1])
    assert "\x1b" not in ended.stdout, "no terminal codes in a pipe"


@pytest.mark.worlds
def test_a_launchers_local_rank_argument_is_ignored(recipe):
    assert largebatch("train", "--local_rank=0", recipe(), "epochs=1").returncode == 0


@pytest.mark.worlds
def test_the_module_under_torchrun_speaks_once(recipe, tmp_path):
    ended = torchrun(2, "-m", "largebatch", "train", recipe(epochs=1))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("steps, ") >= 1
    assert len(re.findall(r"% on test after 15 steps", ended.stdout)) == 1


@pytest.mark.worlds
def test_help_and_schema(ask):
    answers = [ask(*words.split()) for words in ("--help", "train --help", "compare -h", "recipe schema")]
    assert [code for code, _, _ in answers] == [0, 0, 0, 0]
    assert "--tune" in answers[2][1]
    assert json.loads(answers[3][1])["title"] == "Run"


@pytest.mark.worlds
def test_the_environment_is_left_alone(recipe, tmp_path):
    before = set(os.listdir(tmp_path))
    assert largebatch("train", recipe(), cwd=tmp_path).returncode == 0
    assert set(os.listdir(tmp_path)) - before <= {"tiny.yaml", "runs"}
