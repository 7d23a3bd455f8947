"""The recipe's reader: strict, one sentence per mistake, nothing lost on the way back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.errors import UserError
from largebatch.recipes import config, strict_yaml

TEXT = """
model: {name: tiny_cnn}
data: {name: fashion_mnist}
batch: {global_batch_size: 64}
epochs: 1
optimizer: {name: sgd}
lr: {base: 1e-4}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "some.yaml"
    file.write_text(TEXT)
    return file


def test_a_recipe_reads_back_to_itself(path):
    run = config.load(path, ["lr.warmup={epochs: 2, from: base}", "optimizer.name=lamb", "lr.decay={name: cosine}"])
    assert config.from_dict(run.as_written()) == run
    assert (run.name, run.lr.base, run.lr.warmup.start) == ("some", 1e-4, "base")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("a.safetensors", "a.safetensors"),
        ("{file: a.safetensors}", "a.safetensors"),
        ("{file: a.safetensors, head: fresh}", {"file": "a.safetensors", "head": "fresh"}),
        ("{pretrained: a1_in1k}", {"pretrained": "a1_in1k", "head": "taken"}),
        ("null", None),
    ],
)
def test_weights_and_what_is_frozen_are_science(path, written, kept):
    run = config.load(path, [f"model.weights={written}", "model.frozen=[stem.*]"])
    assert run.as_written()["model"] == {"name": "tiny_cnn", "weights": kept, "frozen": ["stem.*"]}
    assert config.from_dict(run.as_written()) == run
    assert run.science() != config.load(path, [f"model.weights={written}"]).science()
    assert (run.science() == config.load(path, ["model.frozen=[stem.*]"]).science()) is (kept is None)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("batch.globl_batch_size=3", "unknown key batch.globl_batch_size; did you mean global_batch_size?"),
        ("modle.name=x", "unknown key modle; did you mean model?"),
        ("optimizer.name=lasr", "optimizer.name = lasr is not known; did you mean lars?"),
        ("optimizer.momentun=0.5", "unknown key optimizer.momentun; did you mean momentum?"),
        ("optimizer.momentum=1.0", "optimizer.momentum = 1.0 should be less than 1"),
        ("lr.base=-1", "lr.base = -1 should be greater than 0"),
        ("lr.base=.nan", ".nan is no decimal number"),
        ("lr.base=big", "lr.base = 'big' should be a valid number"),
        ("lr.scaling=linear", "lr.scaling = linear needs lr.reference_batch_size"),
        ("lr.reference_batch_size=64", "lr.reference_batch_size has no effect without lr.scaling"),
        ("lr.decay={name: steps, at_epochs: []}", "lr.decay.at_epochs = [] tuple should have at least 1 item"),
        ("seed=99999999999999999999", "seed = 99999999999999999999 should be less than"),
        ("lr.table={64: 1.0}", "give exactly one of lr.base and lr.table"),
        ("lr.decay={name: cosin}", "lr.decay.name = cosin is not known; did you mean cosine?"),
        ("lr.decay={name: steps}", "lr.decay.at_epochs is missing"),
        ("lr.warmup.from=bse", "lr.warmup.from = 'bse' is not known; valid: zero or base"),
        ("data.augment=crp", "data.augment = 'crp' is not known; valid: auto, none, flip"),
        ("weight_decay.skip=[1]", "weight_decay.skip.0 = 1 should be text"),
        ("weight_decay.skip=norm", "weight_decay.skip = 'norm' should be a list, in square brackets"),
        ("model.frozen=stem", "model.frozen = 'stem' should be a list, in square brackets"),
        ("model.frozen=['']", "model.frozen.0 = '' string should have at least 1 character"),
        ("model.weights=3", "model.weights = 3 should be a path or {file: PATH, head: fresh}"),
        ("model.weights={head: fresh}", "give exactly one of model.weights.file and model.weights.pretrained"),
        (
            "model.weights={file: a, pretrained: b}",
            "give exactly one of model.weights.file and model.weights.pretrained",
        ),
        ("model.weights={file: a, head: new}", "model.weights.head = 'new' is not known; valid: taken or fresh"),
        ("model.weights={fil: a}", "unknown key model.weights.fil; did you mean file?"),
        ("lr=0.1", "lr = 0.1 is a value where keys are expected; write lr.KEY=..."),
        ("optimizer={}", "optimizer.name is missing"),
        ("batch={}", "batch.global_batch_size is missing"),
        ("epochs=0", "epochs = 0 should be greater than 0"),
        ("seed=-1", "seed = -1 should be greater than or equal to 0"),
        ("engine.name=horovod", "engine.name = horovod is not known; valid: ddp, deepspeed, fsdp"),
        ("record={every_steps: 1, every_steps: 2}", "the key every_steps is given twice"),
        ("lr.base=[1", "the override lr.base=[1, line 1:"),
        ("epochs", "'epochs' is not an override; write key=value"),
        ("epochs.x=1", "epochs.x cannot be set: epochs holds a value, not a section"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(path, override, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        config.load(path, [override])
    assert "\n" not in str(caught.value)


def test_a_budget_given_on_the_command_line_takes_the_other_ones_place(path):
    assert (config.load(path, ["steps=4"]).epochs, config.load(path, ["steps=4"]).steps) == (None, 4)
    with pytest.raises(UserError, match="exactly one of epochs and steps"):
        config.from_dict({**config.load(path).as_written(), "steps": 3})
    run = config.load(path, ["lr.warmup.epochs=2", "lr.warmup.share=0.5", "lr.warmup.steps=3"])
    assert (run.lr.warmup.epochs, run.lr.warmup.steps, run.lr.warmup.share) == (0, 3, None)


def test_1e_4_is_a_number_and_a_repeated_key_an_error(tmp_path):
    assert strict_yaml.parse("[1e-4, 1E+3, -2e5, 3, 1.5]", "here") == [1e-4, 1e3, -2e5, 3, 1.5]
    file = tmp_path / "twice.yaml"
    file.write_text(TEXT + "epochs: 2\n")
    with pytest.raises(UserError, match=r"twice.yaml, line 8: the key epochs is given twice"):
        config.load(file)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(UserError, match="cannot read the recipe .*No such file"):
        config.load(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(UserError, match="is not a recipe"):
        config.load(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("model: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="could not determine a constructor"):
        config.load(tmp_path / "code.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        config.load(tmp_path / "bytes.yaml")


def test_what_may_differ_between_two_sessions_of_one_run(path):
    same = [
        "device=cpu",
        "record.every_steps=3",
        "evaluate.every_epochs=3",
        "data.root=/elsewhere",
        "resume=never",
    ]
    for override in same:
        assert config.load(path, [override]).science() == config.load(path).science(), override
    for override in [
        "seed=1",
        "epochs=2",
        "lr.base=2e-4",
        "batch.global_batch_size=128",
        "max_grad_norm=1",
        "batch.micro_batch_size=8",
        "evaluate.flips=true",
        "evaluate.shift=1",
    ]:
        assert config.load(path, [override]).science() != config.load(path).science(), override


KEYS = ["epochs", "steps", "seed", "lr", "lr.base", "lr.table", "lr.decay", "lr.decay.name", "lr.warmup",
        "data.image_shape", "batch", "batch.global_batch_size", "optimizer", "optimizer.name", "weight_decay.skip",
        "model", "model.name", "expect", "x.y.z", "precision", "record.dir"]  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=12), st.sampled_from(["", "null", "{}", "[]", "{name: lars}", "{a: {b: 1}}", "1e400", "-0",
                                           "~", "true", "&a [*a]", "!!set {a}", "? [a]\n: b", "0x1F", "2026-11-21",
                                           "<<: 1"]),
    st.floats().map(str), st.integers().map(str),
)  # fmt: skip


@pytest.mark.worlds
@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES).map("=".join), min_size=1, max_size=3))
def test_no_override_makes_a_traceback(overrides):
    try:
        run = config.from_dict(config.overlay(strict_yaml.parse(TEXT, "here") | {"name": "x"}, overrides))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert config.from_dict(run.as_written()) == run


@pytest.mark.worlds
def test_a_recipe_is_read_without_torch():
    code = "import largebatch.recipes.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_schema_names_every_key():
    schema = config.json_schema()
    assert {*config.Run.model_fields, "table"} == set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert "from" in schema["$defs"]["Warmup"]["properties"]
    weights = schema["$defs"]["Model"]["properties"]["weights"]["anyOf"]
    assert {"type": "string"} in weights, "a path, beside the section"
    assert set(schema["$defs"]["FirstWeights"]["properties"]) == {"file", "pretrained", "head"}


def test_null_switches_a_section_off_and_ddps_own_keys_need_no_name(path):
    run = config.load(path, ["averaging=null", "sam=null", "lr.warmup=null", "engine.all_reduce=bf16"])
    assert (run.averaging.name, run.sam, run.lr.warmup.epochs) == ("none", None, 0)
    assert (run.engine.name, run.engine.all_reduce) == ("ddp", "bf16")


def test_a_recipe_named_as_it_is_listed_is_found_for_the_reader(tmp_path, monkeypatch):
    (tmp_path / "configs" / "x").mkdir(parents=True)
    (tmp_path / "configs" / "x" / "one.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean configs/x/one.yaml?"):
        config.read("x/one")
