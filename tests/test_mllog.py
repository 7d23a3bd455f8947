"""MLPerf's log as MLCommons' own tools read it: their parser, their compliance checker, their convergence reader."""

from __future__ import annotations

import builtins
import dataclasses
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import Killed, killed_at

from largebatch.errors import UserError
from largebatch.records.mllog import RESNET_TARGET, MlperfLog, MlperfRun, division_of

pytest.importorskip("mlperf_logging", reason="mlperf-logging is not installed")

REFERENCE_4096 = MlperfRun(  # rcps_resnet.json, resnet_ref_4096
    seed=1,
    global_batch_size=4096,
    gradient_accumulation_steps=1,
    train_samples=1_281_167,
    eval_samples=50_000,
    bn_span=64,
    optimizer="lars",
    peak_lr=10,
    end_lr=1e-4,
    decay_power=2,
    decay_steps=13_137,
    warmup_epochs=5,
    momentum=0.9,
    weight_decay=2e-4,
    target=RESNET_TARGET,
)
RULESET = "4.0.0"  # the newest with ResNet: 4.1.0 names it, but has no file of its rules
PER_EPOCH = 4096 / 1_281_167


def complete(path, facts=REFERENCE_4096, accuracies=(0.3, 0.5, 0.7, 0.7591)):
    log = MlperfLog(path)
    log.start(facts)
    for nth, accuracy in enumerate(accuracies, 1):
        steps = -(-4 * nth // PER_EPOCH)
        log.evaluation(steps * PER_EPOCH, accuracy, seconds=0.01)
    log.stop(True)
    return path


def verdict(path, caplog):
    """(passes, what the checker complains of)"""
    from mlperf_logging.compliance_checker import mlp_compliance

    caplog.clear()
    checker = mlp_compliance.make_checker("training", RULESET, quiet=False, werror=True)
    with caplog.at_level(logging.WARNING):
        passes, *_ = mlp_compliance.main(str(path), f"training_{RULESET}/common.yaml", checker)
    return passes, caplog.text


def parsed(path):
    from mlperf_logging.compliance_checker import mlp_parser

    lines, errors = mlp_parser.parse_file(str(path), ruleset=RULESET)
    assert errors == []
    return [(line.key, line.value["value"], line.value["metadata"], line.timestamp) for line in lines]


@pytest.mark.worlds
def test_a_complete_log_of_the_reference_complies(tmp_path, caplog):
    path = complete(tmp_path / "mllog.txt")
    assert verdict(path, caplog) == (True, "")
    lines = parsed(path)
    values = {key: value for key, value, *_ in lines}
    assert values["lars_opt_base_learning_rate"] == values["opt_base_learning_rate"] == 10
    assert [m["epoch_num"] for key, _, m, _ in lines if key == "eval_accuracy"] == [4, 8, 12, 16]
    assert [m["first_epoch_num"] for key, _, m, _ in lines if key == "block_start"] == [1, 5, 9, 13]
    keys = [key for key, *_ in lines]
    assert keys[-5:] == ["block_stop", "eval_start", "eval_accuracy", "eval_stop", "run_stop"]
    assert all(file["file"] == "largebatch/records/mllog.py" for _, _, file, _ in lines), "no path of this machine"
    times = [time for *_, time in lines[keys.index("run_start") :]]
    began = {key: time for key, _, _, time in lines}
    assert began["eval_stop"] - began["eval_start"] >= 10
    assert times[-1] >= times[0]


def test_sgd_complies_as_well(tmp_path, caplog):
    facts = dataclasses.replace(REFERENCE_4096, optimizer="sgd", peak_lr=1.5, weight_decay=1e-4)
    assert verdict(complete(tmp_path / "mllog.txt", facts), caplog) == (True, "")


REQUIRED = (
    "submission_benchmark", "submission_org", "submission_platform", "submission_division", "submission_status",
    "cache_clear", "init_start", "init_stop", "run_start", "run_stop", "block_start", "block_stop", "eval_accuracy",
    "train_samples", "eval_samples", "global_batch_size", "gradient_accumulation_steps", "opt_name",
    "lars_opt_base_learning_rate", "lars_opt_end_learning_rate", "lars_opt_learning_rate_decay_poly_power",
    "lars_opt_learning_rate_decay_steps", "lars_epsilon", "lars_opt_learning_rate_warmup_epochs", "lars_opt_momentum",
    "lars_opt_weight_decay",
)  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_the_checker_misses_every_key_that_is_left_out(tmp_path, caplog, key):
    path = complete(tmp_path / "mllog.txt")
    kept = [line for line in path.read_text().splitlines(True) if json.loads(line[9:])["key"] != key]
    path.write_text("".join(kept))
    passes, complaints = verdict(path, caplog)
    assert not passes
    assert complaints


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"weight_decay": 5e-4}, "lars_opt_weight_decay"),
        ({"optimizer": "sgd", "peak_lr": 1.50005}, "sgd_opt_base_learning_rate"),
        ({"optimizer": "sgd", "end_lr": 0.0}, "sgd_opt_end_learning_rate"),
        ({"end_lr": 0.0}, "lars_opt_end_learning_rate"),
        ({"decay_power": 1}, "lars_opt_learning_rate_decay_poly_power"),
        ({"epsilon": 1e-9}, "lars_epsilon"),
    ],
)
def test_what_the_closed_rules_forbid_is_logged_as_it_is_under_the_open_division(tmp_path, caplog, changes, key):
    facts = dataclasses.replace(REFERENCE_4096, **changes)
    path = complete(tmp_path / "closed.txt", dataclasses.replace(facts, division="closed"))
    passes, complaints = verdict(path, caplog)
    assert not passes
    assert f"'{key}'" in complaints
    path = complete(tmp_path / "open.txt", facts)
    assert {key: value for key, value, *_ in parsed(path)}["submission_division"] == "open"
    assert verdict(path, caplog) == (True, "")


