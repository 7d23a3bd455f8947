"""lb.recipe, lb.decide, lb.train, lb.evaluate, lb.load, lb.compare in this process, and what they leave behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from worlds.own_parts import RECIPE, ByGlobalState, OnlyNumber, Pairs, SameSide, TwoInputs, dataset_of, run_of

import largebatch as lb
from largebatch import optim
from largebatch.api.training import command
from largebatch.plan.batch import resolve
from largebatch.run import parts as parts_of_a_run
from largebatch.run import train as training


def trained(folder: Path, **keys: Any) -> tuple[lb.Result, TwoInputs]:
    model = TwoInputs()
    return lb.train(run_of(folder, **keys), model=model, dataset=dataset_of()), model


@pytest.mark.worlds
def test_importing_it_loads_no_torch():
    program = (
        "import sys, largebatch as lb; lb.recipe('quickstart/lamb2019'); lb.decide('quickstart/lamb2019'); "
        "assert 'torch' not in sys.modules; assert lb.train"
    )
    # a process: what this one has imported says nothing
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_all_names_are_there_and_others_are_not():
    for name in lb.__all__:
        assert getattr(lb, name) is not None
    assert set(lb.__all__) == set(lb._ROOMS) | set(lb._MODULES)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lb.nothing  # noqa: B018


def test_the_module_has_the_weights_of_the_end_and_a_second_call_reads_them(tmp_path):
    result, model = trained(tmp_path / "run")
    before = TwoInputs().state_dict()
    assert result.status == "finished"
    assert result.record.steps == 10
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    again, same = trained(tmp_path / "run")
    assert again.record == result.record
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)


def test_it_trains_what_a_plain_loop_of_torch_trains(tmp_path):
    """The same batches, the mean loss, LAMB of use alone, in float64."""
    _, model = trained(tmp_path / "run", precision="fp64")
    plain, task = TwoInputs().double(), SameSide()
    plan = resolve(dataset_size=240, global_batch_size=48, epochs=2)
    decided = lb.decide(run_of(tmp_path / "other"), examples=240)
    table = optim.treatments(plain, ["norm", "bias"], ["norm", "bias"])
    optimizer = optim.Lamb(optim.parameter_groups(plain, 0.01, table), lr=1.0)
    items = Pairs()
    for step in range(plan.steps):
        batch = torch.utils.data.default_collate([items[int(index)] for index in plan.examples_of(step).indices])
        (task.loss(task.forward(plain, batch), batch) / 48).backward()
        for group in optimizer.param_groups:
            group["lr"] = decided.lr_at(plan.examples_before(step))
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].double(), tensor, rtol=1e-6, atol=1e-7)  # kept as float32


def test_the_process_is_left_as_it_was_found(tmp_path, capfd):
    def found() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002
            random.getstate(),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.distributed.is_initialized(),
            dict(os.environ),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.is_grad_enabled(),
        )

    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    model, other = TwoInputs(), nn.Linear(1, 1)
    before = found()
    data = lb.Dataset(ByGlobalState(), Pairs(50), task=SameSide())
    run = run_of(tmp_path / "run", deterministic=True)
    assert lb.train(run, model=model, dataset=data).status == "finished"
    lb.evaluate(run, model=model, dataset=data)
    assert found() == before
    assert capfd.readouterr() == ("", "")
    with pytest.raises(lb.UserError):
        lb.train(run_of(tmp_path / "bad"), model=other, dataset=data)
    assert found() == before


class LastIsNone(Pairs):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index) if index < 239 else None


def test_an_item_that_cannot_be_read_leaves_no_group_of_one(tmp_path):
    data = lb.Dataset(LastIsNone(), Pairs(50), task=SameSide())
    with pytest.raises(lb.UserError, match="239 of the training set"):
        lb.train(run_of(tmp_path / "run", engine__name="fsdp"), model=TwoInputs(), dataset=data)
    assert not torch.distributed.is_initialized()


def test_it_prints_where_asked(tmp_path, capsys):
    lb.train(run_of(tmp_path / "run"), model=TwoInputs(), dataset=dataset_of(), verbose=True)
    assert "own/TwoInputs" in capsys.readouterr().out


def test_random_states_of_the_script_do_not_matter(tmp_path):
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        weights.append(trained(tmp_path / str(seed))[1].state_dict())
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name])


class Interrupts(lb.Part):
    """A Ctrl-C in the middle of step 4."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def with_gradient(self, turn: Any) -> None:
        if turn.number == 3:
            signal.raise_signal(signal.SIGINT)


