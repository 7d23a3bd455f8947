"""A checkpoint's folder: whatever changes in it is found, and nothing in it is believed."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch

from largebatch.checkpoint import manifest, reader, writer
from largebatch.checkpoint.manifest import Damaged
from largebatch.checkpoint.retention import Retention

STATE = {"model": {"weight": torch.tensor([1.0, -0.0])}, "words": ["ä", float("nan"), None]}


@pytest.fixture
def small(tmp_path):
    """The smallest that the writer makes."""
    saves = writer.Writer(tmp_path, Retention(), asynchronous=False)
    saves.save(3, {"epoch": 0.5, "accuracy_percent": None}, STATE, {"random": torch.arange(3)})
    outcome = saves.take()
    assert outcome is not None
    assert outcome.path is not None
    return outcome.path


@pytest.mark.worlds
def test_any_one_changed_byte_is_found(small):
    reader.checked(small)
    files = sorted(small.iterdir())
    assert [file.name for file in files] == ["manifest.json", "rank-00000.safetensors", "ranks.safetensors"]
    for file in files:
        whole = file.read_bytes()
        for place in range(len(whole)):
            for bit in (1, 128):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
                with pytest.raises(Damaged, match=file.name):
                    reader.checked(small)
        file.write_bytes(whole)
    reader.checked(small)


def test_blanks_and_line_ends_are_bytes_too(small):
    file = small / manifest.MANIFEST
    whole = file.read_text()
    for changed in (whole.replace("\n ", "\n\t", 1), whole + "\n", whole.replace("\n", "\r\n"), whole[:-1]):
        file.write_bytes(changed.encode())
        with pytest.raises(Damaged, match=r"the checksum of manifest\.json does not fit"):
            reader.checked(small)


@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors", "ranks.safetensors"])
def test_whatever_is_cut_off_or_missing_is_named(small, name):
    file = small / name
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=name):
            reader.checked(small)
    file.write_bytes(whole + b"\0")
    with pytest.raises(Damaged, match=name):
        reader.checked(small)
    file.unlink()
    with pytest.raises(Damaged, match=name):
        reader.checked(small)
    file.mkdir()
    with pytest.raises(Damaged, match=name):
        reader.checked(small)


def test_an_empty_folder_is_damaged(tmp_path):
    (empty := manifest.path_of(tmp_path, 5)).mkdir()
    with pytest.raises(Damaged, match=r"it has no manifest\.json"):
        reader.checked(empty)


def test_a_folder_that_bears_the_name_of_another_step_is_found(small):
    shutil.copytree(small, other := manifest.path_of(small.parent, 9))
    with pytest.raises(Damaged, match="it is that of step 3"):
        reader.checked(other)


def test_the_manifest_says_what_it_was_given(small):
    facts = manifest.read(small)
    assert (facts["format"], facts["step"], facts["epoch"], facts["accuracy_percent"]) == (5, 3, 0.5, None)
    assert json.loads((small / manifest.MANIFEST).read_text())["files"] == facts["files"]


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "manifest.json",
        "",
        "outside.pt",
        "x\0.safetensors",
    ],
)
def test_no_file_outside_the_folder_is_named(forge, tmp_path, name):
    outside = writer.write_tensors(tmp_path / "outside.safetensors", {"state/a": torch.ones(1)})
    path = forge(contents=[], files={name: outside["outside.safetensors"]})
    with pytest.raises(Damaged, match="which is no file of a checkpoint"):
        reader.checked(path)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"format": 3}, "its format is 3, this version reads 4 to 5"),
        ({"format": 99}, "its format is 99, this version reads 4 to 5"),
        ({"format": None}, "names no format"),
        ({"files": []}, "does not say what a checkpoint holds"),
        ({"step": "10"}, "does not say what a checkpoint holds"),
        ({"files": {"a.safetensors": {"bytes": "1", "sha256": ""}}}, "does not say what a.safetensors holds"),
        ({"files": {"a.safetensors": 3}}, "does not say what a.safetensors holds"),
        ({"files": {"a.safetensors": {"bytes": -1, "sha256": ""}}}, "a.safetensors is missing"),
    ],
    ids=str,
)
def test_a_manifest_of_another_form_is_damaged(forge, other, sentence):
    with pytest.raises(Damaged, match=sentence):
        reader.checked(forge(contents=[], **other))


@pytest.mark.parametrize("body", ["[]", "3", "{" * 5, "[" * 100_000, '{"format": 4', '{"format": NaN'])
def test_a_text_of_another_form_is_damaged(tmp_path, body):
    (path := manifest.path_of(tmp_path, 5)).mkdir()
    digest = hashlib.sha256(body.encode()).hexdigest()
    text = f'{body},\n "sha256": "{digest}"\n}}\n'
    (path / manifest.MANIFEST).write_text(text)
    with pytest.raises(Damaged, match=r"manifest\.json (is no JSON|names no format|does not)"):
        reader.checked(path)


def test_only_folders_of_this_name_are_checkpoints(tmp_path):
    for name in ("step-00000010", "step-123456789", "step-1", "step-00000020.unfinished", "step-00000030.removed",
                 "step-00000040.mine", "steps", "step-0000000a"):  # fmt: skip
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000050").touch()
    assert [path.name for path in manifest.existing(tmp_path)] == ["step-123456789", "step-00000010"]
    assert {path.name for path in manifest.left_over(tmp_path)} == {"step-00000020.unfinished", "step-00000030.removed"}
