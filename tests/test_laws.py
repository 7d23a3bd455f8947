"""The laws of the house: who may import whom, what a README may say, what the quickstart's files must say."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pool
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from programs import REPOSITORY, environment

from docs.floors import FLOORS, imports, room_of
from largebatch.recipes import config, derive, refusals, strict_yaml
from largebatch.recipes.derive import peak_of
from largebatch.records import names

PACKAGE = REPOSITORY / "largebatch"
DEEPSPEED = {"engines/deepspeed.py", "studies/bench/contestants.py"}  # who may import it
RECIPE = {"config", "derive", "decide", "refusals"}  # what no room of a run asks but ASSEMBLY: it reads `decided`
ASSEMBLY = {"assemble.py", "beforehand.py", "train.py"}


def breaches(file: Path) -> Iterator[str]:
    """What of the import law a file of the package breaks."""
    room = room_of(file, PACKAGE)
    if room == "__init__":
        return
    if room not in FLOORS:
        yield f"{room} stands on no floor: add it to docs/design.md and here"
        return
    imported = imports(file)
    if "deepspeed" in imported and str(file.relative_to(PACKAGE)) not in DEEPSPEED:
        yield "imports deepspeed"
    below = {"", "deepspeed", *FLOORS[: FLOORS.index(room) + 1]}
    yield from (f"imports {name}" for name in sorted(imported) if name.partition(".")[0] not in below)
    if room in ("steps", "run") and file.name not in ASSEMBLY:
        asked = {name for name in imported if name.startswith("recipes.") and name.split(".")[1] in RECIPE}
        yield from (f"imports {name}: what is running reads what was decided" for name in sorted(asked))
        if re.search(r"\bjob\.run\b", file.read_text()):
            yield "reads job.run: what is running reads job.decided"


@pytest.mark.worlds
def test_who_may_import_whom():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert not [(str(file.relative_to(PACKAGE)), wrong) for file in files for wrong in breaches(file)]


def test_the_law_finds_what_it_forbids(tmp_path):
    file = tmp_path / "room.py"
    file.write_text(
        "from largebatch import errors\nimport largebatch.run.train\nfrom largebatch.optim.lars import Lars, f\n"
    )
    assert imports(file) == {"errors", "run.train", "optim.lars.Lars", "optim.lars.f"}


def test_the_law_finds_who_breaks_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    broken = {}
    for name, text in {
        "unheard_of/room.py": "",
        "run/train.py": "import deepspeed\nfrom largebatch.recipes import config",
        "run/loop.py": "from largebatch.recipes import config, decided\nf(job.run.steps)",
        "plan/batch.py": "from largebatch import errors\nfrom largebatch.recipes import keys",
        "optim/lars.py": "from largebatch.machine import distributed",
        "studies/bench/contestants.py": "import deepspeed\nimport largebatch.run.train",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
        broken[name.split("/")[-1].removesuffix(".py")] = list(breaches(tmp_path / name))
    assert broken == {
        "room": ["unheard_of stands on no floor: add it to docs/design.md and here"],
        "train": ["imports deepspeed"],
        "loop": [
            "imports recipes.config: what is running reads what was decided",
            "reads job.run: what is running reads job.decided",
        ],
        "batch": ["imports recipes.keys"],
        "lars": ["imports machine.distributed"],
        "contestants": [],
    }


WRITES_BY_ITSELF = {  # file -> what it may do beside writing under the name that records.files.whole gives
    "checkpoint/manifest.py": "the folder gets its name when all in it is on the disk",
    "checkpoint/writer.py": "folders get their names and lose them",
    "data/fetch.py": "files that were verified leave a folder of their own",
    "data/shards/cache.py": "the other name keeps the room that the shard is going to take",
    "data/text/tokenizing.py": "a pack's folder gets its name when all in it is on the disk",
    "studies/bench/loading/peers.py": "a temporary folder's",
}


def in_place(file: Path) -> list[str]:
    """Calls by which somebody could find half a file, or that are the whole-file write once more."""
    tree = ast.parse(file.read_text())
    given = {  # names to write under
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr).startswith("whole(")
    }
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and _replaces(node, given)]


def _replaces(call: ast.Call, given: set[str]) -> bool:
    if {argument.id for argument in ast.walk(call) if isinstance(argument, ast.Name)} & given:
        return False
    match call.func:
        case ast.Name("NamedTemporaryFile") | ast.Attribute(attr="NamedTemporaryFile"):
            return True
        case ast.Attribute(attr="write_text" | "write_bytes" | "rename"):
            return True
        case ast.Attribute(attr="replace"):  # a path's takes one argument, a text's two, a dataclass's names
            return ast.unparse(call.func) == "os.replace" or (len(call.args) == 1 and not call.keywords)
        case ast.Name("open") | ast.Attribute(attr="open"):
            modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            return any(isinstance(mode, str) and re.fullmatch("[wx][bt+]*|r[bt]*[+][bt]*", mode) for mode in modes)
    return False


@pytest.mark.worlds
def test_a_file_is_written_whole_or_not_at_all():
    writing = {str(file.relative_to(PACKAGE)): calls for file in PACKAGE.rglob("*.py") if (calls := in_place(file))}
    assert writing.keys() == WRITES_BY_ITSELF.keys(), writing


def test_the_law_of_whole_files_finds_what_it_forbids(tmp_path):
    file = tmp_path / "room.py"
    forbidden = [
        "open(path, 'w')", "path.open('wb')", "path.write_text('')", "path.write_bytes(b'')", "os.replace(one, path)",
        "one.replace(path)", "one.rename(path)", "NamedTemporaryFile()", "open(path, 'r+b')",
    ]  # fmt: skip
    allowed = ["open(path)", "open(path, 'ab')", "text.replace('a', 'b')", "replace(stage, step=1)",
               "dataclasses.replace(stage, step=1)", "open(one, 'rb')"]  # fmt: skip
    file.write_text("\n".join([*forbidden, *allowed]))
    assert in_place(file) == forbidden
    file.write_text("with whole(path) as part, open(part, 'wb') as file:\n    part.write_text('')")
    assert not in_place(file)


HELD = {value for name, value in vars(names).items() if name.isupper()}  # by a run directory or a comparison


def named_by_hand(file: Path) -> list[str]:
    """Texts that name what a run directory holds; docstrings may."""
    tree = ast.parse(file.read_text())
    texts = {
        node: node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    folders = {node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    return [
        text
        for node, text in texts.items()
        if node not in told
        and (any("." in name and name in text for name in HELD) or (node in folders and text.split("/")[0] in HELD))
    ]


@pytest.mark.worlds
def test_what_a_run_directory_holds_is_named_once():
    files = set(PACKAGE.rglob("*.py")) - {PACKAGE / "records/names.py"}
    assert not {file: texts for file in files if (texts := named_by_hand(file))}


def test_the_law_of_names_finds_what_it_forbids(tmp_path):
    file = tmp_path / "room.py"
    forbidden = ["run.yaml", "checkpoints", "checkpoints/x", "it has no plan.json"]
    *paths, sentence = forbidden
    lines = [f"folder / {path!r}" for path in paths]
    file.write_text("\n".join(['"""Reads plan.json."""', *lines, f"f'{{folder}}: {sentence}'", "{'checkpoints': 1}"]))
    assert sorted(text.removeprefix(": ") for text in named_by_hand(file)) == sorted(forbidden)


TORCHLESS = [
    "terminal.console", "terminal.escapes", "terminal.plot", "errors", "plan.batch", "plan.schedules", "plan.score",
    "recipes.config", "recipes.decays", "recipes.decide", "recipes.kinds", "recipes.optimizers", "recipes.strict_yaml",
    "records.circumstances", "records.comparison", "records.facts", "records.files", "records.lines", "records.mllog",
    "records.names", "records.run", "records.typed",
    "report", "data.fetch", "machine.launched", "studies.cluster.simulation", "studies.curves.recorded",
    "studies.planning.make", "studies.reading", "studies.search", "cli",
]  # fmt: skip


@pytest.mark.worlds
def test_these_rooms_load_no_torch():
    """Each in an interpreter of its own, side by side."""
    code = {room: f"import largebatch.{room}" for room in TORCHLESS}
    code["data.fetch"] += "; largebatch.data.sets.table()"  # what is known of every set
    started = {
        room: subprocess.Popen(
            [sys.executable, "-c", f"{text}; import sys; sys.exit('torch' in sys.modules)"], env=environment()
        )
        for room, text in code.items()
    }
    assert not [room for room, process in started.items() if process.wait(60)]


QUICKSTART = sorted((REPOSITORY / "configs" / "quickstart").glob("*.yaml"))


@pytest.mark.worlds
def test_every_recipe_reads_and_cites():
    offenders = []
    for path in sorted((REPOSITORY / "configs").rglob("*.yaml")):
        header = path.read_text().partition("\nmodel:")[0]
        if not config.load(path).title:
            offenders.append((path.stem, "no title"))
        if path.stem not in ("baseline", "naive") and not re.search(r"arXiv:\d{4}\.\d{4,5}", header):
            offenders.append((path.stem, "it cites no paper"))
    assert not offenders


def test_the_quickstart_differs_only_in_what_it_compares():
    """Same model, data, epochs and seed everywhere; one batch for all but the baseline."""
    runs = {path.stem: config.load(path) for path in QUICKSTART}
    assert set(runs) == {"baseline", "naive", "goyal2017", "nesterov2021", "lars2017", "lamb2019"}
    for run in runs.values():
        assert (run.model, run.data, run.epochs, run.seed) == (
            runs["baseline"].model,
            runs["baseline"].data,
            runs["baseline"].epochs,
            0,
        )
    large = {run.batch.global_batch_size for name, run in runs.items() if name != "baseline"}
    assert len(large) == 1
    assert large.pop() >= 16 * runs["baseline"].batch.global_batch_size


def test_the_naive_row_is_the_baseline_with_another_batch():
    baseline, naive = (
        yaml.safe_load((REPOSITORY / f"configs/quickstart/{n}.yaml").read_text()) for n in ("baseline", "naive")
    )
    assert naive["batch"].pop("global_batch_size") != baseline["batch"].pop("global_batch_size")
    naive.pop("title"), baseline.pop("title")
    baseline.pop("record"), baseline.pop("search")  # neither touches the training
    assert naive == baseline


def test_the_papers_numbers_in_the_quickstart():
    """Numbers that the files take from the papers (the learning rates are searched, with one key each, and say so)."""
    runs = {path.stem: config.load(path) for path in QUICKSTART}
    goyal = runs["goyal2017"]
    assert (goyal.lr.scaling, goyal.lr.warmup.start) == ("linear", "base")
    assert goyal.lr.reference_batch_size == runs["baseline"].batch.global_batch_size
    peak, _ = peak_of(goyal.lr, goyal.batch.global_batch_size)
    assert goyal.lr.base is not None
    assert peak == pytest.approx(goyal.lr.base * goyal.batch.global_batch_size / goyal.lr.reference_batch_size)
    lars = runs["lars2017"]
    assert (lars.optimizer.variant, lars.optimizer.eps) == ("you2017", 0)
    assert (lars.optimizer.momentum, lars.lr.decay.name, lars.lr.decay.power) == (0.9, "polynomial", 2)
    lamb = runs["lamb2019"]
    assert (lamb.optimizer.beta1, lamb.optimizer.beta2, lamb.optimizer.eps) == (0.9, 0.999, 1e-6)
    assert runs["nesterov2021"].optimizer.nesterov
    for run in runs.values():
        assert set(run.weight_decay.skip) == {"norm", "bias"}


def readme_commands() -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    joined = "\n".join(text for kind, text in blocks if kind in ("", "sh", "console")).replace("\\\n", " ")
    return [
        line.split("  #")[0].strip()
        for line in joined.splitlines()
        if re.match(r"(make|largebatch|torchrun|deepspeed) ", line)
    ]


@pytest.mark.worlds
def test_the_readme_names_only_targets_that_the_makefile_has():
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    named = {word for line in readme_commands() if line.startswith("make ") for word in line.split()[1:]}
    assert {"demo", "test"} <= named <= targets
    helped = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    for target in targets:
        assert f"make {target}" in helped


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory) -> Path:
    """Where a reader stands after `make install`: the checkout's files, and nothing in runs/ yet."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "largebatch"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.mark.slow
