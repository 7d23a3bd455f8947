"""The methods beside the loop: each against its definition, the same on any machine, resumed as if never stopped."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import torch.nn.functional as F
import yaml
from beside import beside, stepped, steps_of
from method_recipes import METHODS, NORM, recipe_of
from programs import Killed, state_at_end, torchrun

from largebatch.engines.states import whole_model
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.methods.lawa import in_checkpoint
from largebatch.models import batch_norm
from largebatch.plan.score import score_of
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.loop import Loop
from largebatch.run.older import of_rank
from largebatch.run.train import train


def finished(method: str, directory: Path, **more: Any) -> Path:
    written = recipe_of(method, **more)
    written["record"] = {**written["record"], "to": [], "dir": str(directory)}
    result = train(config.from_dict(written), quiet=True)
    assert result.status == "finished", result.reason
    return directory


def checkpoint(directory: Path) -> dict[str, Any]:
    state = state_at_end(directory)
    return {**state, "model": whole_model(state), "step": state["progress"]["step"]}


def events(directory: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def job_of(method: str, **more: Any) -> Any:
    return assemble(config.from_dict(recipe_of(method, **more)), torch.device("cpu"))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Path:
    """Every method on one rank and on two, one start each, side by side."""
    directory = tmp_path_factory.mktemp("methods")
    for method in METHODS:
        (directory / f"{method}.yaml").write_text(yaml.safe_dump(recipe_of(method)))
    ended = pool.all_ended([
        rank for world in (1, 2) for rank in pool.start_ranks(world, "worlds.methods:train_all", directory)
    ])  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return directory


TOLERANCES = {"shampoo": 1e-9, "shampoo_of_2018": 1e-9, "soap": 1e-4}  # powers below 0; bases renewed in float32


@pytest.mark.worlds
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one(worlds, method):
    one, two = (worlds / f"world{world}" / method for world in (1, 2))
    tolerance = TOLERANCES.get(method, 1e-12) if METHODS[method].get("precision") != "fp32" else 2e-3
    alone, many = checkpoint(one), checkpoint(two)
    assert alone["step"] == many["step"]
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(many["model"][name], tensor, rtol=tolerance, atol=tolerance)
    averages = [state["parts"].get("ema", {}) for state in (alone, many)]
    outer = [list(state["parts"].get("outer_momentum", {}).values()) for state in (alone, many)]
    latest = [
        [*(of := state["parts"].get("lawa", {})).get("snapshots", []), of.get("statistics", {})]
        for state in (alone, many)
    ]
    free = [state["parts"].get("schedule_free", {}).get("z", {}) for state in (alone, many)]
    for these, those in [averages, free, *zip(*outer, strict=True), *zip(*latest, strict=True)]:
        assert these.keys() == those.keys()
        for name, tensor in these.items():
            torch.testing.assert_close(those[name], tensor, rtol=tolerance, atol=tolerance)
    score = score_of(json.loads((one / "plan.json").read_text())).key
    for number in ("steps", "examples_seen", f"test_{score}", f"train_{score}"):
        assert result(two)[number] == pytest.approx(result(one)[number], rel=0 if "percent" in number else 1e-10)
    assert result(two)["test_loss"] == pytest.approx(result(one)["test_loss"], rel=max(1e-10, tolerance))
    for here, there in zip(events(one, "train"), events(two, "train"), strict=True):
        assert (here["step"], here["lr"]) == (there["step"], pytest.approx(there["lr"], rel=1e-9))
        assert here["loss"] == pytest.approx(there["loss"], rel=max(1e-9, tolerance))


@pytest.mark.worlds
@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_cuda_ends_where_the_cpu_does(worlds, tmp_path, method):
    tolerance = 1e-7 if METHODS[method].get("precision") != "fp32" else 2e-2
    cpu, cuda = (checkpoint(d) for d in (worlds / "world1" / method, finished(method, tmp_path, device="cuda")))
    for name, tensor in cpu["model"].items():
        torch.testing.assert_close(cuda["model"][name], tensor, rtol=tolerance, atol=tolerance)


def same(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> bool:
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


# The ramp


@pytest.mark.worlds
def test_a_ramp_cuts_the_same_stream_into_larger_steps_and_then_lowers_the_lr(worlds):
    """Batch 60, 120, 240, and where 480 would follow the lr is halved: steps begin at the first mark of their epoch."""
    lines = events(worlds / "world1" / "ramp", "train")
    recorded = [(line["step"], line["global_batch_size"], line["examples_seen"], line["lr"]) for line in lines]
    assert (10, 60, 600, 0.05) in recorded
    assert (20, 120, 780 + 7 * 120, 0.05) in recorded
    assert recorded[-1] == (27, 240, 1740 + 6 * 240, 0.025)
    plan = job_of("ramp").plan
    sizes = [plan.at(step).global_batch_size for step in range(plan.steps)]
    starts = [plan.examples_before(step) for step in range(plan.steps)]
    assert sizes == [60] * 13 + [120] * 8 + [240] * 6
    assert starts[13] == 780 >= 0.5 * 1500 > starts[12]
    assert starts[21] == 1740 >= 1.1 * 1500 > starts[20]
    order = [i for step in range(plan.steps) for i in plan.examples_of(step).indices.tolist()]
    flat = job_of("ramp", batch={"global_batch_size": 60}, lr={"base": 0.05}).plan
    constant = [i for step in range(flat.steps) for i in flat.examples_of(step).indices.tolist()]
    assert order[: len(constant)] == constant[: len(order)], "the stream of examples does not depend on the ramp"
    schedule = job_of("ramp").decided.lr.schedule
    assert (schedule(2249), schedule(2250)) == (0.05, 0.025)


@pytest.mark.worlds
def test_a_ramps_curve_does_not_depend_on_how_it_is_accumulated(tmp_path):
    ramp = {"at_epochs": [0.5, 1.1], "sizes": [120, 240]}
    ends = []
    for micro in (60, 20, 5):
        batch = {"global_batch_size": 60, "micro_batch_size": micro, "ramp": ramp}
        directory = finished("ramp", tmp_path / str(micro), batch=batch)
        ends.append((checkpoint(directory)["model"], [line["loss"] for line in events(directory, "train")]))
    for model, losses in ends[1:]:
        assert losses == pytest.approx(ends[0][1], rel=1e-12)
        for name, tensor in ends[0][0].items():
            torch.testing.assert_close(model[name], tensor, rtol=1e-12, atol=1e-12)


# AdaScale


@pytest.mark.worlds
def test_adascale_against_the_papers_formulas_in_a_dumb_loop(worlds):
    """Every part's gradient alone, the estimates clipped and averaged as Johnson et al. write, the clock, the lr."""
    job = job_of("adascale")
    reference, parts = 20, 6
    total = math.ceil(1500 / reference)
    weights = list(job.engine.model.parameters())
    optimizer = torch.optim.SGD(weights, lr=1.0, momentum=0.9, nesterov=True)
    decayed = {id(p) for row, p in zip(job.treatments, weights, strict=True) if row.decayed}
    placement, variances, squares, tau, gains, theta = job.placement, [], [], 0.0, [], max(1 - parts / 1000, 0)
    stream = job.dataset.train.steps(job.plan, 0, 0, placement, 0)
    average_variance = average_square = 0.0
    for t, micros in enumerate(stream):
        images, labels = (torch.cat(both) for both in zip(*micros, strict=True))
        gradients = []
        for part in range(parts):
            cut = slice(part * reference, (part + 1) * reference)
            loss = F.cross_entropy(job.engine.model(images[cut]), labels[cut])
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        mean = torch.stack(gradients).mean(0)
        variance = sum(float(g @ g) for g in gradients) / (parts - 1) - parts / (parts - 1) * float(mean @ mean)
        square = float(mean @ mean) - variance / parts
        variances.append(max(variance, 1e-6))
        squares.append(max(square, 0.0))
        if t + 1 < 1 / (1 - theta):
            average_variance, average_square = sum(variances) / (t + 1), sum(squares) / (t + 1)
        else:
            average_variance = theta * average_variance + (1 - theta) * variances[-1]
            average_square = theta * average_square + (1 - theta) * squares[-1]
        gain = (average_variance + average_square) / (average_variance / parts + average_square) if t else 1.0
        assert 1 <= gain <= parts
        gains.append(gain)
        start = 0
        for weight in weights:
            weight.grad = mean[start : start + weight.numel()].view_as(weight).clone()
            if id(weight) in decayed:
                weight.grad += 0.01 * weight.detach()
            start += weight.numel()
        optimizer.param_groups[0]["lr"] = gain * 0.05
        optimizer.step()
        tau += gain
        if tau >= total:
            break
    ended = checkpoint(worlds / "world1" / "adascale")
    assert ended["step"] == len(gains) < total
    assert ended["parts"]["adascale"]["progress"] == pytest.approx(tau, rel=1e-9)
    for (name, weight), end in zip(job.engine.model.named_parameters(), ended["model"].values(), strict=True):
        torch.testing.assert_close(weight.detach(), end, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.worlds
def test_the_peak_of_adascale_is_the_one_reached(tmp_path):
    directory = finished("adascale", tmp_path, record={"every_steps": 1})
    assert result(directory)["peak_lr"] == max(line["lr"] for line in events(directory, "train")) > 0.05


@pytest.mark.worlds
@pytest.mark.parametrize("micro", [20, 10, 4])
def test_the_gain_does_not_depend_on_the_micro_batch(tmp_path, worlds, micro):
    """A part is lr.reference_batch_size examples, however many forward passes they take."""
    directory = finished("adascale", tmp_path, batch={"global_batch_size": 120, "micro_batch_size": micro})
    whole = checkpoint(worlds / "world1" / "adascale")["parts"]["adascale"]
    assert checkpoint(directory)["parts"]["adascale"] == pytest.approx(whole, rel=1e-9)


@pytest.mark.worlds
def test_adascale_at_the_reference_batch_is_plain_sgd(tmp_path):
    lr = {"base": 0.05, "scaling": "adascale", "reference_batch_size": 120}
    adascale = finished("adascale", tmp_path / "adascale", lr=lr)
    plain = finished("adascale", tmp_path / "plain", lr={"base": 0.05})
    assert same(checkpoint(adascale)["model"], checkpoint(plain)["model"])


# SAM


@pytest.mark.worlds
def test_sam_takes_the_gradient_at_rho_times_the_unit_gradient(worlds):
    """Two steps by hand: the global gradient, w + ρ·g/‖g‖, the gradient there, the step from w."""
    job = job_of("sam", steps=2, epochs=None, checkpoint={"every_epochs": 0}, lr={"base": 0.05})
    weights = list(job.engine.model.parameters())
    decayed = {id(p) for row, p in zip(job.treatments, weights, strict=True) if row.decayed}
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in weights if id(p) in decayed], "weight_decay": 0.01},
            {"params": [p for p in weights if id(p) not in decayed]},
        ],
        lr=0.05, momentum=0.9, nesterov=True,
    )  # fmt: skip
    trained = job_of("sam", steps=2, epochs=None, checkpoint={"every_epochs": 0}, lr={"base": 0.05})
    steps = steps_of(trained)
    distances, moving = [], list(trained.engine.model.parameters())
    perturbation = steps.parts["sam"].perturbation
    apply = perturbation.apply

    def watched(gradients):
        before = torch.cat([w.detach().flatten().clone() for w in moving])
        apply(gradients)
        distances.append(float((torch.cat([w.detach().flatten() for w in moving]) - before).norm()))

    perturbation.apply = watched
    for step, micros in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)):
        batches = list(micros)
        stepped(steps, step, [(i.clone(), l.clone()) for i, l in batches])  # noqa: E741
        images, labels = (torch.cat(both) for both in zip(*batches, strict=True))
        start = [w.detach().clone() for w in weights]
        gradient = torch.autograd.grad(F.cross_entropy(job.engine.model(images), labels), weights)
        length = torch.cat([g.flatten() for g in gradient]).norm()
        with torch.no_grad():
            for weight, g in zip(weights, gradient, strict=True):
                weight += 0.1 * g / length
        F.cross_entropy(job.engine.model(images), labels).backward()
        with torch.no_grad():
            for weight, before in zip(weights, start, strict=True):
                weight.copy_(before)
        optimizer.step()
        optimizer.zero_grad()
    assert distances == pytest.approx([0.1, 0.1], rel=1e-9)
    for mine, theirs in zip(weights, trained.engine.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-12, atol=1e-13)