def test_control_c_stops_after_the_step_and_returns_and_the_same_call_goes_on(tmp_path):
    model = TwoInputs()
    stopped = lb.train(run_of(tmp_path / "run"), model=model, dataset=dataset_of(), parts={"interrupts": Interrupts})
    assert (stopped.status, stopped.signal) == ("stopped", signal.SIGINT)
    assert "after step 4" in str(stopped.reason)
    finished = lb.train(run_of(tmp_path / "run"), model=model, dataset=dataset_of())
    assert finished.status == "finished"
    _, straight = trained(tmp_path / "straight")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_it_runs_in_a_thread_where_no_signal_arrives(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(trained(tmp_path / "run")[0].status))
    thread.start()
    thread.join()
    assert ended == ["finished"]


def test_one_thread_trains_at_a_time(tmp_path):
    refused = []

    class Another(lb.Part):
        def __init__(self, job: Any) -> None:
            thread = threading.Thread(target=self.train)
            thread.start()
            thread.join()

        def train(self) -> None:
            try:
                trained(tmp_path / "other")
            except lb.UserError as error:
                refused.append(str(error))

    run = run_of(tmp_path / "run")
    assert lb.train(run, model=TwoInputs(), dataset=dataset_of(), parts={"a": Another}).status == "finished"
    assert refused[0].startswith("another thread of this process trains already")


@contextlib.contextmanager
def number_format(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == dtype
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(name: str) -> Any:
    torch.set_default_device(name)
    try:
        yield
    finally:
        assert torch.get_default_device() == torch.device(name)
        torch.set_default_device(None)


SURROUNDINGS = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": functools.partial(number_format, torch.float64),
    "another device": functools.partial(default_device, "meta"),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_a_script_has_switched_on_does_not_reach_a_run(tmp_path, name):
    model, other = TwoInputs(), TwoInputs()
    with SURROUNDINGS[name]():
        lb.train(run_of(tmp_path / "run"), model=model, dataset=dataset_of())
    lb.train(run_of(tmp_path / "plain"), model=other, dataset=dataset_of())
    for there, here in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(there, here)


def test_a_module_in_half_precision_is_trained_as_the_recipe_says_and_stays_so(tmp_path):
    model = TwoInputs().bfloat16()
    assert lb.train(run_of(tmp_path / "run"), model=model, dataset=dataset_of()).status == "finished"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_task_of_ones_own_says_what_labels_are(tmp_path):
    """Arrays whose labels are no classes, in a set that does not say what it is for."""
    numbers = np.random.Generator(np.random.PCG64(1)).normal(size=(240, 4)).astype("f")
    sides = {"left": numbers, "right": numbers[:, :3], "label": np.sign(numbers[:, 0]).astype(int)}
    data = lb.Dataset(sides, sides, columns=("left", "right", "label"), outputs=2)
    run = run_of(tmp_path / "run")
    assert lb.train(run, model=TwoInputs(), dataset=data, task=Hinge()).status == "finished"


class Hinge(SameSide):
    def forward(self, model: Any, batch: Any) -> Any:
        return model(batch[0], batch[1])[:, 0]

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        return torch.relu(1 - batch[2] * outputs).sum()

    def tally(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(outputs, batch), "right": (outputs * batch[2] > 0).sum()}


def test_records_say_which_code_it_was_and_a_resume_with_other_code_says_so(tmp_path, monkeypatch):
    lb.train(run_of(tmp_path / "run"), model=TwoInputs(), dataset=dataset_of(), parts={"interrupts": Interrupts})
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    newest = sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "manifest.json"
    for code in (plan["code"], json.loads(newest.read_text())["code"]):
        assert {key: Path(value["file"]).name for key, value in code.items()} == {
            "model.name": "own_parts.py",
            "data.name": "own_parts.py",
            "task.name": "own_parts.py",
            "parts.interrupts": "test_train.py",
        }
        assert all(len(value["sha256"]) == 64 for value in code.values())
    other = {**plan["code"], "model.name": {**plan["code"]["model.name"], "sha256": "0" * 64}}
    monkeypatch.setattr(parts_of_a_run, "told_code", lambda job, added: other)
    trained(tmp_path / "run")
    log = (tmp_path / "run/train.log").read_text()
    assert "the code of model.name is not that any more which the run was made with" in log
    assert "the code of task.name" not in log


def test_a_finished_run_of_other_code_says_so(tmp_path, monkeypatch):
    """Else whoever mends a part in a script, and calls it again, would read the old one's numbers as the new one's."""
    result, _ = trained(tmp_path / "run")
    again, _ = trained(tmp_path / "run")
    assert (result.reason, again.reason) == (None, None)
    assert str(again) == str(result)
    assert str(result).startswith(f"right {result.reached:.2f} % on test after 10 steps, ")
    assert str(result).endswith(f"; {tmp_path / 'run'}")
    code = json.loads((tmp_path / "run/plan.json").read_text())["code"]
    other = {**code, "task.name": {**code["task.name"], "sha256": "0" * 64}}
    monkeypatch.setattr(training, "told_code", lambda job, added: other)
    again, _ = trained(tmp_path / "run")
    assert again.record == result.record
    assert re.fullmatch(
        r"the code of task.name is not that any more which the run was made with \(worlds.own_parts.SameSide, .*"
        r"own_parts.py\); nothing is trained anew, unless in another record.dir",
        str(again.reason),
    )
    assert str(again).endswith(str(again.reason))


def test_a_model_of_another_name_is_another_run(tmp_path):
    trained(tmp_path / "run")
    with pytest.raises(lb.UserError, match=r"model.name: own/TwoInputs there, own/Linear here"):
        lb.train(
            run_of(tmp_path / "run"), model=functools.partial(nn.Linear, 4, 2), dataset=dataset_of(task=OneInput())
        )


class OneInput(SameSide):
    def forward(self, model: Any, batch: Any) -> Any:
        return model(batch["left"])


def refusing_no_rate(groups: Any, lr: float) -> torch.optim.Optimizer:
    """A warm-up begins with none."""
    assert lr > 0
    return torch.optim.SGD(groups, lr=lr)


@pytest.mark.parametrize(
    ("builder", "keys"),
    [
        (torch.optim.Adagrad, {"lr_decay": 0}),
        (functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True), {"momentum": 0.9, "nesterov": True}),
        (lambda groups, lr: torch.optim.RMSprop(groups, lr=lr), {}),
        (lambda groups, lr, name="x", build=1, _own=2: torch.optim.SGD(groups, lr=lr), {}),
        (refusing_no_rate, {}),
    ],
)
def test_any_builder_of_an_optimizer(tmp_path, builder, keys):
    model = TwoInputs()
    result = lb.train(run_of(tmp_path / "run"), model=model, dataset=dataset_of(), optimizer=builder)
    assert result.status == "finished"
    written = lb.load(tmp_path / "run").recipe
    for key, value in keys.items():
        assert f"{key}: {json.dumps(value)}" in written


