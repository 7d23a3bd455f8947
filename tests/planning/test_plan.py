"""`largebatch plan`: from a recipe and a machine's file to points, lines to type, numbers, a picture, and mistakes."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import yaml
from planning.clusters import PACE, machine_file, planned
from programs import REPOSITORY

from largebatch.recipes import config
from largebatch.studies.dry_run import Cluster, dry_run
from largebatch.studies.planning import traces
from largebatch.studies.planning.memory import StepMemory
from largebatch.studies.planning.pace import is_pace_of
from largebatch.studies.planning.traces import Traces

pytestmark = [pytest.mark.worlds, pytest.mark.usefixtures("one_thread")]
DIGITS = 1500


def test_without_a_network_every_number_is_a_closed_form(ask):
    facts = planned(ask, "--devices", "1..16", "--batches", "100", "--price", "3")
    assert [point.devices for point in facts.points] == [1, 2, 4]
    for point in facts.points:
        (phase,) = point.phases
        step = 1e-3 * 100 / point.devices + 2e-3
        assert phase.steps == DIGITS * 2 / 100
        assert phase.step_seconds == pytest.approx(step, rel=1e-9)
        assert point.hours == pytest.approx(phase.steps * step / 3600)
        assert point.device_hours == pytest.approx(point.devices * point.hours)
        assert point.cost == pytest.approx(3 * point.device_hours)
        assert point.strong == pytest.approx((1e-1 + 2e-3) / (point.devices * step))
    reasons = {one.devices: one.reason for one in facts.left_out}
    assert reasons.keys() == {8, 16}
    assert "does not factor into 8 ranks" in reasons[8]


def test_without_fixed_parts_speed_up_is_exact_and_weak_scaling_is_perfect(ask):
    Path("cluster.yaml").write_text(yaml.safe_dump(machine_file(workloads={"mlp": {"per_example": 1e-3}})))
    facts = planned(ask, "--devices", "1,2,4,20", "--batches", "100,200", "--target", "points.yaml")
    hours = {(point.devices, point.global_batch_size): point.hours for point in facts.points}
    for batch, needed in ((100, 2000), (200, 4000)):
        for devices in (1, 2, 4, 20):
            assert hours[devices, batch] == pytest.approx(needed * 1e-3 / devices / 3600)
    assert [point.strong for point in facts.points] == [point.weak for point in facts.points] == pytest.approx([1] * 8)
    assert facts.points[facts.fastest].devices == facts.points[facts.knee].devices == 20


def test_between_two_batches_of_the_target_it_takes_their_line(ask):
    facts = planned(ask, "--devices", "1", "--batches", "50", "--target", "points.yaml")
    (point,) = facts.points
    assert point.examples == pytest.approx(1000 + 1000 * 25 / 75)
    assert point.phases[0].basis == "between"
    assert point.phases[0].steps == math.ceil(point.examples / 50)


def test_batches_that_are_not_asked_for_are_those_that_help(ask):
    """Doublings of the recipe's, from the least that was measured to 4·B_crit, which is less than the largest."""
    facts = planned(ask, "--devices", "1", "--target", "points.yaml")
    assert facts.critical_batch_size is not None
    assert 100 < 4 * facts.critical_batch_size < 200
    assert [point.global_batch_size for point in facts.points] == [25, 50, 100]


def test_the_law_as_stated_and_a_bound(ask):
    facts = planned(
        ask, "--devices", "1", "--batches", "100,300", "--critical-batch", "100", "--epochs", "0.5"
    )  # fmt: skip
    assert [point.examples for point in facts.points] == [pytest.approx(1500), pytest.approx(3000)]
    known = {"verdict": "at least", "critical_batch_size": 300.0, "step": 9, "branches": []}
    critical = {"kind": "critical", "points": [known], "tolerance": 0.0}
    Path("critical.json").write_text(json.dumps(critical))
    facts = planned(ask, "--devices", "1", "--batches", "100,300", "--target", "critical.json")
    small, large = facts.points
    assert (small.examples, small.examples_high) == (3000, 3000)
    assert (large.examples_low, large.examples_high) == (3000, pytest.approx(3000 * 2 / (4 / 3)))


