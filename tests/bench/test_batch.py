"""The bench makes the trainer's updates, reckons as its docstrings say, and draws it; no test says how fast."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import rich.console
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from largebatch.errors import UserError
from largebatch.plan.order import epoch_order
from largebatch.recipes import config
from largebatch.report import svg
from largebatch.report.alone import write_picture
from largebatch.report.batch_time_figure import draw
from largebatch.run import assemble
from largebatch.run.loop import Loop
from largebatch.studies.bench import batch
from largebatch.studies.bench import updates as updates_
from largebatch.studies.bench.updates import Updates

CPU = torch.device("cpu")
CNN = {"name": "tiny_cnn", "channels": [4, 8]}
OPTIMIZERS = {
    "sgd": {"name": "sgd", "momentum": 0.9},
    "adam": {"name": "adam"},
    "rmsprop": {"name": "rmsprop"},
    "adagrad": {"name": "adagrad"},
    "heavy_ball": {"name": "heavy_ball"},
    "lars": {"name": "lars"},
    "lamb": {"name": "lamb"},
}


def job_of(path, *overrides: str, device: torch.device = CPU) -> assemble.Job:
    return assemble.assemble(config.load(path, overrides), device)


def follow_the_plan(updates: Updates) -> None:
    """The order of a run's first epoch."""
    plan = updates.job.plan
    updates.order.copy_(torch.from_numpy(epoch_order(plan.dataset_size, plan.seed, 0).copy()))
    updates._left = updates.per_epoch


# ---- the updates ----


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizer": optimizer} for optimizer in OPTIMIZERS.values()),
        {"sam": {"rho": 0.05}},
        {"batch__bn_batch_size": 10},
        {"max_grad_norm": 0.1},
    ],
    ids=lambda changes: "-".join(map(str, changes.get("optimizer", changes).values())),
)
@pytest.mark.parametrize("micro", [100, pytest.param(20, marks=pytest.mark.worlds)])
def test_updates_are_those_of_the_trainer(recipe, tmp_path, changes, micro):
    """A run's first epoch, on the same examples in the same order: the same weights and statistics."""
    path = recipe(
        precision="fp64", epochs=1, model=CNN, lr={"base": 0.01}, loss={"label_smoothing": 0.1},
        weight_decay={"value": 0.01}, batch__micro_batch_size=micro, **changes,
    )  # fmt: skip
    trained = job_of(path)
    with Loop(trained, tmp_path, rich.console.Console(quiet=True), quiet=True) as loop:
        loop.train()
    updates = Updates(job_of(path))
    start = {key: value.clone() for key, value in updates.job.engine.model.state_dict().items()}
    follow_the_plan(updates)
    for _ in range(15):
        updates.call()
    moved = updates.job.engine.model.state_dict()
    for key, wanted in trained.engine.model.state_dict().items():
        torch.testing.assert_close(moved[key], wanted, rtol=1e-12, atol=1e-12)
        assert not torch.equal(moved[key], start[key]), key