def test_a_recipe_need_not_name_what_is_handed_over(tmp_path):
    run = {**RECIPE, "record": {"dir": str(tmp_path / "run"), "to": []}}
    without = {key: value for key, value in run.items() if key != "optimizer"}
    assert lb.train(without, model=TwoInputs, dataset=dataset_of(), optimizer=torch.optim.AdamW).status == "finished"


def test_what_no_recipe_can_have_is_gone_after_it_is_refused(tmp_path, monkeypatch):
    def refuse() -> None:
        if "own/dict" in lb.optimizers.REGISTRY.parts:
            raise ValueError("no section")

    registry = lb.optimizers.REGISTRY
    monkeypatch.setattr(registry, "made", lambda name, thing: object())
    monkeypatch.setattr(registry, "listeners", [refuse])
    with pytest.raises(lb.UserError, match="optimizer.name = own/dict fits no recipe: no section"):
        lb.train(run_of(tmp_path / "run"), model=TwoInputs(), dataset=dataset_of(), optimizer=dict)
    assert "own/dict" not in registry.parts


VALUES = [
    ({"lr.base": np.float32(0.5)}, "lr.base", 0.5),
    ({"epochs": np.int64(3)}, "epochs", 3.0),
    ({"lr": {"base": torch.tensor(0.5)}}, "lr", {"base": 0.5}),
    ({"record.dir": Path("a/b")}, "record", {"dir": "a/b"}),
    ({"deterministic": np.bool_(True)}, "deterministic", True),
]


@pytest.mark.parametrize(("keys", "key", "value"), VALUES, ids=[next(iter(keys)) for keys, *_ in VALUES])
def test_numbers_of_numpy_and_paths_are_values(keys, key, value):
    whole = {name: part for name, part in RECIPE.items() if name not in ("lr", "record")}
    whole |= {"lr": {"base": 0.1}}
    for run in (lb.recipe(whole, keys), lb.recipe({**whole, **keys})):
        set_, _, last = key.partition(".")
        found = run.as_set()[set_]
        assert (found[last] if last else found) == value


