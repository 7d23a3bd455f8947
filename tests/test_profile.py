"""``record.profile``: the steps asked for are traced, what is counted is what they did, the run stays the same."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from beside import beside
from programs import Killed, killed_at, weights_at_end
from small_runs import recipe_of

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records.looking import ProfileRecord
from largebatch.records.typed import read
from largebatch.run.train import train

MICRO, ACCUMULATED, LAYERS = 25, 4, 2  # of a step of 100; linear layers of the tiny network


def run_of(folder: Path, profile: Any, **keys: Any) -> config.Run:
    written = recipe_of(folder, **{"batch": {"global_batch_size": 100, "micro_batch_size": MICRO}, **keys})
    written["record"] |= {"every_steps": 4, **({} if profile is None else {"profile": profile})}
    return config.from_dict(written)


def trained(folder: Path, profile: Any, **keys: Any) -> Path:
    ended = train(run_of(folder, profile, **keys), quiet=True)
    assert ended.status == "finished", ended.reason
    return folder


def record_of(folder: Path, name: str) -> ProfileRecord:
    file = folder / "profile" / f"{name}.json"
    return read(ProfileRecord, json.loads(file.read_text()), file)


def files(folder: Path) -> set[str]:
    return {file.name for file in (folder / "profile").glob("*")}


def said(folder: Path) -> list[str]:
    return [line for line in (folder / "train.log").read_text().splitlines() if line.startswith("record.profile")]


def events_of(folder: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(folder / "profile" / f"{name}.trace.json.gz") as file:
        return json.load(file)["traceEvents"]


def lines_without_times(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    told = [line for line in lines if line["event"] in ("train", "evaluate")]  # a save ends when the disk has it
    return [{key: line[key] for key in line if "second" not in key} for line in told]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("profile") / "plain", None)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("profile") / "profiled", {"steps": [5, 7]})


@pytest.mark.worlds
def test_a_profiled_run_is_the_same_to_the_last_bit(plain, profiled):
    one, other = weights_at_end(plain), weights_at_end(profiled)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert lines_without_times(plain) == lines_without_times(profiled)


@pytest.mark.worlds
def test_the_trace_holds_these_steps_and_no_other(profiled):
    name = "steps-5-7-rank-0"
    assert files(profiled) == {f"{name}.trace.json.gz", f"{name}.json", f"{name}.txt"}
    events = events_of(profiled, name)
    steps = [e["name"] for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("ProfilerStep#")]
    assert sorted(steps) == ["ProfilerStep#5", "ProfilerStep#6", "ProfilerStep#7"]
    assert any(e["name"] == "aten::addmm" for e in events)


@pytest.mark.worlds
def test_the_table_counts_what_the_network_does(profiled):
    """Each linear layer is one addmm a micro-batch; its backward pass takes another product for each weight, and for
    each input but the network's."""
    record = record_of(profiled, "steps-5-7-rank-0")
    calls = {one.name: one.calls for one in record.operators}
    passes = 3 * ACCUMULATED
    assert calls["aten::addmm"] == LAYERS * passes
    assert calls["aten::mm"] == (2 * LAYERS - 1) * passes
    assert (record.first_step, record.last_step, record.rank, record.world_size) == (5, 7, 0, 1)
    assert record.warmed_up is True
    assert len(record.step_seconds) == 3
    assert record.kernels is None
    assert record.operators[0].device_seconds is None


@pytest.mark.worlds
def test_the_table_agrees_with_the_trace(profiled):
    """The sums again, from the trace alone: calls that begin within the steps, and how long they take."""
    name = "steps-5-7-rank-0"
    events = [e for e in events_of(profiled, name) if e.get("ph") == "X"]
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"].startswith("ProfilerStep#")]
    calls, seconds = Counter(), Counter()
    for event in events:
        if event.get("cat") == "cpu_op" and any(begin <= event["ts"] < end for begin, end in spans):
            calls[event["name"]] += 1
            seconds[event["name"]] += event["dur"] / 1e6
    rows = {one.name: one for one in record_of(profiled, name).operators}
    for operator in ("aten::addmm", "aten::mm", "aten::relu_", "aten::linear"):
        assert rows[operator].calls == calls[operator] > 0
        assert rows[operator].cpu_seconds == pytest.approx(seconds[operator], rel=1e-6, abs=1e-6)
    for one in rows.values():
        assert -1e-9 <= one.self_cpu_seconds <= one.cpu_seconds + 1e-9
    own = [one.self_cpu_seconds for one in rows.values()]
    assert own == sorted(own, reverse=True)
    assert sum(own) <= sum(record_of(profiled, name).step_seconds)


@pytest.mark.worlds
def test_the_text_is_the_record(profiled):
    name = "steps-5-7-rank-0"
    record, text = record_of(profiled, name), (profiled / "profile" / f"{name}.txt").read_text()
    assert "steps 5 to 7, rank 0 of 1, cpu" in text
    line = next(line for line in text.splitlines() if line.endswith("aten::addmm"))
    one = next(one for one in record.operators if one.name == "aten::addmm")
    assert line.split()[0] == f"{one.calls}"
    assert line.split()[1] == f"{1000 * one.self_cpu_seconds:.3f}"
    [sentence] = said(profiled)
    assert "steps 5 to 7 in " in sentence
    assert "ui.perfetto.dev" in sentence
    plan = json.loads((profiled / "plan.json").read_text())
    assert "profiles steps 5 to 7" in plan["methods"]