@pytest.mark.real_data
def test_every_command_of_the_readme_runs(working_folder):
    """In the README's order, in one folder, made short where they train."""
    commands = [line for line in readme_commands() if not line.startswith("make ")]
    assert any(line.startswith("torchrun ") for line in commands)
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)
        program = {
            "largebatch": [sys.executable, "-m", "largebatch"],
            "torchrun": [sys.executable, "-m", "torch.distributed.run"],
            "deepspeed": [sys.executable, "-m", "deepspeed.launcher.runner"],
        }[words[0]]
        words = [*program, *(part for word in words[1:] for part in expanded(word, working_folder))]
        if " train " in command:
            words += ["epochs=0.05", "lr.warmup.epochs=0"]
        if " compare " in command:
            words += ["epochs=0.02", "lr.warmup.epochs=0", "--trials", "1"]
        if " bench throughput " in command:
            words += ["--pairs", "1", "--steps", "2"]
        if " bench scaling " in command:
            words += ["--rounds", "1", "--steps", "2"]
        if " bench batch " in command:
            words += ["--seconds", "0.1", "--repeats", "1"]
        if " bench optimizer " in command:
            words += ["--repeats", "3"]
        ended = subprocess.run(
            words, cwd=working_folder, capture_output=True, text=True, timeout=300, env=environment()
        )
        found_something = " doctor " in command and ended.returncode == 1
        assert ended.returncode == 0 or found_something, f"{command}\n{ended.stdout}\n{ended.stderr}"


