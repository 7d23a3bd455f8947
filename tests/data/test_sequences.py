"""Sequences of a token pack: cut, masked and paired as stated; the same in any world and in phases of other lengths."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
import texts
import torch

from largebatch.data import Placement, draws, sets
from largebatch.data.sets import Asked, built
from largebatch.data.sizes import constant, sizes_of_phases
from largebatch.data.text import masks, pack, pairs
from largebatch.data.text.sequences import stream_of
from largebatch.errors import LocalError, UserError
from largebatch.plan import batch, phases
from largebatch.plan.batch import MicroBatch
from largebatch.plan.order import KeyedOrder, epoch_order
from largebatch.recipes import config
from largebatch.recipes.derive import lengths_of

CPU = Placement(torch.device("cpu"))
PAD, CLS, SEP, MASK = 0, 2, 3, 4
VOCABULARY = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return texts.pack_of_numbers(tmp_path_factory.mktemp("text") / "pack", vocabulary=VOCABULARY)


def opened(folder, length=32, **asked):
    return built(Asked("text", root=str(folder), length=constant(length), **asked))


def trained_on(splits, world=1, micro=None, size=24, first=0, epochs=1.5, seed=7, data_seed=5):
    """Every step's sequences over all ranks, in order."""
    plan = batch.resolve(
        dataset_size=len(splits.train), global_batch_size=size, world_size=world, micro_batch_size=micro, epochs=epochs,
        seed=seed,
    )  # fmt: skip
    return joined([splits.train.steps(plan, rank, first, CPU, data_seed) for rank in range(world)])


