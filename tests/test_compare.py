"""Comparisons: rows, seeds, equal tuning, continuing, failures counted, and the report at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pool
import pytest
from programs import largebatch, wait_for_first_line

from largebatch.errors import UserError
from largebatch.records.comparison import SEARCH_SEED, SearchRecord
from largebatch.records.run import ResultRecord
from largebatch.records.typed import read
from largebatch.report import write
from largebatch.report.table import at_chosen
from largebatch.studies import compare as module
from largebatch.studies.compare import Tuning, compare
from largebatch.studies.rows import rows_of, varied


def facts(out: Path) -> dict:
    return json.loads((out / "comparison.json").read_text())


def result(out: Path, run: str) -> dict:
    return json.loads((out / run / "result.json").read_text())


def test_rows_are_recipes_times_values(recipe):
    rows = rows_of([recipe("a"), recipe("b")], ["batch.global_batch_size=50,100", "lr.base=0.1,0.2"], ["epochs=1"])
    assert len(rows) == 8
    assert rows[0].overrides == ("epochs=1", "batch.global_batch_size=50", "lr.base=0.1")
    assert len({row.id for row in rows}) == 8
    assert varied("optimizer={name: lars, eps: 0},{name: lamb}") == [
        "optimizer={name: lars, eps: 0}",
        "optimizer={name: lamb}",
    ]


@pytest.mark.worlds
def test_rows_by_the_names_of_the_listing_or_by_the_readmes_paths_from_any_folder(tmp_path, monkeypatch, front_door):
    monkeypatch.chdir(tmp_path)
    keys = ["data.name=digits", "epochs=1", "batch.global_batch_size=500", "record.to=null", "device=cpu"]
    code, _, complaint = front_door("compare", "quickstart/baseline", "configs/quickstart/naive.yaml", *keys)
    assert code == 0, complaint
    assert [row["id"] for row in facts(tmp_path / "comparisons/comparison")["rows"]] == ["baseline", "naive"]
    code, _, complaint = front_door("compare", "quickstart/nobody", "configs/quickstart/naive.yaml")
    assert code == 2
    assert "cannot read the recipe quickstart/nobody: No such file" in complaint


@pytest.mark.worlds
def test_a_comparison_end_to_end_with_seeds_tuning_and_a_diverging_row(recipe, tmp_path):
    small, large = recipe("small", batch={"global_batch_size": 25}), recipe("large")
    wild = recipe("wild", lr={"base": 1e25})
    out = tmp_path / "out"
    searched = ["--tune", "lr", "--trials", 3, "--hold-out", 300, "--finalists", 2]
    arguments = ["compare", small, large, wild, "--seeds", 2, *searched]
    ended = largebatch(*arguments, "--out", out, COLUMNS="200")
    assert ended.returncode == 0, ended.stderr
    written = facts(out)
    assert written["baseline"] == "small"
    assert written["seeds"] == [0, 1]
    for row in written["rows"]:
        found = row["search"]
        assert len(found["trials"]) == found["budget"] == 3, "the same budget for every row"
        assert found["hold_out"] == 300
        finals = found.get("finals") or []
        assert len(finals) == (0 if row["id"] == "wild" else 4), "two more seeds of the best two"
        for trial in [*(out / row["id"] / "search").glob("trial-*"), *(out / row["id"] / "search").glob("best-*/*")]:
            plan = json.loads((trial / "plan.json").read_text())
            assert (plan["dataset_size"], plan["test_size"]) == (1200, 300), "held out of the training set"
    chosen = written["rows"][0]["search"]["chosen"]["lr.base"]
    assert result(out, "small/seed-0")["peak_lr"] == pytest.approx(chosen)
    assert result(out, "small/seed-0")["evaluated_on"] == "test"
    assert written["rows"][2]["search"]["chosen"] is None
    assert result(out, "wild/seed-1")["status"] == "failed"
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    accuracies = [result(out, f"small/seed-{seed}")["test_accuracy_percent"] for seed in (0, 1)]
    mean = f"{sum(accuracies) / 2:.2f}"
    for shown in (page, text, ended.stdout):
        assert mean in shown
        assert "failed" in shown
    assert f"report: {out / 'report.html'}" in ended.stdout

    before = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}
    (out / "large" / "seed-1" / "result.json").unlink()  # as if it had been interrupted
    again = largebatch(*arguments, "--out", out)
    assert again.returncode == 0
    changed = [file for file, time_before in before.items() if file.stat().st_mtime_ns != time_before]
    assert changed == [out / "large" / "seed-1" / "metrics.jsonl"], "only what was missing ran again"
    assert "large, seed 1" in again.stdout
    assert "small, seed 0" not in again.stdout

    remade = largebatch("report", out, "--out", tmp_path / "again")
    assert remade.returncode == 0
    verdicts = [words.splitlines()[4] for words in (text, (tmp_path / "again" / "report.md").read_text())]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].startswith("**")


@pytest.mark.slow
def test_an_interrupted_comparison_stops_and_goes_on_where_it_was(recipe, tmp_path):
    path, out = recipe("long", epochs=300), tmp_path / "out"
    command = ("compare", path, "--seeds", 2, "--out", out)
    process = pool.start("-m", "largebatch", *command)
    wait_for_first_line(process, out / "long" / "seed-0" / "metrics.jsonl")
    process.terminate()
    assert process.wait(60) == 143
    assert "stopped: SIGTERM after step" in process.stdout
    assert not (out / "long" / "seed-1").exists()
    assert largebatch(*command).returncode == 0
    log = (out / "long" / "seed-0" / "train.log").read_text()
    assert "resumed at step" in log
    assert result(out, "long/seed-1")["status"] == "finished"


AT_50 = {"status": "finished", "test_accuracy_percent": 50.0, "evaluated_on": "test"}


def test_the_tuned_rows_have_searched_equally_whatever_the_recipe_said(recipe, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        module,
        "run_once",
        lambda row, more, directory, command, console: (
            calls.append((row.id, more))
            or module.Result("finished", None, directory, read(ResultRecord, AT_50, "result.json"))
        ),
    )
    compare([recipe("a"), recipe("b", lr={"base": 3.0})], tmp_path / "out", tuning=Tuning(trials=4))
    assert facts(tmp_path / "out")["tuning"]["hold_out"] == 250, "a sixth of the training set"
    searched = [row for row, more in calls if any(text.startswith("data.hold_out=") for text in more)]
    assert [searched.count(row) for row in ("a", "b")] == [4, 4]
    final = [more for _, more in calls if not any(text.startswith("data.hold_out=") for text in more)]
    assert len(final) == 2
    assert all(any(text.startswith("lr.base=") for text in more) for more in final)


def test_several_keys_are_searched_and_chosen_together(recipe, tmp_path, monkeypatch):
    """By the score that each trial reaches."""
    ran = []

    def reached(row, more, directory, command, console):
        settings = dict(text.partition("=")[::2] for text in more)
        ran.append(directory.name)
        value = 90.0 - 100 * abs(float(settings["optimizer.momentum"]) - 0.7)
        return module.Result(
            "finished", None, directory, read(ResultRecord, {**AT_50, "test_accuracy_percent": value}, "")
        )

    monkeypatch.setattr(module, "run_once", reached)
    space = {"lr.base": {"log": [0.02, 2.0]}, "optimizer.momentum": {"linear": [0.5, 0.95]}}
    decay = {"base": 0.1, "decay": {"name": "linear", "end_lr": 0.02}}
    path = recipe(search=space, lr=decay, evaluate={"train": False})
    compare([path], tmp_path / "out", tuning=Tuning(trials=9, space="search", hold_out=300))
    search = facts(tmp_path / "out")["rows"][0]["search"]
    tried = [trial["values"] for trial in search["trials"]]
    assert search["space"] == space
    assert len(tried) == 9
    assert tried[0] == {"lr.base": 0.1, "optimizer.momentum": 0.9}, "the recipe's own"
    finished = [trial for trial in search["trials"] if trial["status"] == "finished"]
    assert search["chosen"] == max(finished, key=lambda trial: trial["accuracy_percent"])["values"]
    assert abs(search["chosen"]["optimizer.momentum"] - 0.7) < 0.1
    assert ran.count("seed-0") == 1
    assert len(ran) == 10


def test_the_best_trials_are_judged_over_more_seeds(recipe, tmp_path, monkeypatch):
    """One seed finds 0.9 best, which on others is the worst of the three."""
    ran = []

    def reached(row, more, directory, command, console):
        settings = dict(text.partition("=")[::2] for text in more)
        seed, momentum = int(settings["seed"]), float(settings.get("optimizer.momentum", 0.9))
        ran.append((directory.parent.name, directory.name))
        lucky = seed == SEARCH_SEED or seed < 100
        value = 80.0 + 10 * momentum if lucky else 90.0 - 10 * momentum
        return module.Result(
            "finished", None, directory, read(ResultRecord, {**AT_50, "test_accuracy_percent": value}, "")
        )

    monkeypatch.setattr(module, "run_once", reached)
    path = recipe(search={"optimizer.momentum": {"choice": [0.1, 0.5, 0.9]}})
    compare([path], tmp_path / "out", tuning=Tuning(trials=3, space="search", hold_out=300, finalists=3))
    search = facts(tmp_path / "out")["rows"][0]["search"]
    assert search["chosen"] == {"optimizer.momentum": 0.1}, "81 + 89 + 89, and 89 + 81 + 81 of the lucky one"
    seeds = [(SEARCH_SEED + 1), (SEARCH_SEED + 2)]
    assert sorted((final["trial"], final["seed"]) for final in search["finals"]) == [
        (trial, seed) for trial in range(3) for seed in seeds
    ]
    assert sum(above.startswith("best-") for above, _ in ran) == 6
    over = at_chosen(read(SearchRecord, search, "comparison.json"))
    assert (over.mean, over.std, over.n) == pytest.approx((259 / 3, math.sqrt(64 / 3), 3))


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({}, {"vary": ["lr.base"]}, "--vary lr.base is not of the form key=a,b,c"),
        ({}, {"vary": ["lr.base=1,,2"]}, "is not of the form"),
        ({}, {"vary": ["lr.bse=1,2"]}, "unknown key lr.bse; did you mean base?"),
        ({}, {"vary": ["seed=1,2"]}, "a comparison sets seed itself; --seeds N"),
        ({}, {"overrides": ["record.dir=x"]}, "a comparison sets record.dir itself"),
        ({}, {"vary": ["batch.micro_batch_size=100,33"]}, "does not factor into 1 rank × micro-batches of 33"),
        ({}, {"tuning": Tuning(hold_out=1450)}, "at most 50 .*searches on 50 examples and holds out 1450"),
        ({}, {"baseline": "nobody"}, "--baseline nobody is no row of this comparison; rows: tiny"),
        ({"lr": {"table": {100: 1.0}}}, {"tuning": Tuning()}, "--tune lr needs lr.base"),
        ({}, {"tuning": Tuning(space="search")}, "--tune search needs the section search, such as"),
        (
            {"search": {"optimizer.momentun": {"linear": [0.1, 0.9]}}},
            {"tuning": Tuning(space="search")},
            "search.optimizer.momentun goes to .*unknown key optimizer.momentun; did you mean momentum",
        ),
        (
            {
                "search": {"lr.base": {"log": [0.01, 1.0]}},
                "lr": {"base": 0.1, "decay": {"name": "linear", "end_lr": 0.02}},
            },
            {"tuning": Tuning(space="search")},
            "search.lr.base goes to 0.01, which the recipe does not take: .*end_lr = 0.02 is above the peak",
        ),
        (
            {"search": {"seed": {"linear": [1, 9]}}},
            {"tuning": Tuning(space="search")},
            "search.seed cannot be searched",
        ),
        (
            {"search": {"optimizer.momentum": {"linear": [0.5, 1.5]}}},
            {"tuning": Tuning(space="search")},
            "search.optimizer.momentum goes to 1.5, .*optimizer.momentum = 1.5 .*less than 1",
        ),
        ({"task": {"name": "regression"}}, {}, "task.name = regression needs targets that are numbers"),
        ({"record": {"noise_scale": True}}, {}, "record.noise_scale needs gradients of two batch sizes"),
    ],
)
def test_bad_comparisons_are_refused_before_anything_runs(recipe, tmp_path, changes, options, sentence):
    with pytest.raises(UserError, match=sentence):
        compare([recipe(**changes)], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.worlds
def test_a_folder_holds_one_comparison_and_may_get_more_seeds(recipe, tmp_path):
    out, path = tmp_path / "out", recipe(epochs=1)
    compare([path], out, tuning=Tuning(trials=2, hold_out=300))
    searched = facts(out)["rows"][0]["search"]
    compare([path], out, seeds=2, tuning=Tuning(trials=2, hold_out=300))
    assert facts(out)["rows"][0]["search"] == searched
    assert facts(out)["rows"][0]["runs"] == ["tiny/seed-0", "tiny/seed-1"]
    before = facts(out)
    for options in ({}, {"tuning": Tuning(trials=3, hold_out=300)}, {"vary": ["lr.base=1"]}):
        with pytest.raises(UserError, match="holds another comparison .*; choose another --out"):
            compare([path], out, **options)
    assert facts(out) == before


@pytest.mark.worlds
def test_a_row_is_the_file_as_it_stood_when_the_comparison_began(recipe, tmp_path, monkeypatch):
    path = recipe(epochs=1)
    train = module.train

    def edits_the_file(run, **more):
        path.write_text(path.read_text().replace("base: 0.1", "base: 0.9"))
        return train(run, **more)

    monkeypatch.setattr(module, "train", edits_the_file)
    compare([path], tmp_path / "out", seeds=2)
    assert [result(tmp_path / "out", f"tiny/seed-{seed}")["peak_lr"] for seed in (0, 1)] == [0.1, 0.1]


def test_names_of_rows_keep_their_whole_value(recipe):
    rows = rows_of([recipe()], ["lr.base=0.1,1.1"], [])
    assert [row.id for row in rows] == ["tiny_base=0.1", "tiny_base=1.1"]


def test_recipes_of_one_name_are_refused(recipe, tmp_path):
    first = recipe("same")
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "same.yaml"
    second.write_text(first.read_text())
    with pytest.raises(UserError, match="two rows would be called same"):
        rows_of([first, second], [], [])


@pytest.mark.worlds
def test_two_recipes_of_an_error_are_compared_from_the_search_to_the_page(tmp_path):
    """``configs/tasks``: of a squared error the lowest is chosen, the best row and within the tolerance."""
    recipes = [pool.REPOSITORY / "configs" / "tasks" / f"{name}.yaml" for name in ("regression", "regression_large")]
    out = compare(recipes, tmp_path / "out", overrides=["record.to=[]"], tuning=Tuning(trials=3))
    write(out)
    small, large = facts(out)["rows"]
    for row in (small, large):
        search = row["search"]
        errors = {trial["values"]["lr.base"]: trial["squared_error"] for trial in search["trials"]}
        assert search["metric"] == "held-out squared error"
        assert errors[search["chosen"]["lr.base"]] == min(errors.values())
    assert facts(out)["notes"][-1] == "One seed: small differences may be chance."
    base, other = (result(out, f"{row['id']}/seed-0")["test_squared_error"] for row in (small, large))
    text, page = ((out / f"report.{kind}").read_text() for kind in ("md", "html"))
    told = " ".join(text.splitlines()[4].split())
    assert f"a test squared error of {other:.4f} against the baseline’s {base:.4f} at batch 19" in told
    assert ("No row at a larger batch" not in told) == (other - base <= 0.01)
    assert "Less is better: a difference below zero is an improvement." in text
    assert "test squared error (less is better)" in page
    assert "accuracy" not in text
