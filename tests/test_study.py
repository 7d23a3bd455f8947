"""Studies: the list of runs as a function of those that ended, workers that share a folder, and what comes out."""

from __future__ import annotations

import json
import math
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pool
import pytest
import yaml
from programs import largebatch, wait_for_first_line

from largebatch import cli
from largebatch.errors import UserError
from largebatch.records.run import ResultRecord
from largebatch.records.target import AtScore, TargetRecord
from largebatch.records.typed import made
from largebatch.report import targets
from largebatch.studies.study import file as files
from largebatch.studies.study import findings, status, work
from largebatch.studies.study import folder as study_folder
from largebatch.studies.study.findings import run_of
from largebatch.studies.study.folder import StudyFolder
from largebatch.studies.study.jobs import Cell, due, given_up_after, left, tried
from largebatch.terminal.console import Console

SEARCH = {"lr.base": {"log": [0.02, 2]}, "optimizer.momentum": {"one_minus_log": [0.5, 0.95]}}
STUDY: dict[str, Any] = {
    "name": "digits",
    "batches": [25, 100],
    "target": {"score": 85},
    "epochs": 4,
    "every_epochs": 0.5,
    "trials": 5,
    "seeds": 2,
    "hold_out": 300,
    "search": SEARCH,
}


@pytest.fixture
def study(recipe, tmp_path):
    """Writes a study of the tiny recipe, and of others by name, changed by keys."""

    def write(*names: str, **changes: Any) -> Path:
        recipes = [str(recipe(name)) for name in names or ("tiny",)]
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, "recipes": recipes, **changes}))
        return path

    return write


def begun(path: Path, out: Path) -> StudyFolder:
    folder = StudyFolder(out)
    study = files.load(path)
    folder.begin(study, files.recipes_of(study, path.parent))
    return folder


def ended(examples: float, reached: bool = True, status: str = "finished", best: float = 80.0) -> ResultRecord:
    at = AtScore(
        score=85.0, steps=examples / 25, examples=examples, epochs=examples / 1200, seconds=1.0, device_seconds=1.0
    )
    record = TargetRecord(
        score=85.0, patience=1, reached=reached, best=best, before=None, mark=at if reached else None,
        interpolated=at if reached else None, last=at,
    )  # fmt: skip
    facts = {"status": status, "examples_seen": int(examples), "seconds_total": 1.5, "target": record}
    return made(ResultRecord, {**dict.fromkeys(REQUIRED), **facts})


REQUIRED = [
    field
    for field, value in ResultRecord.__dataclass_fields__.items()
    if value.default is value.default_factory and field != ResultRecord.BY_KEY
]


def folders(cell: Cell, outcomes: dict[str, ResultRecord]) -> list[str]:
    return [job.folder for job in due(cell, outcomes)]


def test_trials_come_in_rounds_and_seeds_after_all_of_them(study, tmp_path):
    cell = begun(study(), tmp_path / "out").cells()[0]
    outcomes: dict[str, ResultRecord] = {}
    assert folders(cell, outcomes) == ["tiny/25/search/trial-00"], "the recipe's own values"
    assert left(cell, outcomes) == 7
    outcomes[cell.trial_folder(0)] = ended(3000)
    others = list(due(cell, outcomes))
    assert [job.folder for job in others] == ["tiny/25/search/trial-01", "tiny/25/search/trial-02"]
    assert f"evaluate.stop_at.give_up_epochs={1.25 * 3000 / 1200:.4g}" in others[0].overrides
    outcomes[cell.trial_folder(2)] = ended(4800, reached=False)
    assert folders(cell, outcomes) == ["tiny/25/search/trial-01"], "the second round waits for the first"
    outcomes[cell.trial_folder(1)] = ended(2000)
    later = list(due(cell, outcomes))
    assert [job.folder for job in later] == ["tiny/25/search/trial-03", "tiny/25/search/trial-04"]
    assert f"evaluate.stop_at.give_up_epochs={1.25 * 2000 / 1200:.4g}" in later[0].overrides
    assert "data.hold_out=300" in later[0].overrides, "never the test set"
    outcomes |= {cell.trial_folder(3): ended(1500), cell.trial_folder(4): ended(0, status="failed")}
    chosen = tried(cell, outcomes)[3].values
    seeds = list(due(cell, outcomes))
    assert [job.folder for job in seeds] == ["tiny/25/best-03/seed-0", "tiny/25/best-03/seed-1"]
    for job in seeds:
        assert f"lr.base={chosen['lr.base']}" in job.overrides, "the best of all rounds"
        assert not any(override.startswith(("data.hold_out", "evaluate.stop_at")) for override in job.overrides)
        assert "data.hold_out=0" in cell.recipe.overrides, "on the test set"
    outcomes |= {job.folder: ended(1500) for job in seeds}
    assert folders(cell, outcomes) == []
    assert left(cell, outcomes) == 0