@pytest.mark.worlds
def test_m_sharpness_perturbs_each_m_examples_alone(monkeypatch):
    from largebatch.optim.sam import Perturbation

    applied = []
    apply = Perturbation.apply
    monkeypatch.setattr(Perturbation, "apply", lambda self, g: (applied.append(1), apply(self, g)))
    for m, expected in ((20, 6), (60, 2), (None, 1)):
        applied.clear()
        job = job_of("sam", sam={"rho": 0.1, "m": m}, steps=1, epochs=None, lr={"base": 0.05})
        stepped(steps_of(job), 0, next(iter(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0))))
        assert len(applied) == expected


# Post-local SGD


@pytest.mark.worlds
def test_post_local_sgd_by_hand_and_its_averaging_moments_counted(worlds, tmp_path, monkeypatch):
    """Four separate models with their own momentum; averaged after every third step from the first decay on."""
    from largebatch.engines.workers import Workers

    averaged, average = [], Workers.average
    monkeypatch.setattr(Workers, "average", lambda self: (averaged.append(1), average(self)))
    directory = finished("post_local_sgd", tmp_path / "counted")
    first = math.ceil(0.7 * 1500 / 120)  # the step that begins at or after the first decay
    moments = [step for step in range(first, 25) if (step + 1 - first) % 3 == 0 or step == 24]
    assert len(averaged) == len(moments) == 6

    options = {
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "model": {**NORM, "norm": False},
        "weight_decay": {"value": 0.0},
    }
    options |= {"batch": {"global_batch_size": 120}, "data": {"name": "digits"}}
    job = job_of("post_local_sgd", **options)
    model = job.engine.model
    models = [{n: p.detach().clone() for n, p in model.named_parameters()} for _ in range(4)]
    buffers = [{n: torch.zeros_like(p) for n, p in model.named_parameters()} for _ in range(4)]
    for step, micros in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)):
        images, labels = (torch.cat(both) for both in zip(*micros, strict=True))
        lr = 0.05 if step * 120 < 0.7 * 1500 else 0.005
        gradients = []
        for worker in range(4):
            cut = slice(worker * 30, worker * 30 + 30)
            values = {n: w.clone().requires_grad_() for n, w in models[worker].items()}
            loss = F.cross_entropy(torch.func.functional_call(model, values, images[cut]), labels[cut])
            gradients.append(dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True)))
        if step < first:
            mean = {n: torch.stack([g[n] for g in gradients]).mean(0) for n in gradients[0]}
            gradients = [mean] * 4
        for worker in range(4):
            for name, weight in models[worker].items():
                buffers[worker][name].mul_(0.9).add_(gradients[worker][name])
                weight.sub_(lr * buffers[worker][name])
        if step in moments:
            mean = {n: torch.stack([m[n] for m in models]).mean(0) for n in models[0]}
            models = [{n: w.clone() for n, w in mean.items()} for _ in range(4)]
    ended = checkpoint(finished("post_local_sgd", tmp_path / "hand", **options))["model"]
    for name, weight in models[0].items():
        torch.testing.assert_close(ended[name], weight, rtol=1e-10, atol=1e-12)
    assert len(checkpoint(directory)["ranks"][0]["parts"]["post_local_sgd"]["workers"]) > 1


