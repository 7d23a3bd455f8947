"""checkpoint export --format transformers: a folder that the library loads whole, and what has no counterpart there."""

from __future__ import annotations

from pathlib import Path

import pytest
import texts
import torch
from method_recipes import recipe_of
from typer.testing import CliRunner

from largebatch import models
from largebatch.cli import app
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records import names
from largebatch.run.train import train
from largebatch.run.weights import of_newest_checkpoint


@pytest.fixture
def trained(tmp_path: Path):
    def run(method: str = "masked_lm", **more) -> Path:
        record = {"dir": str(tmp_path / "run"), "tensorboard": False}
        written = recipe_of(method, precision="fp32", record=record, **more)
        assert train(config.from_dict(written), quiet=True).status == "finished"
        return tmp_path / "run"

    return run


def exported(run: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["checkpoint", "export", str(run), "--format", "transformers", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.mark.parametrize("method", ["masked_lm", "next_sentence"])
def test_transformers_loads_it_without_a_missing_or_an_unexpected_key(trained, tmp_path, method):
    transformers = pytest.importorskip("transformers")
    run = trained(method)
    folder = tmp_path / "theirs"
    exported(run, "--out", str(folder))
    pairs = method == "next_sentence"
    kind = transformers.BertForPreTraining if pairs else transformers.BertForMaskedLM
    theirs, about = kind.from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in about.items() if value} == {}
    ours = models.build("bert", 100, (16,), 0, config.load(run / names.RECIPE).model.arguments)
    ours.load_state_dict(of_newest_checkpoint(run))
    tokens = torch.randint(100, (3, 16), generator=torch.Generator().manual_seed(0))
    everywhere = torch.arange(16).expand(3, -1)
    found, wanted = ours.eval()(tokens, everywhere), theirs.eval()(tokens)
    logits, whole = (found[0], wanted.prediction_logits) if pairs else (found, wanted.logits)
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)
    words = transformers.BertTokenizer.from_pretrained(folder)("word7 WORD8")["input_ids"]
    assert words == [2, 7, 8, 3]


def test_a_pack_that_is_gone_is_told(trained, tmp_path):
    pack = texts.pack_of_numbers(tmp_path / "pack")
    run = trained(data={"name": "text", "root": str(pack), "length": 32})
    (pack / "vocabulary.txt").write_text("another\n")
    assert "no vocab.txt: the token pack that it was trained on is not there any more" in exported(run)
    assert not (run / "weights-transformers" / "vocab.txt").exists()


def test_other_models_and_forms_have_no_counterpart(trained):
    run = trained("sam")
    with pytest.raises(UserError, match="--format transformers is for model.name = bert; the run's is tiny_cnn"):
        exported(run)


def test_norms_before_have_no_counterpart(trained):
    model = {"name": "bert", "layers": 1, "width": 16, "heads": 2, "positions": 32, "norm": "pre"}
    run = trained(model=model)
    with pytest.raises(UserError, match="model.norm = pre is no model of transformers' BertForMaskedLM"):
        exported(run)
