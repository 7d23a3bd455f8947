"""Nothing from strangers runs code or writes where it should not: recipes, data files, archives, run directories."""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
import struct
import sys
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from programs import REPOSITORY

from largebatch import report
from largebatch.data import formats, sets
from largebatch.data.debian import Failed
from largebatch.data.fetch import _download
from largebatch.data.published import PublishedFiles
from largebatch.data.sets.cifar10 import Cifar10
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.train import train
from tests.conftest import TINY

PACKAGE = REPOSITORY / "largebatch"


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    """A file that any of the attacks below would make, were it obeyed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sprung"


def refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        config.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        "!!python/object/apply:os.system ['touch sprung']",
        "!!python/object/apply:os.mknod [sprung]",
        "!!python/object/new:os.system ['touch sprung']",
        "!!python/object/apply:builtins.exec [\"open('sprung', 'w')\"]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:pathlib.Path {}",
        "{name: mlp, width: !!python/object/apply:os.system ['touch sprung']}",
        "&a !!python/object/apply:subprocess.check_output [[touch, sprung]]",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch sprung']",
    ],
)
def test_a_recipe_runs_no_code(tmp_path, trap, written):
    text = (REPOSITORY / "configs/quickstart/baseline.yaml").read_text()
    refused(tmp_path / "recipe.yaml", re.sub(r"(?m)^model:.*$", f"model: {written}", text))
    refused(tmp_path / "recipe.yaml", f"%TAG !e! tag:yaml.org,2002:python/\n---\nmodel: {written}")
    with pytest.raises(UserError):
        config.load(REPOSITORY / "configs/quickstart/baseline.yaml", [f"model={written}"])
    assert not trap.exists()


NO_NAMES = ("evil", "evil.py", "./evil.py", "{here}/evil.py", "evil:Part", "evil.Part", "os.system", "own/Part", "own")
NAMED = {
    "model": {"name": "{}"},
    "data": {"name": "{}"},
    "task": {"name": "{}"},
    "optimizer": {"name": "{}"},
    "lr": {"base": 0.1, "decay": {"name": "{}"}},
    "averaging": {"name": "{}"},
    "engine": {"name": "{}"},
}


@pytest.mark.parametrize("key", NAMED)
def test_no_name_in_a_recipe_brings_code(tmp_path, monkeypatch, key):
    """A file that would be imported lies where Python looks first."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')\nclass Part: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in NO_NAMES:
        named = json.loads(json.dumps(NAMED[key]).replace("{}", name.replace("{here}", str(tmp_path))))
        with pytest.raises(UserError, match=r"\.name"):
            train(config.from_dict({**TINY, "name": "stranger", key: named}))
        assert "evil" not in sys.modules
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path / "runs").exists()


def test_yaml_written_so_would_run_elsewhere(trap):
    """The trap is a trap."""
    yaml.unsafe_load("!!python/object/apply:os.mknod [sprung]")
    assert trap.exists()


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "a/../../b", ".", "", "x" * 300])
def test_a_recipe_names_a_run_below_runs_alone(name):
    with pytest.raises(UserError, match="names no folder in runs"):
        config.load(REPOSITORY / "configs/quickstart/baseline.yaml", [f"name='{name}'"])


class Evil:
    def __reduce__(self):
        return exec, ("import os; os.mknod('sprung')",)


FORM = Cifar10.origin.forms[0]


def archive(folder: Path, *members: tuple[str, bytes, dict]) -> Path:
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


WHOLE = [(f"{FORM.folder}/{name}", b"x", {}) for name in FORM.files]


@pytest.mark.parametrize(
    "name", ["../sprung", "/sprung", f"{FORM.folder}/../../sprung", "cifar/../../sprung", "/etc/passwd"]
)
def test_an_archive_that_reaches_outside_is_refused(tmp_path, trap, name):
    with pytest.raises(UserError, match="lies outside its folder"):
        formats.archive_contents(archive(tmp_path, *WHOLE, (name, b"x", {})), FORM)
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "DIRTYPE"])
def test_a_member_that_is_no_file_is_not_read(tmp_path, kind):
    """A link to a secret in the place of a batch gives no secret."""
    (tmp_path / "secret").write_text("secret")
    link = {"type": getattr(tarfile, kind), "linkname": str(tmp_path / "secret"), "devmajor": 1, "devminor": 5}
    path = archive(tmp_path, *WHOLE[1:], (WHOLE[0][0], b"", link))
    with pytest.raises(UserError, match=f"has no file {FORM.folder}/{FORM.files[0]}"):
        formats.archive_contents(path, FORM)


