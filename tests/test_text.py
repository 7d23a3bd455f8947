"""Text that comes in, and text that goes out: one dialect, paths as the shell's, names of strangers, poor terminals."""

from __future__ import annotations

import io
import json
import os
import pwd
import re
import sys
from pathlib import Path

import pytest
import rich.table
import typer.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from largebatch import cli, models
from largebatch.data import places
from largebatch.errors import UserError
from largebatch.machine import distributed, launched
from largebatch.recipes import config, paths, strict_yaml
from largebatch.records.facts import write_json
from largebatch.records.run import PlanRecord
from largebatch.records.typed import read
from largebatch.run import record
from largebatch.terminal.console import Console, tell
from largebatch.terminal.escapes import as_utf8, escaped

MANY = settings(
    max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TYPED = st.text(max_size=30) | st.text("0123456789eE+-._:xob \n'\"#~[]{},&*!|>%@`yYnNoOtf", max_size=90)
TEXTS = TYPED.filter(lambda text: strict_yaml.unfit(text) is None)
NUMBERS = st.integers(-(10**29), 10**29) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    TEXTS | NUMBERS | st.booleans() | st.none(),
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(TEXTS.filter(lambda key: key != "<<"), below, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.worlds
@MANY
@given(VALUES)
def test_what_is_written_is_what_is_read(value):
    read = strict_yaml.parse(strict_yaml.written(value, "it"), "it")
    assert repr(read) == repr(value)  # 1 is no 1.0, and neither is true


@pytest.mark.worlds
@MANY
@example("0\xa0")  # a space to Unicode, none to YAML
@example("\u30001e5")
@given(TEXTS.filter(str.strip))
def test_an_override_sets_the_text_that_is_meant(text):
    assert config.overlay({}, [config.setting("title", text)]) == {"title": text}


@pytest.mark.worlds
@MANY
@given(st.from_regex(r"[-+]?[0-9._:eExob]{1,8}", fullmatch=True) | st.from_regex(r"[-+]?[0-9]+", fullmatch=True))
def test_a_number_is_decimal_or_no_number(text):
    try:
        read = strict_yaml.parse(text, "it")
    except UserError:
        return
    if isinstance(read, (int, float)):
        assert read == (int(text) if isinstance(read, int) else float(text))
        assert re.fullmatch(r"[-+]?(0|[1-9][0-9]*|[0-9]*[.eE].*)", text)


@pytest.mark.parametrize(
    "text", ["0100", "-010", "0x10", "0o10", "0b1", "1_000", "1:30", "00.5", ".inf", "-.inf", ".nan"]
)
def test_numbers_of_other_notations_are_refused(text):
    with pytest.raises(UserError, match="no decimal number"):
        strict_yaml.parse(text, "it")
    assert strict_yaml.parse(f"'{text}'", "it") == text


def test_dates_are_text():
    assert strict_yaml.parse("2020-01-01", "it") == "2020-01-01"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_grad_norm=on", "max_grad_norm = True should be a number"),
        ("epochs=yes", "epochs = True should be a number"),
        ("seed=false", "seed = False should be a number"),
        ("data.workers=on", "data.workers = True should be a number"),
        ("engine={name: deepspeed, zero: true}", "engine.zero = True should be a number"),
        ("lr.decay={name: steps, at_epochs: [true]}", "lr.decay.at_epochs.0 = True should be a number"),
        ("batch.global_batch_size='100'", "batch.global_batch_size = '100' should be a valid number"),
        ("batch.global_batch_size=10.5", "batch.global_batch_size = 10.5 should be a valid integer"),
        ("compile=1", "compile = 1 should be true or false"),
        ("optimizer.nesterov='true'", "optimizer.nesterov = 'true' should be true or false"),
        ("name=on", "name = True should be text"),
        ("record.dir=5", "record.dir = 5 should be text"),
        ("record.dir=", "record.dir= has no value"),
        ("record.dir=''", "record.dir is empty"),
        ("record.dir=s3://bucket/x", "record.dir = s3://bucket/x is an address"),
        ("record.dir=file:///x", "record.dir = file:///x is an address"),
        ("record.dir=~", "~ is nothing to YAML and a folder to the shell"),
        ("record.dir=~nobody-of-this-name/x", "no home folder ~nobody-of-this-name is known here"),
        ("data.root='  '", "data.root is empty"),
    ],
)
def test_values_of_another_kind_are_refused(recipe, override, words):
    with pytest.raises(UserError) as told:
        config.load(recipe(), [override])
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": True}, "model.width = True should be a number"),
        ({"depth": False}, "model.depth = False should be a number"),
        ({"norm": 1}, "model.norm = 1 should be true or false"),
        ({"norm": "yes"}, "model.norm = yes should be true or false"),
    ],
)
def test_arguments_of_our_models_are_of_their_kind(arguments, words):
    with pytest.raises(UserError) as told:
        models.build("mlp", num_classes=2, image_shape=(1, 4, 4), arguments=arguments)
    assert words in str(told.value)


