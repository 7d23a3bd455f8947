"""Worker processes that make one file of a pack each; every whole file has its line, however it ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from largebatch.data import fork_server
from largebatch.data.packs.progress import Made, MakingProgress
from largebatch.errors import Lost


class PackingStopped(Exception):
    """Another worker, or the user, ended it."""


def make(
    jobs: Sequence[Any],
    write: Callable[[Any], Made],
    begin: Callable[[Any], object],
    work: Callable[[Any, Any], Any],
    count: int,
    progress: MakingProgress[Made],
    report: Callable[[int], object],
    check: Callable[[], object] = lambda: None,
) -> None:
    """``write(job)`` in ``count`` processes, each begun with ``work(counter, stop)``: the number that ``report`` hears,
    which all add to, and the event that ends them. ``check`` is called now and then and may raise. 0: in this process.
    """
    if not count:
        _make_here(jobs, write, begin, work, progress, report, check)
        return
    context: Any = fork_server.running()
    counter, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(count, context, begin, (work(counter, stop),)) as pool:
        futures: list[Future[Made]] = []
        try:
            futures += (pool.submit(write, job) for job in jobs)
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, 0.2, FIRST_COMPLETED)
                report(counter.value)
                for future in done:
                    progress.add(future.result())
                check()
        except BrokenProcessPool:
            raise Lost(
                f"one of {count} worker processes was killed, as the system does when memory is short; the same "
                f"command goes on, and fewer need less: --workers {max(1, count // 2)}"
            ) from None
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            for future in filter(_succeeded, futures):
                with contextlib.suppress(OSError):  # then it is made again
                    progress.add(future.result())
            raise


class _Count:
    """What processes share is here one's own."""

    value = 0

    def get_lock(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


def _make_here(
    jobs: Sequence[Any],
    write: Callable[[Any], Made],
    begin: Callable[[Any], object],
    work: Callable[[Any, Any], Any],
    progress: MakingProgress[Made],
    report: Callable[[int], object],
    check: Callable[[], object],
) -> None:
    counter = _Count()
    begin(work(counter, threading.Event()))
    for job in jobs:
        progress.add(write(job))
        report(counter.value)
        check()


def _succeeded(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
