"""Work on the next batches while the trainer computes: one thread, some jobs ahead, one owner.

The thread belongs to the generator that began it. It ends when the generator is closed, dropped or used up, after the
job it is at; those not begun are cancelled. What a job raises is raised where its result is asked for. Jobs are made,
and memory for them is taken, in the caller's thread: the other one makes no CUDA calls, so it can neither disturb a
capture of CUDA graphs nor wait for the device.

One thread, because copying pixels outruns any one device and runs without Python's lock; its torch operations do not
spread over more, so that the trainer's own threads keep their cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def begun(jobs: Iterable[Callable[[], T]], ahead: int) -> Generator[Future[T], None, None]:
    """The jobs' results in order, up to ``ahead`` of them begun before the one that is asked for is taken."""
    thread = ThreadPoolExecutor(1, "largebatch-ahead")
    waiting: deque[Future[T]] = deque()
    try:
        count = torch.get_num_threads()
        thread.submit(torch.get_num_threads).result()  # a thread takes the common setting when it first asks
        thread.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(count)  # the other one's setting has become the common one
        for job in jobs:
            waiting.append(thread.submit(job))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        thread.shutdown(cancel_futures=True)