def test_the_closed_division_is_that_of_recipes_within_its_rules():
    """Those of MLPerf's reference points at every batch, and no other of our recipes for ImageNet."""
    from largebatch.recipes import config
    from largebatch.recipes.decide import decide
    from largebatch.recipes.decided import DataFacts
    from largebatch.run import beforehand

    def division(path: Path, *overrides: str) -> str:
        run = config.load(path, overrides)
        decided = decide(run, DataFacts(1_281_167, 224 * 224), 1, "cuda")
        engine = SimpleNamespace(model=None)
        dataset = SimpleNamespace(test=range(50_000))
        job = SimpleNamespace(run=run, decided=decided, plan=decided.plan, engine=engine, dataset=dataset)
        return division_of(beforehand.mlperf_facts(job))

    folder = Path(__file__).parent.parent / "configs" / "imagenet"
    for path in sorted(folder.glob("*.yaml")):
        assert division(path) == ("closed" if path.stem == "mlperf-lars" else "open"), path
    reference = folder / "mlperf-lars.yaml"
    assert division(reference, "batch.global_batch_size=4096") == "closed"
    for override in (
        "optimizer.nesterov=true", "sam={}", "batch.ramp={at_epochs: [3], factor: 2}", "max_grad_norm=1",
        "data.hold_out=1000", "model.name=resnet18", "optimizer.variant=nus", "lr.decay.end_lr=0",
    ):  # fmt: skip
        assert division(reference, override) == "open", override


def test_the_clock_stops_at_the_target_and_a_miss_is_aborted(tmp_path, caplog):
    from mlperf_logging.rcp_checker.rcp_checker import read_submission_file

    on = complete(tmp_path / "on.txt", accuracies=(0.3, 0.7591, 0.76, 0.762))
    assert read_submission_file(str(on), RULESET, False) == (0, 8, 4096, "resnet")
    missed = complete(tmp_path / "missed.txt", accuracies=(0.3, 0.7))
    assert parsed(missed)[-1][2]["status"] == "aborted"
    assert not verdict(missed, caplog)[0]
    assert read_submission_file(str(missed), RULESET, False)[0] == 1
    free = complete(tmp_path / "free.txt", dataclasses.replace(REFERENCE_4096, target=None), (0.3, 0.7))
    assert parsed(free)[-1][2]["status"] == "success"


def test_a_resumed_run_goes_on_in_the_same_file_and_still_complies(tmp_path, caplog):
    path = tmp_path / "mllog.txt"
    first = MlperfLog(path)
    first.start(REFERENCE_4096)
    first.evaluation(4.001, 0.3)
    first.handler.close()  # killed
    with path.open("a") as file:
        file.write(':::MLLOG {"namespace": "", "time_')
    second = MlperfLog(path)
    second.start(REFERENCE_4096, epoch=6.0)
    second.evaluation(8.001, 0.76)
    second.stop(True)
    assert verdict(path, caplog) == (True, "")
    keys = [key for key, *_ in parsed(path)]
    assert [keys.count(key) for key in ("init_start", "run_start", "run_resumed", "run_stop")] == [1, 1, 1, 1]
    assert keys.count("block_start") == keys.count("block_stop") == 2
    before = path.read_text()
    third = MlperfLog(path)
    third.start(REFERENCE_4096, epoch=8.0)
    third.evaluation(12.0, 0.77)
    third.stop(True)
    assert path.read_text() == before, "the target was reached: the log is closed"