def test_reading_an_archive_writes_nothing(tmp_path):
    path = archive(tmp_path, *WHOLE, ("extra", b"x", {}), ("link", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"}))
    assert set(formats.archive_contents(path, FORM)) == set(FORM.files)
    assert list(tmp_path.iterdir()) == [path]


def test_what_unfolds_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST_FILE", 10_000)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(10_001)))
    with pytest.raises(UserError, match="unpacks to more than"):
        formats.from_folder(tmp_path)("train-images-idx3-ubyte")
    with pytest.raises(UserError, match="unpacks to more than"):
        formats.archive_contents(archive(tmp_path, (WHOLE[0][0], bytes(10_001), {})), FORM)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("jpeg.npy", bytes(10_001))
    with pytest.raises(UserError, match="unpacks to more than"):
        formats._jpeg_arrays(lambda name: (name, held.getvalue()), ["train.npz"])


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BYTES, TWO = np.zeros(4, np.uint8), np.array([0, 2, 4])
NPZ = {
    "objects": npz(jpeg=np.array([Evil()], dtype=object), offsets=TWO, labels=TWO[:2]),
    "a scalar": npz(jpeg=BYTES, offsets=np.array(4), labels=TWO[:2]),
    "words": npz(jpeg=BYTES, offsets=np.array(["a", "b", "c"]), labels=TWO[:2]),
    "planes": npz(jpeg=np.zeros((2, 2), np.uint8), offsets=TWO, labels=TWO[:2]),
    "floats": npz(jpeg=BYTES, offsets=TWO / 1.0, labels=TWO[:2]),
    "backwards": npz(jpeg=BYTES, offsets=np.array([0, 5, 4]), labels=TWO[:2]),
    "no images": npz(jpeg=BYTES, offsets=TWO, labels=TWO[:2]),
    "a part": npz(jpeg=BYTES, offsets=TWO, labels=TWO[:2])[:-40],
    "a header that lies": npz(jpeg=BYTES, offsets=TWO, labels=TWO[:2]).replace(b"(4,)", b"(9,)"),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", NPZ)
def test_an_npz_runs_no_code(trap, kind):
    with pytest.raises(UserError):
        formats._jpeg_arrays(lambda name: (name, NPZ[kind]), ["train.npz"])
    assert not trap.exists()


@pytest.mark.parametrize("sizes", [(2**32 - 1,) * 3, (0, 0, 0), (1, 28, 27), (2, 28, 28)])
def test_an_idx_header_that_lies_costs_nothing(sizes):
    raw = struct.pack(">4I", 0x0803, *sizes) + bytes(28 * 28)
    with pytest.raises(UserError, match="truncated or corrupt"):
        formats.idx("images", raw, 3)


def test_a_download_is_compared_with_its_checksum(tmp_path):
    """And leaves nothing under its own name where they differ."""
    (tmp_path / "mirror").write_bytes(b"something else")
    with pytest.raises(Failed, match="MD5"):
        _download((tmp_path / "mirror").as_uri(), tmp_path / "file", "0" * 32, print)
    assert not (tmp_path / "file").exists()


def test_a_download_without_an_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST_FILE", 1000)
    (tmp_path / "mirror").write_bytes(bytes(1 << 20))
    with pytest.raises(Failed, match="more than"):
        _download((tmp_path / "mirror").as_uri(), tmp_path / "file", "0" * 32, print)


def test_every_download_has_a_checksum():
    published = [known.origin for known in sets.table().values() if isinstance(known.origin, PublishedFiles)]
    assert len(published) == 4
    for origin in published:
        assert origin.md5
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in origin.md5.values())


class Page(HTMLParser):
    """What a browser would make of a report: its elements, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


EVIL = "<script>alert(1)</script></svg></style>\"'><img src=x onerror=alert(1)>[x](javascript:alert(1)) |`a`{{7*7}}"


def run_directory(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    plan = {"name": text, "global_batch_size": 64, "steps": 2, "budget_examples": 128, "epochs": 1.0, "seed": 0}
    plan |= dict.fromkeys(("command", "commit", "device", "precision", "engine", "dataset", "started"), text)
    plan |= {"versions": {text: text}, "machine": {"host_cpu": text, "cores": 2, "gpu": text}, "lr": {"peak": 0.1}}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "run.yaml").write_text(yaml.safe_dump({"name": text, "expect": {"source": text, "top1": 90.0}}))
    lines = [{"event": "train", "step": 1, "epoch": 0.5, "seconds": 1.0, "lr": 0.1, "loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({"status": "failed", "reason": text, "evaluated_on": "test"}))
    (folder / "diagnostics").mkdir()
    plateau = {"kind": "plateau", "verdict": text, "sentence": text, "evidence": [text], "advice": [text]}
    (folder / "diagnostics" / "plateau.json").write_text(json.dumps(plateau))
    return folder


@pytest.mark.worlds
def test_a_report_shows_what_a_stranger_wrote_and_obeys_none_of_it(tmp_path):
    honest = Page(report.write([run_directory(tmp_path / "a", "name")], tmp_path / "one").html.read_text())
    written = report.write([run_directory(tmp_path / "b", EVIL)], tmp_path / "two")
    page = Page(written.html.read_text())
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in honest.elements]
    for tag, attributes in page.elements:
        assert tag not in ("script", "img", "iframe", "object", "embed", "form", "base", "link")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    assert "alert(1)" in written.html.read_text()
    assert "49" not in re.findall(r"\{\{.*?\}\}|49", written.verdict)


def test_a_report_in_markdown_obeys_none_of_it(tmp_path):
    text = report.write([run_directory(tmp_path / "a", EVIL)], tmp_path / "out").markdown.read_text()
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("    "))  # but for code
    assert "alert(1)" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert not re.search(r"(?<!\\)\]\(", shown)


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FORBIDDEN_NAMES = {
    "pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps", "marshal.load", "marshal.loads", "shelve.open",
    "dill.load", "joblib.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system",
    "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "subprocess.call",
    "subprocess.check_output", "subprocess.check_call", "pty.spawn", "tempfile.mktemp", "runpy.run_path",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "extract", "unpack_archive", "_make_archive"}


def dangers(source: str) -> list[str]:
    """Calls that would run what somebody else wrote, or let it write where it likes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name in ("pickle", "pickletools", "marshal", "dill")]
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "subprocess", "os", "yaml"):
            found += [
                f"from {node.module} import {a.name}"
                for a in node.names
                if f"{node.module}.{a.name}" in FORBIDDEN_NAMES
            ]
        if not isinstance(node, ast.Call):
            continue
        called, words = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
        found += [called] * (
            called in FORBIDDEN_CALLS | FORBIDDEN_NAMES or called.rpartition(".")[2] in FORBIDDEN_METHODS
        )
        if called == "torch.load" and ast.unparse(words.get("weights_only", ast.Constant(None))) != "True":
            found.append("torch.load without weights_only=True")
        if called.endswith("np.load") and ast.unparse(words.get("allow_pickle", ast.Constant(None))) != "False":
            found.append("np.load without allow_pickle=False")
        if "shell" in words:
            found.append("shell=")
        starts = called in ("subprocess.run", "subprocess.Popen")
        if starts and isinstance(node.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp)):
            found.append(f"{called} of a string")
    return found


