"""Worker processes: requests in, answers out, in order; torch's DataLoader is the pool.

They are started by a fork server, a clean process without threads: forking the trainer itself would
copy the locks of gloo's, CUDA's and OpenMP's threads in whatever state they are, and spawning would
import torch anew in every worker. Training keeps its workers over the whole run; an evaluation has its own.
A Ctrl-C or a SIGTERM to the process group reaches neither server nor workers, so that the trainer can
finish its step; they end with it however it ends. The DataLoader gives each worker one thread of torch's.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


def answered(reader: Dataset, requests: Iterator[Any], workers: int, pin_memory: bool) -> Generator[Any, None, None]:
    """``reader[request]`` for each of them, in order; with 0 ``workers`` in this process, when asked for.

    Closing it (or dropping it) ends its workers.
    """
    yield from DataLoader(
        reader,
        sampler=requests,  # type: ignore[arg-type]  # with batch_size=None a request is one "example"
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=begin_worker,
        multiprocessing_context=fork_server() if workers else None,
        generator=torch.Generator(),  # else every loader draws from the run's own generator
    )


def _unchanged(answer: Any) -> Any:
    return answer


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fork_server() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "largebatch.data.workers"])
    resource_tracker.ensure_running()  # first, because starting it unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()  # inherits the mask, and so do its workers
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def begin_worker(worker: int | None = None) -> None:
    """In a worker, before anything else."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # how one that is stuck is ended
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    """torch's worker watches its parent, which is the fork server, which waits for its workers: neither
    would notice that the trainer was killed."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)
