"""Token packs are made: the same from any source by any number of processes, and what is refused on the way."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pool
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import contents
from programs import environment
from texts import as_plain, documents_of_words, pack_of_words, tokenized

from largebatch.data.packs.progress import MakingProgress
from largebatch.data.text import reading, shards, wordpiece
from largebatch.data.text.pack import SPECIAL, TokenPart, open_pack, verify, work_folder
from largebatch.data.text.shards import WrittenShard, is_held_out
from largebatch.data.text.sources import text_source
from largebatch.data.text.wordpiece import Encoder, read_vocabulary, tokenizer_of, train_vocabulary
from largebatch.errors import UserError

DOCUMENTS = documents_of_words()
VOCABULARY = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz.,!?", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), "the"]


def laid(documents: list[list[str]], vocabulary: list[str], cased: bool = False) -> tuple[list[int], list[int]]:
    """Tokens and offsets of documents, by the tokenizer as it is."""
    tokenizer, separator = tokenizer_of(vocabulary, cased), vocabulary.index("[SEP]")
    tokens, ends = [], [0]
    for document in documents:
        tokens += [*tokenizer.encode("\n".join(document), add_special_tokens=False).ids, separator]
        ends.append(len(tokens))
    return tokens, ends


def sentences(part: TokenPart, vocabulary: list[str]) -> list[str]:
    bounds = [*part.segments, len(part.tokens)]
    return [" ".join(vocabulary[t] for t in part.tokens[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


@pytest.mark.parametrize("cased", [False, True], ids=["lower", "cased"])
def test_a_pack_is_the_tokenizers_numbers_end_to_end(tmp_path, cased):
    source = as_plain(tmp_path / "words.txt", DOCUMENTS)
    facts = tokenized(source, tmp_path / "pack", cased=cased, shard_bytes=10_000)
    pack = open_pack(tmp_path / "pack")
    assert pack.facts == facts
    assert (facts.source.given, facts.trained, facts.cased) == ("words.txt", 300, cased)
    vocabulary = read_vocabulary(tmp_path / "pack" / "vocabulary.txt")
    assert (len(vocabulary), pack.special) == (pack.vocabulary_size, {name: n for n, name in enumerate(SPECIAL)})
    held = [document for document in DOCUMENTS if is_held_out(document, 0.2)]
    kept = [document for document in DOCUMENTS if not is_held_out(document, 0.2)]
    assert 20 < len(held) < 60
    for part, documents in ((pack.train, kept), (pack.test, held)):
        tokens, ends = laid(documents, vocabulary, cased)
        assert (part.tokens.tolist(), part.documents.tolist()) == (tokens, ends)
        assert set(ends[:-1]) <= set(part.segments.tolist())
    verify(tmp_path / "pack")


def test_a_segment_is_a_line_or_a_sentence_in_it(tmp_path):
    source = as_plain(tmp_path / "a.txt", [["a b. c d!  e? f 3.1 g.", "h"], ["i.j"]])
    tokenized(source, tmp_path / "pack", VOCABULARY, hold_out=0)
    pack = open_pack(tmp_path / "pack")
    found = ["a b .", "c d !", "e ?", "f [UNK] . [UNK] g .", "h [SEP]", "i . j [SEP]"]
    assert sentences(pack.train, VOCABULARY) == found
    assert (len(pack.test.tokens), len(pack.test.segments), pack.test.documents.tolist()) == (0, 0, [0])


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from(" \t.é́ſΣς\u00a0\u200d漢[SEP]"), max_size=40)))
def test_words_that_are_remembered_give_what_the_tokenizer_gives(lines: list[str]):
    document = [line for line in (line.replace("\n", " ") for line in lines) if line]
    encoder = Encoder(VOCABULARY, cased=False, remembered=50)
    found = encoder.encode([document, ["the"], document])
    one = tokenizer_of(VOCABULARY, cased=False).encode("\n".join(document), add_special_tokens=False).ids
    separator, the = VOCABULARY.index("[SEP]"), VOCABULARY.index("the")
    own = [*one, separator] if one else []  # a document without a token is none
    assert found.tokens.tolist() == [*own, the, separator, *own]


def test_a_document_of_millions_of_tokens_is_one(tmp_path):
    """It has no empty line, many shards begin in it, and it is longer than what is encoded at once."""
    lines = ["the " * 400] * 5000
    source = as_plain(tmp_path / "long.txt", [["a"], lines, ["b"]])
    tokenized(source, tmp_path / "pack", VOCABULARY, hold_out=0)
    assert open_pack(tmp_path / "pack").train.documents.tolist() == [0, 2, 2_000_003, 2_000_005]


def test_a_vocabulary_above_65536_takes_four_bytes_a_token(tmp_path):
    vocabulary = [*SPECIAL, *(f"w{number}" for number in range(2**16)), "the"]
    tokenized(as_plain(tmp_path / "a.txt", [["the w9 w65535"]]), tmp_path / "pack", vocabulary, hold_out=0)
    pack = open_pack(tmp_path / "pack")
    assert pack.facts.dtype == "uint32"
    assert pack.train.tokens.tolist() == [65541, 14, 65540, 3]


# --- sources ----------------------------------------------------------------------------------------------------------


def sources_of(documents: list[list[str]], folder: Path) -> dict[str, Path]:
    """The same documents in every form."""
    texts = ["\n".join(lines) for lines in documents]
    table = pa.table({"id": list(range(len(texts))), "text": texts})
    plain = as_plain(folder / "plain.txt", documents)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    found = {"plain": plain, "json": rows, "parquet": folder / "table.parquet", "saved": folder / "saved"}
    windows = folder / "windows.txt"
    windows.write_bytes(b"\xef\xbb\xbf" + b" \r\n" + plain.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    found["windows"] = windows
    pq.write_table(table, found["parquet"], row_group_size=17)
    for source in (plain, rows):
        found[f"{source.name}.gz"] = folder / f"{source.name}.gz"
        found[f"{source.name}.gz"].write_bytes(gzip.compress(source.read_bytes()))
        content = source.read_bytes()
        frames = [pa.compress(part, "zstd", asbytes=True) for part in (content[:1000], content[1000:])]
        found[f"{source.name}.zst"] = folder / f"{source.name}.zst"
        found[f"{source.name}.zst"].write_bytes(b"".join(frames))
    found["saved"].mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table[:60], table[60:]), strict=True):
        with pa.OSFile(str(found["saved"] / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part, max_chunksize=25)
    (found["saved"] / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    folder_of = folder / "folder"
    as_plain(folder_of / "a" / "1.txt", documents[:50])
    (folder_of / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[50:100]))
    pq.write_table(table[100:], folder_of / "c.parquet")
    (folder_of / "readme.md").write_text("no text")
    (folder_of / ".hidden.txt").write_text("no text")
    return found | {"folder": folder_of}


def test_every_kind_of_source_gives_the_same_documents_wherever_it_is_cut(tmp_path):
    for name, path in sources_of(DOCUMENTS, tmp_path).items():
        for shard_bytes in (70, 3000, 2**24):
            source, told = text_source(str(path)), []
            read = [
                document
                for shard in source.shards(shard_bytes)
                for piece in shard
                for document in reading.documents(piece, "text", told.append)
            ]
            assert read == DOCUMENTS, (name, shard_bytes)
            assert sum(told) == source.bytes, (name, shard_bytes)
    assert source.passed_over == "hidden (1): .hidden.txt; other files (1): readme.md"


def test_every_kind_of_source_gives_the_same_pack(tmp_path):
    packs: dict[str, dict[str, bytes]] = {}
    for name, path in sources_of(DOCUMENTS, tmp_path).items():
        tokenized(path, tmp_path / "packs" / name, 100, shard_bytes=20_000)
        packs[name] = contents(tmp_path / "packs" / name)
        del packs[name]["pack.json"]  # it names the source
    assert all(files == packs["plain"] for files in packs.values())


def test_a_data_set_that_hugging_face_saved_is_read(tmp_path):
    import datasets

    rows = {"text": ["\n".join(lines) for lines in DOCUMENTS]}
    saved = datasets.Dataset.from_dict(rows).select(range(120))
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"saved holds several splits \(test, train\); give one of them: .*saved/test"):
        text_source(str(tmp_path / "saved"))
    source = text_source(str(tmp_path / "saved" / "train"))
    pieces = [piece for shard in source.shards(2**20) for piece in shard]
    assert [document for piece in pieces for document in reading.documents(piece, "text")] == DOCUMENTS[:120]


# --- vocabularies -----------------------------------------------------------------------------------------------------


TRAIN = """
import random
from largebatch.data.text.wordpiece import sha256_of, train_vocabulary
draws = random.Random(0)
texts = ["".join(draws.choices("abcdefghijklmnopqrstuvwxyzäöü ", k=2000)) for _ in range(20)]
print(sha256_of(train_vocabulary(lambda: iter(texts), 200, False)))
"""


@pytest.mark.worlds
def test_a_vocabulary_is_the_same_in_every_process():
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN], env=environment(PYTHONHASHSEED=str(seed)), stdout=subprocess.PIPE
        )
        for seed in range(3)
    ]
    assert len({process.communicate(timeout=120)[0] for process in started}) == 1
    assert not any(process.returncode for process in started)


def test_a_vocabulary_holds_the_special_tokens_and_the_most_frequent_characters():
    texts = ["\n".join(lines) for lines in DOCUMENTS]
    vocabulary = train_vocabulary(lambda: iter(texts), 120, False)
    assert vocabulary[:5] == list(SPECIAL)
    assert len(vocabulary) == len(set(vocabulary)) == 120
    assert {"large", "machines", "a", "##a", "."} <= set(vocabulary)
    assert not {"##.", "##,", "漢"} & set(vocabulary), "words of their own, and too rare"
    assert not any(token.lower() != token for token in vocabulary[5:])
    small = train_vocabulary(lambda: iter(texts), 64, False)
    assert len([token for token in small[5:] if len(token) == 1]) == (64 - 5) // 4


def test_what_is_held_out_depends_on_the_text_alone_and_trains_no_vocabulary(tmp_path):
    share = np.mean([is_held_out([f"document {number}"], 0.1) for number in range(20_000)])
    assert 0.093 < share < 0.107
    secret = next(word for word in map("zebra{}".format, range(1000)) if is_held_out([word], 0.5))
    source = as_plain(tmp_path / "a.txt", [*([[secret]] * 500), *DOCUMENTS])
    tokenized(source, tmp_path / "pack", hold_out=0.5)
    assert not any("z" in token for token in read_vocabulary(tmp_path / "pack" / "vocabulary.txt")[5:])
    assert open_pack(tmp_path / "pack").facts.parts["test"].documents > 500


# --- processes, kills -------------------------------------------------------------------------------------------------


@pytest.mark.worlds
def test_the_bytes_are_the_same_for_any_number_of_processes(tmp_path):
    source = as_plain(tmp_path / "words.txt", DOCUMENTS)
    counted: list[tuple[int, int]] = []
    for workers in (0, 1, 3):
        tokenized(
            source, tmp_path / f"{workers}", workers=workers, shard_bytes=9000, report=lambda *n: counted.append(n)
        )
        assert counted[-1] == (source.stat().st_size, source.stat().st_size)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "3")
    assert not list(tmp_path.glob("*.unfinished"))


def test_after_a_mistake_it_goes_on_and_a_shard_that_lost_bytes_is_made_again(tmp_path):
    pack_of_words(tmp_path / "undisturbed")
    source, dest = tmp_path / "undisturbed.txt", tmp_path / "pack"
    whole = source.read_bytes()
    source.write_bytes(whole[:-20] + b"\xff" + whole[-19:])
    with pytest.raises(UserError, match=rf"undisturbed.txt is no UTF-8: byte {len(whole) - 20:,}$"):
        tokenized(source, dest, [*SPECIAL, "the"], shard_bytes=4000)
    assert not dest.exists()
    with pytest.raises(
        UserError, match=r"pack is a pack that is not finished; run its `largebatch data tokenize` again"
    ):
        open_pack(dest)
    work = work_folder(dest)
    [_, first, *others] = (work / "packing.jsonl").read_text().splitlines()
    assert others
    assert json.loads(first)["name"] == "000000"
    os.truncate(work / "000000.train.tokens.bin", 10)
    source.write_bytes(whole)
    said: list[str] = []
    tokenized(source, dest, [*SPECIAL, "the"], shard_bytes=4000, say=said.append)
    tokenized(source, tmp_path / "other", [*SPECIAL, "the"], shard_bytes=10**6)
    assert f"({len(others)} are there)" in said[0]
    assert contents(dest) == contents(tmp_path / "other"), "and however it is cut"
    assert not work.exists()


def test_a_full_disk_keeps_what_is_whole(tmp_path, monkeypatch):
    source, dest = as_plain(tmp_path / "a.txt", DOCUMENTS), tmp_path / "pack"
    tokenized(source, tmp_path / "undisturbed", VOCABULARY, shard_bytes=9000)
    written = shards.written

    def full(path: Path) -> Any:
        if path.name.startswith("000002"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "written", full)
        sentence = (
            r"unfinished cannot be written: No space left on device; 2 of \d shards are whole, and the same command"
        )
        with pytest.raises(UserError, match=sentence):
            tokenized(source, dest, VOCABULARY, shard_bytes=9000)
    tokenized(source, dest, VOCABULARY, shard_bytes=9000)
    assert contents(dest) == contents(tmp_path / "undisturbed")


def lines_in(dest: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (work_folder(dest) / "packing.jsonl").read_bytes().count(b"\n")
    return 0


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source = as_plain(tmp_path / "words.txt", documents_of_words(4000))
    tokenized(source, tmp_path / "undisturbed", shard_bytes=8000)
    dest = tmp_path / "pack"
    program = pool.start("worlds.packing:text_pack", source, dest)
    end = time.monotonic() + 60
    while lines_in(dest) < 5:
        assert time.monotonic() < end
        time.sleep(0.01)
    workers = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    psutil.wait_procs(workers, timeout=30)
    assert not [worker for worker in workers if worker.is_running()], "its workers end with it"
    assert not dest.exists()
    before = lines_in(dest)
    said: list[str] = []
    tokenized(source, dest, workers=2, shard_bytes=8000, say=said.append)
    assert f"({before - 1} are there)" in said[0]
    assert contents(dest) == contents(tmp_path / "undisturbed")
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_a_kill_when_the_pack_had_its_name_leaves_nothing_to_do(tmp_path):
    pack_of_words(tmp_path / "pack")
    work_folder(tmp_path / "pack").mkdir()
    assert tokenized(tmp_path / "pack.txt", tmp_path / "pack") is None
    assert not work_folder(tmp_path / "pack").exists()


# --- refused ----------------------------------------------------------------------------------------------------------


def refused(sentence: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(UserError) as problem:
        tokenized(*arguments, **options)
    assert sentence in str(problem.value)


def test_bad_sources_are_one_sentence(tmp_path):
    cases: dict[str, tuple[bytes, str]] = {
        "empty.txt": (b"", "empty.txt holds no text: it is empty"),
        "blank.txt": (b"\n \n\n", "blank.txt holds no document with a word in it"),
        "latin.txt": (b"a\n\ncaf\xe9\n", "latin.txt is no UTF-8: byte 6"),
        "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}', "latin.jsonl is no UTF-8: byte 24"),
        "torn.jsonl": (b'{"text": "a"}\n\n{"text": "b"', "torn.jsonl, line 3 is no JSON"),
        "key.jsonl": (
            b'{"content": "a", "id": 1}\n',
            "key.jsonl, line 1 has no text under 'text'; its keys are content, id: --text-key names the one of",
        ),
        "list.jsonl": (b"[1]\n", "list.jsonl, line 1 has no text under 'text'; it has no keys"),
        "number.jsonl": (b'{"text": "a"}\n{"text": 7}\n', "number.jsonl, line 2: text is 7, which is no text"),
        "packed.txt.gz": (gzip.compress(b"caf\xe9"), "packed.txt.gz is no UTF-8: byte 3 of its unpacked text"),
        "torn.txt.gz": (gzip.compress(b"a" * 9)[:-9], "torn.txt.gz cannot be read: "),
        "torn.txt.zst": (pa.compress(b"a" * 99, "zstd", asbytes=True)[:-3], "torn.txt.zst cannot be read: "),
        "torn.parquet": (b"PAR1", "torn.parquet cannot be read as parquet: "),
        "torn.arrow": (b"ARROW1", "torn.arrow cannot be read: "),
    }
    for name, (content, sentence) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(sentence, tmp_path / name, tmp_path / "packs" / name, VOCABULARY)
        assert not (tmp_path / "packs" / name).exists()
    pq.write_table(pa.table({"id": [1], "content": ["a"]}), tmp_path / "key.parquet")
    refused(
        "key.parquet has no column 'text'; its columns are id, content: --text-key names the text's",
        tmp_path / "key.parquet", tmp_path / "pack", VOCABULARY,
    )  # fmt: skip
    refused("column id holds int64, which is no text", tmp_path / "key.parquet", tmp_path / "id", VOCABULARY, "id")
    refused(f"{tmp_path}/none is not there; SRC is a file or a folder of text", tmp_path / "none", tmp_path / "pack")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    refused("images holds no text; *.txt, *.jsonl, ", tmp_path / "images", tmp_path / "pack")


def test_text_that_no_terminal_shows_makes_no_difference(tmp_path):
    """Half a character in JSON's escapes is none; so is a null."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a \\ud800 b"}\n{"text": null}\n{"text": "\\ud83d\\ude00 c"}\n')
    tokenized(path, tmp_path / "pack", [*VOCABULARY, "😀"], hold_out=0)
    pack = open_pack(tmp_path / "pack")
    assert sentences(pack.train, [*VOCABULARY, "😀"]) == ["a b [SEP]", "😀 c [SEP]"]


