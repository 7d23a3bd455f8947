"""Worker processes: requests in, answers out, in order; torch's DataLoader is the pool.

They are started by a fork server, a clean process without threads: forking the trainer itself would
copy the locks of gloo's, CUDA's and OpenMP's threads in whatever state they are, and spawning would
import torch anew in every worker. Training keeps its workers over the whole run; an evaluation has its own.
A Ctrl-C or a SIGTERM to the process group reaches neither server nor workers, so that the trainer can
finish its step; they end with it however it ends. The DataLoader gives each worker one thread of torch's.

One that dies is no reason to lose the step: what the workers were to read is the same whoever reads it. So the
trainer's own process goes on reading, and whoever watches ends the run in order.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from largebatch.data import fork_server
from largebatch.errors import Lost

SECONDS_TO_DIE = 5.0  # between the end of what a process says and the end of the process


class Helpers:
    """The worker processes of one data set, and what became of them."""

    def __init__(self) -> None:
        self.watched = False  # by one who looks at ``lost``; if nobody does, a death raises Lost
        self.lost: str | None = None

    def died(self, sentence: str) -> None:
        if not self.watched:
            raise Lost(sentence)
        self.lost = self.lost or sentence


def answered(
    reader: Dataset, requests: Iterator[Any], workers: int, pin_memory: bool, helpers: Helpers | None = None
) -> Generator[Any, None, None]:
    """``reader[request]`` for each of them, in order; with 0 ``workers`` in this process, when asked for.

    Closing it (or dropping it) ends its workers.
    """
    waiting: deque[Any] = deque()  # asked of the workers, not answered yet

    def asked() -> Iterator[Any]:
        for request in requests:
            waiting.append(request)
            yield request

    answers = None
    try:
        answers = iter(_loader(reader, asked(), workers, pin_memory))
        while True:
            answer = next(answers)
            waiting.popleft()
            yield answer
    except StopIteration:
        return
    except (RuntimeError, OSError, EOFError) as failure:
        sentence = _of_a_death(getattr(answers, "_workers", []), failure) if workers else None
        if sentence is None:
            raise
        (helpers or Helpers()).died(sentence)
    del answers  # ends the others
    yield from _loader(reader, itertools.chain(waiting, requests), 0, pin_memory)


def _loader(reader: Dataset, requests: Iterator[Any], workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        reader,
        sampler=requests,  # type: ignore[arg-type]  # with batch_size=None a request is one "example"
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=begin_worker,
        multiprocessing_context=fork_server.running() if workers else None,
        generator=torch.Generator(),  # else every loader draws from the run's own generator
    )


def _of_a_death(workers: Sequence[BaseProcess], failure: Exception) -> str | None:
    """One sentence, where ``failure`` comes of workers that ended or could not begin; None where it does not."""
    count = f"one of {len(workers)} processes that read the data"
    if not workers:
        return f"the processes that read the data cannot be started: {failure}; fewer need less: data.workers"
    if isinstance(failure, ConnectionError | EOFError | FileNotFoundError):  # it does not answer any more
        wait([worker.sentinel for worker in workers], SECONDS_TO_DIE)
    dead = [worker for worker in workers if not worker.is_alive()]
    if not dead:
        return None
    code = dead[0].exitcode or 0
    fewer = f"fewer of them need less: data.workers={len(workers) // 2}"
    if code == -signal.SIGKILL:
        return f"{count} was killed, as the system does when memory is short; {fewer}"
    if code == -signal.SIGBUS:
        return f"{count} found no room in shared memory (/dev/shm); {fewer}"
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"{count} ended unexpectedly, {how}; for want of memory perhaps: {fewer}"


def _unchanged(answer: Any) -> Any:
    return answer


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_words(count: int) -> str:
    """``2 processes``; 0 is the one that asks."""
    return "in this process" if count == 0 else f"{count} process{'es' if count > 1 else ''}"


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