def test_a_home_folder_is_expanded(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/houses/of/mine")
    run = config.load(recipe(), ["record.dir=~/x", "data.root=~/y"])
    assert (run.record.dir, run.data.root) == ("/houses/of/mine/x", "/houses/of/mine/y")
    assert config.load(recipe(), ["data.root=s3://bucket/x"]).data.root == "s3://bucket/x"


@pytest.mark.parametrize("path", ["x" * 256, "ü" * 128, "a/" + "x" * 300 + "/b", "ab/" * 1400])
def test_a_path_longer_than_any_file_system_takes_is_refused(recipe, path):
    for override in (f"data.root={path}", f"record.dir={path}"):
        with pytest.raises(UserError, match=r"is too long for a path; a name in it may have 255 bytes, the whole 4095"):
            config.load(recipe(), [override])
    assert config.load(recipe(), [f"data.root=s3://{path}"]).data.root == f"s3://{path}"
    assert config.load(recipe(), [f"data.root={'x' * 255}"]).data.root == "x" * 255


def test_a_whole_number_with_an_exponent_finds_its_row(recipe):
    path = recipe(table={128: {"lr.base": 0.7}})
    assert config.load(path, ["batch.global_batch_size=1.28e2"]).lr.base == 0.7


@pytest.mark.parametrize("name", ["1e-4", "0100", "on", "null", "2020-01-01", "~x", "a b", "1:30", "x: y", "- #", "'"])
def test_a_recipe_of_any_name_is_readable_as_a_run(tmp_path, recipe, name):
    file = recipe().rename(tmp_path / f"{name}.yaml")
    run = config.load(file)
    assert run.name == name
    for _ in range(2):
        record.open_directory(
            tmp_path / "run", run.as_written(), run.science(), lambda there: config.load(there).science(), "auto"
        )
    assert config.load(tmp_path / "run" / "run.yaml") == run


def test_a_recipe_whose_name_is_no_text_needs_one(tmp_path, recipe):
    file = recipe().rename(tmp_path / "\udcff.yaml")
    with pytest.raises(UserError, match="write another name into the recipe"):
        config.load(file)


@pytest.mark.parametrize(
    "words", [["surface", "saddle", "--out", ""], ["report", "x", "--out", "s3://x"], ["train", ""]]
)
def test_options_that_are_no_paths(words):
    answer = typer.testing.CliRunner().invoke(cli.app, words)
    assert answer.exit_code == 2
    assert "empty" in answer.output or "address" in answer.output


def test_variables_set_to_nothing_are_not_set(monkeypatch):
    for key in launched.VARIABLES:
        monkeypatch.setenv(key, "")
    assert distributed.local_rank() == 0
    with distributed.group(distributed.choose_device("cpu")):
        assert not distributed.joined()
    assert launched.adopt(os.environ) is None
    assert not set(launched.VARIABLES) & set(os.environ)


STRANGE = "a\x1b[31m\nb\u202ec\udcff\u2028d\x9be"
SHOWN = r"a\x1b[31m\nb\u202ec\xff\u2028d\x9be"


def test_names_are_escaped_wherever_they_go(tmp_path):
    assert escaped(STRANGE) == SHOWN
    assert as_utf8(STRANGE) == STRANGE.replace("\udcff", r"\xff")
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    tell(console, STRANGE)
    table = rich.table.Table(box=None)
    table.add_row("[/] [bold]x", STRANGE.replace("\n", ""))
    console.print(table)
    first, *rows = shown.getvalue().splitlines()
    assert first == SHOWN
    assert "[/] [bold]x" in shown.getvalue()
    assert SHOWN.replace(r"\n", "") in "".join(rows)
    assert str(UserError(STRANGE)).isprintable()
    write_json(tmp_path / "facts.json", {STRANGE: [STRANGE]})
    assert json.loads((tmp_path / "facts.json").read_text(encoding="utf-8")) == {as_utf8(STRANGE): [as_utf8(STRANGE)]}


def test_the_log_is_utf8_and_a_line_is_a_line(tmp_path):
    plan = read(PlanRecord, {"steps": 1, "seed": 0, "global_batch_size": 1}, "plan.json")
    console = Console(file=io.StringIO())
    recorder = record.Recorder(tmp_path, plan, first_step=0, console=console, quiet=False)
    recorder.say(f"{STRANGE} cannot be read")
    recorder.event("unreadable", step=1, examples_seen=1, count=1, share=1.0, files={STRANGE: "no image"})
    recorder.close()
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == f"{SHOWN} cannot be read\n"
    [line] = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(line)["files"] == {as_utf8(STRANGE): "no image"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_gets_what_it_can_show(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    tell(Console(), "3 × 4 − 5 … 界 \udcff")
    cli.forgiving()
    print("3 × 4 − 5 … 界 \udcff")
    stream.flush()
    first, second = raw.getvalue().decode(encoding).splitlines()
    whole = {"utf-8": r"3 × 4 − 5 … 界 \xff", "latin-1": r"3 × 4 - 5 ... ? \xff", "cp1252": r"3 × 4 - 5 … ? \xff"}
    assert first == second == whole.get(encoding, r"3 x 4 - 5 ... ? \xff")


@pytest.fixture
def nobody(monkeypatch):
    """A user without HOME and without a line in the system's list, as in a container that is given a number."""

    def unknown(_: object) -> None:
        raise KeyError("not found")

    for key in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "LARGEBATCH_DATA"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


def test_without_a_home_a_folder_must_be_named(nobody, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="set LARGEBATCH_DATA, or HOME"):
        places.data_folder()
    with pytest.raises(UserError, match="no home folder ~ is known here"):
        paths.local("record.dir", "~/x")
    monkeypatch.setenv("LARGEBATCH_DATA", str(tmp_path))
    assert places.bases("cifar10", None) == [Path(tmp_path)]
