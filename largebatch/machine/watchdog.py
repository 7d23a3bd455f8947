"""Who stands still, and where: a time-out names the rank and the collective instead of silence.

Every rank says where it is (:func:`now`), which costs an assignment. A thread looks on: when its rank has not moved for
a while it writes the place into the store in which the ranks found each other; when it has not moved for the whole
time-out it reads what the others wrote, says in one sentence who did not come, and ends the process, so that a
launcher can start it anew. All ranks pass the same places in the same order and count them: who has counted less than
the others, or wrote nothing, is the one they wait for. A process alone is looked at in the same way.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from largebatch.machine import distributed


class Standing(NamedTuple):
    """Where a rank stands still."""

    passed: int  # places
    place: str
    since: float  # seconds
    host: str
    pid: int


class _Now:
    place = ""
    passed = 0
    signs = 0  # of life


def now(place: str) -> None:
    """This rank is at ``place`` from here on; all ranks pass the same places."""
    _Now.place = place
    _Now.passed += 1
    _Now.signs += 1


def alive() -> None:
    """Still there, and at work; for what takes long, in parts of which ranks may have unequal numbers."""
    _Now.signs += 1


@contextlib.contextmanager
def watched(timeout_minutes: float) -> Iterator[None]:
    """Inside, a rank that stands still for so long ends every rank's process, with a sentence; one alone its own."""
    store = distributed.store()
    timeout = 60 * timeout_minutes
    ended = threading.Event()
    look_on: Callable[[], None] = functools.partial(_look_on_alone, timeout, ended)
    if store is not None:
        own = store.clone() if hasattr(store, "clone") else store  # a connection that nobody else waits on
        look_on = functools.partial(_look_on, own, timeout, ended)
    thread = threading.Thread(target=look_on, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def _look_on(store: Any, timeout: float, ended: threading.Event) -> None:
    signs, since, published = -1, time.monotonic(), 0.0
    within(1.0, lambda: store.set(key(distributed.rank()), ""))
    every = min(1.0, timeout / 20)
    with contextlib.suppress(Exception):
        store.set_timeout(timedelta(seconds=max(2.0, timeout / 10)))
    while not ended.wait(every):
        if _Now.signs != signs:
            if published:
                within(1.0, lambda: store.set(key(distributed.rank()), ""))
            signs, since, published = _Now.signs, time.monotonic(), 0.0
            continue
        stood = time.monotonic() - since
        if stood > timeout / 4 and stood - published > timeout / 10:
            published = stood
            standing = json.dumps(Standing(_Now.passed, _Now.place, stood, socket.gethostname(), os.getpid()))
            within(1.0, functools.partial(store.set, key(distributed.rank()), standing))
        if stood > timeout:
            sentence = verdict(within(10.0, lambda: seen(store)), distributed.rank(), _Now.place, stood)
            if sentence:
                print(f"largebatch: {sentence}", file=sys.stderr, flush=True)
            else:
                ended.wait(every)  # another rank says it
            os._exit(1)


def _look_on_alone(timeout: float, ended: threading.Event) -> None:
    """Seconds in which this thread did not run, either, do not count: the process was stopped, or the machine slept."""
    every = min(1.0, timeout / 20)
    signs, stood, looked = -1, 0.0, time.monotonic()
    while not ended.wait(every):
        now = time.monotonic()
        stood = stood + min(now - looked, 5 * every) if _Now.signs == signs else 0.0
        signs, looked = _Now.signs, now
        if stood > timeout:
            print(f"largebatch: {verdict_alone(_Now.place, stood)}", file=sys.stderr, flush=True)
            os._exit(1)


def verdict_alone(place: str, stood: float) -> str:
    return (
        f"the run has stood at {place} for {stood:.0f} s: a file or a disk that it reads does not answer, or it needs "
        "longer than timeout_minutes allow"
    )


def within(seconds: float, ask: Callable[[], Any]) -> Any:
    """The answer, or None: a store whose host was cut off never answers, and its time-out does not hold then."""
    answers: list[Any] = []

    def wait() -> None:
        with contextlib.suppress(Exception):
            answers.append(ask())

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def key(rank: int) -> str:
    return f"standing/{rank}"


def seen(store: Any) -> dict[int, Standing | None]:
    """What every rank last wrote, None where it wrote nothing, or has moved since."""
    keys = [key(rank) for rank in range(distributed.world_size())]
    there = keys if store.check(keys) else [one for one in keys if store.check([one])]
    written = dict(zip(there, store.multi_get(there), strict=True))
    return {rank: standing_of(written.get(one, b"")) for rank, one in enumerate(keys)}


def standing_of(written: bytes) -> Standing | None:
    return Standing(*json.loads(written)) if written else None


def verdict(standing: dict[int, Standing | None] | None, rank: int, place: str, stood: float) -> str | None:
    """One sentence, by the first of those that wait: who did not come, to what."""
    if standing is None:
        return (
            f"rank {rank} has stood at {place} for {stood:.0f} s, and the host where the ranks met does not answer: it "
            "is gone, or cannot be reached"
        )
    known = {number: one for number, one in standing.items() if one is not None}
    furthest = max((one.passed for one in known.values()), default=0)
    waiting = [number for number, one in known.items() if one.passed == furthest]
    if waiting and rank != waiting[0]:
        return None
    late = [
        f"rank {number} (host {one.host}, process {one.pid}), which has stood at {one.place} for {one.since:.0f} s"
        for number, one in known.items()
        if one.passed < furthest
    ]
    late += [
        f"rank {number}, of which there is no word: it is gone, frozen, or still at work"
        for number, one in standing.items()
        if one is None
    ]
    if not late:
        return (
            f"all {len(standing)} ranks have stood at {place} for {stood:.0f} s: the network between them does not "
            "carry, or they wait for each other"
        )
    more = f", and for {len(late) - 4} more" if len(late) > 4 else ""
    return f"{len(waiting)} of {len(standing)} ranks waited {stood:.0f} s at {place} for {'; '.join(late[:4])}{more}"
