"""The pool that starts what tests start (pool.py)."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from pool import PORTS, free_port


def test_no_two_tests_are_given_the_same_port(tmp_path):
    """Threads stand for processes: each draw opens and locks the file of its own."""
    with ThreadPoolExecutor(8) as tests:
        drawn = list(tests.map(free_port, [tmp_path / "last"] * 200))
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(PORTS)


def test_a_port_that_somebody_listens_at_is_left_out(tmp_path):
    port = free_port(tmp_path / "last")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))
        listening.listen()
        (tmp_path / "last").write_text(str(port - 1))
        assert free_port(tmp_path / "last") != port


def test_the_last_port_is_followed_by_the_first(tmp_path):
    (tmp_path / "last").write_text(str(PORTS[-1]))
    assert free_port(tmp_path / "last") < PORTS[-1]