@pytest.mark.worlds
def test_nothing_here_runs_what_strangers_wrote():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert not [(str(file.relative_to(PACKAGE)), what) for file in files for what in dangers(file.read_text())]


def test_the_law_finds_what_it_forbids():
    sources = [
        "eval('1')", "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(t, Loader=L)",
        "subprocess.run('ls', check=True)", "subprocess.Popen('ls')", "subprocess.run(c, shell=True)",
        "tar.extractall(p)", "np.load(f)", "from pickle import loads", "import pickle", "os.system('x')",
        "subprocess.run(f'ls {x}')",
    ]  # fmt: skip
    assert not [source for source in sources if not dangers(source)]


def test_the_law_lets_the_rest_pass():
    assert not dangers("model.eval()\ntorch.load(p, weights_only=True)\nsubprocess.run(['ls'])\nre.compile('x')")


EVERYWHERE = re.compile(r"0\.0\.0\.0|--bind_all|\[::\]|INADDR_ANY")
STARTERS = sorted(
    file for folder in ("largebatch", "launch", "docker") for file in (REPOSITORY / folder).rglob("*") if file.is_file()
    if "__pycache__" not in file.parts
)  # fmt: skip


def test_nothing_listens_to_everybody():
    """But inside a container, whose ports compose.yaml opens to this machine alone."""
    assert len(STARTERS) > 100
    offenders = [
        (str(file.relative_to(REPOSITORY)), line)
        for file in STARTERS
        for line in file.read_text(errors="ignore").splitlines()
        if EVERYWHERE.search(line) and not (file.name == "compose.yaml" and "tensorboard" in line)
    ]
    assert not offenders


def test_the_containers_ports_are_open_to_this_machine_alone():
    services = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(isinstance(port, str) and port.startswith("127.0.0.1:") for port in ports)
    assert not [name for name, service in services.items() if service.get("network_mode") == "host"]
    assert not [name for name, service in services.items() if service.get("privileged")]
