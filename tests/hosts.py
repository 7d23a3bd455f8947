"""Several hosts on one machine: a network namespace each, with its own address, name and cable.

    with several(2, folder) as hosts:
        process = hosts.start("a", "python", "-m", "largebatch", ...)
        hosts.cut("b")  # the cable is pulled: nobody gets an answer, no connection is closed
        process.ends(seconds=60)

A switch in a namespace of its own joins them: the machine's own network is left as it is, and two test runs never meet.
All see the same files, as hosts with a shared file system do. Needs root and ``ip`` (Debian: iproute2).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import environment

NETWORK = "10.77.0"
PREFIX = "largebatch-test"  # largebatch-test-<process that made it>-<number>-<host>
_number = itertools.count()


class Process:
    """A program on a host; what it wrote, and bounded waits that show it."""

    def __init__(self, host: str, arguments: list[str], popen: subprocess.Popen[bytes], log: Path) -> None:
        self.host, self.arguments, self.popen, self.log = host, arguments, popen, log

    @property
    def wrote(self) -> str:
        return self.log.read_text(errors="replace")

    def ends(self, seconds: float) -> int:
        """Its exit code, once it ended; at most so long."""
        wait_until(lambda: self.popen.poll() is not None, f"the program on host {self.host} to end", seconds)
        return self.popen.wait()


class Hosts:
    """The hosts ``a``, ``b``, ...; what runs on them is in ``processes``."""

    def __init__(self, number: int, folder: Path) -> None:
        self.names = "abcdefgh"[:number]
        self.run = f"{PREFIX}-{os.getpid()}-{next(_number)}"
        self.folder = folder
        self.processes: list[Process] = []
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{self.address(host)} host-{host}" for host in self.names]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))

    def address(self, host: str) -> str:
        return f"{NETWORK}.{self.names.index(host) + 1}"

    def namespace(self, host: str) -> str:
        return f"{self.run}-{host}"

    def plug_in(self) -> None:
        switch = self.namespace("switch")
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for host in self.names:
            space = self.namespace(host)
            ip("netns", "add", space)
            ip(
                "-n",
                switch,
                "link",
                "add",
                "name",
                f"to-{host}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space,
            )
            ip("-n", switch, "link", "set", f"to-{host}", "master", "switch")
            ip("-n", switch, "link", "set", f"to-{host}", "up")
            ip("-n", space, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def start(self, host: str, *arguments: object, cwd: Path | None = None, **variables: str) -> Process:
        """The program on the host, under its name; both its outputs go to one file."""
        words = [str(argument) for argument in arguments]
        log = self.folder / f"{len(self.processes)}-{host}.log"
        # `ip netns exec` gives a mount namespace of its own, so this /etc/hosts is seen by the program alone.
        prepare = f'mount --bind {self.folder}/hosts /etc/hosts && hostname host-{host} && exec "$@"'
        enter = ["ip", "netns", "exec", self.namespace(host), "unshare", "--uts", "sh", "-c", prepare, "sh"]
        given = environment(GLOO_SOCKET_IFNAME="eth0", PYTHONUNBUFFERED="1", **variables)
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [*enter, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=given
            )
        self.processes.append(Process(host, words, popen, log))
        return self.processes[-1]

    def cut(self, host: str) -> None:
        """As if the cable were pulled at the switch."""
        ip("-n", self.namespace("switch"), "link", "set", f"to-{host}", "down")

    def mend(self, host: str) -> None:
        ip("-n", self.namespace("switch"), "link", "set", f"to-{host}", "up")

    def kill(self, host: str) -> None:
        """SIGKILL for everything on the host, at once; while it is cut, nobody else learns of it."""
        kill_all_in(self.namespace(host))
        for process in self.processes:
            if process.host == host:
                process.popen.wait()

    def show(self) -> None:
        """What everything wrote; pytest prints it beside a failure alone."""
        for process in self.processes:
            print(f"---- host {process.host}, exit code {process.popen.poll()}: {' '.join(process.arguments)}")
            print(process.wrote[-12_000:])


@contextlib.contextmanager
def several(number: int, folder: Path) -> Iterator[Hosts]:
    """``number`` hosts, and nothing left of them afterwards; skips the test where the machine allows none."""
    if reason := why_not():
        pytest.skip(reason)
    remove_those_of_dead_processes()
    hosts = Hosts(number, folder)
    try:
        hosts.plug_in()
        yield hosts
    finally:
        hosts.show()
        for name in (*hosts.names, "switch"):
            remove(hosts.namespace(name))
        for process in hosts.processes:
            process.popen.wait()


def wait_until(condition: Callable[[], object], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.02)


@functools.cache
def why_not() -> str | None:
    """Why this machine has no hosts to give; None where it has."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [program for program in ("ip", "unshare", "mount", "hostname") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux, mount, hostname)"
    trial = f"{PREFIX}-{os.getpid()}-trial"
    try:
        ip("netns", "add", trial)
        ip("-n", trial, "link", "add", "switch", "type", "bridge")
        ip("-n", trial, "link", "add", "name", "one", "type", "veth", "peer", "name", "other")
        ip("netns", "exec", trial, "unshare", "--uts", "hostname", "trial")
    except Refused as reason:
        return f"network namespaces are not permitted here: {reason}"
    finally:
        remove(trial)
    return None


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise Refused(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Refused(Exception):
    """What ``ip`` said when it could not."""


def namespaces() -> list[str]:
    return [line.split()[0] for line in ip("netns", "list").splitlines() if line.startswith(PREFIX)]


def remove(namespace: str) -> None:
    with contextlib.suppress(Refused):  # it was not made
        kill_all_in(namespace)
        ip("netns", "delete", namespace)


def kill_all_in(namespace: str) -> None:
    while found := ip("netns", "pids", namespace).split():  # until nothing forks any more
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        time.sleep(0.01)


def remove_those_of_dead_processes() -> None:
    for namespace in namespaces():
        made_by = re.match(rf"{PREFIX}-(\d+)-", namespace)
        if made_by and not Path(f"/proc/{made_by[1]}").exists():
            remove(namespace)
