"""Getting a data set onto this machine: what is there already, the public mirrors, Debian's package.

:func:`fetch` takes the first that works, says what it did, and when nothing works says all that it tried.
Downloads are written beside their destination, compared with the published MD5, and moved into place
whole, so that an interrupted fetch leaves nothing that looks like a data set. Debian's packages
(:mod:`largebatch.data.debian`) are a data set's, or English text (:mod:`largebatch.data.text.english`).
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from largebatch.data import debian, formats, sets
from largebatch.data.debian import Failed
from largebatch.data.places import bases, data_folder, find, locate, usual_folders
from largebatch.data.published import ByHand, NoFiles, Package, PublishedFiles
from largebatch.data.text import english
from largebatch.errors import UserError, suggestion
from largebatch.records.files import whole

__all__ = ["fetch", "find", "locate"]

Report = Callable[[str], object]
CONNECT_SECONDS = 10.0


def fetch(name: str, root: str | os.PathLike[str] | None = None, report: Report = print) -> Path:
    """Make data set ``name`` available and give its folder; what is there already is left as it is.

    Without ``root`` it goes to the data folder, or to the cache folder where that cannot be written.
    """
    if name == english.NAME:
        return _fetch_english(root, report)
    if name not in (known := [*sets.names(), english.NAME]):
        raise UserError(f"{name!r} is not a data set that can be fetched{suggestion(name, known)}")
    origin = sets.known(name).origin
    if isinstance(origin, NoFiles):
        report(f"{name}: nothing to fetch, {origin.why}")
        return data_folder()
    here = find(name, root)
    if here is not None:
        report(f"{name}: already there, {here}")
        return here
    if isinstance(origin, ByHand):
        raise UserError(f"data set {name} cannot be fetched: {origin.why}")
    return _fetch_from_afar(name, origin, root, report)


def _fetch_from_afar(name: str, origin: PublishedFiles, root: str | os.PathLike[str] | None, report: Report) -> Path:
    tried = [f"no copy in {place}" for place in bases(name, root)]
    with _workshop(root) as (base, work):
        for source, attempt in _attempts(origin, work):
            try:
                report(f"{name}: trying {source}")
                home = _moved(attempt(report), base / origin.home)
            except (Failed, OSError) as reason:
                tried.append(f"{source}: {reason}")
                report(f"{name}: {tried[-1]}")
                continue
            report(f"{name}: fetched from {source} to {home}")
            return home
    place = base if origin.archived else base / origin.home
    raise UserError(
        f"data set {name} could not be fetched ({'; '.join(tried)}); "
        f"put {' '.join(origin.md5)} from {origin.page} into {place} by hand"
    )


def _fetch_english(root: str | os.PathLike[str] | None, report: Report) -> Path:
    """Text to tokenize, which no recipe names."""
    name = english.NAME
    for base in [Path(root)] if root is not None else usual_folders():
        if english.found_in(base / name):
            report(f"{name}: already there, {base / name}")
            return base / name
    with _workshop(root) as (base, work):
        try:
            home = english.fetch_into(base / name, work, report)
        except (Failed, OSError) as reason:
            raise UserError(f"{name} could not be fetched: {reason}; {english.BY_HAND}") from None
    report(f"{name}: to train on it, largebatch data tokenize {home} PACK --vocabulary 8192")
    return home


def _attempts(origin: PublishedFiles, work: Path) -> Iterator[tuple[str, Callable[[Report], Path]]]:
    """Every way to get the set, best first: what it is called, and what gives a folder of its files."""
    for url in origin.mirrors:
        yield url, lambda report, url=url: _from_mirror(url, origin, work, report)
    if package := origin.package:
        yield f"Debian's package {package.name}", lambda report: _from_debian(package, origin.forms[0], work)


@contextmanager
def _workshop(root: str | os.PathLike[str] | None) -> Iterator[tuple[Path, Path]]:
    """The first folder that can be written, and a temporary one inside it, removed at the end."""
    wanted = [Path(root)] if root is not None else usual_folders()
    reasons = []
    for base in dict.fromkeys(wanted):
        try:
            base.mkdir(parents=True, exist_ok=True)
            if not base.stat().st_mode & 0o222:  # root could write, but somebody did not want it
                raise PermissionError(errno.EACCES, "it is read-only")
            work = tempfile.mkdtemp(prefix=".fetch-", dir=base)
        except OSError as reason:
            reasons.append(f"{base}: {reason.strerror}")
            continue
        try:
            yield base, Path(work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return
    raise UserError(f"no folder to write to ({'; '.join(reasons)}); set LARGEBATCH_DATA to one that can be")


def _moved(folder: Path, home: Path) -> Path:
    """``home`` once the files of ``folder`` are in it."""
    home.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        os.replace(file, home / file.name)
    return home


def _from_mirror(mirror: str, origin: PublishedFiles, work: Path, report: Report) -> Path:
    """A folder with the set's files, downloaded, verified, and unpacked if they come as an archive."""
    folder = work / "mirror"
    folder.mkdir(exist_ok=True)
    for file, md5 in origin.md5.items():
        if not (folder / file).exists():  # an earlier mirror may have given it
            _download(mirror + file, folder / file, md5, report)
    form = origin.archived
    if form is None or form.archive is None:
        return folder
    unpacked = work / "unpacked"
    unpacked.mkdir()
    contents = formats.archive_contents(folder / form.archive, form)
    for file, content in contents.items():
        (unpacked / file).write_bytes(content)
    return unpacked


def _download(url: str, destination: Path, md5: str, report: Report) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with whole(destination) as part:
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer, part.open("wb") as file:  # noqa: S310
                length = int(answer.headers.get("Content-Length") or 0)
                done = told = 0
                while block := answer.read(1 << 18):
                    digest.update(block)
                    file.write(block)
                    done += len(block)
                    if done > formats.LARGEST_FILE:
                        raise ValueError(f"more than {formats.LARGEST_FILE:,} bytes")
                    if length > 20e6 and done - told >= length / 5:
                        told = done
                        report(f"  {destination.name}: {done / 1e6:.0f} of {length / 1e6:.0f} MB")
        except (OSError, http.client.HTTPException, ValueError) as reason:
            raise Failed(f"{destination.name}: {_told(reason)}") from None
        if digest.hexdigest() != md5:
            raise Failed(f"{destination.name}: its MD5 is {digest.hexdigest()}, published is {md5}")


def _told(reason: Exception) -> str:
    if isinstance(reason, urllib.error.HTTPError):
        return f"HTTP {reason.code} {reason.reason}"
    if isinstance(reason, urllib.error.URLError):
        return str(reason.reason)
    return str(reason) or type(reason).__name__


def _from_debian(package: Package, form: formats.Form, work: Path) -> Path:
    """The set's files out of a Debian package."""
    unpacked = debian.Apt(work).unpacked(package.name).tree / package.folder.relative_to("/")
    missing = form.missing(unpacked)
    if missing:
        raise Failed(f"the package has no {', '.join(missing)}")
    return unpacked
