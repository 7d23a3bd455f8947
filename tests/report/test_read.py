import json

import pytest

from largebatch.errors import UserError
from largebatch.records.run import RecipeRecord
from largebatch.records.typed import read as read_as
from largebatch.report.curves import AVERAGED_POINTS, POINTS, lines, recorded
from largebatch.report.read import read
from largebatch.report.summary import summarize


def test_the_last_line_for_a_step_counts_and_a_torn_one_is_left_out(tmp_path, write_run):
    run = write_run(tmp_path / "a")
    again = {"event": "train", "step": 3, "epoch": 0.3, "loss": 77.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n" + '{"event": "train", "step": 4, "lo')
    loss = recorded(read([run]).groups[0].runs[0], "epoch", "loss")
    assert loss[3] == (0.3, 77.0)
    assert loss[4] == (0.4, 0.5)
    assert list(loss) == list(range(1, 101))


def test_a_run_without_result_is_kept_as_unfinished(tmp_path, write_run):
    run = write_run(tmp_path / "a")
    (run / "result.json").unlink()
    row = summarize(run).rows[0]
    assert (row.reached, row.runs[0].status) == (None, "unfinished")
    assert row.trouble.startswith("1 unfinished: no result.json")


def test_a_mean_line_takes_the_steps_of_all_seeds_and_leaves_failures_alone(tmp_path, write_comparison):
    folder = write_comparison(tmp_path / "c", {"a": (64, [90.0, 92.0, None])})
    first = folder / "row-0/seed-0/metrics.jsonl"
    first.write_text("".join(line + "\n" for line in first.read_text().splitlines() if '"step": 2,' not in line))
    mean, failed = lines(summarize(folder).rows[0], "step", "accuracy_percent", "evaluate")
    assert mean.x[:2] == (1, 3)
    assert (mean.low[0], mean.y[0], mean.high[0]) == (80.0, 81.0, 82.0)
    assert failed.broken
    assert failed.x[:2] == (1, 2)


@pytest.mark.worlds
def test_long_curves_are_thinned_with_their_ends_kept(tmp_path, write_run):
    row = summarize(write_run(tmp_path / "a", batch=1, steps=6400)).rows[0]
    [rate] = lines(row, "step", "lr")
    [loss] = lines(row, "step", "loss")
    assert (len(rate.x), rate.x[0], rate.x[-1]) == (POINTS, 1, 6400)
    assert (len(loss.x), loss.x[-1]) == (AVERAGED_POINTS, 6400)
    block = range(round(98 * 6399 / 99) + 2, 6401)
    assert loss.y[-1] == pytest.approx(sum(2 / step for step in block) / len(block))


def break_file(name, text):
    def change(folder):
        (folder / "row-0/seed-0" / name).write_text(text)

    return change


def remove_file(name):
    return lambda folder: (folder / "row-0/seed-0" / name).unlink()


def edit_comparison(**changes):
    def change(folder):
        data = json.loads((folder / "comparison.json").read_text())
        (folder / "comparison.json").write_text(json.dumps(data | changes))

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (break_file("plan.json", "{"), "plan.json is not valid JSON"),
        (break_file("plan.json", "[]"), "plan.json holds list"),
        (
            break_file("plan.json", '{"seed": 0, "steps": "ten", "global_batch_size": 64}'),
            "steps is 'ten'; valid: int",
        ),
        (break_file("plan.json", '{"steps": 10, "global_batch_size": 64}'), "plan.json has no 'seed'"),
        (
            break_file("result.json", '{"status": "done"}'),
            "status is 'done'; valid: finished, failed, stopped",
        ),
        (break_file("metrics.jsonl", "{\n{}\n"), "line 1 is not valid JSON"),
        (break_file("run.yaml", "a: [1"), "run.yaml is not valid YAML"),
        (break_file("run.yaml", "- 1"), "run.yaml holds list"),
        (remove_file("plan.json"), "has not started; run the comparison again"),
        (remove_file("run.yaml"), "run.yaml is missing"),
        (remove_file("metrics.jsonl"), "metrics.jsonl is missing"),
        (edit_comparison(baseline="nobody"), "baseline 'nobody' is no row; rows are row-0, row-1"),
        (edit_comparison(rows=[]), "rows is empty"),
        (edit_comparison(rows=[{"id": "x", "runs": []}]), "row 'x' lists no runs"),
        (edit_comparison(rows=[{"id": "x", "runs": ["elsewhere"]}]), "run elsewhere has not started"),
        (lambda folder: (folder / "comparison.json").write_text("{"), "comparison.json is not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, write_comparison, change, sentence):
    folder = write_comparison(tmp_path / "c", {"a": (64, [90.0]), "b": (128, [90.0])})
    change(folder)
    with pytest.raises(UserError) as caught:
        read([folder])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_runs_are_one_sentence(tmp_path, write_comparison, write_run):
    comparison, run = write_comparison(tmp_path / "c", {"a": (64, [90.0])}), write_run(tmp_path / "r")
    for paths, sentence in (
        ([], "got none"),
        ([tmp_path], "is no run"),
        ([tmp_path / "nowhere"], "is no folder"),
        ([comparison, run], "r is none: report takes comparisons, or runs"),
        ([run, comparison], "r is none: report takes comparisons, or runs"),
        ([comparison, comparison], "comparison c is given twice"),
        ([run, run], "given twice"),
    ):
        with pytest.raises(UserError, match=sentence):
            read(paths)


def test_rows_of_one_label_are_told_apart_and_mixed_batches_refused(tmp_path, write_run):
    runs = [write_run(tmp_path / "x" / str(seed), name="lamb", seed=seed) for seed in (0, 1)]
    assert [group.label for group in read(runs).groups] == ["lamb (0)", "lamb (1)"]
    write_run(tmp_path / "x" / "2", batch=128)
    rows = [{"id": "a", "runs": ["0", "2"]}]
    (tmp_path / "x" / "comparison.json").write_text(json.dumps({"rows": rows}))
    with pytest.raises(UserError, match="mixes global_batch_size 64, 128"):
        summarize(tmp_path / "x")


def test_what_was_published_is_that_of_the_runs_own_batch():
    from largebatch.report.read import expected

    rows = {"512": {"top1": 77.0, "steps": None}, 8192: {"top1": 76.26, "top1_std": 0.09}}
    expect = {"top1": 76.26, "steps": 10, "source": "Table 1", "by_batch_size": rows}
    asked = lambda whole: read_as(RecipeRecord, whole, "run.yaml")  # noqa: E731
    at = lambda size: expected(expect, asked({"batch": {"global_batch_size": size}}))  # noqa: E731
    assert at(512) == {"top1": 77.0, "source": "Table 1"}
    assert at(8192) == {"top1": 76.26, "top1_std": 0.09, "source": "Table 1"}
    assert at(1024) == {"source": "Table 1"}, "no row: nothing was published for this batch"
    assert expected({"top1": 50.0, "source": "x"}, asked({})) == {"top1": 50.0, "source": "x"}
    tables = {"numbers": {"masked_accuracy_percent": 72.0}, "downstream": {"squad_f1": 90.7}}
    flat = {"masked_accuracy_percent": 72.0, "squad_f1": 90.7, "source": "x"}
    assert expected({**tables, "source": "x"}, asked({})) == flat
    assert expected({"by_batch_size": {"8": tables}, "source": "x"}, asked({"batch": {"global_batch_size": 8}})) == flat
    assert expected(None, asked({})) is None