@pytest.mark.parametrize(
    ("source", "overrides", "sentence"),
    [
        (RECIPE, {"lr.base": object()}, "lr.base is a object, and a recipe holds numbers"),
        (RECIPE, [3], "should be a dict, or a list of texts"),
        (RECIPE, 5, "should be a dict, or a list of texts"),
        ({**RECIPE, "model": None}, (), "model = None is a value where keys are expected"),
        ({**RECIPE, 3: 4}, (), "'3' is no key"),
    ],
)
def test_a_recipe_of_odd_values_is_one_sentence(source, overrides, sentence):
    with pytest.raises(lb.UserError, match=sentence):
        lb.recipe(source, overrides)


def test_curves_and_results_are_lists_and_frames(tmp_path):
    result, _ = trained(tmp_path / "run")
    run = lb.load(tmp_path / "run")
    curve = run.curve("test_right_percent")
    assert (curve.steps, curve.epochs) == ([5, 10], [1.0, 2.0])
    assert curve.values[-1] == run.score == result.reached == run.result["test_right_percent"]
    assert len(run.curve("loss").values) == 10
    assert run.status == "finished"
    assert run.plan["steps"] == 10
    with pytest.raises(lb.UserError, match="did you mean test_right_percent"):
        run.curve("test_right_per_cent")
    pytest.importorskip("pandas")
    assert curve.frame().columns.tolist() == ["step", "examples_seen", "epoch", "seconds", "test_right_percent"]
    frame = run.frame()
    assert len(frame) == 10
    assert frame["test_right_percent"].count() == 2
    assert frame["loss"].tolist() == run.curve("loss").values


def test_without_pandas_a_frame_is_one_sentence(tmp_path, monkeypatch):
    trained(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(lb.UserError, match="a frame needs pandas"):
        lb.load(tmp_path / "run").frame()


def test_a_comparison_with_own_parts(tmp_path):
    runs = [
        lb.recipe({**RECIPE, "name": name}, {"batch.global_batch_size": size})
        for name, size in (("small", 24), ("large", 80))
    ]
    seen = lb.compare(runs, tmp_path / "out", seeds=2, model=TwoInputs(), dataset=dataset_of())
    assert [(row.label, row.global_batch_size, row.reached.n) for row in seen.rows] == [
        ("small", 24, 2),
        ("large", 80, 2),
    ]
    assert seen.baseline.label == "small"
    assert (tmp_path / "out/report.html").is_file()


def test_a_decision_needs_no_data(tmp_path):
    decided = lb.decide(RECIPE, examples=4800, world_size=4)
    assert (decided.plan.steps, decided.plan.micro_batch_size) == (200, 12)
    with pytest.raises(lb.UserError, match="give examples="):
        lb.decide(RECIPE)


MEAN = "the loss of Mean is a mean: "


class Mean(SameSide):
    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        return super().loss(outputs, batch) / len(batch["label"])


class Scoreless(lb.Task):
    loss, tally, numbers = SameSide.loss, SameSide.tally, SameSide.numbers


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "the recipe names no model; give model=, or model.name"),
    ({"dataset": None}, "the recipe names no data; give dataset=, or data.name"),
    ({"dataset": Pairs()}, r"dataset is a Pairs; it should be a largebatch.Dataset\(train, test\)"),
    ({"model": 3}, "model.name = own/int is a int; it should be a module or a function of one"),
    ({"model": lambda: 3}, "the builder of model.name = own/lambda gives a int; it should give a module"),
    ({"model": lambda: 1 / 0}, "model own/lambda cannot be built with these data: division by zero"),
    ({"model": nn.LazyLinear(2)}, "the model has lazy layers"),
    ({"model": nn.Linear(9, 2)}, "model own/Linear does not take .*"),
    ({"task": Mean()}, MEAN),
    ({"task": 3}, "task.name = own/int is a int; it should be a largebatch.Task"),
    ({"task": Scoreless()}, "task.name = own/Scoreless has no score; it should be a largebatch.Score"),
    ({"parts": [lb.Part]}, r"parts is a list; it should be \{name: function of the built job"),
    ({"parts": {"mine": lb.Part()}}, "parts: mine is a Part; it should be {name: function"),
    ({"parts": {"mine": lambda job: None}}, "parts: mine is made a NoneType; it should be {name: function"),
    ({"optimizer": 3}, "optimizer.name = own/int is a int; it should take parameter groups and lr"),
    ({"optimizer": lambda groups, lr: 3}, "optimizer.name = own/lambda is built as a int"),
    ({"optimizer": torch.optim.LBFGS}, "LBFGS"),
    ({"optimizer": dict}, "optimizer.name = own/dict is no builder that takes parameter groups and lr"),
    (
        {"optimizer": lambda groups, lr: torch.optim.SGD([w for group in groups for w in group["params"]], lr=lr)},
        "is built with other parameter groups than its builder was given",
    ),
    ({"optimizer": lambda groups, lr: torch.optim.SGD(groups[:1], lr=lr)}, "or some of the weights, would be left out"),
    ({"dataset": lb.Dataset(Pairs(), OnlyNumber(50), task=SameSide())}, "own/TwoInputs does not take"),
]


