"""``largebatch data``: what the commands print, and how they end."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pool
import pytest
from click.testing import Result
from packs import by_hand, contents, encoded
from programs import largebatch
from rich.console import Console
from texts import as_plain, documents_of_words
from typer.testing import CliRunner

from largebatch.cli.data import ProgressLines, app
from largebatch.data.text.pack import read_facts
from largebatch.errors import UserError


def command(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False, env={"COLUMNS": "200"})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """train: 12 images of 20 × 20 to 31 × 31; val: 2."""
    for split, count in (("train", 6), ("val", 1)):
        for label in ("cat", "dog"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                side = 20 + number + 6 * (label == "dog")
                (tmp_path / "images" / split / label / f"{number}.jpg").write_bytes(encoded(side, side, number))
    return tmp_path / "images"


@pytest.mark.worlds
def test_pack_show_and_verify(images, tmp_path):
    ended = command("pack", images, tmp_path / "pack", "--size", 24, "--workers", 1)
    assert ended.exit_code == 0
    decided, packed, *notes = ended.stdout.splitlines()
    assert decided == (
        f"{images} (image folder): 12 train and 2 test images of 2 classes -> {tmp_path}/pack: 24 × 24 pixels, 0.00 GB "
        "in 2 files, 1 process"
    )
    short = "12 train and 2 test images of 2 classes, of 24 × 24 pixels, 0.00 GB in 6 files"
    assert packed.startswith(f"{tmp_path}/pack: {short}, ")
    enlarged = [
        "4 train images were enlarged; the smallest, train/cat/0.jpg, is 20 × 20",
        "1 test image was enlarged; the smallest, val/cat/0.jpg, is 20 × 20",
    ]
    assert notes == enlarged
    again = command("pack", images, tmp_path / "pack", "--size", 24)
    assert (again.exit_code, again.stdout) == (0, f"{tmp_path}/pack is there already: {short}\n")
    shown = command("show", tmp_path / "pack").stdout.splitlines()
    assert shown == [
        f"{tmp_path}/pack: {short}", f"of {images} (image folder), made by largebatch 0.1.0", *enlarged,
    ]  # fmt: skip
    assert command("verify", tmp_path / "pack").stdout == f"{tmp_path}/pack is whole: {short}\n"


@pytest.mark.worlds
def test_what_is_left_out_is_told(images, tmp_path):
    (images / "train" / "dog" / "3.jpg").write_bytes(b"no image")
    ended = command("pack", images, tmp_path / "pack", "--jpeg", "--skip-unreadable", 0.1)
    assert ended.exit_code == 0
    told = "1 of the train images left out, all in pack.json: train/dog/3.jpg (not an image of a known format)"
    assert ended.stdout.splitlines()[-1] == told
    assert command("show", tmp_path / "pack").stdout.splitlines()[-1] == told


@pytest.mark.worlds
def test_without_a_test_set_it_says_so(images, tmp_path):
    (images / "val").rename(images / "proof")
    ended = command("pack", images, tmp_path / "pack", "--size", 16)
    assert ended.stdout.splitlines()[-1] == "no test images: no val or test was found beside train"
    ended = command("pack", images, tmp_path / "named", "--size", 16, "--val", "proof")
    assert "12 train and 2 test images" in ended.stdout


@pytest.mark.worlds
def test_mistakes_are_one_sentence_and_exit_code_2(images, tmp_path):
    root = by_hand(tmp_path / "pack", [3])
    with open(root / "train-00000.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    cases = [
        (("verify", root), f"the checksum of {root}/train-00000.npy does not fit: its bytes changed; "),
        (("show", tmp_path), f"{tmp_path} is not a pack: it has no pack.json"),
        (("verify", root / "pack.json"), f"{root}/pack.json is a file; valid: the folder of a pack"),
        (
            ("pack", images, tmp_path / "new", "--size", 64),
            "--size 64 is larger than the short side of 12 of 12 images looked at, as of ",
        ),
    ]
    for words, sentence in cases:
        with pytest.raises(UserError) as refused:
            command(*words)
        assert sentence in str(refused.value)
    ended = largebatch("data", "pack", images, tmp_path / "new", "--jpeg", "--size", 64)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "largebatch: --size 64 does not go with --jpeg, which keeps the images as they are\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_an_interrupt_ends_it_cleanly_and_the_same_command_goes_on(images, tmp_path):
    """The second training image is slow to read, and the user gives up."""
    command("pack", images, tmp_path / "undisturbed", "--jpeg")
    slow = images / "train" / "cat" / "1.jpg.wait"
    slow.touch()
    words = ["pack", str(images), str(tmp_path / "pack"), "--jpeg", "--workers", "2"]
    program = pool.start("worlds.program:of_its_own_group", "data", *words)
    end = time.monotonic() + 60
    while not (tmp_path / "pack" / "test-00000.jpegs").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    time.sleep(0.5)
    slow.unlink()
    code, out, err = program.ended(60)
    assert code == 130, err
    assert err == ""
    assert out.splitlines()[-1] == "stopped: 1 of 2 files are whole, and the same command goes on"
    assert sorted(contents(tmp_path / "pack")) == ["packing.jsonl", "test-00000.jpegs"]
    assert "(1 are there)" in command(*words).stdout
    assert contents(tmp_path / "pack") == contents(tmp_path / "undisturbed")


def test_text_is_tokenized_shown_and_verified(tmp_path):
    source, dest = as_plain(tmp_path / "words.txt", documents_of_words()), tmp_path / "pack"
    words = ("tokenize", source, dest, "--vocabulary", 100, "--hold-out", 0.1, "--workers", 0)
    ended = command(*words)
    assert ended.exit_code == 0
    training, decided, made = ended.stdout.splitlines()
    assert training == "training a vocabulary of 100 tokens on all of it, without what is held out"
    size = source.stat().st_size / 1e6
    assert decided == f"{source} (plain text): 1 file, {size:.1f} MB -> {dest}: 1 shard, in this process"
    facts = read_facts(dest)
    train, test = facts.parts["train"], facts.parts["test"]
    short = (
        f"{train.documents} train documents of {train.tokens:,} tokens and {test.documents} test documents of "
        f"{test.tokens:,} tokens, in lower case, a vocabulary of 100, 0.1 MB"
    )
    assert made.startswith(f"{dest}: {short}, ")
    assert command(*words).stdout == f"{dest} is there already: {short}\n"
    assert command("verify", dest).stdout == f"{dest} is whole: {short}\n"
    assert command("show", dest).stdout.splitlines() == [
        f"{dest}: {short}",
        "of words.txt (plain text), made by largebatch 0.1.0",
        "10 % of the documents are held out to evaluate on, by their text",
    ]
    with pytest.raises(UserError, match=r"inside lies in .*, which it would be a part of the next time"):
        command("tokenize", tmp_path, tmp_path / "inside", "--vocabulary", 100)
    with pytest.raises(UserError, match=r"--vocabulary nine cannot be read"):
        command("tokenize", source, tmp_path / "other", "--vocabulary", "nine")


def test_where_there_is_no_terminal_a_line_now_and_then_tells_how_far_it_is(monkeypatch):
    clock = iter([0.0, 1.0, 40.0, 41.0, 80.0, 90.0])
    monkeypatch.setattr("largebatch.cli.data.time", SimpleNamespace(monotonic=lambda: next(clock)))
    said = io.StringIO()
    lines = ProgressLines(Console(file=said, width=100), "images", every_seconds=30)
    for done in (1000, 5000, 5100, 9000, 10_000):
        lines.tell(done, 10_000)
    assert said.getvalue().splitlines() == [
        "5,000 of 10,000 images, 100 images/s, 50 s left",
        "9,000 of 10,000 images, 100 images/s, 10 s left",
    ]
