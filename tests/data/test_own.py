"""lb.Dataset: what it takes, what it says of what it cannot, and that order, shares and draws are the plan's."""

from __future__ import annotations

import random
import sys
import types
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset
from worlds.own_parts import ByGenerator, ByGlobalState, OnlyNumber, Pairs

import largebatch as lb
from largebatch.data import Splits, draws
from largebatch.data.items import ItemRequest, Items, torch_collate
from largebatch.data.sets import Asked
from largebatch.errors import LocalError
from largebatch.plan.batch import BatchPlan, resolve
from largebatch.tasks.classification import Classification
from tests.data.conftest import CPU

COUNT, TESTED = 60, 20


def opened(dataset: lb.Dataset, **asked: Any) -> Splits:
    return dataset.opened(Asked("own", **asked))


def plan_of(splits: Splits, world: int = 1, micro: int = 4) -> BatchPlan:
    return resolve(
        dataset_size=len(splits.train), global_batch_size=24, world_size=world, micro_batch_size=micro, epochs=2, seed=3
    )


def collected(splits: Splits, world: int = 1, micro: int = 4, first: int = 0) -> list[torch.Tensor]:
    """The first tensors of every step, over all ranks."""
    plan = plan_of(splits, world, micro)
    steps: list[list[torch.Tensor]] = [[] for _ in range(first, plan.steps)]
    for rank in range(world):
        for step, micro_batches in enumerate(splits.train.steps(plan, rank, first, CPU, 7)):
            for batch in micro_batches:
                steps[step].append(batch["left"] if isinstance(batch, dict) else batch[0])
    return [torch.cat(parts) for parts in steps]


@pytest.mark.parametrize("kind", [Pairs, ByGenerator, ByGlobalState])
def test_steps_are_the_same_in_any_world_at_any_micro_batch_and_after_a_resume(kind):
    splits = opened(lb.Dataset(kind(COUNT), Pairs(TESTED)))
    whole = collected(splits)
    for world, micro in ((1, 24), (2, 3), (3, 2)):
        for here, there in zip(whole, collected(splits, world, micro), strict=True):
            assert torch.equal(here, there)
    for here, there in zip(whole[3:], collected(splits, first=3), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("kind", [ByGenerator, ByGlobalState])
def test_draws_differ_between_epochs_examples_and_seeds(kind):
    reader = Items(kind(COUNT), "training", None, torch_collate, seed=0)
    other = Items(kind(COUNT), "training", None, torch_collate, seed=1)
    same = np.array([5, 5, 5])
    read = reader.read(ItemRequest(same, np.array([5, 5 + COUNT, 5]))), other.read(ItemRequest(same, same))
    left = [batch["left"] for batch in read]
    assert torch.equal(left[0][0], left[0][2])
    assert not torch.equal(left[0][0], left[0][1])
    assert not torch.equal(left[0][0], left[1][0])


def test_examples_are_those_of_the_plan_in_its_order():
    splits = opened(lb.Dataset(Pairs(COUNT), Pairs(TESTED)))
    plan, items = plan_of(splits), Pairs(COUNT)
    for step, left in enumerate(collected(splits)):
        wanted = [torch.from_numpy(items[int(index)]["left"]) for index in plan.examples_of(step).indices]
        assert torch.equal(left, torch.stack(wanted))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_sees_every_item_once(world):
    splits = opened(lb.Dataset(Pairs(COUNT), Pairs(TESTED)))
    seen = [batch["label"] for rank in range(world) for batch in splits.test.batches(rank, world, 6, CPU)]
    assert torch.equal(torch.cat(seen), torch.tensor([Pairs()[index]["label"] for index in range(TESTED)]))


def test_global_random_states_stay_as_they_are():
    splits = opened(lb.Dataset(ByGlobalState(COUNT), ByGlobalState(TESTED)))
    before = draws.states()
    collected(splits)
    list(splits.test.batches(0, 1, 6, CPU))
    assert draws.states().differing(before) == []
    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    assert draws.states().differing(before) == ["torch", "numpy", "random"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Pairs, None),
        (ByGenerator, "by a generator for each example"),
        (ByGlobalState, "from global random state (numpy, random, torch), set for each example"),
    ],
)
def test_a_run_says_where_randomness_comes_from(kind, words):
    assert opened(lb.Dataset(kind(COUNT), Pairs(TESTED))).facts.get("random") == words


