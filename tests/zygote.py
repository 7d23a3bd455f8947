"""A process that has imported what takes long, and forks: each program of the tests starts in milliseconds, fresh.

It never trains, so a fork of it is what a new interpreter is after its imports: no threads, no process group, random
states of its own. Requests come as JSON lines on stdin, ``{"words", "cwd", "environment", "stdout", "stderr"}``;
answers go to stdout, ``{"started": pid}``, in the order of the requests, and ``{"ended": pid, "code": code}``.
``words`` are those behind ``python``: ``-m module ...``, ``-c code ...``, ``file ...``, or ``module:function ...``.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = (
    "torch",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "torch._inductor.compile_fx",  # what DeepSpeed imports as well, and half of its price
    "torchvision",
    "timm",
    "scipy.stats",
    "sklearn.datasets",
    "largebatch.cli",
    "largebatch.run.train",
    "largebatch.studies.compare",
    "largebatch.engines.fsdp",
)
PAUSE = 0.003  # seconds between two looks at who has ended


def serve() -> dict[str, Any] | None:
    """Fork on each request. Returns in the child, with the request, and in the server when nobody can ask any more."""
    answers = sys.stdout
    unread = b""
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([0], [], [], PAUSE if children else None)
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.remove(pid)
                print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)
        if not readable:
            continue
        piece = os.read(0, 1 << 16)
        if not piece:
            return None
        *lines, unread = (unread + piece).split(b"\n")
        for line in lines:
            pid = os.fork()
            if not pid:
                return json.loads(line)
            children.add(pid)
            print(json.dumps({"started": pid}), file=answers, flush=True)


def become(request: dict[str, Any]) -> None:
    """This process as one started anew, and its program."""
    for number, (name, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *((request[out], os.O_WRONLY | os.O_APPEND) for out in ("stdout", "stderr"))]
    ):
        file = os.open(name, flags)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[:0] = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path
    ]
    import numpy as np
    import torch

    random.seed()
    np.random.seed()  # noqa: NPY002 (the global state, as a new process has it)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    run(request["words"])


def run(words: list[str]) -> None:
    if words[0] == "-W":
        warnings.simplefilter(words[1])  # type: ignore[arg-type]
        words = words[2:]
    first, *rest = words
    if first in ("-m", "-c"):
        sys.path.insert(0, os.getcwd())
        sys.argv = [first, *rest[1:]]
    else:
        sys.argv = words
    if first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif ":" in first:
        module, _, function = first.partition(":")
        getattr(importlib.import_module(module), function)(*rest)
    else:
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


def end(error: BaseException | None) -> NoReturn:
    """As an interpreter ends, but for taking its modules apart, which takes seconds in a fork."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else each fork's first collection copies the memory of all of it
    if request := serve():
        try:
            become(request)
        except BaseException as error:
            end(error)
        end(None)
    os._exit(0)
