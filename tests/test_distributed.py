"""Alone, every collective is the identity; devices are refused in words."""

from __future__ import annotations

import pytest
import torch

from largebatch import distributed
from largebatch.errors import UserError


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