def test_what_does_not_fit_is_accumulated_or_left_out(ask, kept):
    of = config.load("tiny.yaml", ["evaluate.batch_size=1"])
    memory = StepMemory(of, Traces(of, "cuda", None, None, lambda text: None, kept / "traces"))
    whole, half = memory.needs(1, 100, 1).bytes, memory.needs(1, 50, 2).bytes
    assert half < whole
    for room, cut in ((whole, (100, 1)), (whole - 1, (50, 2))):
        Path("cluster.yaml").write_text(yaml.safe_dump(machine_file(memory=3 * 2**30 + room)))
        (point,) = planned(ask, "--devices", "1", "evaluate.batch_size=1").points
        assert (point.phases[0].micro_batch_size, point.phases[0].accumulation_steps) == cut
    Path("cluster.yaml").write_text(yaml.safe_dump(machine_file(memory=3 * 2**30)))
    code, _, err = ask("tiny.yaml", "--machine", "cluster.yaml", "--devices", "1")
    assert code == 2
    assert "micro-batch 1 needs" in err


def test_memory_from_two_traces_is_that_of_a_dry_run(ask, kept):
    run = config.load("tiny.yaml")
    memory = StepMemory(run, Traces(run, "cuda", None, None, lambda text: None, kept / "traces"))
    for world, micro in ((2, 50), (4, 25), (4, 5)):
        exact = dry_run(memory.run_at(world, micro, 1), Cluster(world))["memory_total_per_rank_mib"] * 2**20
        assert memory.needs(world, micro, 1).bytes == pytest.approx(exact, rel=0.01)


def test_a_second_plan_makes_no_trace(ask, monkeypatch):
    planned(ask, "--devices", "1,2")
    monkeypatch.setattr(Traces, "_trace", None)
    assert planned(ask, "--devices", "1,2", "lr.base=0.2", "epochs=7").points
    monkeypatch.setattr(traces, "version", lambda: "another")
    with pytest.raises(TypeError):
        planned(ask, "--devices", "1,2")


def test_phases_add_up_and_a_critical_batch_scales_each(ask, recipe):
    recipe(batch__global_batch_size=100, phases=[{"until_share": 0.5, "batch.global_batch_size": 50}, {"lr.base": 0.1}])
    facts = planned(ask, "--devices", "2", "--batches", "50,100", "--critical-batch", "100")
    small, large = facts.points
    assert [phase.global_batch_size for phase in large.phases] == [100, 200]
    assert small.examples == pytest.approx(DIGITS * 2)
    expected = [1500 * 2 / 1.5, 1500 * 3 / 2]
    assert [phase.examples for phase in large.phases] == pytest.approx(expected)
    seconds = sum(math.ceil(n / b) * (1e-3 * b / 2 + 2e-3) for n, b in zip(expected, (100, 200), strict=True))
    assert large.hours == pytest.approx(seconds / 3600)
    assert "phases.2.batch.global_batch_size=200" in facts.lines[0] or facts.chosen == 0


def test_the_lines_to_type_are_the_point(ask):
    facts = planned(ask, "--devices", "8", "--batches", "200", "--target", "points.yaml", "lr.base=0.3")
    words = shlex.split(facts.lines[0])
    assert words[:3] == ["NNODES=2", "RDZV_ENDPOINT=HOST:29500", "NPROC_PER_NODE=4"]
    assert words[3:6] == ["launch/torchrun.sh", "train", "tiny.yaml"]
    typed = config.load(words[5], words[6:])
    assert (typed.batch.global_batch_size, typed.batch.micro_batch_size, typed.lr.base) == (200, 25, 0.3)
    assert typed.epochs == pytest.approx(4000 / DIGITS, rel=1e-3)


def test_a_run_of_less_than_a_batch_is_a_step(ask):
    facts = planned(ask, "--devices", "1", "--batches", "100", "--critical-batch", "1e14", "--epochs", "1e-14")
    assert [point.phases[0].steps for point in facts.points] == [1]


