"""plan fit: files of rows and benches in, a machine and a table out."""

from __future__ import annotations

import io

import pytest
import rich.console
from programs import REPOSITORY
from typer.testing import CliRunner

from largebatch.cli import app
from largebatch.errors import UserError
from largebatch.studies.cluster import fitted
from largebatch.studies.cluster import machine as machines
from largebatch.studies.cluster.skeleton import SKELETON

PUBLISHED = REPOSITORY / "results/plan/rows.csv"
BENCH = REPOSITORY / "results/bench/scaling-cpu.json"
ROWS = "devices,batch,ms\n8,3200,57.4\n64,3200,10.9\n512,20480,9.2\n"


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "ROWS.csv"
    file.write_text(ROWS)
    return file


def shown(facts) -> str:
    console = rich.console.Console(file=io.StringIO(), width=100)
    for table in fitted.tables(facts):
        console.print(table)
    for sentence in fitted.notes(facts):
        console.print(sentence, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_large_rows_are_predicted_from_small_ones(rows):
    machine, facts = fitted.machine_fit([rows], "dgx-h100", workload="resnet50", most=64, name="ours")
    assert machine.name == "ours"
    assert machine.fit is not None
    assert [row.devices for row in machine.fit.rows] == [8, 64]
    assert [line["fitted"] for line in facts["rows"]] == [True, True, False]
    last = facts["rows"][-1]
    assert last["model_seconds_low"] < last["seconds"] < last["model_seconds_high"]
    assert abs(last["error"]) < 0.15
    text = shown(facts)
    assert "predicted 1 row, 1 within 15 %" in text
    assert "gradients" not in text
    assert "resnet50: in which precision it was measured is not said" in text
    assert machine.sources == ("largebatch plan fit of ROWS.csv", "all else is that of dgx-h100")
    assert machine.peaks == machines.find("dgx-h100").peaks


def test_what_is_not_known_to_be_sent_is_told(rows):
    machine, facts = fitted.machine_fit([rows], "dgx-h100")
    assert machine.pace("step").gradient_bytes == 0
    assert "step: how many bytes its gradients have is not known, so nothing is sent" in shown(facts)
    assert "tell nothing of the links while it is not known how many bytes" in (fitted.refused(facts) or "")
    machine, facts = fitted.machine_fit([rows], "dgx-h100", gradients=5e7)
    assert machine.pace("step").gradient_bytes == 5e7
    assert machine.name == "fitted"
    assert fitted.refused(facts) is None


def test_benches_need_no_machine():
    machine, facts = fitted.machine_fit([BENCH, REPOSITORY / "results/bench/throughput-cpu-mlp-256.json"], None)
    assert set(machine.workloads) == {"tiny_cnn", "mlp"}
    assert machine.pace("tiny_cnn").gradient_bytes == 103_912
    assert machine.pace("mlp").flops == 50_816 + 51_456
    assert {pace.precision for pace in machine.workloads.values()} == {"fp32"}
    assert fitted.refused(facts) is None  # one rank of the other says nothing of links, and asks nothing of them
    assert facts["without_gradient_bytes"] == ["mlp"]
    assert all(abs(line["error"]) < 0.15 for line in facts["rows"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "or a file MACHINE.yaml, which largebatch plan fit --skeleton shows"),
        ({"base": "dgx-h100", "most": 4}, "--most 4: no row has so few devices; the least is 8"),
        ({"base": "dgx-h10"}, "machine dgx-h10 is neither a file, MACHINE.yaml, nor known; did you mean dgx-h100"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(rows, options, sentence):
    with pytest.raises(UserError) as refused:
        fitted.machine_fit([rows], **{"base": None, **options})
    assert sentence in str(refused.value)


def test_rows_of_several_machines_are_not_thrown_together(tmp_path):
    with pytest.raises(
        UserError, match="has rows of dgx1-v0.6, dgx1-v0.7, .* and others; --family NAME takes those of"
    ):
        fitted.machine_fit([PUBLISHED], "dgx-h100")
    file = tmp_path / "two.csv"
    file.write_text("workload,devices,batch,ms\none,8,80,5\ntwo,256,2560,9\n")
    with pytest.raises(UserError, match="--most 64 leaves no row of two; a pace needs one"):
        fitted.machine_fit([file], "dgx-h100", most=64)


def test_the_command_writes_a_machine_that_is_read(rows, tmp_path):
    out = tmp_path / "ours.yaml"
    words = ["plan", "fit", str(rows), "--machine", "dgx-h100", "--workload", "resnet50", "--out", str(out)]
    ended = CliRunner().invoke(
        app, [*words, "--json", str(tmp_path / "fit.json"), "--picture", str(tmp_path / "fit.svg")]
    )
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "fit.json").exists()
    spoken = (tmp_path / "fit.svg").read_text()
    assert "8 devices: " in spoken
    assert "512 devices: " in spoken
    assert machines.load(out).pace("resnet50").floor > 0
    assert machines.load(out).fit is not None
    assert machines.load(out).name == "ours"


BAD = "devices,batch,ms,precision\n8,3200,57.4,fp16\n64,3200,10.9,fp16\n64,3200,80,fp16\n512,20480,9.2,fp16\n"


def test_what_fits_badly_is_told_and_not_written(tmp_path, front_door):
    file, out = tmp_path / "ROWS.csv", tmp_path / "ours.yaml"
    file.write_text(BAD)
    words = ["plan", "fit", str(file), "--machine", "dgx-h100", "--workload", "resnet50"]
    code, text, refusal = front_door(*words, "--out", str(out))
    assert code == 2
    assert "ours.yaml is not written: the model is" in refusal
    said = " ".join(text.split())
    assert "warning: that is more than 10 %; worst are resnet50 on 64 at batch 3,200" in said
    assert "fitted to 4 rows of 3 points, each of which counts once" in said
    assert not out.exists()
    machine, facts = fitted.machine_fit([file], "dgx-h100", workload="resnet50")
    assert "--allow-error" in (fitted.refused(facts) or "")
    assert machine.pace("resnet50").precision == "fp16"
    assert machine.fit is not None
    assert fitted.refused(facts, machine.fit.rms_error) is None
    assert front_door(*words, "--out", str(out), "--allow-error", "9")[0] == 0
    assert out.exists()


def test_a_machine_to_fill_in(front_door):
    assert front_door("plan", "fit", "--skeleton") == (0, SKELETON, "")
    code, _, refusal = front_door("plan", "fit")
    assert code == 2
    assert "plan fit needs ROWS.csv" in refusal


@pytest.mark.parametrize(
    "facts", ['{"kind": "scaling"}', '{"kind": "scaling", "worlds": []}', '{"kind": "throughput", "model": 3}']
)
def test_a_bench_that_is_not_whole(tmp_path, facts):
    file = tmp_path / "bench.json"
    file.write_text(facts)
    with pytest.raises(UserError, match="is not whole: it lacks seconds of a step"):
        fitted.machine_fit([file], None)


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ("8,3200,50\n64,3200,20\n", {"gradients": 1e12}),
        ("8,256,0.001\n16,512,0.0011\n", {"workload": "resnet50"}),  # the seconds of an example vanish
    ],
)
def test_rows_that_no_machine_takes(tmp_path, lines, options):
    file = tmp_path / "ROWS.csv"
    file.write_text(f"devices,batch,ms\n{lines}")
    with pytest.raises(UserError, match="no machine like dgx-h100 takes steps as these rows have them"):
        fitted.machine_fit([file], "dgx-h100", **options)
