"""The bench steps Muon on every way of keeping weights in a world, beside one process; no test says how fast."""

from __future__ import annotations

import json
import statistics

import pytest
from programs import largebatch

WAYS = ["whole, one process", "whole, dealt (DDP)", "shards of FSDP2", "partitions of ZeRO 1"]


@pytest.mark.worlds
def test_two_ranks_beside_one_process(tmp_path):
    file = tmp_path / "dealt.json"
    ended = largebatch(
        "bench", "optimizer", "--muon", "--ranks", "2", "--model", "resnet20", "--repeats", "3", "--json", str(file)
    )
    assert ended.returncode == 0, ended.stderr
    [facts] = json.loads(file.read_text())["models"]
    assert [row["weights"] for row in facts["rows"]] == WAYS[: 4 - len(facts["left_out"])]
    assert (facts["ranks"], facts["matrices"]) == (2, 18 + 2), "blocks and shortcuts; not the stem, not the head"
    alone = facts["rows"][0]["milliseconds"]
    for row in facts["rows"]:
        own = row["milliseconds"]
        assert len(own) == 3, "the first rounds are dropped"
        assert min(own) > 0
        assert row["milliseconds_median"] == statistics.median(own)
        assert row["times_one_process"] == statistics.median(a / b for a, b in zip(own, alone, strict=True))
        assert row["weights"] in ended.stdout
    assert "wanted of two ranks: at most 0.65 of one process" in ended.stdout


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--ranks", "2"), "--ranks 2 is about dealing Muon's matrices; add --muon"),
        (("--muon", "--ranks", "1"), "--ranks 1 is no world to deal matrices among; at least 2"),
        (("--muon", "--ranks", "2", "--repeats", "1"), "--repeats 1 is too few for a median and its spread"),
        (("--muon", "--ranks", "2", "--model", "tiny_mlp"), "--model tiny_mlp is not known"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence):
    ended = largebatch("bench", "optimizer", *words)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
