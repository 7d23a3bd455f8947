"""The loop: exact accumulation, honest failure, and signals obeyed after the step."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pool
import pytest
import rich.console
import torch
import typer
from beside import beside
from programs import damage, largebatch, saved, weights_at_end

from largebatch.checkpoint import step_of
from largebatch.cli.runs import end_of_run
from largebatch.errors import UserError
from largebatch.recipes import config, strict_yaml
from largebatch.recipes.decided import Marks
from largebatch.run.train import train
from largebatch.steps.part import Part
from largebatch.tasks.classification import Classification


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return weights_at_end(directory)


def finished(path: Path, *overrides: str) -> Path:
    run = config.load(path, overrides)
    assert train(run, quiet=True).status == "finished"
    return run.directory


def finished_by_a_program(path: Path) -> Path:
    """Of one thread, as the programs that it is compared with bit by bit."""
    ended = largebatch("train", path)
    assert ended.returncode == 0, ended.stderr
    return config.load(path).directory


def lines(directory: Path, event: str) -> list[dict]:
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["event"] == event]


def equal(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> bool:
    return these.keys() == those.keys() and all(torch.equal(these[k], those[k]) for k in these)


@pytest.mark.worlds
def test_a_run_leaves_what_the_report_reads(recipe):
    directory = finished(recipe())
    result = json.loads((directory / "result.json").read_text())
    plan = json.loads((directory / "plan.json").read_text())
    assert (result["status"], result["steps"], result["examples_seen"]) == ("finished", 30, 3000)
    assert result["test_accuracy_percent"] > 80, "it learns digits"
    assert result["train_accuracy_percent"] > 80
    assert (plan["global_batch_size"], plan["accumulation_steps"], plan["lr"]["peak"]) == (100, 1, 0.1)
    assert [line["step"] for line in lines(directory, "train")] == [10, 15, 20, 30]
    assert [(line["split"], line["step"]) for line in lines(directory, "evaluate")] == [
        ("test", 15), ("test", 30), ("train", 30),
    ]  # fmt: skip
    assert config.from_dict(strict_yaml.parse((directory / "run.yaml").read_text(), "run.yaml")) == config.load(
        recipe()
    )


def test_the_loop_is_the_dumb_loop(recipe):
    """Ten steps against ten lines of plain PyTorch in float64: same examples, same lr, same weights."""
    from largebatch import data, models
    from largebatch.plan.order import epoch_order

    directory = finished(recipe(precision="fp64", steps=10, epochs=None, loss={"label_smoothing": 0.1},
                                weight_decay={"value": 0.01, "skip": []}, max_grad_norm=0.5))  # fmt: skip
    split = data.build("digits").train
    model = models.build("mlp", 10, (1, 8, 8), 0, {"width": 16, "depth": 1}).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, 0.9, weight_decay=0.01)
    images, labels = next(
        iter(split.batches(0, 1, len(split), data.Placement(torch.device("cpu"), torch.float64, False)))
    )
    for step in range(10):
        chosen = torch.from_numpy(epoch_order(len(split), 0, 0)[100 * step : 100 * (step + 1)].copy())
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for name, tensor in weights(directory).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-12, atol=1e-14)
    assert lines(directory, "train")[0]["loss"] > loss.item()


@pytest.mark.worlds
@pytest.mark.parametrize("optimizer", ["sgd", "heavy_ball", "lars", "lamb", "adamw"])
def test_accumulation_does_not_change_the_weights(recipe, optimizer):
    whole, parts = (
        weights(finished(recipe(f"micro{micro}", precision="fp64", optimizer={"name": optimizer},
                                batch__micro_batch_size=micro, max_grad_norm=1.0)))
        for micro in (100, 20)
    )  # fmt: skip
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-12, atol=1e-12)


@pytest.mark.worlds
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_finishes_the_step_saves_and_says_so(recipe, number, code):
    path = recipe("stopped", epochs=20)
    directory = config.load(path).directory
    stopped = pool.run("worlds.kills:signalled", int(number), 40, 0, path)
    assert stopped.returncode == code
    result = json.loads((directory / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped", 41)
    assert "after step 41" in stopped.stdout
    assert [line["reason"] for line in lines(directory, "stop")] == [signal.Signals(number).name]
    assert saved(directory)[-1].name == "step-00000041"
    assert "Traceback" not in stopped.stderr
    short = largebatch("train", path, "record.every_steps=1000")
    assert short.returncode == 0
    assert "resumed at step 41 of 300" in short.stdout


@pytest.mark.worlds
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(recipe):
    path = recipe("diverges", lr={"base": 1e30}, checkpoint={"every_epochs": 0.07})
    ended = largebatch("train", path)
    assert ended.returncode == 1
    result = json.loads((config.load(path).directory / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["test_accuracy_percent"] is None
    assert "last good checkpoint: " in result["reason"]
    assert "at lr 1e+30" in ended.stdout
    step = int(result["reason"].split("in step ")[1].split()[0])
    losses = []  # the step that is named is the first whose loss is not finite
    short = recipe("one_by_one", lr={"base": 1e30}, record={"every_steps": 1, "to": [],
                                                           "dir": str(path.parent / "runs" / "steps")})  # fmt: skip
    train(config.load(short), quiet=True)
    losses = [line["loss"] for line in lines(path.parent / "runs" / "steps", "train")]
    assert len(losses) == step - 1
    for path_of_step in saved(config.load(path).directory):
        assert step_of(path_of_step) < step


@pytest.mark.worlds
def test_a_last_update_that_ruins_the_weights_is_a_failure_too(recipe):
    path = recipe("last", lr={"base": 1e30}, steps=1, epochs=None, checkpoint={"every_epochs": 0.01})
    assert largebatch("train", path).returncode == 1
    result = json.loads((config.load(path).directory / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["reason"] == "the test loss is nan after step 1; last good checkpoint: none was saved"


@pytest.mark.worlds
def test_one_process_at_a_time_trains_in_a_run_folder(recipe):
    path, seconds = recipe("twice"), []

    def tries_twice(job, step):
        if step.number == 3:
            seconds.append(largebatch("train", path))

    with beside(before=tries_twice):
        finished(path)
    [second] = seconds
    assert second.returncode == 2
    assert "is being trained in by another process" in second.stderr


@pytest.mark.parametrize("states", [{"kept": print}, {"kept": {1: {2: {3, 4}}}}], ids=["function", "set"])
def test_a_part_that_cannot_be_saved_is_refused_before_time_is_spent(recipe, states):
    class Keeps(Part):
        def save(self):
            return states

    with pytest.raises(
        UserError, match=r"^the part keeps cannot be saved: keeps/kept.*: a checkpoint holds no \w+; valid: te"
    ):
        train(config.load(recipe()), quiet=True, parts={"keeps": lambda job: Keeps()})
    assert not saved(config.load(recipe()).directory)
    nothing_saved = config.load(recipe("unsaved"), ["checkpoint.every_epochs=0", "steps=2"])
    assert train(nothing_saved, quiet=True, parts={"keeps": lambda job: Keeps()}).status == "finished"


def test_parts_are_loaded_in_their_order(recipe):
    names, loaded = [f"part{number}" for number in range(12)], []

    class Notes(Part):
        def __init__(self, name):
            self.name = name

        def save(self):
            return {"name": self.name}

        def load(self, state, of_ranks):
            loaded.append(state["name"])

    def trained(kept):
        parts = {name: lambda job, name=name: Notes(name) for name in kept}
        (config.load(recipe()).directory / "result.json").unlink(missing_ok=True)
        assert train(config.load(recipe(), ["steps=2"]), quiet=True, parts=parts).status == "finished"

    trained(names)
    assert not loaded
    trained([*reversed(names[1:]), "new"])
    assert loaded == [*reversed(names[1:])], "a part may communicate, so every rank loads them alike"


def test_a_part_records_numbers_with_the_loss(recipe):
    class Counts(Part):
        def with_gradient(self, turn):
            turn.numbers["sheep"] = turn.number + 0.5

    run = config.load(recipe(), ["steps=2", "record.every_steps=1"])
    assert train(run, quiet=True, parts={"counts": lambda job: Counts()}).status == "finished"
    assert [line["sheep"] for line in lines(run.directory, "train")] == [0.5, 1.5]


@pytest.mark.parametrize("key", ["step", "examples", "event", "version"])
def test_a_number_that_no_line_could_hold_is_refused_before_time_is_spent(recipe, monkeypatch, key):
    numbers = Classification.numbers
    monkeypatch.setattr(Classification, "numbers", lambda task, sums: {**numbers(task, sums), key: 1.0})
    run = config.load(recipe())
    with pytest.raises(UserError, match=rf"^an evaluation of task.name = classification has a number called {key}, as"):
        train(run, quiet=True)
    assert not run.directory.exists()


def test_a_part_that_cannot_be_saved_any_more_is_a_sentence(recipe):
    class Fills(Part):
        def __init__(self):
            self.kept = {}

        def after(self, step):
            self.kept["all"] = {step.number}

        def save(self):
            return self.kept

    refusal = r"^the run cannot be saved: state/parts/fills/all: a checkpoint holds no set; valid: tensors"
    with pytest.raises(UserError, match=refusal):
        train(config.load(recipe(), ["steps=4"]), quiet=True, parts={"fills": lambda job: Fills()})


def test_a_part_records_under_an_event_of_its_own(recipe):
    class Tells(Part):
        def read(self, recorder):
            recorder.event("distance", step=10, metres=1.5)

    run = config.load(recipe(), ["steps=10"])
    assert train(run, quiet=True, parts={"tells": lambda job: Tells()}).status == "finished"
    lines = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    told = [line for line in lines if line["event"] == "distance"]
    assert told == [{"event": "distance", "version": 1, "step": 10, "metres": 1.5}]


def test_a_run_that_a_newer_largebatch_finished_is_not_trained_on(recipe):
    run = config.load(recipe(), ["steps=3"])
    assert train(run, quiet=True).status == "finished"
    file = run.directory / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))
    with pytest.raises(UserError, match=r"result.json: version is '99'; this largebatch reads versions up to 1"):
        train(run, quiet=True)


@pytest.mark.worlds
def test_a_line_torn_by_a_power_cut_is_dropped_on_resume(recipe):
    path = recipe()
    directory = finished(path)
    (directory / "result.json").unlink()
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "st')
    finished(path)
    assert [line["event"] for line in lines(directory, "resume")] == ["resume"]


@pytest.mark.worlds
def test_a_flipped_bit_is_found_by_its_checksum(recipe):
    path = recipe("flipped", epochs=3)
    directory = finished_by_a_program(path)
    whole = weights(directory)
    damage(saved(directory)[-1])
    (directory / "result.json").unlink()
    again = largebatch("train", path)
    assert "the checksum of" in again.stdout
    assert equal(whole, weights(directory))


@pytest.mark.worlds
def test_a_finished_run_is_not_trained_again_and_another_config_is_refused(recipe):
    path = recipe()
    directory = finished(path)
    before = (directory / "metrics.jsonl").read_text()
    again = largebatch("train", path)
    assert (again.returncode, (directory / "metrics.jsonl").read_text()) == (0, before)
    assert "finished already" in again.stdout
    other = largebatch("train", path, "lr.base=0.2")
    assert other.returncode == 2
    assert "belongs to another config (lr.base: 0.1 there, 0.2 here)" in other.stderr
    with pytest.raises(UserError, match="already holds a run"):
        train(config.load(path, ["resume=never"]))


@pytest.mark.worlds
def test_a_damaged_checkpoint_gives_way_to_the_one_before(recipe):
    path = recipe("damaged", epochs=3)
    directory = finished_by_a_program(path)
    whole = weights(directory)
    before, newest = saved(directory)
    (newest / "rank-00000.safetensors").write_bytes(b"cut off")
    (directory / "result.json").unlink()
    again = largebatch("train", path)
    assert f"checkpoint {newest.name} cannot be read" in again.stdout
    assert f"resumed at step 30 of 45 from {before}" in again.stdout
    assert equal(whole, weights(directory))
    for path_of_step in saved(directory):
        (path_of_step / "manifest.json").write_bytes(b"nothing")
    (directory / "result.json").unlink()
    hopeless = largebatch("train", path)
    assert hopeless.returncode == 2
    assert "no checkpoint" in hopeless.stderr


def test_a_checkpoint_of_another_model_is_refused(recipe):
    first, second = recipe("first"), recipe("second", model={"name": "mlp", "width": 8, "depth": 1})
    finished(first)
    folder = config.load(second).directory
    config.load(first).directory.rename(folder)
    (folder / "result.json").unlink()
    (folder / "run.yaml").write_text((folder / "run.yaml").read_text().replace("width: 16", "width: 8"))
    with pytest.raises(UserError, match="the checkpoint belongs to another model: it has 1.weight of shape"):
        train(config.load(second), quiet=True)


@pytest.mark.worlds
def test_fp16_and_bf16_train_on_the_cpu_too(recipe):
    for precision in ("bf16", "fp16"):
        directory = finished(recipe(precision, precision=precision, max_grad_norm=1.0))
        assert json.loads((directory / "result.json").read_text())["test_accuracy_percent"] > 80


@pytest.mark.worlds
def test_tensorboard_holds_the_same_numbers(recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = finished(recipe("board", record__to=["tensorboard"]))
    board = EventAccumulator(str(directory / "tensorboard")).Reload()
    expected = {line["step"]: line["loss"] for line in lines(directory, "train")}
    assert {s.step: s.value for s in board.Scalars("loss/training")} == pytest.approx(expected)
    assert len(board.Scalars("accuracy_percent/test")) == 2


def test_evaluation_falls_on_the_first_step_of_every_mark():
    from largebatch.plan.batch import resolve

    plan = resolve(dataset_size=100, global_batch_size=30, epochs=3)
    assert Marks(plan, 1.0).steps() == {4, 7, 10}
    assert Marks(plan, 0.5).steps() == {2, 4, 5, 7, 9, 10}
    assert Marks(plan, 100.0).steps() == {10}
    assert Marks(plan, 0).steps() == set()


@pytest.mark.gpu
def test_the_loop_runs_on_cuda(recipe):
    directory = finished(recipe("cuda", device="cuda", model={"name": "tiny_cnn"}))
    plan = json.loads((directory / "plan.json").read_text())
    assert (plan["device"], plan["precision"]) == ("cuda:0", "bf16")
    assert json.loads((directory / "result.json").read_text())["test_accuracy_percent"] > 80


@pytest.mark.worlds
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_learns_the_same(recipe):
    plain, compiled = (finished(recipe(name, compile=name == "compiled", epochs=1)) for name in ("plain", "compiled"))
    assert "_orig_mod" not in "".join(weights(compiled)), "checkpoints keep the model's own names"
    for key, tensor in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.worlds
def test_every_layer_is_recorded_every_so_many_steps_and_changes_nothing(recipe):
    """Trust ratio, weight and update norm by layer in TensorBoard; quantiles and shares in metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"optimizer": {"name": "lars"}, "lr__base": 5.0, "weight_decay": {"value": 1e-3}}
    plain = finished(recipe("plain", **changes))
    watched = finished(recipe("watched", record__layers_every_steps=7, record__to=["tensorboard"], **changes))
    assert equal(weights(plain), weights(watched))
    found = lines(watched, "layers")
    assert [line["step"] for line in found] == [7, 14, 21, 28]
    for line in found:
        assert 0 < line["trust_ratio_min"] <= line["trust_ratio_median"] <= line["trust_ratio_max"] < 1
        assert (line["share_bounded"], line["share_fallback"]) == (0.0, 0.0)
    board = EventAccumulator(str(watched / "tensorboard")).Reload()
    scalars = set(board.Tags()["scalars"])
    assert {"trust_ratio/1.weight", "weight_norm/1.bias", "update_norm/1.weight", "share_fallback/layers"} <= scalars
    assert "trust_ratio/1.bias" not in scalars
    assert [event.step for event in board.Scalars("trust_ratio/1.weight")] == [7, 14, 21, 28]