def test_a_cell_of_which_nothing_can_be_trained_is_done(study, tmp_path):
    cell = begun(study(), tmp_path / "out").cells()[0]
    outcomes: dict[str, ResultRecord] = {}
    while jobs := folders(cell, outcomes):
        outcomes |= {folder: ended(0, status="failed") for folder in jobs}
    assert len(outcomes) == 5
    assert left(cell, outcomes) == 0


def test_a_trial_that_reached_the_target_is_before_any_that_did_not(study, tmp_path):
    cell = begun(study(), tmp_path / "out").cells()[0]
    outcomes = {
        cell.trial_folder(0): ended(4800, reached=False, best=84.9),
        cell.trial_folder(1): ended(4700, best=85.1),
        cell.trial_folder(2): ended(4800, reached=False, best=84.0),
    }
    trials = tried(cell, outcomes)
    assert [trial.worth for trial in trials.values()] == [(0.0, 84.9), (1.0, -4700.0), (0.0, 84.0)]
    assert given_up_after(cell, list(trials.values())) is None, "the budget is shorter"
    assert given_up_after(cell, [trials[0], trials[2]]) is None


def test_a_row_whose_batch_grows_has_the_steps_that_it_took(study, tmp_path):
    for ramp, reached, unreached in ((None, None, None), ({"at_epochs": [1], "factor": 2}, 40.0, 192.0)):
        overrides = {"batch.ramp": ramp} if ramp else {}
        cell = begun(study(overrides=overrides), tmp_path / f"out-{ramp is None}").cells()[0]
        assert run_of(cell, 0, ended(1000)).steps == reached
        assert run_of(cell, 0, ended(4800, reached=False)).steps == unreached