def expanded(word: str, folder: Path) -> list[str]:
    """What a shell makes of a word with a star."""
    if "*" not in word:
        return [word]
    return [os.path.relpath(path, folder) for path in sorted(folder.glob(word))] or [word]


def test_nothing_names_the_machine_it_was_built_on():
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.splitlines()
    offenders = []
    for name in tracked:
        file = REPOSITORY / name
        if file.is_file() and file.suffix not in (".png", ".svg"):
            text = file.read_text(encoding="utf-8", errors="ignore")
            offenders += [(name, found[0]) for found in re.finditer(r"/(home|root|Users)/\w+", text)]
    assert not offenders


def test_the_recipes_in_the_documents_read_and_go_together():
    """docs/methods.md's examples, each planned and scheduled as a run would be."""
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/methods.md").read_text(), re.S)
    tuning, whole, lines, free, outer, text, phases, target = blocks
    written = strict_yaml.parse(whole, "docs/methods.md") | {"name": "example"}
    variants = [written]
    for line in lines.strip().splitlines():
        batch = {key: value for key, value in written["batch"].items() if key != "ramp"}
        plain = {key: value for key, value in written.items() if key != "ema"}
        variants.append({**plain, "batch": batch, **strict_yaml.parse(line, "docs/methods.md")})
    photographs = {"name": "imagenet", "image_size": 224}
    phased = strict_yaml.parse(phases, "docs/methods.md")
    variants.append({**variants[0], "batch": batch, "data": photographs, **phased})
    variants.append({**written, **strict_yaml.parse(tuning, "docs/methods.md")})
    variants += [{**written, **strict_yaml.parse(block, "docs/methods.md")} for block in (outer, text, target)]
    without = {key: value for key, value in written.items() if key != "ema"}
    variants.append({**without, **strict_yaml.parse(free, "docs/methods.md")})
    assert len(variants) == 9
    for variant in variants:
        run = config.from_dict(variant)
        refusals.check(run, "fp32")
        derive.learning_rate_of(run, derive.plan_of(run, 50_000, 2, 512))


def test_the_lowest_constraints_are_the_lower_bounds():
    """Of all that pyproject.toml asks for; what a package was never published as is the next one that was."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = [
        *settings["dependencies"],
        *(line for lines in settings["optional-dependencies"].values() for line in lines),
    ]
    pinned = {}
    for line in (REPOSITORY / "constraints-lowest.txt").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            name, version = text.split("==")
            pinned[name.lower()] = Version(version)
    wrong = []
    for requirement in map(Requirement, asked):
        [bound] = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        stated = pinned.get(requirement.name.lower())
        if requirement.name not in TOOLS and (
            stated is None or (stated.major, stated.minor) != (bound.major, bound.minor)
        ):
            wrong.append((str(requirement), stated))
    assert not wrong


TOOLS = {"ruff", "pyright", "pre-commit", "nvidia-dali-cuda120"}  # no test needs a version of theirs


@pytest.mark.slow
def test_every_module_can_be_imported_before_any_other():
    """Else a command fails that happens to begin with it, where tests have imported another before."""
    ended = pool.run(REPOSITORY / "tests" / "worlds" / "imports.py", timeout=1200)
    assert ended.returncode == 0, ended.stdout