# SWAP


@pytest.mark.worlds
def test_swap_averages_its_workers_and_recomputes_batch_norm(tmp_path, monkeypatch):
    """Phase 1 ends at the target; each worker has its own order; the end is the mean, with statistics by hand."""
    from largebatch.methods.swap import SwapOfRun

    ends: dict[int, dict[str, torch.Tensor]] = {}
    orders, run_round = {}, SwapOfRun.run_round

    def watched(self, run, number, stop_if_asked):
        back = self.back_to_start
        self.back_to_start = lambda: (
            ends.update({len(ends): snapshot(self)}) if self.results_of_workers[number:] else None,
            back(),
        )
        results = run_round(self, run, number, stop_if_asked)
        self.back_to_start = back
        orders[number] = self.rule.plan_of(number).examples_of(0).indices.tolist()
        return results

    def snapshot(self):
        return {n: p.detach().clone() for n, p in self.engine.model.named_parameters()}

    monkeypatch.setattr(SwapOfRun, "run_round", watched)
    directory = finished("swap", tmp_path)
    assert len(ends) == len(orders) == 4
    assert len({tuple(order) for order in orders.values()}) == 4
    reached = [line["accuracy_percent"] for line in events(directory, "train_accuracy")]
    assert reached[-1] >= 50 > max(reached[:-1], default=0)
    end = checkpoint(directory)["model"]
    for name in ends[0]:
        torch.testing.assert_close(
            end[name], torch.stack([ends[k][name] for k in range(4)]).mean(0), rtol=1e-12, atol=1e-13
        )
    numbers = result(directory)
    assert [worker["worker"] for worker in numbers["workers"]] == [0, 1, 2, 3]
    assert numbers["steps"] == checkpoint(directory)["step"] + 25
    # statistics of the first batch norm: of its inputs over the pass, population mean and variance
    job = job_of("swap")
    job.engine.model.load_state_dict(end)
    plan = job.plan
    passes = type(plan)(
        plan.dataset_size, 1, math.ceil(1500 / 120), plan.budget_examples, plan.seed ^ 0x5EED, plan.stages
    )
    convolution = next(m for m in job.engine.model.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        seen = torch.cat(
            [convolution(i) for micros in job.dataset.train.steps(passes, 0, 0, job.placement, 0) for i, _ in micros]
        )
    norm_name = next(n for n, m in job.engine.model.named_modules() if "Norm" in type(m).__name__)
    torch.testing.assert_close(end[f"{norm_name}.running_mean"], seen.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        end[f"{norm_name}.running_var"], seen.var((0, 2, 3), unbiased=False), rtol=1e-10, atol=1e-12
    )


@pytest.mark.worlds
def test_swap_judges_the_average_alone_and_keeps_the_stated_micro_batch(tmp_path):
    batch = {"global_batch_size": 120, "micro_batch_size": 20, "bn_batch_size": 10}
    evaluate = {"every_epochs": 0.5, "median_of": 5}
    directory = finished("swap", tmp_path, batch=batch, evaluate=evaluate)
    last = [line for line in events(directory, "evaluate") if line["split"] == "test"][-1]
    assert result(directory)["test_accuracy_percent"] == last["accuracy_percent"]
    assert (last["step"], last["examples_seen"]) == (result(directory)["steps"], result(directory)["examples_seen"])
    rule = job_of("swap", batch=batch).decided.methods["swap"]
    assert rule.plan.micro_batch_size == 10  # the largest divisor of 30 up to 20
    assert result(directory)["reached_train_accuracy"] is True


@pytest.mark.worlds
def test_swap_says_that_its_target_was_not_reached(tmp_path, capsys):
    averaging = {**METHODS["swap"]["averaging"], "stop_at_train_accuracy": 100}
    directory = finished("swap", tmp_path, averaging=averaging, epochs=1)
    assert result(directory)["reached_train_accuracy"] is False
    assert "below the 100 % at which it was to stop" in (directory / "train.log").read_text()


def test_right_answers_of_a_run_before_tasks_are_counted_on(tmp_path):
    assert of_rank({"update": {"workers": [], "correct": None}, "ema": None}, 40.0)["swap"] == {"tally": {}}
    part = steps_of(job_of("swap")).parts["swap"]
    kept = [{"update": {"workers": [], "correct": torch.tensor(right)}, "ema": None} for right in (10, 30)]
    part.load(part.save(), [of_rank(rank, 40.0)["swap"] for rank in kept])
    part.tally.add({"correct": 15, "examples": 20, "loss": 1.0})  # of the rest of the epoch
    assert part.take_accuracy() == pytest.approx(55)


@pytest.mark.worlds
def test_a_signal_in_phase_2_stops_the_run_and_the_worker_begins_anew(tmp_path, monkeypatch):
    whole = finished("swap", tmp_path / "whole")
    take, steps = Loop.take, []

    def signalled(self, turn):
        steps.append(1)
        if len(steps) == 30:  # in the second worker
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, turn)

    monkeypatch.setattr(Loop, "take", signalled)  # what a part finds that goes on after the steps
    written = recipe_of("swap", record={"to": [], "dir": str(tmp_path / "parts")})
    stopped = train(config.from_dict(written), quiet=True)
    assert (stopped.status, stopped.signal, len(steps)) == ("stopped", signal.SIGTERM, 30)
    parts = finished("swap", tmp_path / "parts")
    assert len(steps) == 30 + 3 * 25
    assert same(checkpoint(whole)["model"], checkpoint(parts)["model"])


