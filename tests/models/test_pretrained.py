"""Pretrained weights by their names: a file at hand that is what its name says, or a sentence. Nothing is fetched."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torchvision.models import ShuffleNet_V2_X0_5_Weights

from largebatch import models
from largebatch.errors import UserError
from largebatch.models import pretrained, weights
from largebatch.recipes.config.model import FirstWeights

RGB = (3, 32, 32)


class Harmful:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, Any]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


def begun(name: str, tag: str, classes: int = 7, head: str = "fresh") -> torch.nn.Module:
    model = models.build(name, classes, RGB)
    models.begin_with(model, name, FirstWeights(pretrained=tag, head=head))
    return model


def of_thousand(name: str, **keys: Any) -> dict[str, torch.Tensor]:
    return models.build(name, 1000, RGB, 5, keys).state_dict()


def in_hub(folder: Path, repository: str, weights: dict[str, torch.Tensor]) -> Path:
    """As huggingface_hub lays a file of a repository's main branch down."""
    kept = folder / f"models--{repository.replace('/', '--')}"
    for below in (kept / "refs", kept / "snapshots" / "1f3a"):
        below.mkdir(parents=True)
    (kept / "refs" / "main").write_text("1f3a")
    save_file(weights, kept / "snapshots" / "1f3a" / "model.safetensors")
    return kept / "snapshots" / "1f3a" / "model.safetensors"


def in_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> Path:
    """What torch.save makes of it under the name of shufflenet's weights, their address that of this file."""
    file = folder / "torch" / "checkpoints" / "shufflenet.pth"
    file.parent.mkdir(parents=True)
    torch.save(content, file)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    named = file.rename(file.with_name(f"shufflenet-{digits}.pth"))
    monkeypatch.setattr(ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1._value_, "url", f"https://weights.test/{named.name}")
    return named


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_resnet.r160_in1k"])
def test_timms_file_in_the_hubs_cache_is_taken_but_for_its_head(tmp_path, name):
    weights = of_thousand("timm/test_resnet")
    file = in_hub(tmp_path / "hub", "timm/test_resnet.r160_in1k", weights)
    model = begun(name, "r160_in1k")
    found = model.state_dict()
    assert [key for key in found if not torch.equal(found[key], weights[key])] == ["fc.weight", "fc.bias"]
    assert models.file_of(model, name, FirstWeights(pretrained="r160_in1k")) == str(file)
    with pytest.raises(
        UserError, match=re.escape("fc.bias is (1000,) there and (7,) in the model; model.weights.head")
    ):
        begun(name, "r160_in1k", head="taken")
    assert begun(name, "r160_in1k", 1000, "taken").state_dict()["fc.bias"].equal(weights["fc.bias"])


def test_torchvisions_file_in_torch_hubs_folder_is_taken_but_for_its_head(tmp_path, monkeypatch):
    weights = of_thousand("torchvision/shufflenet_v2_x0_5")
    without_counters = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    in_torch(tmp_path, monkeypatch, without_counters)  # as those of before torch 0.4.1 are
    found = begun("shufflenet_v2_x0_5", "IMAGENET1K_V1").state_dict()
    assert [key for key in found if not torch.equal(found[key], weights[key])] == ["fc.weight", "fc.bias"]


def test_a_file_that_is_not_at_hand_is_named_with_its_folder_and_address(tmp_path):
    for name, tag, words in [
        ("timm/resnet18", "a1_in1k", ["model.safetensors of timm/resnet18.a1_in1k", str(tmp_path / "hub"), "https://"]),
        ("resnet18", "IMAGENET1K_V1", ["resnet18-f37072fd.pth", str(tmp_path / "torch" / "checkpoints"), "https://"]),
    ]:
        with pytest.raises(UserError) as caught:
            begun(name, tag)
        assert all(word in str(caught.value) for word in (f"model.weights.pretrained = {tag}", *words))
        assert "nothing is downloaded" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tag", "sentence"),
    [
        ("timm/resnet18", "a1_in2k", "= a1_in2k is no tag of timm's resnet18; did you mean a1_in1k?"),
        ("resnet18", "IMAGENET1K_V3", "is none of torchvision's weights of resnet18; did you mean IMAGENET1K_V1?"),
        ("resnet18", "../../x", "= ../../x is none of torchvision's weights of resnet18; valid: IMAGENET1K_V1"),
        (
            "tiny_cnn",
            "a1_in1k",
            "= a1_in1k says nothing for model.name = tiny_cnn; valid: models of timm and torchvision",
        ),
    ],
)
def test_a_name_that_is_not_known_is_a_sentence(name, tag, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        begun(name, tag)


def test_a_file_of_torchvisions_that_is_another_one_is_not_opened(tmp_path, monkeypatch):
    file = in_torch(tmp_path, monkeypatch, of_thousand("torchvision/shufflenet_v2_x0_5"))
    torch.save({"x": Harmful(tmp_path / "ran")}, file)
    with pytest.raises(UserError, match="its SHA-256 does not begin as its name says"):
        begun("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    with pytest.raises(UserError, match="its SHA-256 does not begin as its name says"):
        pretrained.unpickled(str(file.rename(tmp_path / "without_digits.pth")))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(Harmful, "cannot be read"), ({"epoch": 3}, "holds something else than tensors"), ([1], "something else")],
)
def test_what_is_no_tensor_is_not_unpickled(tmp_path, monkeypatch, content, sentence):
    in_torch(tmp_path, monkeypatch, {"x": Harmful(tmp_path / "ran")} if content is Harmful else content)
    with pytest.raises(UserError, match=sentence) as caught:
        begun("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_file_that_a_recipe_names_is_refused(tmp_path):
    torch.save({"x": Harmful(tmp_path / "ran")}, tmp_path / "weights-12345678.pth")
    with pytest.raises(UserError, match="is no safetensors file"):
        models.begin_with(
            models.build("tiny_cnn", 7, RGB), "tiny_cnn", FirstWeights(file=str(tmp_path / "weights-12345678.pth"))
        )
    assert not (tmp_path / "ran").exists()


def test_other_images_than_the_weights_know_are_told():
    usual = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    small = {"depth": 1, "img_size": 32}
    for name, tag, here, told in [
        ("timm/resnet18", "a1_in1k", usual, False),
        ("timm/resnet18", "a1_in1k", {"mean": [0.5] * 3, "std": [0.5] * 3}, True),
        ("timm/vit_tiny_patch16_224", "augreg_in21k", usual, True),
        ("torchvision/resnet18", "IMAGENET1K_V1", usual, False),
    ]:
        model = models.build(name, 7, RGB, 0, small if "vit" in name else {})
        words = weights.words_of(model, name, FirstWeights(pretrained=tag, head="fresh"), here)
        assert words.startswith(f"pretrained {tag}; fresh: ")
        assert ("they know images of mean" in words) is told
