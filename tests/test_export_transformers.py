"""A folder for transformers: its own classes load every tensor of it and nothing else, and give the same numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import texts
import torch
from click.testing import Result
from programs import weights_at_end
from typer.testing import CliRunner

from largebatch import models
from largebatch.cli.checkpoint import app
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.train import train

BERT: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "positions": 32, "dropout": 0.1}


def trained(recipe: Any, **model: Any) -> config.Run:
    pairs = {"next_sentence": True} if model.get("next_sentence") else {}
    changes = {
        "model": {"name": "bert"} | BERT | model,
        "data": {"name": "text", "root": str(texts.shared_pack()), "length": 32, **pairs},
        "optimizer": {"name": "lamb"},
    }
    run = config.load(recipe(**changes, steps=3, epochs=None))
    assert train(run, quiet=True).status == "finished"
    return run


def export(run: config.Run, *words: object) -> Result:
    given = ["export", str(run.directory), "--format", "transformers", *map(str, words)]
    return CliRunner().invoke(app, given, catch_exceptions=False)


@pytest.mark.worlds
@pytest.mark.parametrize("pairs", [False, True])
def test_it_loads_without_a_missing_or_an_unexpected_key_and_gives_the_same(recipe, tmp_path, pairs):
    transformers = pytest.importorskip("transformers")
    run, folder = trained(recipe, next_sentence=pairs), tmp_path / "exported"
    ended = export(run, "--out", folder)
    assert "vocab.txt is" in ended.output
    kind = transformers.BertForPreTraining if pairs else transformers.BertForMaskedLM
    theirs, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    assert theirs.config.architectures == [kind.__name__]
    assert (theirs.config.hidden_dropout_prob, theirs.config.attention_probs_dropout_prob) == (0.1, 0.1)
    assert (folder / "vocab.txt").read_bytes() == (texts.shared_pack() / "vocabulary.txt").read_bytes()
    tokens = torch.randint(5, 100, (3, 32), generator=torch.Generator().manual_seed(0))
    ours = models.build("bert", 100, (32,), 0, BERT | {"next_sentence": pairs}).eval()
    ours.load_state_dict(weights_at_end(run.directory))
    with torch.no_grad():
        found = ours(tokens, torch.arange(32).expand(3, -1))
        wanted = theirs.eval()(tokens)
    if pairs:
        torch.testing.assert_close(found[1], wanted.seq_relationship_logits, atol=1e-5, rtol=1e-5)
    logits, their_logits = (found[0], wanted.prediction_logits) if pairs else (found, wanted.logits)
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)


def test_a_vocabulary_that_is_not_the_runs_is_left_out_and_that_is_said(recipe, tmp_path, monkeypatch):
    run = trained(recipe)
    monkeypatch.setattr("largebatch.records.files.sha256_of", lambda path: "0" * 64)
    assert "without vocab.txt" in export(run).output
    folder = run.directory / "transformers"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["vocab_size"], settings["intermediate_size"], settings["max_position_embeddings"]) == (100, 64, 32)


def test_what_has_no_counterpart_there_is_a_sentence(recipe, tmp_path):
    with pytest.raises(
        UserError, match=r"model\.norm = pre is no model of transformers' BertForMaskedLM, .*norm = post"
    ):
        export(run := trained(recipe, norm="pre"))
    assert not (run.directory / "transformers").exists()
    plain = config.load(recipe("plain", steps=1, epochs=None))
    assert train(plain, quiet=True).status == "finished"
    with pytest.raises(UserError, match="--format transformers: model.name = mlp is none that it is written for"):
        export(plain)