def test_bad_vocabularies_are_one_sentence(tmp_path):
    cases = {
        b"[PAD]\n[UNK]\na\n": "has no [CLS], [SEP], [MASK]; BERT's special tokens are needed",
        "\n".join([*SPECIAL, "a", "b", "a"]).encode(): "holds 'a' 2 times; a line is the number of one token",
        b"[PAD]\n\xff": "is no UTF-8: byte 6",
    }
    for content, sentence in cases.items():
        (tmp_path / "vocab.txt").write_bytes(content)
        with pytest.raises(UserError, match=r"^--vocabulary .*vocab\.txt ") as problem:
            wordpiece.vocabulary_asked(str(tmp_path / "vocab.txt"))
        assert str(problem.value).endswith(sentence)
    with pytest.raises(UserError, match="--vocabulary 12 is out of range; 64 to 16,777,216 tokens, or a file"):
        wordpiece.vocabulary_asked("12")
    with pytest.raises(UserError, match="--vocabulary none.txt cannot be read: No such file or directory; a file or a"):
        wordpiece.vocabulary_asked("none.txt")


def test_without_the_extra_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"text is tokenized by tokenizers: pip install 'largebatch\[text\]'"):
        Encoder(VOCABULARY, cased=False)


def test_a_finished_pack_is_there_already_and_another_is_refused(tmp_path):
    dest = pack_of_words(tmp_path / "pack")
    source, before = tmp_path / "pack.txt", contents(tmp_path / "pack")
    assert tokenized(source, dest) is None
    moved = as_plain(tmp_path / "elsewhere" / "pack.txt", DOCUMENTS)
    assert tokenized(moved, dest) is None, "the same text elsewhere"
    other = as_plain(tmp_path / "other.txt", DOCUMENTS[1:])
    refused(f"{dest} is a pack of other text than {other} holds; choose another folder, or delete it", other, dest)
    refused(
        "is a pack with a vocabulary of 300 tokens, not of 301 tokens; choose another folder, or", source, dest, 301
    )
    refused("is a pack with a vocabulary of 300 tokens, not of a file", source, dest, VOCABULARY)
    refused("is a pack with --cased False, not True", source, dest, cased=True)
    refused("is a pack with --hold-out 0.2, not 0.5", source, dest, hold_out=0.5)
    assert contents(dest) == before
    tokenized(source, tmp_path / "given", VOCABULARY)
    refused("is a pack with a vocabulary of another file", source, tmp_path / "given", VOCABULARY[:-1])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    refused("full holds other files (thesis.tex); a pack needs a folder of its own", source, tmp_path / "full")
    refused("other.txt is there and no folder; choose another one", source, other)
    (tmp_path / "free").mkdir()
    assert tokenized(source, tmp_path / "free") is not None


