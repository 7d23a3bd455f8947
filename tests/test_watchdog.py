"""Who stands still: the sentence is said once, by one of those that wait, and names who did not come."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

import pytest

from largebatch.machine import distributed, watchdog
from largebatch.machine.watchdog import Standing, verdict

DATA, GRADIENT = "the data of step 7", "the gradient of step 7"


def at(place: str, passed: int, rank: int, since: float = 60.0) -> Standing:
    return Standing(passed, place, since, f"node{rank}", 1000 + rank)


def sentences(standing: dict[int, Standing | None]) -> list[str]:
    """What the ranks that are able to speak say, all together."""
    said = [verdict(standing, rank, one.place, one.since) for rank, one in standing.items() if one is not None]
    return [sentence for sentence in said if sentence is not None]


def test_the_one_that_is_late_is_named_with_its_place():
    waiting = {rank: at(GRADIENT, 15, rank) for rank in (0, 1, 3)}
    assert sentences({**waiting, 2: at(DATA, 14, 2, 58.4)}) == [
        f"3 of 4 ranks waited 60 s at {GRADIENT} for rank 2 (host node2, process 1002), which has stood at {DATA} "
        "for 58 s"
    ]


def test_the_first_may_be_the_late_one():
    assert sentences({0: at(DATA, 14, 0), 1: at(GRADIENT, 15, 1)}) == [
        f"1 of 2 ranks waited 60 s at {GRADIENT} for rank 0 (host node0, process 1000), which has stood at {DATA} "
        "for 60 s"
    ]


def test_one_that_says_nothing_is_named():
    assert sentences({0: at(GRADIENT, 15, 0), 1: None, 2: at(GRADIENT, 15, 2)}) == [
        f"2 of 3 ranks waited 60 s at {GRADIENT} for rank 1, of which there is no word: it is gone, frozen, or still "
        "at work"
    ]


def test_the_late_and_the_silent_together():
    [sentence] = sentences({0: at(GRADIENT, 15, 0), 1: None, 2: at(DATA, 14, 2)})
    assert sentence.startswith("1 of 3 ranks waited 60 s")
    assert "rank 2 (host node2, process 1002), which has stood at" in sentence
    assert sentence.endswith("; rank 1, of which there is no word: it is gone, frozen, or still at work")


def test_where_all_wait_in_the_same_place_it_is_the_network():
    assert sentences({rank: at(GRADIENT, 15, rank) for rank in range(3)}) == [
        f"all 3 ranks have stood at {GRADIENT} for 60 s: the network between them does not carry, or they wait for "
        "each other"
    ]


def test_of_many_four_are_named():
    standing: dict[int, Standing | None] = {rank: at(DATA, 14, rank) for rank in range(1, 10)}
    [sentence] = sentences({0: at(GRADIENT, 15, 0), **standing})
    assert all(f"rank {rank} " in sentence for rank in (1, 2, 3, 4))
    assert "rank 5 " not in sentence
    assert sentence.endswith(", and for 5 more")


def test_where_the_ranks_met_is_gone():
    assert verdict(None, 3, DATA, 61.0) == (
        f"rank 3 has stood at {DATA} for 61 s, and the host where the ranks met does not answer: it is gone, or cannot "
        "be reached"
    )


class Store(dict):
    """What torch's store does, in memory."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key].encode() for key in keys]

    def set_timeout(self, timeout: Any) -> None:
        pass


class Gone(Store):
    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("Connection reset")


class Ended(Exception):
    pass


@pytest.fixture
def first_of_two(monkeypatch) -> list[int]:
    """This process is rank 0; the codes with which the watchdog would have ended it."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(watchdog.os, "_exit", end)
    return codes


def look_on(store: Store) -> None:
    with pytest.raises(Ended):
        watchdog._look_on(store, 0.5, threading.Event())


@pytest.mark.worlds
def test_a_rank_that_stands_still_ends_with_1_and_the_sentence(first_of_two, capsys):
    watchdog.now(GRADIENT)
    look_on(Store({"standing/1": json.dumps(at(DATA, 0, 1))}))
    assert first_of_two == [1]
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith("largebatch: 1 of 2 ranks waited ")
    assert f" s at {GRADIENT} for rank 1 (host node1, process 1001), which has stood at {DATA} for 60 s" in sentence


@pytest.mark.worlds
def test_a_store_that_is_gone_is_told(first_of_two, capsys):
    watchdog.now(DATA)
    look_on(Gone())
    assert first_of_two == [1]
    assert f"largebatch: rank 0 has stood at {DATA} for " in capsys.readouterr().err


@pytest.mark.worlds
def test_who_moves_is_left_alone_and_takes_back_what_it_wrote(first_of_two):
    """It stands for a while, so that it writes its place, and then goes on."""
    store = Store()
    ended = threading.Event()
    watchdog.now(DATA)
    thread = threading.Thread(target=watchdog._look_on, args=(store, 4.0, ended))
    thread.start()
    deadline = time.monotonic() + 30
    try:
        while not store.get("standing/0") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(store["standing/0"])[1] == DATA
        watchdog.alive()
        while store["standing/0"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store["standing/0"] == ""
    finally:
        ended.set()
        thread.join()
    assert first_of_two == []


def test_one_alone_that_stands_still_is_told_where(monkeypatch, capsys):
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(watchdog.os, "_exit", end)
    watchdog.now(DATA)
    with pytest.raises(Ended):
        watchdog._look_on_alone(0.05, threading.Event())
    assert codes == [1]
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"largebatch: the run has stood at {DATA} for 0 s: a file or a disk that it reads does")


class Clock:
    """Time passes while somebody waits for the end: so many seconds each time, then it is there."""

    def __init__(self, seconds: list[float], signs: list[bool]) -> None:
        self.now, self.seconds, self.signs = 0.0, iter(seconds), iter(signs)

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        passed = next(self.seconds, None)
        self.now += passed or 0.0
        if next(self.signs, False):
            watchdog.alive()
        return passed is None


@pytest.mark.parametrize(
    ("seconds", "signs", "ends"),
    [
        ([1.0] * 70, [], True),
        ([1.0] * 50, [], False),
        ([1.0] * 200, [step % 50 == 0 for step in range(200)], False),
        ([1.0, 3600.0, 1.0], [], False),  # it was stopped for an hour, or the machine slept
        ([1.0] * 50 + [3600.0] + [1.0] * 20, [], True),
    ],
)
def test_alone_only_seconds_count_in_which_it_could_have_moved(monkeypatch, capsys, seconds, signs, ends):
    clock = Clock(seconds, signs)

    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(watchdog.os, "_exit", end)
    with pytest.raises(Ended) if ends else contextlib.nullcontext():
        watchdog._look_on_alone(60.0, clock)  # type: ignore[arg-type]
    assert ("has stood at" in capsys.readouterr().err) == ends


def test_a_run_alone_is_watched(monkeypatch):
    before, looked_on = threading.active_count(), threading.Event()
    monkeypatch.setattr(watchdog, "_look_on_alone", lambda timeout, ended: looked_on.set() if timeout == 90 else None)
    with watchdog.watched(1.5):
        assert looked_on.wait(10)
    assert threading.active_count() == before