@pytest.mark.worlds
def test_what_is_evaluated_between_its_steps_is_in_no_table(tmp_path):
    keys = {"evaluate": {"every_epochs": 0.001}, "epochs": 0.4}  # after every step
    folder = trained(tmp_path / "run", {"steps": [2, 4]}, **keys)
    name = "steps-2-4-rank-0"
    assert sum(e["name"] == "aten::addmm" for e in events_of(folder, name)) > LAYERS * 3 * ACCUMULATED
    calls = {one.name: one.calls for one in record_of(folder, name).operators}
    assert calls["aten::addmm"] == LAYERS * 3 * ACCUMULATED


@pytest.mark.worlds
def test_other_steps_meet_no_profiler(tmp_path):
    """It is there from the step before the first one to the end of the last."""
    there = {}

    def look(job: Any, step: Any) -> None:
        there[step.number + 1] = torch._C._autograd._profiler_enabled()

    with beside(with_gradient=look):
        trained(tmp_path / "run", {"steps": [5, 7]}, epochs=1)
    assert [number for number, enabled in there.items() if enabled] == [5, 6, 7]
    assert not torch._C._autograd._profiler_enabled()


@pytest.mark.worlds
@pytest.mark.parametrize("steps", [(1, 1), (1, 3), (15, 15)])
def test_at_the_edges_of_a_run(tmp_path, steps):
    folder = trained(tmp_path / "run", {"steps": list(steps)}, epochs=1)
    record = record_of(folder, f"steps-{steps[0]}-{steps[1]}-rank-0")
    assert record.warmed_up is (steps[0] > 1)
    calls = {one.name: one.calls for one in record.operators}
    assert calls["aten::addmm"] == LAYERS * ACCUMULATED * (steps[1] - steps[0] + 1)


@pytest.mark.worlds
def test_a_range_beyond_the_run_is_told_beforehand(tmp_path):
    folder = trained(tmp_path / "cut", {"steps": [14, 20]}, epochs=1)
    plan = json.loads((folder / "plan.json").read_text())
    assert "profiles steps 14 to 15, where the run ends, of 14 to 20" in plan["methods"]
    assert record_of(folder, "steps-14-15-rank-0").last_step == 15
    folder = trained(tmp_path / "beyond", {"steps": [100, 105]}, epochs=1)
    plan = json.loads((folder / "plan.json").read_text())
    assert "profiles no step: steps 100 to 105 lie beyond the run's last, 15" in plan["methods"]
    assert not files(folder)


@pytest.mark.worlds
def test_a_run_killed_in_the_middle_profiles_the_rest(tmp_path, plain):
    """Killed before step 18; its checkpoint is of step 15."""
    run = run_of(tmp_path / "run", {"steps": [14, 20]})
    with pytest.raises(Killed), killed_at(17):
        train(run, quiet=True)
    assert not torch._C._autograd._profiler_enabled()
    assert record_of(run.directory, "steps-14-17-rank-0").last_step == 17  # what a kill left time for
    assert train(run, quiet=True).status == "finished"
    record = record_of(run.directory, "steps-16-20-rank-0")
    assert (record.first_step, record.last_step, record.warmed_up) == (16, 20, False)
    assert any("of steps 14 to 20 only steps 16 to 20 are profiled, for the run goes on with step 16" in s
               for s in said(run.directory))  # fmt: skip
    one, other = weights_at_end(plain), weights_at_end(run.directory)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.worlds
def test_a_resume_after_the_range_says_so_and_leaves_the_files(tmp_path):
    run = run_of(tmp_path / "run", {"steps": [3, 4]})
    with pytest.raises(Killed), killed_at(17):
        train(run, quiet=True)
    before = {name: (run.directory / "profile" / name).read_bytes() for name in files(run.directory)}
    assert before
    assert train(run, quiet=True).status == "finished"
    assert {name: (run.directory / "profile" / name).read_bytes() for name in files(run.directory)} == before
    assert any("were made before the run went on with step 16; none is profiled now" in s for s in said(run.directory))


@pytest.mark.worlds
def test_a_profile_may_be_asked_of_a_run_that_goes_on(tmp_path):
    """It decides nothing of the result, so it is no other run."""
    with pytest.raises(Killed), killed_at(17):
        train(run_of(tmp_path / "run", None), quiet=True)
    folder = trained(tmp_path / "run", {"steps": [20, 21]})
    assert record_of(folder, "steps-20-21-rank-0").warmed_up is True


@pytest.mark.worlds
def test_through_a_ramp_and_phases(tmp_path):
    ramp = {"batch": {"global_batch_size": 50, "micro_batch_size": 25, "ramp": {"factor": 2, "at_epochs": [0.5]}}}
    plain, folder = trained(tmp_path / "plain", None, **ramp), trained(tmp_path / "run", {"steps": [14, 17]}, **ramp)
    calls = {one.name: one.calls for one in record_of(folder, "steps-14-17-rank-0").operators}
    assert calls["aten::addmm"] == LAYERS * (2 + 2 + 4 + 4)  # 15 steps of 50, then steps of 100
    one, other = weights_at_end(plain), weights_at_end(folder)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.worlds
