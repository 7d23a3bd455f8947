"""What builders of other projects are given: nothing that opens a file, whatever their version."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models import build_model_with_cfg

from largebatch import models
from largebatch.errors import UserError
from largebatch.models.arguments import SHAPES, WORDS, check_arguments

RGB = (3, 32, 32)


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, Any]:
        return os.mkdir, (self.file,)


REFUSED: list[tuple[str, Any]] = [
    ("checkpoint_path", "{weights}"),
    ("pretrained", True),
    ("pretrained_cfg", {"file": "{weights}"}),
    ("pretrained_cfg", "a1_in1k"),
    ("pretrained_cfg_overlay", {"file": "{weights}"}),
    ("cache_dir", "{weights}"),
    ("features_only", True),
    ("pruned", True),
    ("scriptable", True),
    ("weights", "{weights}"),
    ("progress", True),
    ("state_dict", "{weights}"),
    ("drop_rate", "{weights}"),
    ("drop_rate", {"file": "{weights}"}),
    ("act_layer", "{weights}"),
    ("embed_dim", [[1, "{weights}"]]),
]


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_no_argument_opens_a_file(tmp_path, name):
    weights, ran = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"state_dict": Harmful(str(ran))}, weights)

    def with_path(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_path(part) for key, part in value.items()}
        if isinstance(value, list):
            return [with_path(part) for part in value]
        return str(weights) if value == "{weights}" else value

    for key, value in REFUSED:
        with pytest.raises(UserError, match=f"model.{key}") as caught:
            models.build(name, 10, RGB, 0, {key: with_path(value)})
        assert "\n" not in str(caught.value)
        assert not ran.exists(), key


def test_what_is_let_through_goes_to_the_network_and_not_to_the_machinery_around_it():
    """No name on the list is one that the installed builders keep for themselves."""
    own: set[str] = set()
    for function in (timm.create_model, build_model_with_cfg):
        own |= {p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD}
    for builder in torchvision.models.list_models(module=torchvision.models):
        signature = inspect.signature(torchvision.models.get_model_builder(builder))
        own |= {p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
    assert {"checkpoint_path", "pretrained", "cache_dir", "pretrained_cfg_overlay", "weights", "progress"} <= own
    kept_back = own - {"aux_logits", "transform_input", "quantize"}
    assert not (SHAPES | WORDS) & kept_back
    for odd in ("path", "url", "file", "dir", "cfg", "pretrained", "checkpoint", "cache", "hub"):
        named = [name for name in SHAPES | WORDS if odd in name.replace("drop_path", "")]
        assert not named, named


@pytest.mark.worlds
@pytest.mark.parametrize(
    "arguments",
    [
        {"drop_path_rate": 0.1, "zero_init_last": False, "act_layer": "gelu", "global_pool": "avgmax"},
        {"stem_width": 32, "stem_type": "deep", "avg_down": True, "groups": None},
    ],
)
def test_what_shapes_a_network_is_let_through(arguments):
    check_arguments("resnet18", arguments)
    assert models.build("timm/resnet18", 10, RGB, 0, arguments)(torch.zeros(2, *RGB)).shape == (2, 10)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_whatever_a_builder_raises_is_a_sentence(monkeypatch, source):
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("nothing of ours")

    monkeypatch.setattr(timm, "create_model", broken)
    monkeypatch.setattr(torchvision.models, "get_model_builder", lambda name: broken)
    with pytest.raises(UserError, match=re.escape("resnet18 cannot be built with these data: 'nothing of ours'")):
        models.build(f"{source}/resnet18", 10, RGB)