def test_failures_are_in_hours_and_costs_and_in_every_row(ask):
    arguments = ("--device-hours", "1", "--restart", "1", "--standing", "0.1", "--price", "2")
    facts = planned(ask, "--devices", "2,4", "epochs=2000", *arguments)
    point = facts.points[-1]
    assert point.interrupted is not None
    young = math.sqrt(2 * 0.1 * 900) / 60
    assert point.interrupted.minutes_between_saves == pytest.approx(young, rel=0.05)
    assert point.interrupted.lost == pytest.approx(math.sqrt(2 * 0.1 / 900) + 1 / 900, rel=0.05)  # to first order
    assert point.interrupted.hours == pytest.approx(point.hours / (1 - point.interrupted.lost))
    assert point.expected_cost == pytest.approx(2 * 4 * point.interrupted.hours)
    assert point.interrupted.failures == pytest.approx(3600 * point.interrupted.hours / 900)
    _, out, _ = ask("tiny.yaml", "--machine", "cluster.yaml", "--devices", "2,4", "epochs=2000", *arguments)
    assert "lost" in out.split("\n\n")[1]
    assert "of it lost to failures and saves, best" in out


def test_a_run_that_is_over_before_a_save_would_pay_saves_nothing(ask):
    facts = planned(ask, "--devices", "4", "--device-hours", "100", "--restart", "30", "--standing", "10")
    (point,) = facts.points
    assert point.interrupted is not None
    assert (point.interrupted.saves, point.interrupted.minutes_between_saves) == (0, None)
    mean, work = 360000 / 4, 3600 * point.hours
    expected = mean * math.exp(30 / mean) * math.expm1(work / mean)
    assert point.interrupted.hours == pytest.approx(expected / 3600)
    _, out, _ = ask(
        "tiny.yaml", "--machine", "cluster.yaml", "--devices", "4", "--device-hours", "100", "--restart", "30",
        "--standing", "10",
    )  # fmt: skip
    assert "over before a save would pay" in out


def test_failures_move_what_fits_a_time(ask):
    """They let the run take half as long again."""
    whole = planned(ask, "--devices", "4", "epochs=2000").points[0].hours
    failures = ("--device-hours", "1", "--restart", "300", "--standing", "9")
    within = f"{3600 * whole * 1.2:.3f}s"
    assert planned(ask, "--devices", "4", "epochs=2000", "--within", within).chosen_as == "within"
    code, _, err = ask(
        "tiny.yaml", "--machine", "cluster.yaml", "--devices", "4", "epochs=2000", "--within", within, *failures
    )
    assert code == 2
    assert "the fastest takes" in err
    assert " more), batch 100 on 4 devices" in err


def test_a_run_that_comes_to_no_end_is_said_to(ask):
    asked = ("tiny.yaml", "--machine", "cluster.yaml", "--price", "3", "--restart", "3600", "--standing", "10")
    # restarts of an hour: two devices fail once in an hour, a hundred once in 72 s
    arguments = ("epochs=2000", "--device-hours", "2", "--picture", "p.svg")
    code, out, _ = ask(*asked, "--devices", "2,100", *arguments)
    assert code == 0
    assert "no end" in out.split("\n\n")[1]
    code, _, err = ask(*asked, "--devices", "2,4", "--device-hours", "0.001")
    assert code == 2
    assert "--device-hours: failures come so often that no run comes to its end, not even that of batch 100 on" in err
    assert err.count("\n") == 1


AGREEING = """
title: digits
unit: digits
score: {accuracy_percent: 90}
model: {name: mlp, width: 16, depth: 1}
data: {name: digits}
optimizer: {name: lars}
points:
  25: {examples: {1000: 1}}
  100: {examples: {2000: 1}}
  200: {examples: {4000: 1}}
"""