def test_every_line_is_there_at_once(tmp_path, capsys):
    log = MlperfLog(tmp_path / "mllog.txt")
    log.start(REFERENCE_4096)
    lines = (tmp_path / "mllog.txt").read_text().splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    assert json.loads(lines[-1][9:])["key"] == "block_start"
    log.stop(False)
    assert parsed(tmp_path / "mllog.txt")[-1][2]["status"] == "aborted"
    assert capsys.readouterr().out == "", "MLCommons' shared logger would print"


def test_other_optimizers_and_data_are_logged_under_the_open_division(tmp_path):
    facts = dataclasses.replace(REFERENCE_4096, optimizer="lamb", decay_power=None, target=None, benchmark="tiny")
    values = {key: value for key, value, *_ in parsed(complete(tmp_path / "mllog.txt", facts))}
    assert values["submission_division"] == "open"
    assert values["opt_name"] == "lamb"
    assert values["opt_momentum"] == 0.9
    assert not [key for key in values if key.startswith("lars_")]


def test_without_the_package_one_sentence(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("mlperf_logging"):
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.startswith("mlperf_logging")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'largebatch\[mllog\]'"):
        MlperfLog(tmp_path / "mllog.txt")


@pytest.mark.worlds
def test_a_trained_run_complies_and_a_killed_one_goes_on_in_the_same_log(recipe, tmp_path, monkeypatch, caplog):
    """The trainer's own log, of a run on digits that calls itself the benchmark and reaches its target."""
    from largebatch.recipes import config
    from largebatch.run import account
    from largebatch.run.train import train

    monkeypatch.setattr(
        account,
        "mlperf_facts",
        lambda job, facts=account.mlperf_facts: dataclasses.replace(
            facts(job), benchmark="resnet", target=RESNET_TARGET
        ),
    )
    changes = {
        "optimizer": {"name": "lars", "trust_coefficient": 0.02},
        "lr": {"base": 4, "warmup": {"epochs": 1}, "decay": {"name": "polynomial", "power": 2, "end_lr": 1e-4}},
        "weight_decay": {"value": 2e-4},
        "record": {"mllog": True, "to": [], "dir": str(tmp_path / "run")},
        "epochs": 8,
        "evaluate": {"every_epochs": 4},
    }
    with pytest.raises(Killed), killed_at(50):
        train(config.load(recipe(**changes)), quiet=True)
    result = train(config.load(recipe(**changes)), quiet=True)
    assert result.numbers["test_accuracy_percent"] > 75.9
    path = tmp_path / "run" / "mllog.txt"
    assert verdict(path, caplog) == (True, "")
    keys = [key for key, *_ in parsed(path)]
    assert keys.count("run_start") == keys.count("run_stop") == keys.count("run_resumed") == 1
    values = {key: value for key, value, *_ in parsed(path)}
    assert (values["global_batch_size"], values["lars_opt_base_learning_rate"]) == (100, 4)
    assert values["lars_opt_learning_rate_decay_steps"] == 120 - 15
    assert values["train_samples"] == 1500
    accuracies = [value for key, value, *_ in parsed(path) if key == "eval_accuracy"]
    recorded = [
        line["accuracy_percent"] / 100
        for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        if line["event"] == "evaluate" and line["split"] == "test"
    ]
    assert accuracies == pytest.approx(recorded[: len(accuracies)])


@pytest.mark.parametrize(("score", "status"), [(0, "success"), (99.9, "aborted")])
def test_a_run_with_a_target_succeeds_where_it_reached_it(recipe, tmp_path, score, status):
    from largebatch.recipes import config
    from largebatch.run.train import train

    evaluate = {"every_epochs": 0.5, "stop_at": {"score": score, "patience": 2}}
    record = {"mllog": True, "to": [], "dir": str(tmp_path / "run")}
    assert train(config.load(recipe(evaluate=evaluate, record=record, epochs=2)), quiet=True).status == "finished"
    lines = parsed(tmp_path / "run" / "mllog.txt")
    assert lines[-1][2]["status"] == status
    assert len([key for key, *_ in lines if key == "eval_accuracy"]) == (2 if score == 0 else 4)
