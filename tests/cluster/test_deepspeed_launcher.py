"""DeepSpeed's launcher over two hosts: started on each by hand, and by ssh from one of them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from cluster_runs import EXACT, PORT, ROUNDING, assert_same_end, plan, result, undisturbed
from hosts import Hosts, Process, several, wait_until
from programs import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

LAUNCHER = (sys.executable, "-m", "deepspeed.launcher.runner")
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
SSH_PORT = 2222
SETTINGS = """
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
"""


@pytest.fixture
def hosts(tmp_path):
    with several(2, tmp_path / "hosts") as hosts:
        (tmp_path / "hostfile").write_text("".join(f"host-{host} slots=1\n" for host in hosts.names))
        yield hosts


def test_without_ssh(hosts, recipe, tmp_path):
    """And DeepSpeed's engine, which knows no float64."""
    sgd = {"optimizer": {"name": "sgd", "momentum": 0.9}, "precision": "fp32", "steps": 20}
    written = recipe(**{**EXACT, **sgd, "engine__name": "deepspeed"})
    run = [
        hosts.start(
            host, *LAUNCHER, "--hostfile", tmp_path / "hostfile", "--no_ssh", "--node_rank", rank,
            "--master_addr", "host-a", "--master_port", PORT, "--module", "largebatch", "train", written,
            CUDA_VISIBLE_DEVICES="",
        )
        for rank, host in enumerate(hosts.names)
    ]  # fmt: skip
    assert [process.ends(seconds=240) for process in run] == [0, 0]
    check(written, tmp_path, "engine.name=ddp", tolerance=1e-6)


@pytest.mark.skipif(SSHD is None, reason="sshd is not installed (Debian: openssh-server)")
@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not installed (Debian: pdsh)")
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh is not installed (Debian: openssh-client)")
def test_by_ssh(hosts, recipe, tmp_path):
    written = recipe(**{**EXACT, "steps": 20})
    servers, options = let_in_by_ssh(hosts, tmp_path)
    # What the far side must know beyond PYTHON*: the launcher reads it from a file.
    (tmp_path / "environment").write_text("OMP_NUM_THREADS=1\nGLOO_SOCKET_IFNAME=eth0\n")
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"  # the launcher's own trial of ssh takes no options
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    ssh.chmod(0o755)
    run = hosts.start(
        "a", *LAUNCHER, "--hostfile", tmp_path / "hostfile", "--master_addr", "host-a", "--master_port", PORT,
        "--module", "largebatch", "train", written,
        cwd=REPOSITORY, DS_ENV_FILE=str(tmp_path / "environment"), PATH=f"{ssh.parent}:{os.environ['PATH']}",
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert run.ends(seconds=240) == 0
    assert all("Accepted publickey" in server.wrote for server in servers)
    check(written, tmp_path)


def let_in_by_ssh(hosts: Hosts, folder: Path) -> tuple[list[Process], str]:
    """An sshd on every host that lets a throwaway key in, and the options with which ssh uses it."""
    servers = []
    for name in ("host_key", "user_key"):
        made = hosts.start("a", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        assert made.ends(seconds=30) == 0
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without it
    for host in hosts.names:
        settings = folder / f"sshd_config_{host}"
        settings.write_text(SETTINGS.format(port=SSH_PORT, address=hosts.address(host), folder=folder))
        servers.append(server := hosts.start(host, SSHD, "-D", "-e", "-f", settings))
        wait_until(lambda server=server: "Server listening" in server.wrote, f"sshd on host {host}", seconds=30)
    return servers, (
        f"-p {SSH_PORT} -i {folder}/user_key -F none -o IdentitiesOnly=yes -o BatchMode=yes "
        "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    )


def check(written: Path, folder: Path, *overrides: str, tolerance: float = ROUNDING) -> None:
    directory = folder / "runs" / "tiny"
    assert plan(directory)["world_size"] == 2
    assert result(directory)["status"] == "finished"
    assert_same_end(directory, undisturbed(written, folder / "alone", *overrides), tolerance)