def test_points_of_another_optimizer_and_batches_at_which_the_source_stays_short_are_said(ask, recipe):
    Path("mine.yaml").write_text(AGREEING)
    reported = {25: {"top1": 92}, 100: {"top1": 90}, 200: {"top1": 66.04}}
    recipe(expect={"top1": 92, "source": "Who 2017, table 1", "by_batch_size": reported})
    arguments = ("--devices", "1", "--batches", "25,100,200", "--target", "mine.yaml")
    facts = planned(ask, *arguments)
    assert [(one.reported, one.short) for one in facts.points] == [(92, False), (90, False), (66.04, True)]
    assert (facts.optimizer, facts.target_optimizer, facts.target_score) == ("sgd", "lars", 90)
    assert facts.unchecked == []
    _, out, _ = ask("tiny.yaml", "--machine", "cluster.yaml", *arguments)
    said = " ".join(out.split())
    assert "points are of lars, the recipe trains by sgd" in said
    assert (
        "short: the recipe's own source (Who 2017, table 1) ends below accuracy 90 % there, with 66.04 % at 200" in said
    )
    assert [("short" in line) for line in out.split("\n\n")[1].splitlines()[1:]] == [False, False, True]
    _, out, _ = ask("tiny.yaml", "--machine", "cluster.yaml", "--devices", "1", "--batches", "25,200")
    assert "(Who 2017, table 1) reports accuracy 92 % at 25 and 66.04 % at 200" in " ".join(out.split())


def test_what_points_do_not_say_was_not_checked(ask):
    facts = planned(ask, "--devices", "1", "--target", "points.yaml")
    assert facts.unchecked == [
        "points.yaml does not say of which model it is: that it is mlp was not checked",
        "points.yaml does not say of which data it is: that they are digits was not checked",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"{name: mlp, width: 16, depth: 1}": "{name: timm/resnet18}"},
            "is of model timm/resnet18, and the recipe trains mlp",
        ),
        ({"width: 16": "width: 64"}, "is of model mlp with width 64, and the recipe has model.width = 16"),
        ({"{name: digits}": "{name: mnist}"}, "is of data mnist, and the recipe trains on digits"),
        ({"{name: mlp, width: 16, depth: 1}": "{width: 16}"}, "model should have a name"),
        ({"{accuracy_percent: 90}": "{accuracy_percent: high}"}, "score.accuracy_percent = 'high'"),
    ],
)  # fmt: skip
def test_a_target_of_something_else_is_refused(ask, changed, said):
    text = AGREEING
    for before, after in changed.items():
        text = text.replace(before, after)
    Path("mine.yaml").write_text(text)
    code, _, err = ask("tiny.yaml", "--machine", "cluster.yaml", "--devices", "1", "--target", "mine.yaml")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_a_pace_of_the_model_in_another_precision_is_its_own():
    run = config.load(REPOSITORY / "configs" / "bert" / "lamb2019.yaml")
    lengths = [str(run.data.length)] if run.data.length else []
    assert all(is_pace_of(run, name) for name in ("bert", "bert_fp32", "_".join(["bert", "large", *lengths])))
    assert not any(is_pace_of(run, name) for name in ("bert_base", "resnet50", "bert_large_fast", "resnet50_fp32"))


def test_a_borrowed_pace_has_no_interval(ask):
    paces = {"mlp": {**PACE, "intervals": {"per_example": [0.9e-3, 1.1e-3]}}}
    Path("cluster.yaml").write_text(yaml.safe_dump(machine_file(workloads=paces)))
    own = planned(ask, "--devices", "1", "--target", "points.yaml").points[0]
    assert own.hours_low is not None
    paces = {"small": paces["mlp"]}
    Path("cluster.yaml").write_text(yaml.safe_dump(machine_file(workloads=paces)))
    facts = planned(ask, "--devices", "1", "--target", "points.yaml", "--workload", "small")
    lent = facts.points[0]
    assert lent.phases[0].borrowed
    assert (lent.hours, lent.hours_low, lent.hours_high) == (own.hours, None, None)
    assert any("borrowed from small by --workload" in sentence for sentence in facts.sure)


def test_a_recipe_is_found_by_its_name(ask):
    Path("configs/mine").mkdir(parents=True)
    Path("tiny.yaml").rename("configs/mine/tiny.yaml")
    code, _, err = ask("mine/tiny", "--machine", "cluster.yaml", "--devices", "1", "--json", "plan.json")
    assert (code, err) == (0, "")
    assert "train configs/mine/tiny.yaml" in json.loads(Path("plan.json").read_text())["lines"][0]
    code, _, err = ask("mine/tina")
    assert code == 2
    assert "did you mean mine/tiny?" in err