@pytest.mark.worlds
def test_swap_killed_between_two_workers_goes_on_with_the_next(tmp_path, monkeypatch):
    """That it ends with the same bits is in test_kill_and_resume.py."""
    from largebatch.methods.swap import SwapOfRun

    run_round, rounds = SwapOfRun.run_round, []

    def dies(self, run, number, stop_if_asked):
        rounds.append(number)
        if rounds == [0, 1, 2]:
            raise Killed
        return run_round(self, run, number, stop_if_asked)

    monkeypatch.setattr(SwapOfRun, "run_round", dies)
    with pytest.raises(Killed):
        finished("swap", tmp_path)
    assert finished("swap", tmp_path)
    assert rounds == [0, 1, 2, 2, 3]
    assert len(result(tmp_path)["workers"]) == 4


# EMA, statistics, medians


@pytest.mark.worlds
@pytest.mark.parametrize("period", [2, 3, 5])
def test_the_moving_average_follows_workers_at_every_averaging(tmp_path, monkeypatch, period):
    from largebatch.optim.averages import MovingAverage

    moved, follow = [], MovingAverage.follow
    monkeypatch.setattr(MovingAverage, "follow", lambda self, *decay: (moved.append(1), follow(self, *decay)))
    averaging = {"name": "post_local_sgd", "workers": 2, "period": period, "from_epoch": 0.5}
    finished("post_local_sgd_with_ema", tmp_path, averaging=averaging, ema={"decay": 0.9, "every_steps": 2})
    first = math.ceil(0.5 * 1500 / 120)
    moments = [step for step in range(first, 25) if (step + 1 - first) % period == 0 or step == 24]
    assert len(moved) == first // 2 + len(moments)