@pytest.mark.parametrize(("size", "per_epoch"), [(100, 15), (700, 3)])
def test_every_example_is_met_once_an_epoch_in_an_order_of_its_own(recipe, size, per_epoch):
    updates = Updates(job_of(recipe(batch={"global_batch_size": size, "micro_batch_size": size // 10})))
    met: list[torch.Tensor] = []
    updates.steps.take = lambda turn: met.append(torch.cat([x for x, _ in turn.micro_batches]))
    for _ in range(2 * per_epoch):
        updates.call()
    assert updates.per_epoch == per_epoch
    assert all(len(images) == size for images in met)
    epochs = [torch.cat(met[:per_epoch])[:1500], torch.cat(met[per_epoch:])[:1500]]
    assert not torch.equal(*epochs)
    if 1500 % size == 0:
        images, _ = updates.job.dataset.train.resident(CPU)
        (mean,), (std,) = updates.job.dataset.train.statistics
        wanted = ((images / 255 - mean) / std).sum((1, 2, 3)).sort().values
        for epoch in epochs:
            torch.testing.assert_close(epoch.sum((1, 2, 3)).sort().values, wanted)


class Replayed:
    """Stands for a CUDA graph of several updates."""

    def __init__(self, updates: Updates, count: int) -> None:
        self.updates, self.count = updates, count

    def replay(self) -> None:
        for _ in range(self.count):
            self.updates.one()


def test_a_graph_makes_the_updates_of_a_call_and_epochs_are_shuffled_between_calls(recipe):
    updates = Updates(job_of(recipe()))
    updates.graph, updates.per_call = Replayed(updates, 5), 5  # type: ignore[assignment]
    places, orders = [], []
    for _ in range(6):
        updates.call()
        places.append(int(updates.places[0]))
        orders.append(updates.order.clone())
    assert places == [500, 1000, 0, 500, 1000, 0]
    same = [torch.equal(a, b) for a, b in zip(orders, orders[1:], strict=False)]
    assert same == [True, True, False, True, True]
    assert sorted(orders[-1].tolist()) == list(range(1500))


class Work(TorchDispatchMode):
    """What the host asks of the device: operators with their numbers, and the shapes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten":
            seen = tree_map(lambda x: (x.shape, x.dtype) if isinstance(x, torch.Tensor) else x, (args, kwargs))
            self.asked.append(f"{func} {seen}")
        return func(*args, **(kwargs or {}))


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("optimizer", "repeats"),
    [
        (OPTIMIZERS["sgd"], True),
        (OPTIMIZERS["adam"], True),
        (OPTIMIZERS["rmsprop"], True),
        (OPTIMIZERS["heavy_ball"], True),
        ({"name": "adagrad", "variant": "lecture"}, False),  # divides by the number of updates, which the host counts
    ],
    ids=str,
)
def test_an_update_asks_the_same_of_the_device_every_time(recipe, optimizer, repeats):
    """Only so is a graph, which repeats what it captured, as good as the updates themselves; and it reads nothing."""
    updates = Updates(job_of(recipe(model=CNN, optimizer=optimizer)))
    asked = []
    for _ in range(4):
        with Work() as work:
            updates.one()
        asked.append(work.asked)
    assert len(asked[2]) > 30
    assert (asked[2] == asked[3]) == repeats
    assert any("_local_scalar_dense" in line for line in asked[3]) != repeats


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch": {"global_batch_size": 100, "micro_batch_size": 50}}, "its micro-batches are so large"),
        ({"precision": "fp16"}, "the loss scaler of fp16 asks on the host"),
        ({"optimizer": {"name": "adagrad"}}, "Adagrad counts its updates on the host"),
        ({"optimizer": {"name": "rmsprop", "variant": "lecture"}}, "LectureRmsprop counts its updates on the host"),
        ({"optimizer": {"name": "lamb"}}, "Lamb counts its updates on the host"),  # its kernels count on the device
        ({"optimizer": {"name": "muon"}, "model": CNN}, "Muon counts its updates on the host"),
        ({"optimizer": {"name": "sgd"}}, None),
        ({"optimizer": {"name": "adam"}}, None),
        ({"optimizer": {"name": "rmsprop"}}, None),
        ({"optimizer": {"name": "heavy_ball"}}, None),
        ({"optimizer": {"name": "lars"}}, None),
    ],
)
def test_what_keeps_an_update_out_of_a_graph_is_said(recipe, changes, reason):
    found = updates_.not_captured(job_of(recipe(**changes)))
    assert found is reason or (reason is not None and found is not None and found.startswith(reason))


def test_counters_go_where_a_graph_finds_them(recipe):
    job = job_of(recipe(optimizer={"name": "rmsprop"}))
    Updates(job).call()
    updates_.keep_steps_on(torch.device("meta"), job.engine.optimizer)  # any device but the one where they were
    assert all(group["capturable"] for group in job.engine.optimizer.param_groups)
    states = list(job.engine.optimizer.state.values())
    assert {state["step"].device.type for state in states} == {"meta"}
    assert {state["square_avg"].device.type for state in states} == {"cpu"}


# ---- what is measured ----


class Clock:
    """Time passes only in updates: so much each, more in every later window of a size."""

    def __init__(self, monkeypatch, seconds: dict[int, float]) -> None:
        self.now, self.calls = 0.0, []
        self.seconds = seconds
        monkeypatch.setattr(batch.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(Updates, "call", lambda updates: self.pass_by(updates.stage.global_batch_size))

    def pass_by(self, size: int) -> None:
        self.calls.append(size)
        self.now += self.seconds[size]


def runs_of(calls: list[int]) -> list[tuple[int, int]]:
    """``[5, 5, 7]`` -> ``[(5, 2), (7, 1)]``."""
    found: list[tuple[int, int]] = []
    for call in calls:
        found = [*found[:-1], (call, found[-1][1] + 1)] if found and found[-1][0] == call else [*found, (call, 1)]
    return found


def test_windows_are_filled_and_sizes_take_turns(recipe, monkeypatch):
    clock = Clock(monkeypatch, {1: 0.015625, 100: 0.25, 1500: 2.0})
    facts = batch.measure(config.load(recipe()), [1, 100, 1500], seconds=2.0, repeats=4, command="bench")
    assert runs_of(clock.calls)[-9:] == [  # half a second each, at least one; every other round from the end
        (1, 32), (100, 2), (1500, 2), (100, 2), (1, 64), (100, 2), (1500, 2), (100, 2), (1, 32),
    ]  # fmt: skip
    rows = {row["global_batch_size"]: row for row in facts["sizes"]}
    assert [rows[size]["updates_timed"] for size in (1, 100, 1500)] == [128, 8, 4]
    assert [rows[size]["updates_per_epoch"] for size in (1, 100, 1500)] == [1500, 15, 1]
    assert [rows[size]["extrapolated"] for size in (1, 100, 1500)] == [True, True, False]
    for size, row in rows.items():
        assert row["repeats"] == 4
        assert row["seconds_per_update"] == row["seconds_per_update_low"] == clock.seconds[size]
        assert row["seconds_per_epoch"] == clock.seconds[size] * row["updates_per_epoch"]
        assert row["how"] == "eager"
    assert (rows[1500]["micro_batch_size"], rows[1500]["accumulation_steps"]) == (500, 3)
    assert (facts["kind"], facts["dataset_size"], facts["data"], facts["device"]) == (
        "batch_time", 1500, "digits", "cpu"
    )  # fmt: skip
    assert facts["command"] == "bench"
    assert facts["machine"]["cores"] >= 1


def test_sets_of_any_batches_are_measured(recipe):
    """Numbers, and images with several labels: each by the task that it is for."""
    for name, size in (("diabetes", 342), ("digit_pairs", 1500)):
        facts = batch.measure(config.load(recipe(data={"name": name})), [19, size], seconds=0.01, repeats=1)
        assert [row["updates_per_epoch"] for row in facts["sizes"]] == [-(-size // 19), 1]
        assert all(row["seconds_per_update"] > 0 for row in facts["sizes"])


def test_the_figure_is_the_median_over_windows(recipe, monkeypatch):
    clock = Clock(monkeypatch, {1500: 1.0})
    spent = iter(
        [1, 1, 1, 7, 2, 4]
    )  # warm-up: two, for the first is over a second only with the second; filling; windows
    monkeypatch.setattr(Updates, "call", lambda updates: setattr(clock, "now", clock.now + next(spent)))
    (row,) = batch.measure(config.load(recipe()), [1500], seconds=3.0, repeats=3)["sizes"]
    ends = [row[f"seconds_per_update{end}"] for end in ("", "_low", "_high")]
    assert ends == [4, 2, 7]
    assert row["seconds_per_epoch"] == 4


LECTURE = {1: 363.9, 10: 43.4, 100: 14.2, 1000: 8.8, 10_000: 8.8, 60_000: 8.8}  # slide 22


@pytest.fixture
def of_60000(recipe, monkeypatch):
    """Facts of 60,000 tiny images, the lecture's sizes and one more; an update takes 1 ms and 0.1 ms an example."""
    path = recipe(data={"name": "synthetic", "examples": 60_000, "image_shape": [1, 2, 2]}, model={"name": "mlp"})
    sizes = [*LECTURE, 600]
    Clock(monkeypatch, {size: 1e-3 + 1e-4 * size for size in sizes})
    return batch.measure(config.load(path, ["model.width=2"]), sizes, seconds=2.0, repeats=2)


def test_the_lectures_times_stand_beside_60000_examples(of_60000):
    rows = {row["global_batch_size"]: row for row in of_60000["sizes"]}
    for size, seconds in LECTURE.items():
        assert rows[size]["lecture_seconds_per_epoch"] == seconds
        ours = 60_000 / size * (1e-3 + 1e-4 * size)
        assert rows[size]["lecture_epoch_over_ours"] == pytest.approx(seconds / ours)
    per_update = [rows[size]["lecture_seconds_per_update"] for size in LECTURE]
    assert per_update == [None, None, 0.02, 0.15, 1.54, 9.46]  # slide 21
    assert {value for key, value in rows[600].items() if key.startswith("lecture")} == {None}


@pytest.mark.worlds
def test_other_sets_have_no_lecture_beside_them(recipe, monkeypatch):
    Clock(monkeypatch, {1: 0.1, 100: 1.0})
    facts = batch.measure(config.load(recipe()), [1, 100], seconds=0.1, repeats=1)
    assert {value for row in facts["sizes"] for key, value in row.items() if key.startswith("lecture")} == {None}
    assert "V100" not in shown(facts) + " ".join(batch.notes(facts))


def shown(facts) -> str:
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(batch.table(facts))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_and_what_is_said_below_it(of_60000):
    facts = of_60000 | {"eager_because": {"60000": "it is so"}}
    facts["sizes"][0] |= {"how": "cuda graph"}
    lines = shown(facts).splitlines()
    assert not any("…" in line for line in lines), "a row fits 80 columns"
    words = {line.split()[0]: line.split() for line in lines if line.split()}
    assert words["1"] == ["1", "1.10", "1.10–1.10", "60,000", "≈66.0", "363.9", "5.51"]
    assert words["60,000"][:4] == ["60,000", "120", "×", "500"]
    assert words["60,000"][-4:] == ["1", "6.00", "8.8", "1.47"]
    assert words["600"][-2:] == ["–", "–"]
    said = "\n".join(batch.notes(facts))
    assert "batch 1 from 1,818" in said  # twice a second in updates of 1.1 ms
    assert "batch 60,000 without a CUDA graph: it is so" in said
    assert "replayed as CUDA graphs: batch 1\n" in said
    assert "Tesla V100" in said


@pytest.mark.worlds
def test_real_updates_give_finite_facts_and_weights(recipe):
    facts = batch.measure(config.load(recipe()), [10, 1500], seconds=0.05, repeats=2, command="bench")
    for row in facts["sizes"]:
        assert 0 < row["seconds_per_update_low"] <= row["seconds_per_update"] <= row["seconds_per_update_high"] < 60
        assert math.isfinite(row["seconds_per_epoch"])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,ten", "--sizes 1,ten: 'ten' is no whole number; write 1,10,100"),
        ("", "--sizes : '' is no whole number"),
        ("1,2.5", "'2.5' is no whole number"),
        ("10,0", "--sizes 10,0: 0 is no batch; at least 1"),
        ("10,10", "--sizes 10,10 has 10 twice"),
    ],
)
def test_sizes_that_are_none(text, sentence):
    with pytest.raises(UserError) as caught:
        batch.parse_sizes(text)
    assert str(caught.value).startswith(sentence) or sentence in str(caught.value)


def test_sizes_are_read():
    assert batch.parse_sizes("1, 10,60000") == [1, 10, 60000]


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("changes", "sizes", "sentence"),
    [
        ({}, [1501], "--sizes: 1501 is larger than the training set of digits; at most 1500"),
        ({"data": {"name": "synthetic", "augment": "flip"}}, [1], "add data.augment=none"),
        ({"ema": {}}, [1], "leave ema out"),
        (
            {"model": CNN | {"channels": [4, 8, 8, 8]}},
            [1],
            "tiny_cnn would see one example of 1×8×8",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(recipe, changes, sizes, sentence):
    with pytest.raises(UserError) as caught:
        batch.measure(config.load(recipe(**changes)), sizes, seconds=0.01, repeats=1)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.worlds
def test_a_micro_batch_of_the_recipe_holds_where_it_fits(recipe):
    """Of 100 and 50 that of the recipe, of smaller or other sizes what fits them."""
    path = recipe(batch={"global_batch_size": 100, "micro_batch_size": 50})
    facts = batch.measure(config.load(path), [100, 50, 75, 1], seconds=0.01, repeats=1)
    made_of = [(row["micro_batch_size"], row["accumulation_steps"]) for row in facts["sizes"]]
    assert made_of == [(50, 2), (50, 1), (75, 1), (1, 1)]


def test_no_time_is_refused(recipe):
    with pytest.raises(UserError, match="leave nothing to time"):
        batch.measure(config.load(recipe()), [1], seconds=0)


# ---- the picture ----


@pytest.mark.worlds
def test_the_picture_tells_what_was_timed_from_what_was_not(of_60000):
    with svg.drawing():
        drawn = draw(of_60000)
    for axes, what in zip(drawn.figure.axes, ("update", "epoch"), strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert any(f"seconds per {what}" in text.get_text() for text in axes.texts)
        points = {(m.get_color(), float(m.get_xdata()[0])): m for m in axes.lines if m.get_marker() not in ("None", "")}
        for row in of_60000["sizes"]:
            mark = points[(svg.ACCENT, row["global_batch_size"])]
            assert mark.get_ydata()[0] == row[f"seconds_per_{what}"]
            assert (mark.get_markerfacecolor() == svg.PAGE) == (what == "epoch" and row["extrapolated"])
            assert (mark.get_marker() == "s") == (row["accumulation_steps"] > 1)
        lecture = {size: mark for (colour, size), mark in points.items() if colour == svg.INK}
        assert set(lecture) == set(LECTURE)
        hollow = {size for size, mark in lecture.items() if mark.get_markerfacecolor() == svg.PAGE}
        assert hollow == ({1, 10} if what == "update" else set())
        assert lecture[1].get_ydata()[0] == pytest.approx(363.9 / 60_000 if what == "update" else 363.9)
    assert "V100 363.9 s" in drawn.description


@pytest.mark.worlds
def test_the_picture_becomes_a_file(of_60000, tmp_path):
    write_picture(of_60000, tmp_path / "time.svg")
    text = (tmp_path / "time.svg").read_text()
    for word in ("Tesla V100 (lecture)", "accumulated", "extrapolated", "seconds per epoch"):
        assert word in text
    write_picture(of_60000, tmp_path / "time.png")
    assert (tmp_path / "time.png").stat().st_size > 10_000


@pytest.mark.worlds
def test_one_size_without_a_lecture_can_be_drawn(recipe, monkeypatch, tmp_path):
    Clock(monkeypatch, {100: 0.2})
    write_picture(batch.measure(config.load(recipe()), [100], 0.4, 1), tmp_path / "time.svg")
    assert "V100" not in (tmp_path / "time.svg").read_text()


# ---- on CUDA ----


def weights_of(updates: Updates) -> list[np.ndarray]:
    return [value.double().cpu().numpy() for value in updates.job.engine.model.state_dict().values()]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*OPTIMIZERS, "adamw"])
def test_captured_updates_are_the_eager_ones(recipe, name):
    """After the same number of updates from the same weights over the same examples, in batch norm's statistics too."""
    path = recipe(
        precision="fp32", epochs=1, model=CNN, optimizer=OPTIMIZERS.get(name, {"name": name}), lr={"base": 0.01},
        weight_decay={"value": 0.01},
    )  # fmt: skip
    device = torch.device("cuda", 0)
    captured, eager = (Updates(job_of(path, device=device)) for _ in range(2))
    for updates in (captured, eager):
        follow_the_plan(updates)
    reason = updates_.capture(captured)
    if name == "adagrad":
        assert reason is not None
        assert captured.graph is None
        return
    assert reason is None
    assert captured.per_call == (1 if name in ("lars", "lamb") else 15)
    start = captured.places[0].item() // 100  # what went before the capture
    assert start == updates_.WARM_UP + 1
    follow_the_plan(captured)
    calls = 2 * 15 // captured.per_call
    for _ in range(calls):
        captured.graph.replay()
    for _ in range(start + 30):
        eager.one()
    torch.cuda.synchronize()
    for one, other in zip(weights_of(captured), weights_of(eager), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.gpu
def test_dropout_draws_anew_at_every_replay(recipe):
    """Two replays from the same weights over the same examples end apart; without dropout they do not."""
    for dropout, alike in ((0.0, True), (0.5, False)):
        path = recipe(
            precision="fp32", model={"name": "mlp", "width": 16, "depth": 1, "dropout": dropout},
            optimizer={"name": "sgd", "momentum": 0},
        )  # fmt: skip
        updates = Updates(job_of(path, device=torch.device("cuda", 0)))
        assert updates_.capture(updates) is None
        before = [parameter.detach().clone() for parameter in updates.job.engine.model.parameters()]
        ends = []
        for _ in range(2):
            with torch.no_grad():
                for parameter, value in zip(updates.job.engine.model.parameters(), before, strict=True):
                    parameter.copy_(value)
            updates.graph.replay()  # the places come back to where they were: the graph holds a whole epoch
            ends.append(weights_of(updates))
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*ends, strict=True)) == alike


@pytest.mark.gpu
def test_short_updates_are_captured_and_accumulated_ones_are_not(recipe):
    path = recipe(data={"name": "synthetic", "examples": 8192, "image_shape": [1, 8, 8]})
    facts = batch.measure(config.load(path), [1, 64, 8192], seconds=0.2, repeats=2)
    assert [row["how"] for row in facts["sizes"]] == ["cuda graph", "cuda graph", "eager"]
    assert list(facts["eager_because"]) == ["8192"]
    asked = batch.measure(config.load(path), [64], seconds=0.1, repeats=1, eager=True)
    assert asked["eager_because"] == {"64": "asked for"}