def test_more_is_added_and_what_there_was_stays(study, recipe, tmp_path):
    folder = begun(study(), tmp_path / "out")
    cell = folder.cells()[0]
    outcomes = {cell.trial_folder(number): ended(1000.0 + number) for number in range(5)}
    values = [trial.values for trial in tried(cell, outcomes).values()]
    outcomes |= {cell.seed_folder(0, seed): ended(1000) for seed in (0, 1)}
    assert left(cell, outcomes) == 0
    folder.add([50], [recipe("other")], 4, 3)
    cells = folder.cells()
    assert [(one.row, one.batch) for one in cells] == [
        ("tiny", 25), ("other", 25), ("tiny", 50), ("other", 50), ("tiny", 100), ("other", 100)
    ]  # fmt: skip
    grown = cells[0]
    assert (grown.trials, grown.seeds) == (9, 3)
    assert [trial.values for trial in tried(grown, outcomes).values()] == values
    assert folders(grown, outcomes) == [f"tiny/25/search/trial-0{number}" for number in (5, 6, 7, 8)]
    outcomes |= {grown.trial_folder(number): ended(500.0 + number) for number in (5, 6, 7, 8)}
    seeds = [f"tiny/25/best-05/seed-{seed}" for seed in range(3)]
    assert folders(grown, outcomes) == seeds, "better values are run anew at every seed"
    begun(study(), tmp_path / "out")
    assert folder.study.batches == (25, 50, 100), "the file as it was goes on with what was added"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batches": [100, 25]}, "batches = [100, 25] must be sizes that ascend"),
        ({"recipes": []}, "recipes = [] should name at least one"),
        ({"target": 85}, "target = 85 is a value where keys are expected"),
        ({"target": {"score": 850}}, "evaluate.stop_at.score = 850 is no accuracy in percent; valid: 0 to 100"),
        ({"traget": {"score": 85}}, "unknown key traget; did you mean target?"),
        ({"every_epochs": 0}, "every_epochs = 0 should be greater than 0"),
        ({"every_epochs": 9}, "evaluate.stop_at has nothing to end"),
        ({"sampler": "random"}, "sampler = random is not known; valid: quasi_random, tpe"),
        ({"name": "a/b"}, "name = a/b should be letters, digits"),
        ({"recipes": ["nowhere.yaml"]}, "nowhere.yaml"),
        ({"recipes": ["tiny.yaml", "tiny.yaml"]}, "two recipes would be called tiny; give one an id"),
        ({"search": {"lr.bas": {"log": [1, 2]}}}, "search.lr.bas goes to 1.0.*unknown key lr.bas; did you mean base?"),
        ({"search": {"optimizer.momentum": {"linear": [0.5, 2]}}}, "optimizer.momentum = 2.0"),
        ({"search": {"epochs": {"linear": [1, 9]}}}, "search.epochs cannot be searched: the budget is the same"),
        ({"search": {"evaluate.stop_at.score": {"linear": [1, 9]}}}, "evaluate.stop_at.score cannot be searched"),
        ({"search": {"lr.warmup.epochs": {"linear": [0, 9]}}}, "search.lr.warmup.epochs goes to 9.0, which the recipe"),
        ({"overrides": {"seed": 4}}, "overrides.seed = 4: the search has one seed"),
        ({"overrides": {"regime_adaptation": {"reference_batch_size": 10}}}, "regime_adaptation lengthens the run"),
        ({"name": ".."}, "name = .. should be letters"),
        ({"batches": [25, 5000]}, "5000"),
        ({"overrides": {"lr.bas": 1}}, "unknown key lr.bas; did you mean base?"),
    ],
)  # fmt: skip
def test_what_a_study_cannot_be_is_a_sentence_before_anything_runs(study, tmp_path, changes, sentence):
    recipes = {} if "recipes" in changes else {"recipes": ["tiny.yaml"]}
    with pytest.raises(UserError, match=sentence if ".*" in sentence else re.escape(sentence)):
        begun(study(**recipes, **changes), tmp_path / "out")
    assert not (tmp_path / "out" / "study.json").exists()


def test_a_record_that_a_ramp_follows_may_be_set(study, tmp_path):
    ramp = {"rule": "adaptive", "factor": 2, "largest": 100}
    overrides = {"batch.ramp": ramp, "record.noise_scale": {"every_steps": 1}}
    begun(study(recipes=["tiny.yaml"], batches=[25], overrides=overrides), tmp_path / "out")
    with pytest.raises(UserError, match="overrides.record.to = .*: records change nothing of a run"):
        begun(study(recipes=["tiny.yaml"], overrides={"record.to": ["tensorboard"]}), tmp_path / "other")


def test_a_folder_holds_one_study(study, tmp_path):
    begun(study(), tmp_path / "out")
    for changes, difference in (
        ({"trials": 6}, "trials: 5 there, 6 here"),
        ({"target": {"score": 86}}, "target.score: 85.0 there, 86.0 here"),
        ({"batches": [25, 50]}, "batches"),
    ):
        with pytest.raises(UserError, match=f"holds another version of the study .*{re.escape(difference)}"):
            begun(study(**changes), tmp_path / "out")
    rows = [{"recipe": "tiny.yaml", "id": name} for name in ("tiny", "other", "third")]
    with pytest.raises(UserError, match="holds the study without the recipes other, third; `largebatch study add .*"):
        begun(study(recipes=rows), tmp_path / "out")
    with pytest.raises(UserError, match=re.escape("(recipes.tiny.overrides.lr.base: None there, 0.3 here")):
        begun(study(recipes=[{"recipe": "tiny.yaml", "overrides": {"lr.base": 0.3}}]), tmp_path / "out")
    with pytest.raises(UserError, match="nowhere holds no study"):
        StudyFolder(tmp_path / "nowhere").cells()
    with pytest.raises(UserError, match="5000"):
        StudyFolder(tmp_path / "out").add([5000], [], None, None)
    assert StudyFolder(tmp_path / "out").study.batches == (25, 100)
    with pytest.raises(UserError, match="nowhere holds no study"):
        StudyFolder(tmp_path / "nowhere").add([5], [], None, None)
    path, recipe = study(), tmp_path / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("base: 0.1", "base: 9.0"))
    with pytest.raises(UserError, match=re.escape("the recipe tiny was another when the study in")):
        begun(path, tmp_path / "out")


