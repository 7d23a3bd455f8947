"""``largebatch recipe list`` and ``show``: what they derive is what a run would do, and it is readable anywhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from programs import REPOSITORY, largebatch

from largebatch.errors import UserError
from largebatch.recipes import config, derive
from largebatch.studies import reading as recipes
from largebatch.studies.reading import files
from largebatch.terminal.console import Console
from largebatch.terminal.plot import plot

WRITTEN = {
    "title": "Linear scaling (Goyal 2017)",
    "model": {"name": "torchvision/resnet50"},
    "data": {"name": "imagenet"},
    "batch": {"global_batch_size": 8192, "bn_batch_size": 32},
    "epochs": 90,
    "optimizer": {"name": "sgd", "nesterov": True},
    "lr": {
        "base": 0.1, "reference_batch_size": 256, "scaling": "linear", "warmup": {"epochs": 5, "from": "base"},
        "decay": {"name": "steps", "at_epochs": [30, 60, 80]},
    },
    "weight_decay": {"value": 1e-4},
    "table": {8192: {"loss.label_smoothing": 0.1}, 16384: {"weight_decay.value": 5e-5, "lr.warmup.epochs": 6}},
    "expect": {
        "source": "table 1",
        "by_batch_size": {8192: {"top1": 76.26, "top1_std": 0.09}, 65536: {"top1": 66.04}},
    },
}  # fmt: skip
HEADER = "# Accurate, Large Minibatch SGD: in 1 Hour. Goyal, Dollár, Girshick 2017,\n# arXiv:1706.02677, section 2.\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "configs" / "imagenet").mkdir(parents=True)
    write(tmp_path)
    (tmp_path / "configs" / "broken.yaml").write_text("lr: {bse: 1}\n")
    return tmp_path


def write(tmp_path, header=HEADER, name="imagenet/goyal2017", **changes):
    path = tmp_path / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + yaml.safe_dump({**WRITTEN, **changes}, sort_keys=False))
    return path


def rows(facts):
    return {row["what"].strip(): row for row in facts["rows"]}


@pytest.mark.worlds
def test_the_recipes_of_the_checkout_are_found_from_anywhere(tmp_path):
    ended = largebatch("recipe", "show", "imagenet/ffcv2023", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "160 → 192, tests 256" in ended.stdout


@pytest.mark.worlds
def test_the_list_names_papers_batches_and_results_and_survives_a_broken_file(folder):
    ended = largebatch("recipe", "list", "--json", folder / "rows.json", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert all(len(line) <= 100 for line in ended.stdout.splitlines()[:-1])
    for words in ("imagenet/goyal2017", "Goyal et al. 2017", "arXiv:1706.02677", "8,192 – 65,536", "76.26 %", "broken"):
        assert words in ended.stdout
    broken, goyal = json.loads((folder / "rows.json").read_text())["recipes"]
    assert broken["name"] == "broken"
    assert "missing" in broken["error"]
    assert goyal["batch_sizes"] == [8192, 16384, 65536]
    assert goyal["published"] == {"batch_size": 8192, "top1": 76.26, "top1_std": 0.09, "source": "table 1"}


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40, 12])
def test_names_of_the_list_never_fold(width, capsys):
    """Other columns give way: they go over several lines, or are left out and named."""
    rows = recipes.listing(recipes.folder_of())
    Console(width=width).print(recipes.table_of(rows, width), crop=False)
    said = capsys.readouterr().out.splitlines()
    begins = [
        line.split()[0] for line in said if line and line[0] != " " and not line.startswith(("recipe ", "no room"))
    ]
    assert begins == [row["name"] for row in rows]
    longest = max(len(row["name"]) for row in rows)
    assert all(len(line.rstrip()) <= max(width, longest) for line in said if "room" not in line)
    assert ("published" in said[0]) == (width >= 100)


@pytest.mark.parametrize(
    ("comment", "title", "paper"),
    [
        ("LARS. You, Gitman, Ginsburg 2017, arXiv:1708.03888.", None, "You et al. 2017, arXiv:1708.03888"),
        ("Adam: A Method, Kingma & Ba 2015, arXiv:1412.6980.", None, "Kingma & Ba 2015, arXiv:1412.6980"),
        ("Reality Check. Nado et al. 2021, arXiv:2102.06356: so.", None, "Nado et al. 2021, arXiv:2102.06356"),
        ("See Kingma 2015, arXiv:1412.6980; Liu et al. 2025, arXiv:2502.16982.", "M (Liu 2025)",
         "Liu et al. 2025, arXiv:2502.16982"),
        ("One weird trick: see Krizhevsky 2014, arXiv:1404.5997", None, "Krizhevsky 2014, arXiv:1404.5997"),
        ("The control.", "Small-batch momentum", "Small-batch momentum"),
        ("Nothing.", "Muon (Jordan 2024)", "Jordan 2024"),
    ],
)  # fmt: skip
def test_papers_are_read_from_the_header(tmp_path, comment, title, paper):
    file = tmp_path / "x.yaml"
    file.write_text(f"# {comment}\ntitle: {title}\n# Other 1999, arXiv:1234.56789\n")
    assert recipes.paper_of(file, title) == paper


def test_show_gives_the_numbers_their_rules_and_their_rows(folder):
    path = folder / "configs" / "imagenet" / "goyal2017.yaml"
    facts = recipes.derived(path, [], batch=16384, devices=64)
    found = rows(facts)
    assert found["global batch"]["value"] == "16,384 = 64 × 256 × 1"
    assert found["global batch"]["from"] == "by hand"
    assert found["batch norm over"]["value"] == "32"
    assert (facts["peak_lr"], found["peak lr"]["rule"]) == (pytest.approx(6.4), "linear: 0.1 × 16384/256 = 6.4")
    assert (found["weight decay"]["value"], found["weight decay"]["from"]) == ("5e-05", "table row 16384")
    assert found["warm-up"]["from"] == "table row 16384"
    assert found["label smoothing"]["from"] == "default"
    assert found["steps"]["value"] == f"{-(-90 * 1_281_167 // 16384):,}"
    assert found["published"]["value"] == "nothing at 16,384"
    own = rows(recipes.derived(path, ["weight_decay.value=1"]))
    assert own["label smoothing"]["from"] == "table row 8192"
    assert own["weight decay"]["from"] == "by hand"
    assert own["peak lr"]["from"] == "recipe"
    assert own["published"]["value"] == "76.26 ± 0.09 % at 8,192"


def test_the_steps_that_are_named_are_those_of_the_schedule(folder):
    path = folder / "configs" / "imagenet" / "goyal2017.yaml"
    run = config.load(path)
    plan = derive.plan_of(run, 1_281_167, 1, 256)
    schedule = derive.learning_rate_of(run, plan).schedule
    said = rows(recipes.derived(path, []))
    after = said["decay"]["rule"].removeprefix("after ").removesuffix(" steps").split(", ")
    for nth, text in enumerate(after):
        step = int(text.replace(",", ""))
        assert schedule(plan.examples_before(step)) == pytest.approx(3.2 * 0.1 ** (nth + 1))
        assert schedule(plan.examples_before(step - 1)) == pytest.approx(3.2 * 0.1**nth)
    warm = int(said["warm-up"]["value"].split(" = ")[1].split()[0])
    assert schedule(plan.examples_before(warm)) == pytest.approx(3.2)
    assert schedule(plan.examples_before(warm - 1)) < 3.2


def test_ramps_regime_adaptation_and_adascale_are_told(tmp_path):
    ramp = {"global_batch_size": 8192, "ramp": {"at_epochs": [30, 60], "factor": 2, "largest": 16384}}
    lr = {"base": 3.2}
    path = write(tmp_path, name="ramp", batch=ramp, lr=lr, table={8192: {"epochs": 90}})
    facts = recipes.derived(path, [])
    found = rows(facts)
    assert found["then"]["value"].startswith("16,384 = ")
    assert found["then"]["rule"] == f"from epoch 30, after {-(-30 * 1_281_167 // 8192):,} steps"
    assert found["decay"]["value"].startswith("÷2 at epochs 60")
    drawn = recipes.as_plot(facts)
    assert "global batch\n16,384 ┤" in drawn
    stretched = write(tmp_path, name="regime", regime_adaptation={"reference_batch_size": 256})
    found = rows(recipes.derived(stretched, []))
    assert (found["epochs"]["value"], found["epochs"]["rule"]) == (
        "2880", "regime adaptation: 90 × ceil(8192/256) = × 32",
    )  # fmt: skip
    assert "at epochs 960, 1920, 2560" in found["decay"]["value"]
    scaled = write(tmp_path, name="ada", lr={**WRITTEN["lr"], "scaling": "adascale"})
    facts = recipes.derived(scaled, [])
    reference = -(-90 * 1_281_167 // 256)
    assert rows(facts)["steps"]["value"] == f"{-(-reference // 32):,} to {reference:,}"
    assert "scale-invariant clock" in recipes.as_plot(facts)


def test_methods_beside_the_loop_are_told(tmp_path):
    path = write(tmp_path, name="sam", sam={"rho": 0.1, "m": 64}, ema={"decay": 0.99}, max_grad_norm=1)
    found = rows(recipes.derived(path, []))
    assert found["SAM"]["value"] == "SAM, rho 0.1, one perturbation for each 64 examples"
    assert found["EMA"]["value"] == "EMA of the weights, decay 0.99 every step"
    assert found["clipping"]["value"] == "to norm 1"
    of_the_task = write(tmp_path, name="task", task={"name": "classification", "label_smoothing": 0.2})
    assert rows(recipes.derived(of_the_task, []))["label smoothing"]["value"] == "0.2"
    local = write(tmp_path, name="local", averaging={"name": "post_local_sgd", "workers": 16})
    assert rows(recipes.derived(local, []))["averaging"]["value"] == (
        "post-local SGD from epoch 30: 16 workers, averaged every 16 steps"
    )


@pytest.mark.parametrize(
    ("data", "examples", "size"),
    [
        ({"name": "imagenet"}, None, 1_281_167),
        ({"name": "cifar100", "hold_out": 5000}, None, 45_000),
        ({"name": "fashion_mnist"}, None, 60_000),
        ({"name": "synthetic", "examples": 77}, None, 77),
        ({"name": "synthetic"}, None, 10_000),
        ({"name": "folder", "root": "/x"}, 1234, 1234),
    ],
)
def test_training_sets_are_counted_without_reading_them(data, examples, size):
    assert recipes.training_examples(config.Data(**data), examples)[0] == size


@pytest.mark.worlds
@pytest.mark.worlds
def test_mistakes_are_one_sentence(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"did you mean imagenet/goyal2017\?"):
        recipes.located("imagnet/goyal2017")
    with pytest.raises(UserError, match="nowhere is not a folder of recipes"):
        recipes.folder_of(folder / "nowhere")
    path = write(folder, name="own", data={"name": "folder", "root": "/x"})
    with pytest.raises(UserError, match="--examples N"):
        recipes.derived(path, [])
    with pytest.raises(UserError, match="table has no row for"):
        recipes.derived(folder / "configs/imagenet/goyal2017.yaml", [], batch=4096)
    ended = largebatch("recipe", "show", "imagenet/goyal2018", cwd=folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.worlds
def test_show_in_a_pipe_by_name_with_overrides_and_json(folder):
    ended = largebatch(
        "recipe", "show", "imagenet/goyal2017", "epochs=45", "lr.decay.at_epochs=[15,30,40]", "--devices", "256",
        "--json", "out.json", cwd=folder,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert all(len(line) <= 100 for line in ended.stdout.splitlines())
    assert "8,192 = 256 × 32 × 1" in ended.stdout
    assert "\x1b" not in ended.stdout
    facts = json.loads((folder / "out.json").read_text())
    assert facts["epochs"] == 45
    assert facts["schedule"][0] == [0.0, 0.1]
    assert max(lr for _, lr in facts["schedule"]) == pytest.approx(3.2)


@pytest.mark.worlds
def test_every_recipe_of_the_checkout_is_shown():
    offenders = []
    for path in sorted((REPOSITORY / "configs").rglob("*.yaml")):
        examples = 1_000_000 if {"bert", "bert-methods"} & {*path.parts} else None  # of a pack of one's own
        facts = recipes.derived(path, [], devices=8 if "imagenet" in path.parts else 1, examples=examples)
        wrong = {
            "no steps": facts["steps"] <= 0,
            "a plot of less than 14 lines": recipes.as_plot(facts).count("\n") < 14,
            "no paper": not recipes.paper_of(path, facts["title"]),
        }
        offenders += [(path.stem, what) for what, is_so in wrong.items() if is_so]
    assert not offenders


def test_a_plot_has_its_size_its_marks_and_a_joined_curve():
    lines = plot([(n, n / 10) for n in range(11)], title="up", x_label="epochs", width=20, height=5).splitlines()
    assert lines[0] == "up"
    assert len(lines) == 5 + 4
    assert all(len(line) <= 20 + len("0.667 ┤") for line in lines)
    assert lines[1].startswith("    1 ┤")
    assert lines[5].startswith("    0 ┤")
    assert lines[-2].split() == ["0", "2.5", "5", "7.5", "10"]
    steep = plot([(0, 0.0), (1, 8.0)], title="", x_label="", width=10, height=4).splitlines()
    assert all("\u2800" < line[-1] <= "\u28ff" for line in steep[1:5]), "the jump is drawn"
    log = plot([(0, 0.0), (1, 1.0), (2, 0.01)], title="", x_label="", height=9, lowest=0.001, levels=[1, 0.1, 0.01])
    assert [line.split()[0] for line in log.splitlines() if "┤" in line] == ["1", "0.1", "0.01"]


@pytest.mark.worlds
def test_the_recipe_room_loads_no_torch():
    code = "import sys, largebatch.studies.reading, largebatch.records.mllog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize(
    ("expect", "said", "short"),
    [
        (
            {"numbers": {"squared_error": 0.48, "r2": 0.51}},
            "squared error 0.48, r2 0.51 at 64",
            "squared error 0.48 at 64",
        ),
        (
            {"top1": 76.3, "numbers": {"top5_accuracy_percent": 93.1}, "steps": 100},
            "76.3 %, top5 accuracy 93.1 %, 100 steps at 64",
            "76.3 % at 64",
        ),
        (
            {"by_batch_size": {64: {"numbers": {"squared_error": 0.5}, "epochs": 3}, 128: {"steps": 7}}},
            "squared error 0.5, 3 epochs at 64",
            "squared error 0.5 at 64",
        ),
        ({"numbers": {"r2": 0.5}, "by_batch_size": {64: {"steps": 7}}}, "7 steps at 64", "r2 0.5 at 64"),
        ({"by_batch_size": {128: {"numbers": {"r2": 0.6}}}}, "–", "r2 0.6 at 128"),
        ({}, "–", "–"),
    ],
)
def test_published_numbers_of_any_task_are_read_out(expect, said, short):
    """As ``recipe show`` says them, and as ``recipe list`` does."""
    plain = {"name": "plain", "model": {"name": "mlp"}, "data": {"name": "digits"}, "lr": {"base": 0.1}, "epochs": 1}
    batch, optimizer = {"global_batch_size": 64}, {"name": "sgd"}
    run = config.from_dict({**plain, "batch": batch, "optimizer": optimizer, "expect": {"source": "a paper", **expect}})
    assert files.in_words(files.published_of(run)) == said
    assert files.in_words(files.published_of(run, best=True), short=True) == short
