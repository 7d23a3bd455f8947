from __future__ import annotations

import dataclasses
import gzip
import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest

from largebatch.data import build, places, sets
from largebatch.data import debian as packages
from largebatch.data.fetch import fetch, find, locate
from largebatch.data.published import PublishedFiles
from largebatch.errors import UserError
from tests.data.conftest import pixels, write_idx
from tests.data.test_formats import cifar10_files, pack


def published() -> dict[str, PublishedFiles]:
    return {name: known.origin for name, known in sets.table().items() if isinstance(known.origin, PublishedFiles)}


def publish_as(monkeypatch: pytest.MonkeyPatch, name: str, **changes: object) -> None:
    origin = dataclasses.replace(published()[name], **changes)  # type: ignore[arg-type]
    monkeypatch.setattr(type(sets.known(name)), "origin", origin)


@pytest.fixture(autouse=True)
def places_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and cache folders of our own, no system package, mirrors that do not answer, no apt."""
    monkeypatch.setenv("LARGEBATCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    nowhere = ("http://127.0.0.1:9/one/", "http://127.0.0.1:9/two/")
    for name, origin in published().items():
        package = origin.package and dataclasses.replace(origin.package, folder=tmp_path / "system")
        publish_as(monkeypatch, name, mirrors=nowhere, package=package)
    monkeypatch.setattr(packages.shutil, "which", lambda program: None)


def publish(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Let ``folder`` be the second mirror of ``name``, with the checksums of its files."""
    origin = published()[name]
    md5 = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in origin.md5}
    publish_as(monkeypatch, name, mirrors=(origin.mirrors[0], folder.as_uri() + "/"), md5=md5)


def write_set(folder: Path, packed: bool = True) -> Path:
    for kind, seed in (("train", 0), ("t10k", 1)):
        write_idx(folder, pixels(6, 28, 1, seed)[..., 0], np.arange(6, dtype=np.uint8), kind, packed)
    return folder


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert places.data_folder() == tmp_path / "data"
    assert places.cache_folder() == tmp_path / "xdg" / "largebatch"
    monkeypatch.delenv("LARGEBATCH_DATA")
    assert places.data_folder() == places.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.data_folder() == tmp_path / ".cache" / "largebatch"


def test_the_order_of_places(tmp_path: Path):
    assert find("fashion_mnist") is None
    system = write_set(tmp_path / "system")
    assert find("fashion_mnist") == system
    cache = write_set(tmp_path / "xdg" / "largebatch" / "fashion-mnist")
    assert find("fashion_mnist") == cache
    data = write_set(tmp_path / "data" / "FashionMNIST" / "raw")
    assert find("fashion_mnist") == locate("fashion_mnist") == data
    assert find("mnist") is None
    assert find("fashion_mnist", tmp_path) is None
    (data / "t10k-labels-idx1-ubyte.gz").unlink()
    assert find("fashion_mnist") == cache


def test_files_in_the_data_folder_itself_belong_to_no_set(tmp_path: Path):
    write_set(tmp_path / "data")
    assert find("mnist") is None
    assert find("mnist", tmp_path / "data") == tmp_path / "data"


def test_what_is_not_found_says_where_was_looked(tmp_path: Path):
    with pytest.raises(UserError) as error:
        locate("fashion_mnist")
    assert str(error.value) == (
        f"data set fashion_mnist not found in {tmp_path / 'data'} or {tmp_path / 'xdg' / 'largebatch'} or "
        f"{tmp_path / 'system'}; run `largebatch data fetch fashion_mnist`"
    )
    folder = write_set(tmp_path / "data" / "mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="mnist is not complete: t10k-labels-idx1-ubyte missing"):
        build("mnist")
    with pytest.raises(UserError, match="data set imagenet not found in"):
        build("imagenet")


def test_fetched_from_a_mirror_then_already_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, "mnist", write_set(tmp_path / "mirror"))
    said: list[str] = []
    home = fetch("mnist", report=said.append)
    assert home == tmp_path / "data" / "MNIST" / "raw"
    assert any("127.0.0.1:9/one/: train-images-idx3-ubyte.gz: " in line for line in said)
    assert said[-1] == f"mnist: fetched from {(tmp_path / 'mirror').as_uri()}/ to {home}"
    assert files_below(tmp_path / "data") == [f"MNIST/raw/{name}" for name in files_below(tmp_path / "mirror")]
    assert len(build("mnist").train) == 6
    said.clear()
    assert fetch("mnist", report=said.append) == home
    assert said == [f"mnist: already there, {home}"]


def test_fetched_into_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, "mnist", write_set(tmp_path / "mirror"))
    assert fetch("mnist", tmp_path / "chosen", lambda line: None) == tmp_path / "chosen" / "MNIST" / "raw"
    assert len(build("mnist", root=str(tmp_path / "chosen")).train) == 6
    assert not (tmp_path / "data").exists()