def test_two_at_once_are_refused(tmp_path):
    source, dest = as_plain(tmp_path / "a.txt", DOCUMENTS), tmp_path / "pack"
    work_folder(dest).mkdir()
    begun = {
        "source": text_source(str(source)).fingerprint, "vocabulary": 300, "cased": False, "hold_out": 0.2,
        "shard_bytes": 9000,
    }  # fmt: skip
    with MakingProgress(work_folder(dest), begun, WrittenShard):
        refused(f"another process is making a pack in {work_folder(dest)}", source, dest)
    assert tokenized(source, dest) is not None


def test_damage_is_found(tmp_path):
    dest = pack_of_words(tmp_path / "pack")
    with open(dest / "train.tokens.bin", "r+b") as file:
        file.write(b"\x09\x09")
    open_pack(dest)
    with pytest.raises(UserError, match=r"the checksum of .*train\.tokens\.bin does not fit: its bytes changed; "):
        verify(dest)
    os.truncate(dest / "test.segments.bin", 8)
    with pytest.raises(UserError, match=r"test\.segments\.bin has 8 bytes, and [\d,]+ were written; it is damaged"):
        open_pack(dest)
    (dest / "test.segments.bin").unlink()
    with pytest.raises(UserError, match=r"test\.segments\.bin is missing; the pack is not whole"):
        open_pack(dest)