@pytest.mark.parametrize(("parts", "sentence"), MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence(tmp_path, parts, sentence):
    handed = {"model": TwoInputs(), "dataset": dataset_of(), **parts}
    with pytest.raises(lb.UserError, match=sentence) as caught:
        lb.train(run_of(tmp_path / "run"), **handed)
    assert "\n" not in str(caught.value)
    assert caught.value._render_traceback_() == [str(caught.value)]  # in a notebook


def test_a_recipe_takes_what_scripts_have_at_hand():
    """Numbers of numpy and torch, paths, tuples; in keys and in overrides."""
    keys = {
        "lr.base": np.float32(0.5),
        "epochs": np.int64(3),
        "batch": {"global_batch_size": torch.tensor(24)},
        "record.dir": Path("runs") / "x",
        "weight_decay.skip": ("norm", "*.scale"),
    }
    for run in (lb.recipe({**RECIPE, **keys}), lb.recipe(RECIPE, keys)):
        assert (run.lr.base, run.epochs, run.batch.global_batch_size) == (0.5, 3, 24)
        assert (run.directory, run.weight_decay.skip) == (Path("runs/x"), ("norm", "*.scale"))


@pytest.mark.parametrize("key", ["model", "model.name", "optimizer", "lr.base", "batch.global_batch_size"])
def test_a_recipe_holds_no_objects(key):
    part = {"model": "model", "optimizer": "optimizer"}.get(key.partition(".")[0])
    hint = f"; hand it over as lb.train(run, {part}=...)" if part else ""
    sentence = f"{key} is a Linear, and a recipe holds numbers, text, lists and keys{hint}"
    for written in (({**RECIPE, key: nn.Linear(1, 1)},), (RECIPE, {key: nn.Linear(1, 1)})):
        with pytest.raises(lb.UserError, match=f"^{re.escape(sentence)}$"):
            lb.recipe(*written)


def test_a_record_says_what_started_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["my script.py", "--now"])
    assert command() == "python 'my script.py' --now"
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert command() == "typed into a session"


def test_an_optimizer_that_no_engine_may_cut_is_refused_there(tmp_path):
    section = lb.optimizers.Optimizer
    assert section.SHARD_SAFE is False
    run = lb.recipe(run_of(tmp_path / "run"), {"engine.name": "fsdp"})
    with pytest.raises(lb.UserError, match="is not known to give the same result"):
        lb.train(run, model=TwoInputs(), dataset=dataset_of(), optimizer=torch.optim.Adafactor)


def test_the_critical_batch_of_parts_of_ones_own(tmp_path):
    """A builder has to be told how its lr follows the batch; the module and the random states stay as they were."""
    run = run_of(tmp_path / "run", lr={"base": 0.02}, checkpoint={"every_epochs": 1, "keep": {"last": 2}})
    model, builder = TwoInputs(), functools.partial(torch.optim.SGD, momentum=0.9)
    handed: dict[str, Any] = {"model": model, "dataset": dataset_of(), "optimizer": builder}
    assert lb.train(run, **handed).status == "finished"
    asked: dict[str, Any] = {"factors": (1, 2), "steps": (5,), "orders": 2, "window": 192}
    before, states = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(lb.UserError, match="does not say how its lr follows the batch; state --lr-rule"):
        lb.critical_batch(run, **handed, **asked)
    record = lb.critical_batch(run, **handed, **asked, lr_rule="linear")
    (point,) = record.points
    assert (point.step, point.global_batch_size, record.model) == (5, 48, "own/TwoInputs")
    assert [row.lr for row in point.branches] == [0.02, 0.04]
    assert point.noise_scale_low is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[name], value) for name, value in model.state_dict().items())