def test_an_archive_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = cifar10_files()
    pack(files | {"cifar-10-batches-bin/readme.html": b"x"}, tmp_path / "mirror" / "cifar-10-binary.tar.gz")
    publish(monkeypatch, "cifar10", tmp_path / "mirror")
    assert fetch("cifar10", report=lambda line: None) == tmp_path / "data" / "cifar-10-batches-bin"
    assert files_below(tmp_path / "data") == sorted(files)
    assert len(build("cifar10").train) == 20


def test_a_bad_checksum_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mirror = write_set(tmp_path / "mirror")
    publish(monkeypatch, "mnist", mirror)
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz: its MD5 is \w+, published is \w+"):
        fetch("mnist", report=lambda line: None)
    assert files_below(tmp_path) == sorted(f"mirror/{name}" for name in files_below(mirror))


def test_when_all_fails_everything_tried_is_listed(tmp_path: Path):
    with pytest.raises(UserError) as error:
        fetch("fashion_mnist", report=lambda line: None)
    message = str(error.value)
    for part in (
        f"no copy in {tmp_path / 'data'}",
        f"no copy in {tmp_path / 'xdg' / 'largebatch'}",
        f"no copy in {tmp_path / 'system'}",
        "http://127.0.0.1:9/one/: train-images-idx3-ubyte.gz: ",
        "http://127.0.0.1:9/two/: train-images-idx3-ubyte.gz: ",
        "Debian's package dataset-fashion-mnist: apt-get is not installed",
        f"from https://github.com/zalandoresearch/fashion-mnist into {tmp_path}/data/FashionMNIST/raw",
    ):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"put cifar-10-binary.tar.gz from .* into .*/data by hand"):
        fetch("cifar10", report=lambda line: None)


class FakeApt:
    """Stands in for apt-get and dpkg-deb; ``lists`` says whether the system's package lists are there."""

    def __init__(self, lists: bool, update: bool = True, content: bool = True) -> None:
        self.lists, self.update, self.content = lists, update, content
        self.calls: list[str] = []

    def __call__(self, command: list[str], cwd: Path, **rest: object) -> subprocess.CompletedProcess[str]:
        own = any(word.startswith("Dir::State::Lists=") for word in command)
        verb = next(word for word in command if word in ("download", "update", "-x"))
        self.calls.append(f"{verb} with own lists" if own else verb)
        good = {"download": self.lists or own, "update": self.update, "-x": True}[verb]
        if good and verb == "download":
            (cwd / "dataset.deb").write_bytes(b"")
        if good and verb == "-x" and self.content:
            package = published()["fashion_mnist"].package
            assert package is not None
            write_set(Path(command[-1]) / package.folder.relative_to("/"))
        return subprocess.CompletedProcess(command, 0 if good else 100, "", "" if good else "W: x\nE: no luck\n")


@pytest.fixture
def debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda program: f"/usr/bin/{program}")


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize("lists", [True, False])
def test_the_debian_package_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: bool):
    apt = FakeApt(lists)
    monkeypatch.setattr(packages.subprocess, "run", apt)
    home = fetch("fashion_mnist", report=lambda line: None)
    assert home == tmp_path / "data" / "FashionMNIST" / "raw"
    retried = [] if lists else ["update with own lists", "download with own lists"]
    assert apt.calls == ["download", *retried, "-x"]
    assert len(files_below(tmp_path / "data")) == 4
    assert len(build("fashion_mnist").train) == 6


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize(
    ("apt", "message"),
    [
        (FakeApt(lists=False, update=False), "apt-get update failed: E: no luck"),
        (FakeApt(lists=True, content=False), "the package has no train-images-idx3-ubyte"),
    ],
)
def test_a_package_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, apt: FakeApt, message: str):
    monkeypatch.setattr(packages.subprocess, "run", apt)
    with pytest.raises(UserError, match=message):
        fetch("fashion_mnist", report=lambda line: None)


@pytest.mark.usefixtures("debian")
def test_a_package_manager_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    def hang(command: list[str], **rest: object) -> None:
        raise subprocess.TimeoutExpired(command, 300)

    monkeypatch.setattr(packages.subprocess, "run", hang)
    with pytest.raises(UserError, match="timed out after 300 seconds"):
        fetch("fashion_mnist", report=lambda line: None)


DICTIONARY = """

00-database-info
   This file was converted.

Coagulate \\Co*ag"u*late\\, v. t. [imp. & p. p. {Coagulated} [x].]
   To cause (a liquid) to change into a curdlike
   state. --Boyle.
   [1913 Webster]

   2. To curdle. [Obs.]
      [1913 Webster +PJC]

Zed (z[e^]d), n.
   The letter Z.
"""

RST = """.. SPDX-License-Identifier: GPL-2.0
.. include:: this.txt

=====
Title
=====

:Author: Somebody

Text with ``code``, *stress*, :ref:`a link <there>`
and `a page <https://there>`_::

    int code;

    more;

- one
  thing
- |two| things [1]_

.. note:: left out

   also left out

+----+----+
| a  | b  |
+----+----+

Last::
"""


