"""No recipe, override or command ends in a traceback: it works, or it is refused in one short sentence.

Most examples are the same every time; the slow tier draws new ones at each run, and hypothesis prints how to repeat
what it finds.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console
import typer.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import REPOSITORY, largebatch
from pydantic import BaseModel

from largebatch import cli
from largebatch.errors import UserError
from largebatch.recipes import config, refusals, strict_yaml
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts
from largebatch.studies import reading as recipes

RECIPES = sorted((REPOSITORY / "configs").rglob("*.yaml"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in RECIPES}


def same(count: int, derandomize: bool = True) -> settings:
    return settings(
        max_examples=count,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def drawn(count: int) -> settings:
    return same(count, derandomize=False)


@contextlib.contextmanager
def told() -> Any:
    """Inside, success or one short sentence; anything else comes out and fails the test."""
    try:
        yield
    except UserError as error:
        sentence = str(error)
        assert sentence
        assert "\n" not in sentence
        assert len(sentence) < 500, sentence


def keys_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        found.append(key)
        waiting = [field.annotation]
        while waiting:
            kind = waiting.pop()
            waiting += typing.get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += keys_of(kind, f"{key}.")
    return list(dict.fromkeys(found))


KEYS = keys_of(config.Run)
STRANGE_KEYS = [
    "", ".", "a..b", ".a", "a.", "a", "ü", "a b", "model.width", "model.x.y.z", "lr.table.8", "lr.base.x", "table",
    "table.512", "table.512.lr", "batch.ramp.at_epochs.0", "data.name.x", "x" * 3000, "lr" + ".a" * 500, "__class__",
]  # fmt: skip
NUMBERS = [
    "0", "1", "-1", "2", "3", "8", "16", "100", "512", "0.5", "0.9", "1.0", "1e12", "9" * 13, "9" * 24, "1e30",
    "1e31", "9" * 5000, "1e300", "1e-300", "5e-324", ".nan", ".inf", "-.inf", "0777", "0x10", "0x" + "f" * 5000,
    "0x_", "0100", "-08", "0o17", "0b11", "1_000", "0_1", ".5", "5.", "+1e3", "012e3", "1e999",
    "1:30", ":".join(["59"] * 400) + ".5", "2001-01-01", "2001-99-99", "٣",
]  # fmt: skip
WORDS = [
    "", "''", "x", "true", "yes", "null", "~", "=", "ümlaut", "x" * 3000, "'" + "y z" * 100 + "'", "digits", "folder",
    "on", "off", "No", "2020-01-01T00:00:00Z", "~/x", "~nobody/x", "s3://bucket/x", "file:///x", "'  '", "'1e-4'",
    "'\u202e'", "\u202e", "a\u2028b",
    "\udcff", "'×−'", "'0100'", "imagenet", "linear", "sqrt", "adascale", "last", "precise", "fsdp",
    "deepspeed", "fp16", "../../x", "/x", "\ud800",
    '"\\ud800"', "\x1b[2J", '"\\e[2J"', "\x00", "\ufeff", "a: b: c", "[1", "{", "*a", "&a 1", "!!int x", "!!bool x",
    "!!python/object/apply:os.system ['true']", "!!set {a}", "{<<: 1}", "{<<: {a: 1}}", "&a [*a]", "? [a]", "|",
]  # fmt: skip
SECTIONS = [
    "[]", "[1]", "[1, 2]", "[0.5, 1.5]", "[3, 5, 9]", "[[[[1]]]]", "[" * 400, "{}", "{name: sgd}", "{name: lamb}",
    "{name: adamw, name: lamb}", "{name: cosine}", "{name: linear, end_lr: 1e30}", "{name: steps, at_epochs: [1, 2]}",
    "{name: piecewise, at_epochs: [1], factors: [1, 1e30]}", "{name: polynomial, power: 1e30}", "{name: fsdp}",
    "{name: swap, workers: 2, stop_at_train_accuracy: 50, worker_batch_size: 10, epochs: 1, lr: {base: 0.1}}",
    "{name: post_local_sgd, workers: 2}", "{8: 0.1, 16: 0.2, 1000: 1}", "{1: {lr.base: 3}}", "{a: {b: {c: 1}}}",
    "{at_epochs: [1, 2], factor: 2}", "{at_epochs: [0.01, 1e30], sizes: [512, 1024]}", "{reference_batch_size: 1}",
    "{at_epochs: [1, 2, 3], factor: 999999, largest: 1000}", "{reference_batch_size: 64}", "{m: 2}", "{true: 1}",
    "{factor: 2, at_epochs: [" + ", ".join(map(str, range(1, 3000))) + "]}", "{1: 2}", "{? [1] : 2}", "{? {} : 2}",
    "{top1: 50, source: x, by_batch_size: {512: {top1: 3}, 64: {}}}",
]  # fmt: skip
VALUES = NUMBERS + WORDS + SECTIONS
OVERRIDES = st.one_of(
    *[st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))] * 8,
    st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=20)),
    st.builds("{}={}".format, st.sampled_from(STRANGE_KEYS), st.sampled_from(VALUES)),
    st.sampled_from([*KEYS, *VALUES]),
)


def taken_further(run: config.Run, size: int, world: int) -> None:
    """What the trainer, a dry run and the report make of a recipe before there is any data."""
    for precision in ("fp32", "fp16"):
        with told():
            refusals.check(run, precision)
    with told():
        decided = decide(run, DataFacts(size), world, "cpu")
        plan = decided.plan
        follows(decided.lr.schedule, plan.budget_examples, plan.global_batch_size)
        assert plan.examples_before(plan.steps) == plan.examples
        assert all((decided.batch_words, decided.budget_words, decided.lr.words))
        for stage in plan.stages:
            assert stage.global_batch_size == stage.micro_batch_size * stage.accumulation_steps * world
        if (swap := decided.methods.get("swap")) is not None:
            follows(swap.lr.schedule, swap.plan.budget_examples, 1)
    assert config.from_dict(strict_yaml.parse(strict_yaml.written(run.as_written(), "run.yaml"), "run.yaml")) == run
    run.science()


def follows(schedule: Callable[[float], float], end: float, batch: int) -> None:
    edges = (0, 1, schedule.warmup, *schedule.milestones[:3], end, end + batch)  # type: ignore[attr-defined]
    for examples_seen in (*edges, *(end * part / 7 for part in range(7))):
        lr = schedule(examples_seen)
        assert math.isfinite(lr)
        assert lr >= 0


def shown(path: Path, overrides: list[str], batch: int | None, devices: int, count: int | None) -> None:
    """As ``recipe show`` prints it."""
    with told():
        facts = recipes.derived(path, overrides, batch, devices, count)
        assert all(math.isfinite(lr) and lr >= 0 for _, lr in facts["schedule"])
        rich.console.Console(file=io.StringIO(), width=100).print(recipes.rows_as_table(facts))
        (recipes.published_words(facts) + recipes.as_plot(facts)).encode()


SIZES = st.sampled_from([1, 7, 100, 1500, 60_000, 1_281_167, 10**12])
WORLDS = st.sampled_from([1, 2, 3, 8, 1024])
ASKED = st.tuples(st.sampled_from([None, None, 1, 8, 1024, 10**15]), st.sampled_from([1, 2, 8]), st.none() | SIZES)


def any_override(path: Path, overrides: list[str], size: int, world: int, asked: tuple[Any, ...]) -> None:
    with told():
        taken_further(config.load(path, overrides), size, world)
        shown(path, overrides, *asked)


OVERRIDDEN = given(st.sampled_from(RECIPES), st.lists(OVERRIDES, min_size=1, max_size=3), SIZES, WORLDS, ASKED)
test_any_override = pytest.mark.worlds(same(1500)(OVERRIDDEN(any_override)))
test_any_override_by_chance = pytest.mark.slow(drawn(400)(OVERRIDDEN(any_override)))


@pytest.mark.worlds
@pytest.mark.parametrize("key", KEYS)
def test_every_key_with_every_kind_of_value(key):
    """Upon one recipe; a third of the values for each key, so that neighbours share all."""
    written = config.read(REPOSITORY / "configs/quickstart/lamb2019.yaml")
    loaded, values = 0, VALUES[KEYS.index(key) % 3 :: 3]
    for value in values:
        with told():
            config.from_dict(config.overlay(written, [f"{key}={value}"]))
            loaded += 1
    assert loaded < len(values), f"{key} takes anything"


BITS = st.sampled_from(
    [
        *"{}[]:,&*!|>'\"%@`#-?=<~\t\n\r\x00\x1b\x85\u2028\ufeff", "\r\n", "&a ", "*a", "!!", "<<: ", "---\n", "...\n",
        "? ", "0x", "\n  ", "\n\t", "# ", "%YAML 9.9\n", "[" * 40, "é", "💥",
    ]
)  # fmt: skip
CUTS = st.lists(st.tuples(st.floats(0, 1), BITS | st.text(max_size=3), st.integers(0, 12)), max_size=5)


def damaged(text: str, cuts: list[tuple[float, str, int]], length: float) -> str:
    for at, put, taken in cuts:
        place = int(at * len(text))
        text = text[:place] + put + text[place + taken :]
    return text[: math.ceil(length * len(text))]


def moved_about(text: str, moves: list[tuple[str, float, str]]) -> str:
    """Lines dropped, doubled, given other values, indented or exchanged."""
    lines = text.splitlines()
    for move, at, value in moves:
        place = int(at * (len(lines) - 1)) if lines else 0
        match move:
            case "drop":
                del lines[place : place + 1]
            case "double":
                lines[place:place] = lines[place : place + 1]
            case "value" if lines:
                lines[place] = f"{lines[place].partition(':')[0]}: {value}"
            case "indent" if lines:
                lines[place] = f"  {lines[place]}"
            case "exchange" if lines:
                lines[place], lines[0] = lines[0], lines[place]
    return "\n".join(lines)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["drop", "double", "value", "value", "indent", "exchange"]),
        st.floats(0, 1),
        st.sampled_from(VALUES),
    ),
    max_size=4,
)
WHOLE = st.just(1.0) | st.just(1.0) | st.floats(0, 1)


def any_file(text: str, moves: Any, cuts: Any, length: float, ends: str, code: str) -> None:
    changed = damaged(moved_about(text, moves), cuts, length).replace("\n", ends)
    with tempfile.TemporaryDirectory() as folder, told():
        file = Path(folder) / "recipe.yaml"
        file.write_bytes(changed.encode(code, errors="ignore"))
        taken_further(config.load(file), 1500, 2)
        shown(file, [], None, 1, 5000)


FILES = given(
    st.sampled_from(list(TEXTS.values())),
    MOVES,
    CUTS,
    WHOLE,
    st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]),
)


test_any_file = pytest.mark.worlds(same(1000)(FILES(any_file)))
test_any_file_by_chance = pytest.mark.slow(drawn(300)(FILES(any_file)))


@pytest.mark.worlds
@same(500)
@given(st.binary(max_size=200))
def test_any_bytes(raw):
    with tempfile.TemporaryDirectory() as folder, told():
        (Path(folder) / "bytes.yaml").write_bytes(raw)
        config.load(Path(folder) / "bytes.yaml")


def laughs(first: str, again: Callable[[str], str], times: int = 40) -> str:
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {again(f'*a{n - 1}')}" for n in range(1, times)]
    return "\n".join(lines)


BOMBS = {
    "lists": laughs("[x, x]", lambda alias: f"[{', '.join([alias] * 9)}]"),
    "maps": laughs("{x: 1}", lambda alias: f"{{k: {alias}, l: {alias}}}"),
    "merges": laughs("{x: 1}", lambda alias: f"{{<<: [{alias}, {alias}]}}"),
    "cycle": "a: &a [*a]",
    "cycle of maps": "a: &a {b: {c: *a}}",
    "nested lists": "[" * 60_000,
    "nested maps": "{a: " * 16_000,
    "nested dashes": "- " * 30_000,
    "nested lines": "\n".join(" " * n + "a:" for n in range(300)),
    "long": "x" * 10**7,
    "many keys": "\n".join(f"k{n}: {n}" for n in range(10**5)),
}


@pytest.mark.worlds
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_cost_nothing(tmp_path, bomb):
    """Unfolded, most would take more memory and time than there are."""
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMBS[bomb])
    with pytest.raises(UserError, match="more than|merge keys|inside of what") as caught:
        config.load(file)
    assert len(str(caught.value)) < 500


def test_files_that_are_none(tmp_path):
    """Folders, devices without an end, a sparse gigabyte, what may not be read."""
    sparse = tmp_path / "sparse.yaml"
    with sparse.open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "empty.yaml").touch()
    for path in (sparse, tmp_path / "folder.yaml", tmp_path / "loop.yaml", tmp_path / "empty.yaml", Path("/dev/zero")):
        with pytest.raises(UserError) as caught:
            config.load(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 500


COMMANDS = [
    ["train"], ["train", "."], ["train", "missing.yaml"], ["train", "good.yaml", "--wrong"],
    ["train", "good.yaml", "--world", "0", "--dry-run"], ["train", "good.yaml", "--json", "x.json"],
    ["train", "good.yaml", "epochs"], ["train", "folder.yaml"], ["train", "binary.yaml"], ["train", "sparse.yaml"],
    ["recipe", "show", "."], ["recipe", "show", "missing"], ["recipe", "show", "binary.yaml"],
    ["recipe", "show", "good.yaml", "--batch", "x"], ["recipe", "show", "good.yaml", "--devices", "9" * 400],
    ["recipe", "show", "good.yaml", "--examples", "9" * 400], ["recipe", "show", "good.yaml", "--batch", "9" * 400],
    ["recipe", "show", "good.yaml", "--json", "no/x.json"], ["recipe", "list", "good.yaml"], ["recipe", "list", "none"],
    ["compare", "epochs=1"], ["compare", "good.yaml", "--seeds", "0"], ["compare", "binary.yaml"],
    ["report"], ["report", "good.yaml"], ["report", "."], ["report", "missing"], ["data", "fetch", "../x"],
    ["diagnose", "plateau", "good.yaml"], ["diagnose", "plateau", "."], ["nothing"], ["--wrong"],
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(TEXTS[REPOSITORY / "configs/quickstart/baseline.yaml"])
    (tmp_path / "binary.yaml").write_bytes(os.urandom(1000) + b"\xff")
    (tmp_path / "folder.yaml").mkdir()
    with (tmp_path / "sparse.yaml").open("wb") as file:
        file.truncate(1 << 30)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:40] or "nothing")
def test_a_mistyped_command(place, words):
    answer = typer.testing.CliRunner().invoke(cli.app, words)
    if isinstance(answer.exception, UserError):
        assert len(str(answer.exception)) < 500
    else:
        assert isinstance(answer.exception, SystemExit), answer.exception
        assert answer.exit_code == 2


def test_recipes_that_do_not_read_are_listed_as_such(place):
    """A folder of strangers' recipes: one bad file takes no other with it."""
    facts = recipes.listing(place)
    wrong = {row["name"] for row in facts if "error" in row}
    assert wrong == {"binary", "sparse"} or wrong == {"binary", "sparse", "folder"}
    rich.console.Console(file=io.StringIO(), width=100).print(recipes.table_of(facts, 100))


@pytest.mark.worlds
def test_the_program_tells_it_in_one_line(place):
    for words in (["train", "binary.yaml"], ["recipe", "show", "sparse.yaml"], ["train", "good.yaml", b"lr.base=\xff"]):
        answer = largebatch(*[os.fsdecode(word) for word in words], cwd=place)
        assert answer.returncode == 2
        assert answer.stderr.count("\n") == 1
        assert answer.stderr.startswith("largebatch: ")