def test_a_worker_whose_points_would_be_others_is_refused(study, tmp_path, monkeypatch):
    begun(study(), tmp_path / "out")
    monkeypatch.setattr(study_folder, "points_by", lambda sampler: {"scipy": "1.2.3"})
    with pytest.raises(UserError, match=r"began with scipy \d.* whose points its trials are, and here is 1\.2\.3"):
        begun(study(), tmp_path / "out")


def test_a_mistake_that_was_mended_begins_the_study(study, tmp_path):
    with pytest.raises(UserError, match="5000"):
        begun(study(batches=[25, 5000]), tmp_path / "out")
    assert len(begun(study(batches=[25, 50]), tmp_path / "out").cells()) == 2


def test_keys_of_whole_numbers_get_whole_numbers(study, tmp_path):
    search = {"lr.base": SEARCH["lr.base"], "batch.micro_batch_size": {"log": [5, 25]}}
    cell = begun(
        study(search=search, overrides={"batch.micro_batch_size": 25}, batches=[25]), tmp_path / "out"
    ).cells()[0]
    sizes = [job.overrides for job in due(cell, {})]
    assert all(re.search(r"batch.micro_batch_size=\d+\b(?!\.)", " ".join(overrides)) for overrides in sizes)


def test_runs_that_failed_needed_more_than_the_budget(study, tmp_path):
    cell = begun(study(), tmp_path / "out").cells()[0]
    run = findings.run_of(cell, 0, ended(100, reached=False, status="failed"))
    assert (run.examples, run.reached) == (4 * 1500, False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["study", "nothing.yaml"], "study nothing.yaml is neither a file nor known; valid: add, run, show, status"),
        (["study", "statu"], "did you mean status?"),
        (["study", "add", "."], "study add needs --batch, --recipe, --trials or --seeds"),
        (["study", "status", "."], ". holds no study"),
    ],
)
def test_the_commands_words(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["largebatch", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_what_comes_out_of_runs_that_obey_a_law(study, tmp_path, monkeypatch):
    """E(B) = 1000·(1 + B/200), at the lr B/1000: the study says so, and that twice as many are more."""
    path = study("one", "two", batches=[25, 50, 100, 200, 300], seeds=6)
    folder = begun(path, tmp_path / "out")
    cells = folder.cells()
    outcomes: dict[str, ResultRecord] = {}
    draw = random.Random(1)
    for cell in cells:
        times = 1.0 if cell.row == "one" else 2.0
        while jobs := list(due(cell, outcomes)):
            for job in jobs:
                settings = dict(override.partition("=")[::2] for override in job.overrides)
                away = math.log(float(settings["lr.base"]) / (cell.batch / 1000)) if "search" in job.folder else 0.0
                needed = times * 1000 * (1 + cell.batch / 200) * (1 + away**2) * (1 + 0.02 * draw.random())
                outcomes[job.folder] = ended(needed)
    monkeypatch.setattr(StudyFolder, "outcomes", lambda self, cells: outcomes)
    facts = findings.findings(folder, "largebatch study")
    assert facts is not None
    for curve, times in zip(facts.curves, (1.0, 2.0), strict=True):
        assert curve.law is not None
        assert curve.law.critical_batch_size == pytest.approx(200, rel=0.1)
        assert curve.law.least_examples == pytest.approx(1000 * times, rel=0.05)
    said = [*targets.rules(facts.curves[0]), *targets.paired(facts)]
    assert said[0].startswith("best lr.base along the batch: ")
    assert any(line.startswith("one needs 0.50 times the examples of two over their batches (0.") for line in said)
    assert status.sentences(folder)[0] == f"{len(outcomes)} runs are done, 0 running, 0 left with those"


def test_ranks_of_a_launcher_are_no_workers(study, tmp_path, monkeypatch):
    folder = begun(study(), tmp_path / "out")
    monkeypatch.setattr(work.distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="here are 2 ranks; valid: --workers 2"):
        work.work(folder, "", Console(quiet=True))


def curves(out: Path) -> Any:
    """Without what the clock says."""
    facts = json.loads((out / "curves.json").read_text())
    for curve in facts["curves"]:
        for point in curve["points"]:
            for key in [key for key in point if key.startswith("seconds")]:
                del point[key]
    return {key: value for key, value in facts.items() if key != "command"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A study that one worker made."""
    folder = tmp_path_factory.mktemp("alone")
    write_study(folder)
    made_alone = largebatch("study", folder / "study.yaml", "--out", folder / "out", COLUMNS="120")
    assert made_alone.returncode == 0, made_alone.stderr
    (folder / "said").write_text(made_alone.stdout)
    return folder


def write_study(folder: Path) -> None:
    from conftest import TINY

    recipe = {**TINY, "record": {"to": []}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, "recipes": ["tiny.yaml"]}))


@pytest.mark.worlds
def test_a_study_from_the_search_to_the_page(alone):
    out, said = alone / "out", (alone / "said").read_text()
    runs = sorted(str(file.parent.relative_to(out)) for file in out.rglob("result.json"))
    wanted = [f"tiny/{batch}/search/trial-0{number}" for batch in (100, 25) for number in range(5)]
    assert [run for run in runs if "search" in run] == wanted
    seeds = [run.split("/") for run in runs if "search" not in run]
    assert [(batch, seed) for _, batch, _, seed in seeds] == [(b, f"seed-{s}") for b in ("100", "25") for s in (0, 1)]
    for trial in out.rglob("trial-*/plan.json"):
        plan = json.loads(trial.read_text())
        assert (plan["dataset_size"], plan["test_size"]) == (1200, 300)
    for run in out.rglob("seed-*/plan.json"):
        assert json.loads(run.read_text())["dataset_size"] == 1500
    page = (out / "report.md").read_text()
    for text in (page, said):
        assert "tiny: its search" in text
        assert "best lr.base along the batch" in text
    assert (out / "curves.svg").read_text().count("<svg") == 1
    again = largebatch("study", alone / "study.yaml", "--out", out)
    assert again.returncode == 0
    assert not trials_told(again.stdout), "nothing is made twice"
    told = largebatch("study", "status", out)
    assert "14 runs are done, 0 running, 0 left" in told.stdout


def trials_told(said: str) -> list[str]:
    """A line for each trial of a search that ended."""
    return re.findall(r"^tiny.*, trial \d+ .*held-out", said, re.M)


@pytest.mark.worlds
def test_two_workers_make_the_same_study(alone, tmp_path):
    write_study(tmp_path)
    both = largebatch("study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--workers", 2, OMP_NUM_THREADS="1")
    assert both.returncode == 0, both.stderr
    assert curves(tmp_path / "out") == curves(alone / "out")
    assert len(trials_told(both.stdout)) == 10, "no run is made by both"


@pytest.mark.slow
def test_killed_twenty_times_no_run_is_lost_and_none_counted_twice(alone, tmp_path):
    write_study(tmp_path)
    words = ("-m", "largebatch", "study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    draw, killed = random.Random(7), 0
    workers = [pool.start(*words), pool.start(*words)]
    deadline = time.monotonic() + 240
    while killed < 20 and time.monotonic() < deadline:
        time.sleep(0.3 * draw.random())
        at_work = [number for number, worker in enumerate(workers) if re.search(r", (trial|seed) \d+ ", worker.stdout)]
        for victim in at_work[:1]:
            killed += workers[victim].poll() is None
            workers[victim].kill()
            workers[victim].wait(30)
            workers[victim] = pool.start(*words)
        workers = [pool.start(*words) if worker.poll() is not None else worker for worker in workers]
        if len(list((tmp_path / "out").rglob("result.json"))) == 14:
            break
    assert killed >= 5
    assert [worker.wait(300) for worker in workers] == [0, 0]
    assert curves(tmp_path / "out") == curves(alone / "out")
    assert len(list((tmp_path / "out").rglob("result.json"))) == 14


@pytest.mark.slow
def test_a_signal_stops_a_worker_and_the_same_command_goes_on(tmp_path):
    write_study(tmp_path)
    words = ("study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--workers", 2)
    process = pool.start("-m", "largebatch", *words)
    wait_for_first_line(process, tmp_path / "out" / "tiny" / "25" / "search" / "trial-00" / "metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    assert largebatch(*words).returncode == 0
    assert len(list((tmp_path / "out").rglob("result.json"))) == 14
