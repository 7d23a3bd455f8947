"""Debian's packages without root: downloaded, verified by apt's signatures, unpacked into a folder of one's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

APT_SECONDS = 300.0


class Failed(Exception):
    """One way of getting something did not work; the message is the reason."""


class Unpacked(NamedTuple):
    title: str  # with the version: linux-doc-6.1_6.1.1-1
    tree: Path  # its files, as below /


class Apt:
    """Works in a folder; where apt's package lists are missing they are read into it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._own_lists: list[str] = []

    def unpacked(self, package: str) -> Unpacked:
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise Failed(f"{program} is not installed")
        folder = self.work / "debian" / package
        folder.mkdir(parents=True)
        self._asked("apt-get", "download", package, folder)
        archives = list(folder.glob("*.deb"))
        if not archives:
            raise Failed("apt-get download gave no package")
        _run(["dpkg-deb", "-x", str(archives[0]), str(folder / "tree")], folder)
        name, *version = archives[0].stem.split("_")
        return Unpacked("_".join([name, *version[:1]]).replace("%3a", "."), folder / "tree")

    def needed_by(self, package: str) -> str:
        """The first package that it depends on: that of this release, where it has no content of its own."""
        if shutil.which("apt-cache") is None:
            raise Failed("apt-cache is not installed")
        said = self._asked("apt-cache", "depends", package, self.work)
        if found := re.search(r"^\s*Depends: (\S+)", said, re.M):
            return found[1]
        raise Failed(f"apt-cache depends {package} names no package")

    def _asked(self, program: str, verb: str, package: str, folder: Path) -> str:
        try:
            return _run([program, *self._own_lists, verb, package], folder)
        except Failed:
            if self._own_lists:
                raise
        self._own_lists = _options(self.work / "apt")
        _run(["apt-get", *self._own_lists, "update"], folder)
        return _run([program, *self._own_lists, verb, package], folder)


def _options(state: Path) -> list[str]:
    """Those that keep package lists and caches in a folder of our own, which needs no root."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    options = [f"Dir::State::Lists={state / 'lists'}", f"Dir::Cache={state / 'cache'}", "Debug::NoLocking=1"]
    return [word for option in options for word in ("-o", option)]


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=APT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as reason:
        raise Failed(f"{command[0]}: {reason}") from None
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("E:")]
        verb = next((word for word in command if word in ("download", "depends", "update", "-x")), "")
        raise Failed(f"{command[0]} {verb} failed: {' '.join(said[:2]) or f'exit code {done.returncode}'}")
    return done.stdout