def test_a_run_prints_which_tensors_are_decayed_and_adapted(recipe, capsys):
    train(config.load(recipe(optimizer={"name": "lamb", "skip_adaptation": []}, steps=2, epochs=None)))
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["weight"], ["bias"])]
    assert [row[:5] for row in rows] == [["weight", "2", "1,184", "yes", "yes"], ["bias", "2", "26", "no", "yes"]]


@pytest.mark.worlds
def test_a_helper_that_died_stops_the_run_after_the_step_and_the_same_command_goes_on(recipe, tmp_path):
    undisturbed = finished(recipe(), f"record.dir={tmp_path}/undisturbed")

    def with_a_death(job, step):
        if step.number == 7:
            job.dataset.helpers.died("one of 8 processes that read the data was killed")

    run = config.load(recipe(), [f"record.dir={tmp_path}/stopped"])
    with beside(before=with_a_death):
        stopped = train(run, quiet=True)
    assert (stopped.status, stopped.signal) == ("stopped", None)
    assert stopped.reason == (
        f"one of 8 processes that read the data was killed; stopped after step 8; saved as {tmp_path}/stopped/"
        "checkpoints/step-00000008, the same command goes on"
    )
    with pytest.raises(typer.Exit) as ended:
        end_of_run(stopped, rich.console.Console(quiet=True))
    assert ended.value.exit_code == 1
    assert train(run, quiet=True).status == "finished"
    assert equal(weights(run.directory), weights(undisturbed))