class Sometimes(Pairs):
    """Draws for one item alone, which no look at the first ones shows."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        return {**item, "left": item["left"] + torch.randn(4).numpy()} if index == 40 else item


def test_draws_that_nobody_saw_at_first_are_the_same_in_any_world():
    splits = opened(lb.Dataset(Sometimes(COUNT), Pairs(TESTED)))
    assert "random" not in splits.facts
    for here, there in zip(collected(splits), collected(splits, 2, 3), strict=True):
        assert torch.equal(here, there)


NUMBERS, LABELS = np.arange(120.0).reshape(60, 2), np.arange(60) % 3


class HuggingFace:
    """What of ``datasets.Dataset`` is used: features, items that are dicts, and several at once."""

    _fingerprint = "f1"
    features: ClassVar[dict[str, Any]] = {
        "image": None,
        "label": type("ClassLabel", (), {"names": ["cat", "dog", "cow"]})(),
    }

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("several are asked for at once")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [{"image": NUMBERS[index], "label": int(LABELS[index]), "path": "x"} for index in indices]


FORMS: dict[str, tuple[Any, tuple[str, ...] | None]] = {
    "arrays": ((NUMBERS, LABELS), None),
    "tensors": ((torch.from_numpy(NUMBERS), torch.from_numpy(LABELS)), None),
    "TensorDataset": (TensorDataset(torch.from_numpy(NUMBERS), torch.from_numpy(LABELS)), None),
    "a dict of arrays": ({"image": NUMBERS, "label": LABELS}, ("image", "label")),
    "a list of items": (list(zip(NUMBERS, LABELS.tolist(), strict=True)), None),
    "Hugging Face": (HuggingFace(), ("image", "label")),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_set_in_every_form_gives_the_same_steps(form):
    part, columns = FORMS[form]
    splits = opened(lb.Dataset(part, part, columns=columns, outputs=3))
    expected = collected(opened(lb.Dataset(*2 * [FORMS["arrays"][0]])))
    for here, there in zip(collected(splits), expected, strict=True):
        assert torch.equal(here, there)
    assert splits.outputs == 3


def test_hugging_faces_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"image": NUMBERS.tolist(), "label": LABELS.tolist()})
    part = part.cast_column("label", datasets.ClassLabel(names=["cat", "dog", "cow"])).with_format("torch")
    splits = opened(lb.Dataset(part, part, columns=("image", "label")))
    assert (splits.outputs, splits.classes) == (3, ["cat", "dog", "cow"])
    for here, there in zip(collected(splits), collected(opened(lb.Dataset(*2 * [(NUMBERS, LABELS)]))), strict=True):
        assert torch.equal(here, there)


def test_what_a_set_says_of_its_classes_is_known():
    splits = opened(lb.Dataset(HuggingFace(), HuggingFace(), columns=("image", "label")))
    assert (splits.outputs, splits.classes) == (3, ["cat", "dog", "cow"])
    assert splits.contents()["train"].numbers == "f1"
    assert opened(lb.Dataset((NUMBERS, LABELS), (NUMBERS, LABELS))).outputs == 3
    assert opened(lb.Dataset((NUMBERS, NUMBERS), (NUMBERS, NUMBERS), task="regression")).outputs == 2
    assert opened(lb.Dataset(Pairs(), Pairs())).outputs is None


def test_items_beside_arrays():
    """Augmented items to train on, arrays to test on, or the other way round: what is said is of both."""
    arrays = ({"left": np.zeros((TESTED, 4)), "right": np.zeros((TESTED, 3))}, np.zeros(TESTED, np.int64))
    items = Augmented(COUNT)
    for train, test, name in ((items, arrays, "Augmented"), (arrays, items, "arrays")):
        dataset = lb.Dataset(train, test)
        splits = opened(dataset)
        assert dataset.called == name
        assert splits.facts["random"] == "by a generator for each example"
        assert splits.facts["read"].startswith("by the trainer")
        assert splits.example[0]["left"].shape == (1, 4)
        Classification().check_data(splits.blank(2), "own")  # inputs may be any nest
    assert opened(lb.Dataset(arrays, arrays)).facts["read"] == "from memory"
    assert opened(lb.Dataset(arrays, arrays)).source == "arrays"


class Augmented(ByGenerator):
    """As (inputs, label)."""

    def __getitem__(self, index: int, generator: torch.Generator | None = None) -> Any:
        item = super().__getitem__(index, generator)
        return {"left": item["left"], "right": item["right"]}, item["label"]


def test_arrays_lie_as_they_may():
    backwards, fixed = NUMBERS[::-1], np.broadcast_to(NUMBERS[0], NUMBERS.shape)
    for numbers in (backwards, fixed):
        splits = opened(lb.Dataset((numbers, LABELS), (numbers, LABELS)))
        assert torch.equal(splits.train.tensors[0], torch.from_numpy(numbers.copy()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("label", [3, -1, -100])
def test_a_label_that_is_no_class_is_told_when_it_is_read(label):
    """-100 is what torch leaves out of a loss."""
    odd = [*zip(NUMBERS[:40], LABELS[:40].tolist(), strict=True), (NUMBERS[40], label)]
    splits = opened(lb.Dataset(odd, odd, outputs=3))
    with pytest.raises(LocalError, match=f"item 40 of the test set has the label {label}; with outputs = 3 it should"):
        list(splits.test.batches(0, 1, 6, CPU))
    with pytest.raises(lb.UserError, match=f"a label is {label}; outputs = 3 makes it 0 to 2"):
        opened(lb.Dataset((NUMBERS, LABELS), (NUMBERS[:1], np.array([label])), outputs=3))


def test_held_out_examples_leave_the_training_set():
    splits = opened(lb.Dataset(Pairs(COUNT), OnlyNumber(TESTED)), hold_out=15)
    assert (len(splits.train), len(splits.test)) == (45, 15)
    held = torch.cat([batch["left"] for batch in splits.test.batches(0, 1, 4, CPU)])
    trained = torch.cat(collected(splits))
    assert not (held[:, None] == trained[None]).all(-1).any()
    stratified = opened(lb.Dataset((NUMBERS, LABELS), (NUMBERS, LABELS)), hold_out=15)
    assert np.bincount(torch.cat([y for _, y in stratified.test.batches(0, 1, 4, CPU)])).tolist() == [5, 5, 5]


class Items3(Dataset):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class NoLength(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


class NoLengthButItems:
    def __getitem__(self, index: int) -> int:
        return index


GOOD = Pairs(4)
REFUSED: list[tuple[Any, str]] = [
    (NoLengthButItems(), "lb.Dataset: train is a NoLengthButItems without length; it takes map-style data sets, with "),
    (NoLength(), "lb.Dataset: train is a NoLength without length; it takes map-style data sets"),
    ("words", "lb.Dataset: train is a str without __getitem__; it takes map-style data sets"),
    (3, "lb.Dataset: train is a int without __getitem__"),
    ([], "lb.Dataset: train holds no examples"),
    ((NUMBERS, LABELS[:9]), r"lb.Dataset: train: its tensors disagree on how many examples it holds"),
    (Items3(object(), object()), "item 0 of the training set is of the wrong kind: it is object; wanted are tensors"),
    (Items3(("a", 1), ("b", 2)), r"an item of the training set: \[0\]\[0\] is a str"),
    (
        Items3((torch.ones(2), 1), (torch.ones(3), 1)),
        r"items 0 and 1 of the training set are of unequal shapes: \[0\] is tensor \(2,\) there and tensor \(3,\) here",
    ),
    (
        Items3(KeyError("gone"), 1),
        "item 0 of the training set cannot be read: KeyError: 'gone', in line [0-9]+ of test_own",
    ),
]


@pytest.mark.parametrize(("train", "sentence"), REFUSED, ids=[sentence[:50] for _, sentence in REFUSED])
def test_what_cannot_be_read_is_one_sentence(train, sentence):
    with pytest.raises(lb.UserError, match=sentence) as caught:
        opened(lb.Dataset(train, GOOD))
    assert "\n" not in str(caught.value)


def test_an_odd_item_in_the_middle_of_a_run_is_named_with_its_index():
    items = [(torch.ones(2), 0)] * 60
    items[37] = (torch.ones(5), 0)
    splits = opened(lb.Dataset(items, items[:5], outputs=2))
    with pytest.raises(LocalError, match="37 of the training set are of unequal shapes|items 37 and "):
        collected(splits)


class Typed(Pairs):
    """As one that was typed into a session."""


@pytest.mark.parametrize(
    ("main", "train", "collate", "sentence"),
    [
        ("<stdin>", Pairs(COUNT), None, "import this program, and <stdin> is no file"),
        (None, Typed(COUNT), None, "cannot import Typed, which was typed into a session"),
        (None, Subset(Typed(COUNT), range(COUNT)), None, "cannot import Typed, which was typed into a session"),
        (__file__, Pairs(COUNT), lambda items: items, "cannot be sent to processes that read it: "),
    ],
)
def test_what_other_processes_cannot_import_is_refused_where_they_read(monkeypatch, main, train, collate, sentence):
    module = types.ModuleType("__main__")
    if main is not None:
        module.__file__ = main
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(Typed, "__module__", "__main__")
    with pytest.raises(lb.UserError, match=sentence):
        opened(lb.Dataset(train, Pairs(TESTED), collate=collate), workers=2)


def test_what_other_processes_can_import_is_not_refused(monkeypatch):
    session = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", session)
    assert opened(lb.Dataset(Pairs(COUNT), Pairs(TESTED)), workers=2).facts["read"] == "by 2 processes of each rank"


def test_labels_beyond_the_outputs_are_refused():
    with pytest.raises(lb.UserError, match="a label is 2; outputs = 2 makes it 0 to 1"):
        opened(lb.Dataset((NUMBERS, LABELS), (NUMBERS, LABELS), outputs=2))


def test_a_collate_that_loses_examples_is_refused():
    with pytest.raises(lb.UserError, match="2 items of the training set are collated into 1 examples"):
        opened(lb.Dataset(GOOD, GOOD, collate=lambda items: torch.ones(1, 3)))


def test_keys_that_it_does_not_take_are_refused(tmp_path):
    with lb.datasets.REGISTRY.holding("mine", lambda: lb.Dataset(GOOD, GOOD)):
        with pytest.raises(lb.UserError, match="data.augment is for images; data set mine has none"):
            lb.data.build("mine", augment="flip")
        with pytest.raises(lb.UserError, match=r"data.root = 'x' is not used"):
            lb.data.build("mine", root="x")
    seen = []

    def with_root(root):
        seen.append(root)
        return lb.Dataset(GOOD, GOOD)

    with lb.datasets.REGISTRY.holding("mine", with_root):
        lb.data.build("mine", root=str(tmp_path))
    assert seen == [str(tmp_path)]