def test_milestones_fall_where_the_ramp_and_the_averages_do():
    """0.56 epochs of 1,500 are 840 examples, though 0.56 · 1500 is a little more in floating point."""
    decay = {"name": "steps", "at_epochs": [0.56]}
    job = job_of("post_local_sgd", lr={"base": 0.05, "decay": decay}, model={**NORM, "norm": False},
                 batch={"global_batch_size": 120})  # fmt: skip
    assert (job.decided.lr.schedule(839), job.decided.lr.schedule(840)) == (0.05, pytest.approx(0.005))
    assert job.decided.methods["post_local_sgd"].from_examples == 840 == job.plan.examples_before(7)
    tiny = job_of("ramp", batch={"global_batch_size": 60, "ramp": {"at_epochs": [1e-13, 0.56], "sizes": [120, 240]}})
    assert [(s.first_step, s.first_example) for s in tiny.plan.stages] == [(0, 0), (1, 60), (8, 900)]


@pytest.mark.worlds
def test_adascale_that_diverges_is_a_failed_run(tmp_path):
    written = recipe_of("adascale", precision="fp32", record={"to": [], "dir": str(tmp_path)})
    written["lr"] = {**written["lr"], "base": 1e30}
    ended = train(config.from_dict(written), quiet=True)
    assert ended.status == "failed"
    assert ended.reason is not None
    assert "the loss is" in ended.reason


@pytest.mark.worlds
def test_an_evaluation_repeated_after_a_resume_counts_once(tmp_path):
    directory = finished("ghost", tmp_path, evaluate={"every_epochs": 0.5, "median_of": 3})
    before = result(directory)["test_accuracy_percent"]
    (directory / "result.json").unlink()  # as if killed between the last save and the result
    finished("ghost", tmp_path, evaluate={"every_epochs": 0.5, "median_of": 3})
    assert result(directory)["test_accuracy_percent"] == before
    assert len(checkpoint(directory)["scores"]) == 4