def test_what_is_left_out_has_the_reason_of_its_own_devices(ask):
    _, out, _ = ask("tiny.yaml", "--machine", "cluster.yaml", "--devices", "1..16", "--batches", "100")
    assert "left out: batch 100 on 8 and 16: on 8, " in " ".join(out.split())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_has_room_and_the_picture_is_drawn(ask, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = ask(
        "tiny.yaml", "--machine", "cluster.yaml", "--devices", "1..4", "--target", "points.yaml", "--price", "2",
        "--picture", "plan.svg",
    )  # fmt: skip
    assert code == 0
    table = out.split("\n\n")[1]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= width
    heading, *lines = table.splitlines()
    assert ("95 %" in heading) == (width == 120)
    assert ("eff." in heading) == (width > 40)
    assert heading.split()[:2] == ["devices", "batch"]
    assert lines[0].split()[:2] == ["1", "25"]
    assert "no room for: " in table or width == 120
    assert "batch 100" in Path("plan.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "48", "--batches", "100"], "does not factor into so many; nearest that do: 20 or 100"),
        (["--devices", "6"], "nearest: 4 or 8"),
        (["--devices", "1", "--machine", "nowhere"], "machine nowhere is neither a file, MACHINE.yaml, nor known"),
        (["--devices", "1", "--budget", "5"], "--budget 5 needs --price P"),
        (["--devices", "1", "--price", "-1"], "--price -1 must be above 0"),
        (["--devices", "1", "--within", "soon"], "is no time"),
        (["--devices", "1", "--within", "0.001s"], "--within 0.001 s: the fastest takes"),
        (["--devices", "1", "--epochs", "3"], "need --critical-batch N"),
        (["--devices", "1", "--target", "points.yaml", "--critical-batch", "9"], "give one of them"),
        (["--devices", "1", "--target", "one.yaml"], "has 1 batch size at which the target was reached"),
        (["--devices", "1", "--target", "mlperf/resnet"], "did you mean mlperf/resnet50?"),
        (["--devices", "1", "--workload", "vit"], "cluster has no pace of vit"),
        (["--devices", "1", "--device-hours", "9"], "--restart is missing"),
        (["--devices", "1", "--lag", "9"], "--lag 9 is of saves that failures undo, and needs --device-hours H"),
        (["--devices", "1", "--row", "lars"], "--row lars chooses a row of a study, and needs --target"),
        (["--devices", "1", "--price", "1e20"], "--price 1e+20 must be above 0 and below 1e+15"),
        (["--devices", "8..7"], "--devices 8..7 should ascend from 1 or more"),
        (["--devices", "1", "model={name: tiny_cnn}"], "machine cluster has no pace of tiny_cnn; it has: mlp"),
        (["--devices", "1", "model={name: timm/mlp}"], "--workload mlp takes the closest"),
        (["--devices", "1", "--machine", "wrong.yaml"], "inside.bandwidth = -1"),
        (["--devices", "1", "--machine", "short.yaml"], "devices_per_node is missing"),
        (["--machine", "cluster.yaml"], "plan needs --devices"),
    ],
)
def test_mistakes_are_one_sentence(ask, arguments, said):
    Path("one.yaml").write_text("title: x\npoints:\n  25: {examples: {1000: 1}}\n")
    Path("wrong.yaml").write_text(yaml.safe_dump(machine_file(inside={"bandwidth": -1})))
    Path("short.yaml").write_text(yaml.safe_dump({k: v for k, v in machine_file().items() if k != "devices_per_node"}))
    if "--machine" not in arguments:
        arguments = ["--machine", "cluster.yaml", *arguments]
    code, _, err = ask("tiny.yaml", *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_word_that_is_neither_recipe_nor_command(ask):
    code, _, err = ask("simulat")
    assert code == 2
    assert "did you mean simulate?" in err


def test_a_run_of_another_length_is_said_to_be(ask):
    arguments = ("tiny.yaml", "--machine", "cluster.yaml", "--devices", "1", "--batches", "100")
    code, out, _ = ask(*arguments, "--target", "points.yaml")
    assert code == 0
    assert "the recipe is of 2 epochs: with epochs=1.333 its learning rates are others" in out
    assert "the recipe is of" not in ask(*arguments)[1]
