"""Alone, every collective is the identity; devices are refused in words."""

from __future__ import annotations

import datetime
import socket

import pytest
import torch

from largebatch.errors import Lost, UserError
from largebatch.machine import distributed


def test_alone_everything_is_the_identity():
    tensor = torch.tensor([1.0, 2.0])
    assert distributed.sum_(tensor).tolist() == distributed.mean_(tensor).tolist() == [1.0, 2.0]
    assert distributed.gather("x") == ["x"]
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
    with distributed.group(torch.device("cpu")):
        assert distributed.world_size() == 1


def test_devices():
    assert distributed.choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert distributed.choose_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match="no CUDA device is visible"):
            distributed.choose_device("cuda")


def test_more_ranks_than_devices_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="local rank 2 has no CUDA device: 2 visible"):
        distributed.choose_device("auto")


@pytest.mark.worlds
def test_the_time_out_holds_where_another_program_has_the_port(monkeypatch):
    """It takes the connection and says nothing; torch alone would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for key, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(key, str(value))
        monkeypatch.setattr(distributed, "SLACK", 0.2)
        with pytest.raises(
            Lost, match=rf"rank 1 of 2 has not found the others at 127\.0\.0\.1, port {port}: no answer"
        ):
            distributed.met(datetime.timedelta(seconds=0.3))


def test_a_port_that_is_taken_is_told_by_rank_zero(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for key, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(key, str(value))
        with pytest.raises(
            Lost, match=f"rank 0 of 2 has not found the others at 127.0.0.1, port {port}: .* MASTER_PORT"
        ):
            distributed.met(datetime.timedelta(seconds=5))
