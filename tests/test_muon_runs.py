"""Runs of Muon: who is orthogonalised is told and counted, and a run in which nobody is ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from beside import beside
from ends import events
from method_recipes import recipe_of

from largebatch.errors import UserError
from largebatch.optim import Muon
from largebatch.recipes import config
from largebatch.run.train import train


def written(tmp_path: Any, **more: Any) -> dict[str, Any]:
    recipe = recipe_of("muon", epochs=0.5, **more)
    return {**recipe, "record": {**recipe["record"], "dir": str(tmp_path / "run"), "every_steps": 2}}


@pytest.mark.worlds
def test_the_table_and_the_log_say_who_and_the_lines_count_them(tmp_path, capsys):
    train(config.from_dict(written(tmp_path)))
    told = capsys.readouterr().out
    assert "2 orthogonalised as matrices" in told
    assert "orthogonalised" in next(line for line in told.splitlines() if "decayed" in line and "count" in line)
    log = (tmp_path / "run" / "train.log").read_text()
    named = [line.split(" ")[0] for line in log.splitlines() if line.endswith("adapted, orthogonalised")]
    assert named == ["2.weight", "4.weight"]  # of three convolutions and a head
    counted = [line["orthogonalised"] for line in events(tmp_path / "run", "train")]
    assert counted
    assert set(counted) == {2.0}


@pytest.mark.worlds
def test_another_optimizer_has_no_such_column(tmp_path, capsys):
    train(config.from_dict({**written(tmp_path), "optimizer": {"name": "sgd"}}))
    assert "orthogonalised" not in capsys.readouterr().out
    assert all("orthogonalised" not in line for line in events(tmp_path / "run", "train"))


@pytest.mark.worlds
def test_a_run_in_which_no_matrix_is_orthogonalised_ends(tmp_path):
    """As where an engine steps an optimizer of its own in the place of ours."""

    def replaced(job: Any, step: Any) -> None:
        assert isinstance(job.engine.optimizer, Muon)
        job.engine.optimizer.step = lambda *_: None

    with beside(before=replaced):
        result = train(config.from_dict(written(tmp_path)), quiet=True)
    assert result.status == "failed"
    assert "2 matrices were to be orthogonalised in each of 2 steps, and none was" in str(result.reason)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


def test_a_model_without_a_hidden_matrix_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="Muon needs a model with hidden weights; Sequential has 2 weight matrices"):
        train(config.from_dict({**written(tmp_path), "model": {"name": "mlp", "depth": 1}}), quiet=True)