class FakePackages:
    """Stands in for apt and dpkg-deb with a dictionary and a manual of three files."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, command: list[str], cwd: Path, **rest: object) -> subprocess.CompletedProcess[str]:
        self.calls.append(" ".join(command[:3]) if command[1] != "-x" else "unpack")
        if command[1] == "download":
            (cwd / f"{command[2]}_1%3a2-3_all.deb").write_bytes(b"")
        if command[1] == "-x" and "dict-gcide" in command[2]:
            (folder := Path(command[3]) / "usr/share/dictd").mkdir(parents=True)
            (folder / "gcide.dict.dz").write_bytes(gzip.compress(DICTIONARY.encode()))
        elif command[1] == "-x":
            root = Path(command[3]) / "usr/share/doc/linux-doc-9.9/Documentation"
            for name in ("b.rst", "a/c.rst", "translations/xx/b.rst"):
                (root / name).parent.mkdir(exist_ok=True, parents=True)
                (root / name).write_text(RST)
            (root / "b.rst.gz").write_bytes(gzip.compress(b"packed text"))
        return subprocess.CompletedProcess(command, 0, "linux-doc\n  Depends: linux-doc-9.9\n", "")


@pytest.mark.usefixtures("debian")
def test_english_is_the_prose_of_two_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    apt, said = FakePackages(), []
    monkeypatch.setattr(packages.subprocess, "run", apt)
    home = fetch("english", report=said.append)
    assert home == tmp_path / "data" / "english"
    wanted = ["apt-get download dict-gcide", "apt-cache depends linux-doc", "apt-get download linux-doc-9.9"]
    assert [call for call in apt.calls if call != "unpack"] == wanted
    assert files_below(tmp_path / "data") == [
        "english/dict-gcide_1.2-3.txt", "english/linux-doc-9.9_1.2-3.txt",
    ]  # fmt: skip
    assert (home / "dict-gcide_1.2-3.txt").read_text() == (
        "Coagulate, v. t. To cause (a liquid) to change into a curdlike state. -- Boyle.\n2. To curdle. [Obs.]\n\n"
        "Zed, n. The letter Z.\n"
    )
    page = "Title\nText with code, stress, a link and a page:\none thing\ntwo things\nLast:\n"
    assert (home / "linux-doc-9.9_1.2-3.txt").read_text() == f"{page}\n{page}\npacked text\n"
    assert said[0] == "english: downloading Debian's package dict-gcide"
    assert said[1] == f"english: {home}/dict-gcide_1.2-3.txt, 2 documents, 0.0 MB"
    assert said[-1] == f"english: to train on it, largebatch data tokenize {home} PACK --vocabulary 8192"
    assert fetch("english", report=said.append) == home
    assert said[-1] == f"english: already there, {home}"


def test_english_that_cannot_be_had_says_why():
    with pytest.raises(UserError, match="english could not be fetched: apt-get is not installed; any text will do"):
        fetch("english", report=lambda line: None)


def test_a_read_only_data_folder_leads_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, "mnist", write_set(tmp_path / "mirror"))
    (tmp_path / "data").mkdir(mode=0o555)
    home = fetch("mnist", report=lambda line: None)
    assert home == tmp_path / "xdg" / "largebatch" / "MNIST" / "raw"
    assert find("mnist") == home
    assert not list((tmp_path / "data").iterdir())
    with pytest.raises(UserError, match=r"no folder to write to \(.*/data: .*\); set LARGEBATCH_DATA"):
        fetch("mnist", tmp_path / "data", lambda line: None)


def test_names_that_cannot_be_fetched(image_root: Path):
    said: list[str] = []
    fetch("digits", report=said.append)
    fetch("synthetic", report=said.append)
    assert said == [
        "digits: nothing to fetch, it comes with scikit-learn",
        "synthetic: nothing to fetch, it is made when it is used",
    ]
    with pytest.raises(UserError, match=r"did you mean mnist\?"):
        fetch("mnst")
    with pytest.raises(UserError, match="imagenet cannot be fetched: its licence"):
        fetch("imagenet")
    with pytest.raises(UserError, match="folder cannot be fetched: it is your own"):
        fetch("folder")
    assert fetch("folder", image_root, said.append) == image_root
    with pytest.raises(UserError, match="has no files to look for"):
        find("digits")


def test_every_published_file_is_one_its_form_reads():
    assert set(published()) == {"mnist", "fashion_mnist", "cifar10", "cifar100"}
    for origin in published().values():
        form = origin.forms[0]
        expected = [f"{file}.gz" for file in form.files] if form.folder is None else [form.archive]
        assert sorted(origin.md5) == sorted(expected)
        assert all(len(md5) == 32 for md5 in origin.md5.values())
        assert origin.package is None or origin.package.folder.is_absolute()