@pytest.mark.worlds
def test_a_target_is_reached_at_the_same_step_on_two_ranks(worlds):
    targets = [result(worlds / f"world{world}" / "target")["target"] for world in (1, 2)]
    seconds = [{name: point.pop(name) for name in ("seconds", "device_seconds")} for target in targets
               for point in (target["before"], target["mark"], target["interpolated"], target["last"])]  # fmt: skip
    assert targets[0] == targets[1]
    assert targets[0]["mark"]["steps"] < targets[0]["last"]["steps"] < 25, "of two in a row"
    for number, taken in enumerate(seconds):
        assert taken["device_seconds"] == pytest.approx((1 if number < 4 else 2) * taken["seconds"])


@pytest.mark.worlds
def test_seconds_belong_to_what_this_process_did(worlds):
    numbers = result(worlds / "world1" / "ramp")
    assert numbers["seconds_per_epoch"] == pytest.approx(numbers["seconds_training"] * 1500 / numbers["examples_seen"])
    swap = result(worlds / "world1" / "swap")
    executed = checkpoint(worlds / "world1" / "swap")["progress"]["step"] + 4 * 25
    assert swap["seconds_per_step"] == pytest.approx(swap["seconds_training"] / executed)


@pytest.mark.parametrize("method", ["ema", "ema_that_begins_small"])
@pytest.mark.worlds
def test_the_moving_average_by_hand(tmp_path, method):
    taken: list[dict[str, torch.Tensor]] = []

    def take(job, step):
        taken.append({n: p.detach().clone() for n, p in job.engine.model.named_parameters()})

    with beside(before=lambda job, step: None if taken else take(job, step), after=take):
        directory = finished(method, tmp_path)
    average = taken[0]
    for number, step in enumerate(range(2, 26, 2)):
        decay = min(0.9, (1 + number) / (10 + number)) if method == "ema_that_begins_small" else 0.9
        average = {n: decay * average[n] + (1 - decay) * taken[step][n] for n in average}
    for name, tensor in checkpoint(directory)["parts"]["ema"].items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-12, atol=1e-13)
    assert same({n: checkpoint(directory)["model"][n] for n in taken[-1]}, taken[-1])
    splits = [line["split"] for line in events(directory, "evaluate")]
    assert splits.count("ema") == splits.count("test")


@pytest.mark.worlds
def test_the_latest_snapshots_by_hand(tmp_path):
    """After steps 4, 8, ..., 24 of 25: the mean of the last three, its statistics those of a pass of its own."""
    taken: list[dict[str, torch.Tensor]] = []
    with beside(
        after=lambda job, step: taken.append({n: p.detach().clone() for n, p in job.engine.model.named_parameters()})
    ):
        directory = finished("lawa", tmp_path, evaluate={"every_epochs": 0.2})
    mean = {name: (taken[15][name] + taken[19][name] + taken[23][name]) / 3 for name in taken[0]}
    state = checkpoint(directory)
    snapshots = state["parts"]["lawa"]["snapshots"]
    assert [same(of, taken[step]) for of, step in zip(snapshots, (15, 19, 23), strict=True)] == [True] * 3
    assert same({name: state["model"][name] for name in taken[-1]}, taken[-1])
    weights, missing = in_checkpoint(state_at_end(directory)) or ({}, True)
    assert not missing
    for name, tensor in mean.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-14, atol=1e-15)
    job = job_of("lawa")
    model = job.engine.model
    model.load_state_dict({**model.state_dict(), **weights})
    passes = dataclasses.replace(job.plan, steps=math.ceil(500 / 120), seed=job.plan.seed ^ 0x5EED)
    batches = [m for micros in job.dataset.train.steps(passes, 0, 0, job.placement, 0) for m in micros]
    convolution = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        seen = torch.cat([convolution(images) for images, _ in batches])
    name = next(n for n, m in model.named_modules() if "Norm" in type(m).__name__)
    torch.testing.assert_close(weights[f"{name}.running_mean"], seen.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
    [(images, labels)] = job.dataset.test.batches(0, 1, 1000, job.placement)
    with torch.no_grad():
        right = 100 * float((model.eval()(images).argmax(1) == labels).double().mean())
    assert result(directory)["lawa_test_accuracy_percent"] == pytest.approx(right)
    of_lawa = [line["step"] for line in events(directory, "evaluate") if line["split"] == "lawa"]
    of_test = [line["step"] for line in events(directory, "evaluate") if line["split"] == "test"]
    assert of_lawa == [step for step in of_test if step >= 4] != of_test, "there is no mean before the first snapshot"


def test_what_lawa_keeps_and_says():
    job = job_of("lawa", lawa={"latest": 5, "every_epochs": 0.5})
    assert job.decided.methods["lawa"].steps == {7, 13, 19, 25}
    assert job.run.methods["lawa"].saved(2) == 5
    assert job.decided.methods["lawa"].words == (
        "LAWA: the mean of the latest 5 snapshots, of which the run takes 4, one every 0.5 epochs; 4 copies of the "
        "weights in host memory"
    )
    part = steps_of(job).parts["lawa"]
    assert (part.kept(), dict(part.views())) == ([], {})
    assert {tensor.device.type for tensor in part.average.blank()} == {"cpu"}


@pytest.mark.worlds
def test_one_process_with_accumulation_has_the_statistics_of_many(worlds):
    parts, together = (checkpoint(worlds / "world1" / m)["model"] for m in ("ghost_in_micro_batches", "ghost"))
    for name, tensor in together.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-12, atol=1e-13)


