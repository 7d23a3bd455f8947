"""Rows of measured steps: what a file may hold, and the sentence for what it may not."""

from __future__ import annotations

import pytest

from largebatch.errors import UserError
from largebatch.studies.cluster import rows
from largebatch.studies.cluster.rows import KNOWN, RESNET50, StepRow, WorkloadFacts


def written(tmp_path, text: str):
    file = tmp_path / "ROWS.csv"
    file.write_text(text)
    return file


def test_three_ways_to_say_how_long(tmp_path):
    text = "devices,batch,ms,seconds,examples_per_second\n8,800,50,,\n8,800,,0.05,\n8,800,,,16000\n"
    read = rows.read(written(tmp_path, text))
    assert [row.seconds for row in read.rows] == pytest.approx([0.05] * 3)
    assert read.facts == {"step": WorkloadFacts()}


def test_columns_in_any_order_with_comments(tmp_path):
    text = "# who\nsource, ms ,workload,batch,devices,accumulation\n\nlog,50,resnet50,800,8,2\nlog,60,,800,8,\n"
    read = rows.read(written(tmp_path, text), "other", WorkloadFacts(5.0, 6.0))
    assert read.rows[0] == StepRow("resnet50", 8, 800, 0.05, 2, "log")
    assert read.rows[0].share == 50
    assert read.rows[1] == StepRow("other", 8, 800, 0.06, 1, "log")
    assert read.facts == {"resnet50": KNOWN["resnet50"], "other": WorkloadFacts(5.0, 6.0)}


def test_bytes_in_the_rows_count_before_what_is_known(tmp_path):
    text = "workload,devices,batch,ms,gradient_bytes\nresnet50,8,800,50,7\nresnet50,16,800,30,\n"
    assert rows.read(written(tmp_path, text)).facts == {"resnet50": WorkloadFacts(gradient_bytes=7)}


def test_a_family_of_several(tmp_path):
    read = rows.read(written(tmp_path, "family,workload,devices,batch,ms\na,resnet50,8,8,1\nb,bert,8,8,2\n"))
    assert [row.seconds for row in read.of("b").rows] == [0.002]
    assert set(read.of("b").facts) == {"bert"}
    with pytest.raises(UserError, match="no row is of family c"):
        read.of("c")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no column devices; its first line should be like devices,batch,ms"),
        ("devices,batch\n8,8\n", "has no column of ms, seconds, examples_per_second"),
        ("devices,batch,msec\n8,8,1\n", "column msec is not known"),
        ("devices,batch,ms,ms\n8,8,1,1\n", "has column ms twice"),
        ("devices,batch,ms\n", "has no rows below the line of its columns"),
        ("devices,batch,ms\n8,8,1\n8,8,1,9\n", "row 2 has more cells than the 3 columns"),
        ("devices,batch,ms\n8,8\n", "row 1 has no time; give one of ms, seconds, examples_per_second"),
        ("devices,batch,ms,seconds\n8,8,1,1\n", "row 1 has ms and seconds; give one of"),
        ("devices,batch,ms\n8.5,8,1\n", "row 1: devices = 8.5 should be a whole number from 1 on"),
        ("devices,batch,ms\n0,8,1\n", "row 1: devices = 0 should be a whole number from 1 on"),
        ("devices,batch,ms\n8,many,1\n", "row 1: batch = many is no number"),
        ("devices,batch,ms\n8,8,1e-200\n", "row 1: a step of 1e-203 s; valid: 1e-09 to 1e+09"),
        ("devices,batch,ms\n8,8,1e300\n", "row 1: ms = 1e300 should be more than 0, 1e+15 at most"),
        ("devices,batch,ms\n800000,8,1\n", "row 1: 1e-05 examples of a device in a micro-batch; valid: 0.001 or more"),
        ("workload,devices,batch,ms\ninside,8,8,1\n", "row 1: a workload cannot be called inside"),
        ("devices,batch,ms,precision\n8,8,1,half\n", "row 1: precision = half; valid: fp8, bf16, fp16, tf32, fp32"),
        ("devices,batch,ms\n8,8,-1\n", "row 1: ms = -1 should be more than 0"),
        ("devices,batch,ms\n8,8,nan\n", "row 1: ms = nan should be more than 0"),
        ("devices,batch,ms,gradient_bytes\n8,8,1,5\n8,8,1,6\n", "row 2: step has other bytes than in a row before"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError) as refused:
        rows.read(written(tmp_path, text))
    assert sentence in str(refused.value)


def test_a_file_that_is_no_text(tmp_path):
    file = tmp_path / "ROWS.csv"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        rows.read(file)
    with pytest.raises(UserError, match="cannot be read"):
        rows.read(tmp_path / "none.csv")


def test_a_precision_is_of_a_workload(tmp_path):
    text = "family,workload,devices,batch,ms,precision\na,bert,8,8,1,fp16\na,bert,16,8,1,\nb,bert,8,8,2,fp8\n"
    read = rows.read(written(tmp_path, text))
    assert [read.of(family).facts["bert"].precision for family in ("a", "b")] == ["fp16", "fp8"]
    with pytest.raises(UserError, match="bert has rows in fp16 and fp8, which are several paces; name them apart"):
        read.chosen(read.rows)


def test_sequences_without_padding_cost_half():
    """Krell et al. 2021 pack MLPerf's sequences by 2.001; a sequence is 512 over that, and its attention is cheaper
    than half of that of 512, for most are far shorter than the mean."""
    length, square, _ = rows.WIKIPEDIA
    assert 512 / length == pytest.approx(2.001, abs=1e-3)
    assert length**2 < square < 512 * length
    packed, whole = KNOWN["bert"].flops, KNOWN["bert_large_512"].flops
    assert packed is not None
    assert whole is not None
    assert packed == pytest.approx(6 * 24 * 12 * 1024**2 * length + 24 * 12 * square * 1024, rel=0.02)
    assert whole / packed == pytest.approx(2.05, abs=0.02)


def test_what_is_known_of_the_models():
    """ResNet-50: 4.1 billion multiplications forward (He et al. 2016 count 3.8 of the version that strides earlier),
    three times as many in all; BERT: six FLOP for each of 302 million weights and token, and the attention."""
    assert KNOWN["resnet50"].flops == pytest.approx(3 * 2 * 4.09e9, rel=0.01)
    assert KNOWN["resnet50"].gradient_bytes == 2 * RESNET50
    for name, length in (("bert_large_128", 128), ("bert_large_512", 512)):
        weights = 24 * 12 * 1024**2
        attention = 24 * 2 * 2 * length**2 * 1024 * 3
        assert KNOWN[name].flops == pytest.approx(6 * weights * length + attention, rel=0.03)