def test_shapes_of_inputs_tell_calls_apart(tmp_path):
    folder = trained(tmp_path / "run", {"steps": [2, 3], "shapes": True}, epochs=1)
    rows = [one for one in record_of(folder, "steps-2-3-rank-0").operators if one.name == "aten::addmm"]
    assert {one.shapes: one.calls for one in rows} == {
        "[[16], [25, 64], [64, 16], [], []]": 2 * ACCUMULATED,
        "[[10], [25, 16], [16, 10], [], []]": 2 * ACCUMULATED,
    }


@pytest.mark.worlds
def test_lines_of_python_in_the_trace(tmp_path):
    folder = trained(tmp_path / "run", {"steps": [2, 2], "stacks": True}, epochs=1)
    names = {e["name"] for e in events_of(folder, "steps-2-2-rank-0") if e.get("cat") == "python_function"}
    assert any("classification.py" in name for name in names)


@pytest.mark.worlds
def test_a_run_under_somebodys_profiler_goes_on_without(tmp_path):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        folder = trained(tmp_path / "run", {"steps": [2, 3]}, epochs=1)
    assert any("the profiler cannot be started" in sentence for sentence in said(folder))
    assert not files(folder)


@pytest.mark.worlds
def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("a file where the folder should be")
    folder = trained(tmp_path / "run", {"steps": [2, 3]}, epochs=1)
    assert any("the trace cannot be written" in sentence for sentence in said(folder))


@pytest.mark.worlds
def test_a_run_that_fails_leaves_no_profiler_behind(tmp_path):
    def fail(job: Any, step: Any) -> None:
        if step.number == 5:
            raise ValueError("of a part")

    with pytest.raises(ValueError, match="of a part"), beside(with_gradient=fail):
        train(run_of(tmp_path / "run", {"steps": [5, 8]}), quiet=True)
    assert not torch._C._autograd._profiler_enabled()
    assert record_of(tmp_path / "run", "steps-5-5-rank-0").step_seconds
    with pytest.raises(ValueError, match="of a part"), beside(with_gradient=fail):  # ready, and not begun
        train(run_of(tmp_path / "ready", {"steps": [7, 8]}), quiet=True)
    assert not torch._C._autograd._profiler_enabled()
    assert not files(tmp_path / "ready")


@pytest.mark.worlds
@pytest.mark.parametrize("ranks", ["first", "all"])
def test_on_two_ranks(tmp_path, ranks, plain):
    recipe = tmp_path / "two.yaml"
    written = recipe_of(tmp_path / "two", batch={"global_batch_size": 100, "micro_batch_size": MICRO})
    written["record"] |= {"every_steps": 4, "profile": {"steps": [5, 7], "ranks": ranks}}
    recipe.write_text(json.dumps(written))
    ended = pool.ranks(2, "-m", "largebatch", "train", recipe)
    assert ended.returncode == 0, ended.stderr
    wanted = [0, 1] if ranks == "all" else [0]
    assert {name for name in files(tmp_path / "two") if name.endswith(".json")} == {
        f"steps-5-7-rank-{rank}.json" for rank in wanted
    }
    for rank in wanted:
        record = record_of(tmp_path / "two", f"steps-5-7-rank-{rank}")
        assert (record.rank, record.world_size) == (rank, 2)
        assert {one.name: one.calls for one in record.operators}["aten::addmm"] == LAYERS * 3 * ACCUMULATED // 2


@pytest.mark.worlds
def test_a_dry_run_and_a_bench_profile_nothing(tmp_path, front_door):
    recipe = tmp_path / "recipe.yaml"
    written = recipe_of(tmp_path / "run")
    written["record"] |= {"profile": {"steps": [1, 2]}}
    recipe.write_text(json.dumps(written))
    code, printed, complaint = front_door("train", recipe, "--dry-run")
    assert code == 0, complaint
    assert "profiles steps 1 to 2" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"steps": [7, 5]}, r"record\.profile\.steps.*\[7, 5\].*first step and the last one.*5 is before 7"),
        ({"steps": [0, 5]}, r"record\.profile\.steps.*greater than 0"),
        ({"steps": [5]}, r"record\.profile\.steps"),
        ({"steps": 5}, r"record\.profile\.steps"),
        ({"steps": [1.5, 3]}, r"record\.profile\.steps"),
        ({}, r"record\.profile\.steps"),
        ({"steps": [1, 2], "ranks": 1}, r"record\.profile\.ranks"),
        ({"steps": [1, 2], "step": 1}, r"record\.profile\.step"),
        (True, r"record\.profile"),
    ],
)  # fmt: skip
def test_a_slip_is_one_sentence(tmp_path, profile, words):
    with pytest.raises(UserError, match=words) as told:
        run_of(tmp_path / "run", profile)
    assert "\n" not in str(told.value)