@pytest.mark.worlds
def test_precise_statistics_are_for_looking_only(tmp_path):
    """The weights are those of a run that never recomputed."""
    precise = checkpoint(finished("precise_statistics", tmp_path / "precise"))["model"]
    running = checkpoint(finished("precise_statistics", tmp_path / "running", batch_norm={}))["model"]
    for name, tensor in running.items():
        assert torch.equal(precise[name], tensor) == ("running_" not in name), name


@pytest.mark.worlds
def test_the_result_is_the_median_of_the_last_evaluations(tmp_path):
    directory = finished("ghost", tmp_path, evaluate={"every_epochs": 0.5, "median_of": 3})
    found = [line["accuracy_percent"] for line in events(directory, "evaluate") if line["split"] == "test"]
    assert len(found) == 4
    assert result(directory)["test_accuracy_percent"] == sorted(found[-3:])[1]


# Gradients in half precision, sharded engines

SHARDED = ["fsdp", *(["deepspeed"] if importlib.util.find_spec("deepspeed") else [])]
ON_EVERY_ENGINE = (
    "ramp", "ghost", "synchronised", "ema", "lawa", "outer_momentum", "schedule_free", "precise_statistics",
    "last_statistics",
)  # fmt: skip


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("engines")
    for method in ON_EVERY_ENGINE:
        written = recipe_of(method, precision="fp32", max_grad_norm=1.0)
        (directory / f"{method}.yaml").write_text(yaml.safe_dump(written))
    ended = torchrun(2, "worlds.methods:train_in_engines", directory, "ddp", "fp16", "bf16", *SHARDED)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return directory


@pytest.mark.worlds
@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 1e-7, 2e-2), ("bf16", 1e-5, 5e-2)])
def test_gradients_summed_in_half_precision_differ_by_their_rounding(engines, precision, least, most):
    exact, rounded = (checkpoint(engines / name / "ema")["model"] for name in ("ddp", precision))
    difference = max(float((rounded[n] - t).norm() / t.norm()) for n, t in exact.items() if "weight" in n)
    assert least < difference < most


@pytest.mark.worlds
@pytest.mark.parametrize("method", ON_EVERY_ENGINE)
@pytest.mark.parametrize("engine", SHARDED)
def test_sharded_engines_end_where_ddp_does(engines, engine, method):
    whole, sharded = (checkpoint(engines / name / method) for name in ("ddp", engine))
    pairs = [(whole["model"], sharded["model"])]
    pairs += [(whole["parts"]["ema"], sharded["parts"]["ema"])] if method == "ema" else []
    for these, those in pairs:
        for name, tensor in these.items():
            torch.testing.assert_close(those[name], tensor, rtol=1e-5, atol=1e-6)
    for number in ("ema_test_accuracy_percent", "lawa_test_accuracy_percent", "test_accuracy_percent"):
        assert result(engines / engine / method).get(number) == result(engines / "ddp" / method).get(number)


# What does not go together

