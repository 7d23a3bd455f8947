"""The bench lets everybody step on the same gradients and counts what its docstrings say; no test says how fast."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import statistics
import sys
import types

import pytest
import rich.console
import timm.optim
import torch
from programs import largebatch
from torch import nn

from largebatch import cli
from largebatch.errors import UserError
from largebatch.studies.bench import contestants, optimizer
from largebatch.studies.bench.contestants import Arena, Family, TimedOptimizer
from largebatch.studies.bench.matrices import families_of_muon

CPU = torch.device("cpu")
TIMM_S = ("plain", "foreach") if "foreach" in inspect.signature(timm.optim.Lars).parameters else ("plain",)
EVERYBODY = [
    ("torch SGD", "foreach"), ("torch SGD", "fused"), ("torch AdamW", "foreach"), ("torch AdamW", "fused"),
    *(("timm Lars", form) for form in TIMM_S), *(("timm Lamb", form) for form in TIMM_S),
    ("Lars", "plain"), ("Lars", "foreach"), ("Lars", "fused"),
    ("Lamb", "plain"), ("Lamb", "foreach"), ("Lamb", "fused"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setattr(contestants, "COPIED_BYTES", 1 << 16)


def network() -> nn.Module:
    """Five tensors: two decayed and adapted, three neither."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4, bias=False))


def all_contestants(arena: Arena) -> list[TimedOptimizer]:
    made = [contestants.contestants_of(family, arena) for family in contestants.families(arena.device)]
    assert not [sentence for _, missing in made for sentence in missing]
    return list(itertools.chain.from_iterable(entered for entered, _ in made))


def shown(facts) -> str:
    console = rich.console.Console(file=io.StringIO(), width=140)
    console.print(optimizer.table(facts))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def facts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestants, "COPIED_BYTES", 1 << 16)
        return optimizer.measure("tiny", network(), CPU, 3)


@pytest.mark.worlds
def test_the_table_holds_everybody(facts):
    assert [(row["optimizer"], row["form"]) for row in facts["contestants"]] == EVERYBODY
    assert facts["left_out"] == []
    assert (facts["tensors"], facts["parameters"]) == (5, 8 * 16 + 16 + 16 + 16 + 16 * 4)
    lines = shown(facts).splitlines()
    for name, form in EVERYBODY:
        assert any(line.split()[: len(name.split()) + 1] == [*name.split(), form] for line in lines), lines


@pytest.mark.worlds
def test_ratios_follow_from_the_times_of_the_same_rounds(facts):
    assert len(facts["copy_milliseconds"]) == 3, "the first rounds are dropped"
    speed = facts["copy_gigabytes"] / statistics.median(facts["copy_milliseconds"]) * 1e3
    assert facts["copy_gigabytes_per_second_median"] == pytest.approx(speed)
    rows = {(row["optimizer"], row["form"]): row for row in facts["contestants"]}
    for (name, _), row in rows.items():
        seconds = sorted(row["milliseconds"])[1] / 1e3
        assert row["times_bandwidth_bound"] == pytest.approx(seconds * speed / row["gigabytes_that_must_move"])
        if name.startswith("torch"):
            assert row["peer"] is row["times_peer"] is None
            continue
        peer = rows[(f"timm {name.removeprefix('timm ')}", "plain")]  # timm's own choice on the CPU
        ratios = [a / b for a, b in zip(row["milliseconds"], peer["milliseconds"], strict=True)]
        assert row["times_peer"] == pytest.approx(sorted(ratios)[1])


def test_the_bytes_of_two_tensors_are_those_of_the_docstring():
    arena = Arena(nn.Linear(3, 5), CPU)  # 15 weights, adapted; 5 biases, not
    moved = {name: round(arena.gigabytes_that_must_move(name) * 1e9) for name in contestants.PASSES}
    assert moved == {
        "SGD": 4 * 5 * 20,
        "AdamW": 4 * 7 * 20,
        "LARS": 4 * (7 * 15 + 5 * 5),
        "LAMB": 4 * (10 * 15 + 7 * 5),
        "Muon": 4 * 5 * 20,
    }


