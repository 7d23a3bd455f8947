"""Whether the services of ``record.to`` can be used from here. Nothing is sent, and no package of theirs imported."""

from __future__ import annotations

import contextlib
import importlib.metadata
import netrc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.loggers import mlflow, wandb
from largebatch.run.loggers.scalars import check_installed

CONNECT_SECONDS = 5.0
DISTRIBUTIONS = {"wandb": ("wandb",), "mlflow": ("mlflow", "mlflow-skinny")}
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")  # where wandb login knows keys of


def of_services(run: config.Run) -> tuple[dict[str, str], list[str]]:
    """Each in words, and what stands against it."""
    words, complaints = {}, []
    for name in run.record.to:
        try:
            check_installed([name])
        except UserError as error:
            complaints.append(str(error))
            continue
        if name == "wandb":
            mode = wandb.mode_of(run.record.wandb.model_dump(), os.environ) or "online"
            words[name] = f"{version(name)}, {mode}"
            complaints += problems_of_wandb() if mode == "online" else ()
        if name == "mlflow":
            uri = mlflow.uri_of(run.record.mlflow.model_dump(), os.environ, run.directory)
            words[name] = f"{version(name)}, {uri}"
            if why := unreachable(uri):
                complaints.append(
                    f"record.to names mlflow, and {uri} cannot be reached from here ({why}); start its server, or set "
                    "record.mlflow.tracking_uri or MLFLOW_TRACKING_URI to another"
                )
    return words, complaints


def problems_of_wandb() -> Iterator[str]:
    instead = "such a run is kept on the disk; record.wandb.mode=offline or WANDB_MODE=offline says that it is meant so"
    if not any(os.environ.get(key) for key in KEYS) and not any(map(knows_password, wandb_hosts())):
        yield f"record.to names wandb, and no key of it is known here (wandb login, or WANDB_API_KEY); {instead}"
    elif why := unreachable(os.environ.get("WANDB_BASE_URL") or f"https://{WANDB_HOSTS[0]}"):
        yield f"record.to names wandb, and its server cannot be reached from here ({why}); {instead}"


def wandb_hosts() -> tuple[str, ...]:
    url = os.environ.get("WANDB_BASE_URL")
    return (urlsplit(url).netloc,) if url else WANDB_HOSTS


def knows_password(host: str) -> bool:
    with contextlib.suppress(OSError, netrc.NetrcParseError, RuntimeError):
        file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        return netrc.netrc(str(file)).authenticators(host) is not None
    return False


def unreachable(uri: str) -> str | None:
    """Why nobody answers there; None where somebody does, or where it is no address."""
    where = urlsplit(uri)
    if where.scheme not in ("http", "https") or not where.hostname:
        return None
    try:
        port = where.port or {"http": 80, "https": 443}[where.scheme]
        socket.create_connection((where.hostname, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def version(service: str) -> str:
    for name in DISTRIBUTIONS[service]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of an unknown version"
