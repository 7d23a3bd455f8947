"""What was measured on what: command, machine, versions, commit."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, TypedDict

PACKAGES = ("largebatch", "torch", "torchvision", "timm", "numpy", "deepspeed", "pytorch_optimizer")


class Circumstances(TypedDict):
    """Stands in everything that was measured."""

    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None


def circumstances_of(command: str, device: Any = None) -> Circumstances:
    """Of this process; ``device`` is torch's, on which it measured."""
    return {"command": command, "machine": machine(device), "versions": versions(), "commit": commit()}


def machine(device: Any = None) -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    cuda = device is not None and device.type == "cuda"
    return {
        "host_cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "os": _os_name(),
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    import importlib.metadata

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache
def commit() -> str | None:
    """The project's own commit, with ``+`` if files were changed; None outside a checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, timeout=10)
        if tracked.returncode:
            return None
        describe = [*git, "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(describe, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