def joined(of_ranks):
    found = []
    for step in zip(*of_ranks, strict=True):
        batches = [batch for micro_batches in step for batch in micro_batches]
        found.append({key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
    return found


def same(one, other):
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def unmasked(batch):
    """What the sequences were."""
    tokens = batch["tokens"].clone()
    for row, (positions, labels) in enumerate(zip(batch["positions"], batch["labels"], strict=True)):
        for position, label in zip(positions.tolist(), labels.tolist(), strict=True):
            if label != masks.IGNORED:
                tokens[row, position] = label
    return tokens


def test_sequences_are_the_documents_laid_end_to_end_and_cut(folder):
    splits = opened(folder)
    stream = np.fromfile(folder / "train.tokens.bin", np.uint16).tolist()
    assert len(splits.train) == len(stream) // 31
    seen = torch.cat([unmasked(batch) for batch in trained_on(splits)])
    order = np.concatenate([epoch_order(len(splits.train), 7, epoch) for epoch in range(2)])
    for row, index in zip(seen.tolist(), order, strict=False):
        assert row == [CLS, *stream[31 * index : 31 * (index + 1)]]


def test_an_evaluation_sees_every_sequence_once_and_masks_it_alike(folder):
    splits = opened(folder)
    stream = np.fromfile(folder / "test.tokens.bin", np.uint16).tolist()
    wholes = []
    for world, size in ((1, 7), (3, 4)):
        batches = [b for rank in range(world) for b in splits.test.batches(rank, world, size, CPU)]
        wholes.append({key: torch.cat([b[key] for b in batches]) for key in batches[0]})
    same(wholes[:1], wholes[1:])
    assert unmasked(wholes[0]).tolist() == [[CLS, *stream[31 * n : 31 * (n + 1)]] for n in range(len(stream) // 31)]


@pytest.mark.parametrize("next_sentence", [False, True])
def test_worlds_micro_batches_and_resumes_change_nothing(folder, next_sentence):
    splits = opened(folder, next_sentence=next_sentence)
    whole = trained_on(splits)
    same(whole, trained_on(splits, world=2, micro=4))
    same(whole, trained_on(splits, world=3, micro=1))
    same(whole[9:], trained_on(splits, world=2, first=9))
    assert not torch.equal(whole[0]["tokens"], trained_on(splits, data_seed=6)[0]["tokens"]), "other masks"


def test_masks_are_new_in_every_epoch(folder):
    splits = opened(folder)
    size = len(splits.train)
    seen = trained_on(splits, size=size, epochs=2)
    first, second = ({tuple(row.tolist()) for row in unmasked(batch)} for batch in seen)
    assert first == second
    by_sequence = [
        dict(zip(map(tuple, unmasked(b).tolist()), map(tuple, b["positions"].tolist()), strict=True)) for b in seen
    ]
    alike = sum(by_sequence[0][key] == by_sequence[1][key] for key in by_sequence[0])
    assert alike < size / 20


def dumb_mask(tokens, key, share, most):
    """The same, one sequence after another, in words."""
    word = lambda number: int(draws.numbered(draws.mixed(np.array([key], np.uint64)), np.array([number]))[0])  # noqa: E731
    length = len(tokens)
    maskable = [place for place, token in enumerate(tokens) if token not in (PAD, CLS, SEP)]
    due = min(most, max(1, round(share * len(maskable))), len(maskable))
    chosen = sorted(sorted(maskable, key=lambda place: word(place) >> 1)[:due])
    read = list(tokens)
    for place in chosen:
        fate = (word(length + place) >> 11) / 2**53
        if fate < 0.8:
            read[place] = MASK
        elif fate < 0.9:
            read[place] = word(2 * length + place) % VOCABULARY
    labels = [tokens[place] for place in chosen]
    return read, chosen + [0] * (most - due), labels + [-100] * (most - due)


@pytest.mark.parametrize(("share", "most"), [(0.15, 5), (0.15, 3), (0.4, 31), (0.01, 2)])
def test_masks_are_those_of_the_dumb_statement(share, most):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCABULARY, (40, 32))
    tokens[0], tokens[1, 3:] = SEP, PAD  # nothing to predict; little
    keys = rng.integers(0, 2**63, 40).astype(np.uint64)
    special = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    maskable = ~np.isin(tokens, [PAD, CLS, SEP])
    found = masks.masked(tokens, maskable, keys, share, most, special, VOCABULARY)
    for row in range(40):
        wanted = dumb_mask(tokens[row].tolist(), int(keys[row]), share, most)
        assert [array[row].tolist() for array in found] == list(map(list, wanted))


def test_shares_of_what_becomes_of_tokens_are_the_papers():
    count, length = 4000, 64
    tokens = np.full((count, length), 50)
    tokens[:, 0] = CLS
    keys = np.arange(count).astype(np.uint64)
    special = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    read, positions, labels = masks.masked(tokens, tokens != CLS, keys, 0.15, 20, special, VOCABULARY)
    drawn = labels != masks.IGNORED
    assert drawn.sum() == count * round(0.15 * 63)
    became = np.take_along_axis(read, positions, axis=1)[drawn]
    total = len(became)
    for share, mask in ((0.8, became == MASK), (0.1 + 0.1 / VOCABULARY, became == 50)):
        assert abs(mask.mean() - share) < 5 * np.sqrt(share * (1 - share) / total)
    places = np.bincount(positions[drawn], minlength=length)[1:]
    expected = total / (length - 1)
    assert ((places - expected) ** 2 / expected).sum() < 62 + 5 * np.sqrt(2 * 62), "all places alike"
    changed = became[(became != MASK) & (became != 50)]
    assert len(np.unique(changed)) > 90, "of the whole vocabulary"


def test_phases_of_another_length_read_the_same_pack_in_an_order_of_their_own(folder):
    asked = Asked("text", root=str(folder), length=sizes_of_phases((16, 64, 64), 64), max_predictions=(None, 12, 9))
    splits = built(asked)
    stream = np.fromfile(folder / "train.tokens.bin", np.uint16).tolist()
    assert (len(splits.train), len(splits.test)) == (len(stream) // 15, splits.test.sequences.count(64))
    longer = len(stream) // 63
    wishes = [
        phases.PhaseWish(24, MicroBatch(), steps=10),
        phases.PhaseWish(12, MicroBatch(), steps=30),
        phases.PhaseWish(16, MicroBatch()),
    ]
    of_worlds = []
    for world in (1, 2):
        plan, _ = phases.resolve(wishes, dataset_size=len(splits.train), world_size=world, steps=45, seed=7)
        of_worlds.append(joined([splits.train.steps(plan, rank, 0, CPU, 5) for rank in range(world)]))
        same(of_worlds[0], of_worlds[-1])
        later = joined([splits.train.steps(plan, rank, 17, CPU, 5) for rank in range(world)])
        same(of_worlds[0][17:], later)
    steps = of_worlds[0]
    assert [tuple(steps[n]["positions"].shape) for n in (0, 10, 40)] == [(24, 3), (12, 12), (16, 9)]
    second = torch.cat([unmasked(step) for step in steps[10:40]])
    wanted = np.concatenate([epoch_order(longer, 7, (2 << 32) + epoch) for epoch in range(2)])
    assert len(second) == 360
    for row, index in zip(second.tolist(), wanted, strict=False):
        assert row == [CLS, *stream[63 * index : 63 * (index + 1)]]
    assert splits.blank(2, 16)["tokens"].shape == (2, 16)
    assert splits.blank(2, 64)["positions"].shape == (2, 12)
    assert splits.blank(1)["positions"].shape == (1, 12), "an evaluation has the room of a phase as long"


def test_held_out_are_whole_documents_at_the_end(folder):
    splits, whole = opened(folder, hold_out=20), opened(folder)
    train, test = splits.train.sequences.stream, splits.test.sequences.stream
    everything = np.fromfile(folder / "train.tokens.bin", np.uint16)
    assert np.array_equal(np.concatenate([train.tokens, test.tokens]), everything)
    assert train.tokens[-1] == SEP
    assert len(test.documents) + len(train.documents) - 2 == len(whole.train.sequences.stream.documents) - 1
    assert train.segments.max() < len(train.tokens)
    assert test.segments[0] == test.documents[0] == 0
    assert len(splits.test) == 20
    with pytest.raises(UserError, match=r"data\.hold_out = 100000 leaves nothing to train on"):
        opened(folder, hold_out=100_000)


def passages_one_by_one(documents, room):
    found = []
    for number, (begin, end) in enumerate(itertools.pairwise(documents.tolist())):
        found += [(number, start, min(start + room, end - 1)) for start in range(begin, end - 1, room)]
    return found


@pytest.mark.parametrize("block", [1, 7, 512])
def test_passages_are_the_documents_cut_one_by_one(folder, block, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", block)
    monkeypatch.setattr(pairs, "CHUNK", 3 * block)
    documents = np.fromfile(folder / "train.documents.bin", np.int64)
    passages = pairs.Passages(documents, 13)
    wanted = passages_one_by_one(documents, 13)
    assert len(passages) == len(wanted)
    assert [tuple(passages.at(number)) for number in range(len(wanted))] == wanted


def test_pairs_are_made_as_stated(folder):
    splits = opened(folder, length=24, next_sentence=True)
    stream = splits.train.sequences.stream
    starts = set(stream.segments.tolist())
    seen, wanted = trained_on(splits, epochs=1), passages_one_by_one(stream.documents, 21)
    tokens, order = stream.tokens.tolist(), epoch_order(len(wanted), 7, 0)
    rows = {key: torch.cat([batch[key] for batch in seen]).tolist() for key in ("segments", "attended", "is_random")}
    texts_of = torch.cat([unmasked(batch) for batch in seen]).tolist()
    kinds = collections.Counter()
    for row, index in enumerate(order[: len(texts_of)]):
        _, begin, end = wanted[index]
        count = sum(rows["attended"][row])
        text, second = texts_of[row][:count], rows["segments"][row].index(1)
        assert texts_of[row][count:] == [PAD] * (24 - count)
        assert rows["segments"][row] == [0] * second + [1] * (count - second) + [0] * (24 - count)
        assert (text[0], text[second - 1], text[-1]) == (CLS, SEP, SEP)
        first, after = text[1 : second - 1], text[second:-1]
        cut = begin + len(first)
        assert first == tokens[begin:cut]
        assert cut in starts or not starts & set(range(begin + 1, end))
        if rows["is_random"][row]:
            kinds["random"] += 1
        else:
            kinds["follows"] += 1
            assert after == tokens[cut:end]
    assert abs(kinds["random"] - kinds["follows"]) < 0.35 * len(texts_of)


def test_a_random_second_is_from_another_document(folder):
    stream = stream_of(opened(folder).train.sequences.pack, "train", 0)
    passages = pairs.Passages(stream.documents, 13)
    drawn = collections.Counter()
    for key in range(3000):
        passage = passages.at(40)
        pair = pairs.pair_of(passage, stream, key, 13)
        if pair.is_random:
            document = int(np.searchsorted(stream.documents, pair.second[0], side="right")) - 1
            assert document != passage.document
            assert pair.second[1] <= stream.documents[document + 1] - 1
            assert pair.second[0] in stream.segments
            drawn[document] += 1
    assert len(drawn) > 290, "any of the others"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"length": 4}, r"data\.length = 4 is too short for a sequence; at least 8"),
        (
            {"length": 32, "max_predictions": (32,)},
            r"data\.max_predictions = 32 is more than the tokens of a sequence of",
        ),
        ({"length": 1 << 20}, r"data\.length = 1048576 does not leave a sequence for the train part of"),
        (
            {"root": "nowhere"},
            r"no token pack in nowhere; data\.root should be a folder that `largebatch data tokenize`",
        ),
        ({"augment": "flip"}, r"data\.augment is for images; data set text has none"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(folder, asked, words):
    with pytest.raises(UserError, match=words):
        opened(**{"folder": folder, **asked}) if "root" not in asked else built(Asked("text", **asked))


def test_a_length_of_evaluations_alone_is_refused(recipe):
    run = config.load(recipe(data={"name": "text", "evaluate_length": 64}))
    with pytest.raises(UserError, match=r"data\.evaluate_length = 64 stands beside no data\.length; set both"):
        lengths_of(run)


def test_keys_of_text_are_refused_elsewhere():
    with pytest.raises(UserError, match=r"data\.next_sentence is for text; data set digits has no sequences"):
        built(Asked("digits", next_sentence=True))


def test_a_very_long_set_is_read_in_a_computed_order(folder, monkeypatch):
    from largebatch.plan import order

    monkeypatch.setattr(order, "LARGEST_KEPT", 10)
    epoch_order.cache_clear()
    splits = opened(folder)
    seen = torch.cat([unmasked(batch) for batch in trained_on(splits, epochs=1)])
    epoch_order.cache_clear()
    stream = np.fromfile(folder / "train.tokens.bin", np.uint16).tolist()
    for row, index in zip(seen.tolist(), KeyedOrder(len(splits.train), (7, 0))[:], strict=False):
        assert row == [CLS, *stream[31 * index : 31 * (index + 1)]]


def test_hundreds_of_gigabytes_are_opened_and_read_at_any_place(tmp_path):
    """A sparse file of 2^37 tokens, 256 GiB, zeros but for its end; its order is computed."""
    folder = texts.pack_of_numbers(tmp_path / "pack", vocabulary=VOCABULARY)
    tokens, facts = 1 << 37, pack.read_facts(folder)
    with (folder / "train.tokens.bin").open("wb") as file:
        file.truncate(2 * tokens)
        file.seek(-2 * 31, 2)
        np.arange(5, 36, dtype=np.uint16).tofile(file)
    np.array([0, tokens]).tofile(folder / "train.documents.bin")
    np.array([0]).tofile(folder / "train.segments.bin")
    large = facts.parts["train"].model_copy(update={"documents": 1, "tokens": tokens, "segments": 1})
    pack.write_facts(folder, facts.model_copy(update={"parts": {**facts.parts, "train": large}}))
    splits = opened(folder)
    count = tokens // 31
    assert len(splits.train) == count
    plan = batch.resolve(dataset_size=count, global_batch_size=64, steps=3, seed=7)
    step = joined([splits.train.steps(plan, 0, 1, CPU, 5)])[0]
    assert step["tokens"].shape == (64, 32)
    request = splits.train.of_evaluation(np.array([count - 1]))
    last = unmasked(splits.train.reader(0)[request])[0].tolist()
    left = tokens - 31 * count  # which no sequence has
    assert last == [CLS, *([0] * left), *range(5, 36 - left)]


def test_a_pack_that_was_changed_is_named(tmp_path):
    folder = texts.pack_of_numbers(tmp_path / "pack", vocabulary=VOCABULARY)
    tokens = np.memmap(folder / "train.tokens.bin", np.uint16, mode="r+")
    tokens[:] = 60_000
    with pytest.raises(LocalError, match=r"holds a token 60000, beyond its vocabulary of 100: it was changed after"):
        trained_on(opened(folder))
    documents = np.memmap(folder / "train.documents.bin", np.int64, mode="r+")
    kept = int(documents[10])
    documents[10] = documents[9]  # without even its [SEP]
    with pytest.raises(UserError, match=r"do not follow one another"):
        opened(folder, next_sentence=True)
    documents[10] = kept
    opened(folder, next_sentence=True)
    documents[10] = 1 << 40
    with pytest.raises(UserError, match=r"documents 0 to 300 of the token pack do not follow one another"):
        opened(folder, next_sentence=True)


def test_a_recipe_is_read_aloud_with_the_sequences_of_its_pack(folder):
    known = sets.known("text")
    splits = opened(folder)
    asked = Asked("text", root=str(folder), length=constant(32))
    assert known.counts(asked) == (len(splits.train), len(splits.test))
    assert known.counts(Asked("text", root="nowhere")) == (None, None)