REFUSED = {
    "engine.name=fsdp": ("sam", "sam needs engine.name = ddp"),
    "sam={rho: 0.1}": ("adascale", "lr.scaling = adascale measures gradients at the weights"),
    "batch.ramp={at_epochs: [1], factor: 2}": ("adascale", "both change what a step is worth"),
    "data.repeats=2": ("adascale", "lr.scaling = adascale takes the parts of a batch for independent ones"),
    "ema={warmup: true}": ("post_local_sgd", "ema.warmup = true counts the steps of one set of weights, and averaging"),
    "ema={decay: 0.9}": ("swap", "averaging.name = swap ends with an average of its own"),
    "averaging.lr={base: 1, scaling: adascale, reference_batch_size: 5}": ("swap", "averaging.lr.scaling = adascale"),
    "averaging.lr.scaling=linear": ("swap", "averaging.lr: lr.scaling = linear needs lr.reference_batch_size"),
    "batch.global_batch_size=130": ("adascale", "no multiple of lr.reference_batch_size = 20"),
    "averaging.workers=7": ("post_local_sgd", "averaging.workers = 7 does not fit"),
    "batch.micro_batch_size=10": ("sam_of_examples", "sam.m = 20 needs micro-batches of so many examples"),
    "lr.decay={name: constant}": ("post_local_sgd", "averaging.from_epoch is missing"),
    "lr.decay={name: cosine}": ("ramp", "turns the batch's growth into a decay of the lr"),
    "batch.bn_batch_size=7": ("ghost", "batch.bn_batch_size = 7"),
    "batch.bn_batch_size=240": ("ghost", "batch.bn_batch_size = 240 cannot be shared by 1 ranks"),
    "model={name: mlp}": ("ghost", "batch.bn_batch_size has nothing to act on: model.name = mlp"),
    "precision=fp16": ("adascale", "lr.scaling = adascale does not go with precision = fp16"),
    "steps=30": ("ramp", "batch.ramp needs the budget in epochs"),
    "regime_adaptation.reference_batch_size=0": ("regime_adaptation", "should be greater than 0"),
    "batch.ramp.largest=3": ("ramp_of_sizes", "batch.ramp.largest needs batch.ramp.factor"),
    "optimizer.eps=1": ("lecture_adam", "optimizer.eps belongs to optimizer.variant = torch"),
    "batch={global_batch_size: 120, bn_batch_size: 40}": (
        "adascale",
        "batch.bn_batch_size = 40 is more than the 20 examples",
    ),
    "sam.m=240": ("sam", "sam.m = 240 does not divide batch.global_batch_size = 120"),
    "sam={m: 10}": ("sam_with_norm", "batch.bn_batch_size = 20 is more than sam.m = 10"),
    "batch_norm.statistics=last": ("ramp", "needs batch.bn_batch_size where the micro-batch changes"),
    "averaging.worker_batch_size=7": ("swap", "a multiple of batch.bn_batch_size = 15"),
    "averaging.workers=1": ("swap", "averaging.workers = 1 should be greater than or equal to 2"),
    "lawa={latest: 2}": ("swap", "lawa takes snapshots of one set of weights, and averaging.name = swap has many"),
    "lawa={every_steps: 5}": ("post_local_sgd", "averaging.name = post_local_sgd has many"),
    "lawa.latest=1": ("lawa", "lawa.latest = 1 should be greater than or equal to 2"),
    "lawa.every_steps=13": ("lawa", "lawa takes a snapshot every 13 steps, which is once in the 25 steps of the run"),
    "lawa={every_epochs: 3, every_steps: 5}": ("lawa", "both say when a snapshot is taken; leave one out"),
    "data.image_size={from: 32, to: 64}": ("lawa", "over images of one side"),
    "schedule_free.beta=1": ("schedule_free", "schedule_free.beta = 1 should be less than 1"),
    "schedule_free=true": ("ghost", "schedule_free.beta takes the place of momentum, and optimizer.momentum is 0.9"),
    "optimizer.beta1=0.9": ("schedule_free", "optimizer.beta1 is 0.9; valid: optimizer.beta1 = 0"),
    "ema={decay: 0.99}": ("schedule_free", "schedule_free averages the weights, and ema moves or averages them, too"),
    "data.image_size={from: 16, to: 32}": ("schedule_free", "schedule_free recomputes batch norm's statistics"),
    "lawa=null": ("lawa", "batch_norm.examples has no effect without"),
    "outer_momentum.every_steps=30": (
        "outer_momentum",
        "outer_momentum.every_steps = 30 is more than the 25 steps of the run; at most 25",
    ),
    "outer_momentum={every_steps: 22}": (
        "outer_momentum_of_workers",
        "every_steps = 22 is more than the 21 steps of the run from averaging.from_epoch on",
    ),
    "outer_momentum.every_steps=5": ("outer_momentum_of_workers", "5 is no multiple of averaging.period = 2"),
    "averaging.from_epoch=9": ("outer_momentum_of_workers", "averaging does so after the run's end"),
    "outer_momentum={lr: 1, momentum: 0}": ("outer_momentum", "leaves the weights where they are"),
    "outer_momentum.momentum=1": ("outer_momentum", "outer_momentum.momentum = 1 should be less than 1"),
    "outer_momentum.lr=0": ("outer_momentum", "outer_momentum.lr = 0 should be greater than 0"),
    "outer_momentum.every_steps=0": ("outer_momentum", "outer_momentum.every_steps = 0 should be greater than 0"),
    "outer_momentum.nesterov=1": ("outer_momentum", "outer_momentum.nesterov"),
    "batch_norm.examples=5": ("ghost", "batch_norm.examples has no effect without"),
}


@pytest.mark.worlds
@pytest.mark.parametrize("override", REFUSED)
def test_what_does_not_go_together_is_one_sentence(tmp_path, override):
    method, sentence = REFUSED[override]
    written = config.overlay(recipe_of(method), [override, f"record.dir={tmp_path}"])
    with pytest.raises(UserError) as caught, distributed.group(torch.device("cpu"), alone="fsdp" in override):
        train(config.from_dict(written), quiet=True)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.worlds
def test_frozen_statistics_in_sams_second_pass(worlds):
    """Batch norm sees each image once a step: the running statistics are those of the passes at w."""
    job = job_of("sam_with_norm", steps=1, epochs=None, lr={"base": 0.05})
    start = {n: p.detach().clone() for n, p in job.engine.model.named_parameters()}
    [batch] = next(iter(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)))
    stepped(steps_of(job), 0, [batch])
    plain = job_of("sam_with_norm", steps=1, epochs=None, lr={"base": 0.05}).engine.model
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(start[name])
        plain.train()(batch[0])
    batch_norm.commit(plain)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(job.engine.model.named_buffers())[name], buffer, rtol=1e-12, atol=1e-13)