def test_what_is_copied_holds_the_gradients_and_is_never_smaller_than_the_model(monkeypatch):
    for least in (4, 1 << 16):
        monkeypatch.setattr(contestants, "COPIED_BYTES", least)
        arena = Arena(network(), CPU)
        assert arena.source.numel() == arena.target.numel() == max(arena.elements, least // 4)
        assert arena.untouched()
        arena.copy()
        assert torch.equal(arena.source, arena.target)


def test_everybody_leaves_the_gradients_and_on_the_cpu_forms_share_a_state():
    arena = Arena(network(), CPU)
    entered = all_contestants(arena)
    for contestant in entered:
        contestant.prepare()
        contestant.step()
        assert arena.untouched() or contestant.edits_gradients, contestant.name
        if not contestant.name.startswith("timm"):
            assert not contestant.edits_gradients
        arena.restore()
    optimizers = {id(contestant.optimizer) for contestant in entered}
    assert len(optimizers) == len({contestant.family.name for contestant in entered})


def test_every_form_moves_the_weights_it_is_timed_on():
    arena = Arena(network(), CPU)
    for contestant in all_contestants(arena):
        for group in contestant.optimizer.param_groups:
            group["lr"] = 0.1
        before = [p.detach().clone() for p in arena.parameters]
        contestant.prepare()
        contestant.step()
        assert all(not torch.equal(p, b) for p, b in zip(arena.parameters, before, strict=True)), contestant.name


class Eraser(torch.optim.SGD):
    """Edits p.grad, as older releases of timm's Lars do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.zero_()


def test_gradients_that_somebody_edits_are_restored_after_each_turn():
    arena = Arena(network(), CPU)
    stays = lambda optimizer, form: None  # noqa: E731
    family = Family("eraser", "SGD", ("plain",), lambda groups, lr: Eraser(groups, lr), stays, 1, 0)
    [eraser], _ = contestants.contestants_of(family, arena)
    assert eraser.edits_gradients
    assert arena.untouched()
    times, copies = optimizer._rounds(arena, [eraser], 3)
    assert arena.untouched()
    assert len(times["eraser, plain"]) == len(copies) == 3


@pytest.mark.worlds
def test_launches_are_the_operators_that_touch_memory(facts):
    zeros = torch.zeros(2)
    assert optimizer.operators(lambda: zeros.view(2, 1).add_(1).mul_(2)) == 2
    counted = {(row["optimizer"], row["form"]): row["operators_per_step"] for row in facts["contestants"]}
    assert min(counted.values()) > 0
    assert counted["torch SGD", "fused"] == 2, "two groups, one kernel each"
    for name in ("timm Lars", "timm Lamb", "Lars", "Lamb"):
        if (name, "foreach") in EVERYBODY:
            assert counted[name, "foreach"] < counted[name, "plain"]


@pytest.mark.worlds
def test_without_memory_some_are_left_out_and_a_sentence_says_who(monkeypatch):
    model, everybody = network(), contestants.families(CPU)
    size = 4 * sum(p.numel() for p in model.parameters())
    buffers = 2 * (1 << 16)
    for free, kept in (
        (1e9, ["torch SGD", "torch AdamW", "timm Lars", "timm Lamb", "Lars", "Lamb"]),
        (buffers + 11.5 * size, ["torch SGD", "timm Lars", "timm Lamb", "Lars", "Lamb"]),
        (buffers + 4.5 * size, ["timm Lars", "Lars"]),
        (buffers, []),
    ):
        monkeypatch.setattr(contestants, "free_bytes", lambda device, free=free: int(1.05 * free))
        entered, sentence = contestants.that_fit(everybody, model, CPU)
        assert [family.name for family in entered] == kept
        assert (sentence is None) == (len(kept) == 6)
    measured = optimizer.measure("tiny", model, CPU, 3)
    assert measured["contestants"] == []
    [said] = optimizer.notes(measured)
    assert said.startswith("tiny: the model is left out: all need 0.0 GB, and 0.0 GB of memory are free")


def test_free_memory_is_known_here():
    assert 1 << 20 < contestants.free_bytes(CPU) < 1 << 50


def test_what_is_wanted_stands_beside_what_was_measured():
    rows = [
        {"optimizer": name, "form": form, "peer": "timm Lars, plain", "milliseconds": [2 * m, m, 4 * m]} | bound
        for name, form, m, bound in (
            ("timm Lars", "plain", 8.0, {}),
            ("timm Lars", "foreach", 2.0, {}),
            ("Lars", "plain", 7.0, {}),
            ("Lars", "fused", 1.0, {"times_bandwidth_bound": 1.25}),
        )
    ]
    default, other = "timm Lars, plain (its default here)", "timm Lars, foreach"
    assert [(f["what"], f["measured"], f["at_most"]) for f in optimizer._wanted("cpu", rows)] == [
        (f"Lars, fused: time over that of {default}", 1 / 8, 0.7),
        (f"Lars, fused: time over that of {other}", 1 / 2, 0.7),
    ]
    assert optimizer._wanted("cuda", rows) == [
        {"what": f"Lars, fused: times faster than {default}", "measured": 8.0, "at_least": 8.0},
        {"what": f"Lars, fused: times faster than {other}", "measured": 2.0, "at_least": 8.0},
        {"what": "Lars, fused: times the bandwidth bound", "measured": 1.25, "at_most": 1.5},
    ]


@pytest.mark.worlds
def test_the_command_writes_its_numbers_with_units_and_circumstances(tmp_path):
    file = tmp_path / "bench.json"
    ended = largebatch(
        "bench", "optimizer", "--model", "test_resnet", "--model", "resnet20", "--device", "cpu", "--repeats", 3,
        "--json", file, COLUMNS="120",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    written = json.loads(file.read_text())
    assert written["command"].startswith("largebatch bench optimizer --model test_resnet")
    assert written["machine"]["cores"] >= 1
    assert written["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "commit" in written
    assert (written["device"], written["repeats"], written["rounds_dropped"]) == ("cpu", 3, 2)
    assert [measured["model"] for measured in written["models"]] == ["test_resnet", "resnet20"]
    for measured in written["models"]:
        assert [(row["optimizer"], row["form"]) for row in measured["contestants"]] == EVERYBODY
        assert all(len(row["milliseconds"]) == 3 for row in measured["contestants"])
        assert measured["copy_gigabytes"] >= 2 * 0.5, "larger than the caches"
        assert len(measured["wanted"]) == 2 * len(TIMM_S)
    assert ended.stdout.count("Lars, fused: time over that of timm Lars, plain (its default here): ") == 2
    assert f"numbers: {file}" in ended.stdout.replace("\n", "")


BAD = [
    (["--model", "resnt50"], "--model resnt50 is not known; did you mean resnet50?"),
    (["--model", "resnet20", "--model", "vit_larg"], "--model vit_larg is not known"),
    (["--model", "resnet20", "--repeats", "2"], "--repeats 2 is too few for a median and its spread; at least 3"),
    (["--device", "tpu"], "--device tpu is not known; valid: auto, cpu, cuda"),
    (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: the folder /nowhere does not exist"),
]
if not torch.cuda.is_available():
    BAD.append((["--device", "cuda"], "device = cuda, but no CUDA device is visible here"))


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_bad_input_gets_one_sentence_and_code_2(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["largebatch", "bench", "optimizer", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("largebatch: ")
    assert sentence in err


def test_what_cuda_adds_is_told_below_the_table(facts):
    rows = [{**row, "kernels_per_step": 7} for row in facts["contestants"]]
    on_cuda = {**facts, "device": "cuda", "contestants": rows, "no_host_synchronisation": {"Lars": True, "Lamb": False}}
    assert "kernels" in shown(on_cuda)
    said = optimizer.notes(on_cuda)
    assert "Lars, fused: no host synchronisation in a step: yes" in said
    assert "Lamb, fused: no host synchronisation in a step: no" in said


@pytest.mark.worlds
@pytest.mark.parametrize("waits", [True, False])
def test_the_way_on_cuda_walked_without_it(monkeypatch, waits):
    """Who enters, who is captured, who is missing; the device's own calls are replaced."""
    arena = Arena(network(), CPU)
    arena.device = types.SimpleNamespace(type="cuda")  # type: ignore[assignment]

    def captured(family, arena):
        return TimedOptimizer(family._replace(switch=lambda *_: None), "fused, CUDA graph", None, lambda: None)  # type: ignore[arg-type]

    def no_compiler():
        raise RuntimeError("no compiler\nand a long log")

    monkeypatch.setattr(optimizer, "kernels", optimizer.operators)
    monkeypatch.setattr(optimizer, "synchronises", lambda step: waits)
    monkeypatch.setattr(optimizer, "captured", captured)
    monkeypatch.setattr(optimizer, "deepspeed_lamb", no_compiler)
    monkeypatch.setattr(optimizer, "_milliseconds_on_cuda", optimizer._milliseconds_on_cpu)
    entered, who_waits, missing = optimizer._enter(arena, contestants.families(CPU))
    graphs = [] if waits else [("Lars", "fused, CUDA graph"), ("Lamb", "fused, CUDA graph")]
    assert sorted((c.family.name, c.form) for c in entered) == sorted(EVERYBODY + graphs)
    assert len({id(c.optimizer) for c in entered if c.optimizer}) == len(EVERYBODY), "each has a state of its own"
    assert who_waits == {"Lars": waits, "Lamb": waits}
    waiting = [f"{name}, fused, CUDA graph is not in the table: the step makes the host wait" for name in who_waits]
    assert missing == [*(waiting if waits else []), "DeepSpeed's FusedLamb is not in the table: no compiler"]
    times, _ = optimizer._rounds(arena, entered, 3)
    assert {len(values) for values in times.values()} == {3}


@pytest.mark.gpu
def test_on_cuda_kernels_are_counted_and_the_fused_forms_do_not_wait():
    measured = optimizer.measure("tiny", network(), torch.device("cuda", 0), 3)
    rows = {(row["optimizer"], row["form"]): row for row in measured["contestants"]}
    assert min(row["kernels_per_step"] for row in rows.values()) > 0
    assert measured["no_host_synchronisation"] == {"Lars": True, "Lamb": True}
    for name in ("Lars", "Lamb"):
        assert rows[name, "fused"]["kernels_per_step"] < rows[name, "plain"]["kernels_per_step"]
        graph = f"{name}, fused, CUDA graph"
        assert (name, "fused, CUDA graph") in rows or any(s.startswith(graph) for s in measured["left_out"])
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.gpu
def test_on_cuda_a_step_that_waits_is_found():
    there = torch.ones(3, device="cuda")
    assert optimizer.synchronises(lambda: float(there.sum()))
    assert not optimizer.synchronises(lambda: there.sum())


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    hidden = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(16, 2))


def test_torchs_muon_and_ours_step_the_same_matrices_alike():
    """On the same gradients, each from the same weights: to the rounding of bfloat16."""
    ends = {}
    for family in families_of_muon(convolutions(), "tiny"):
        for form in family.forms:
            arena = Arena(convolutions(), CPU)
            [own] = [f for f in families_of_muon(arena.model, "tiny") if f.name == family.name]
            made = own.build(arena.groups(), 0.1)
            own.switch(made, form)
            before = [p.detach().clone() for p in arena.parameters]
            made.step()
            assert arena.untouched()
            assert all(not torch.equal(p, b) for p, b in zip(arena.parameters, before, strict=True))
            ends[family.name, form] = [p.detach().clone() for p in arena.parameters]
    for end in ends.values():
        for this, that in zip(end, ends["torch Muon", "plain"], strict=True):
            torch.testing.assert_close(this, that, rtol=0, atol=0.1 * 0.05)
    assert all(torch.equal(*pair) for pair in zip(ends["Muon", "plain"], ends["torch Muon", "plain"], strict=True))


@pytest.mark.worlds
def test_muon_has_a_table_of_its_own():
    facts = optimizer.measure("tiny", convolutions(), CPU, 3, muon=True)
    assert [(row["optimizer"], row["form"]) for row in facts["contestants"]] == [
        ("torch Muon", "plain"), ("Muon", "plain"), ("Muon", "batched"), ("Muon", "gram"),
    ]  # fmt: skip
    [wanted] = facts["wanted"]
    assert wanted["at_least"] == 1.5
    ratios = [a / b for a, b in zip(*(facts["contestants"][i]["milliseconds"] for i in (0, 2)), strict=True)]
    assert wanted["measured"] == pytest.approx(sorted(ratios)[1])
    assert "× torch's" in shown(facts)
    with pytest.raises(UserError, match="--muon --model tiny: Muon needs a model with hidden weights"):
        optimizer.measure("tiny", network(), CPU, 3, muon=True)
