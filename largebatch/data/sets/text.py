"""Sequences of a token pack, to predict masked tokens of: one's own text, tokenized by ``largebatch data tokenize``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.data import places
from largebatch.data.packs.manifest import MANIFEST
from largebatch.data.published import ByHand
from largebatch.data.sets import Asked, DataSet
from largebatch.data.sizes import Sizes, constant
from largebatch.errors import UserError
from largebatch.recipes import paths

if TYPE_CHECKING:
    from largebatch.data.contents import Contents
    from largebatch.data.dataset import Split, Splits
    from largebatch.data.nested import Batch
    from largebatch.data.processes import Helpers
    from largebatch.data.text.pack import TextPack
    from largebatch.data.text.sequences import SequenceSplit

LENGTH = 128  # where a recipe does not say
SHORTEST = 8  # [CLS], [SEP]s and something to predict


class Text(DataSet):
    name = "text"
    task = "masked_lm"
    takes = frozenset({"length", "mask_share", "max_predictions", "next_sentence"})
    origin = ByHand("it is your own: a folder that `largebatch data tokenize` made, under data.root")
    holds = "as many sequences as the tokens of the pack at data.root give"

    def counts(self, asked: Asked) -> tuple[int | None, int | None]:
        """Of the pack that is here; documents that are held out are known when it is read."""
        if asked.hold_out or asked.next_sentence or folder_of(asked.root) is None:
            return None, None
        parts, lengths = _opened(asked).facts.parts, lengths_of(asked)
        return parts["train"].tokens // (lengths.first - 1), parts["test"].tokens // (lengths.evaluate - 1)

    def outputs(self, asked: Asked) -> int | None:
        return None if folder_of(asked.root) is None else _opened(asked).vocabulary_size

    def shape(self, asked: Asked) -> tuple[int, ...]:
        return (lengths_of(asked).evaluate,)

    def is_outlined(self, asked: Asked, stated: bool) -> bool:
        return stated or folder_of(asked.root) is None

    def outline(self, asked: Asked, splits: tuple[Split, Split], source: str, outputs: int) -> Splits:
        from largebatch.data.dataset import Splits

        sized = functools.partial(blank_sequence, asked)
        lengths = lengths_of(asked)
        return Splits(
            name=self.name,
            example=sized(lengths.evaluate),
            outputs=outputs,
            train=splits[0],
            test=splits[1],
            source=source,
            task=self.task,
            facts=facts_of(asked),
            sizes=lengths,
            sized=sized,
        )

    def build(self, asked: Asked) -> Splits:
        import dataclasses

        from largebatch.data.processes import Helpers

        check(asked)
        pack, helpers = _opened(asked), Helpers()
        train, test = (self.split_of(asked, pack, part, helpers) for part in ("train", "test"))
        known = f"{len(pack.train.documents) - 1:,} documents of {len(pack.train.tokens):,} tokens to train on"
        splits_of = self.outline(asked, (train, test), f"{pack.folder}, {known}", pack.vocabulary_size)
        return dataclasses.replace(
            splits_of,
            preparation=preparation_of(asked, pack),
            contents=functools.partial(contents_of, pack),
            helpers=helpers,
        )

    def split_of(self, asked: Asked, pack: TextPack, part: str, helpers: Helpers) -> SequenceSplit:
        """``train`` or ``test``; what is held out of the training part stands in for the latter."""
        from largebatch.data.text.sequences import SequenceForm, Sequences, SequenceSplit

        lengths, held = lengths_of(asked), asked.hold_out
        form = SequenceForm(asked.mask_share, asked.next_sentence, held * lengths.evaluate)
        if part == "train":
            length, count = lengths.by_phase[0], None
        else:
            length, count, part = lengths.evaluate, held or None, "held_out" if held else part
        reader = functools.partial(Sequences, pack.folder, part, form)
        most = functools.partial(most_in, asked)
        split = SequenceSplit(reader, length, lengths, most, count, asked.workers or 0, helpers)
        if held and not count and not len(split):
            raise UserError(f"data.hold_out = {held} leaves nothing to train on of {pack.folder}")
        if len(split) < max(1, count or 0):
            some = f"{held} sequences" if count else "a sequence"
            aside = "; data.hold_out sets documents of the training part aside" if part == "test" else ""
            raise UserError(
                f"data.length = {length} does not leave {some} for the {part.replace('_', ' ')} part of "
                f"{pack.folder}{aside}"
            )
        return split


def lengths_of(asked: Asked) -> Sizes:
    return asked.length or constant(LENGTH)


def most_in(asked: Asked, phase: int) -> int:
    """The room for predictions in a sequence of a phase; -1: of an evaluation, which has that of a phase as long."""
    from largebatch.data.text.masks import predictions

    lengths, stated = lengths_of(asked), asked.max_predictions
    of_phases = lengths.by_phase
    if phase < 0:
        alike = [number for number, length in enumerate(of_phases) if length == lengths.evaluate]
        if not alike:
            return predictions(lengths.evaluate, asked.mask_share)
        phase = alike[-1]
    elif len(of_phases) == 1:
        phase = 0
    said = stated[phase] if stated else None
    return said or predictions(of_phases[phase], asked.mask_share)


def check(asked: Asked) -> None:
    """Refuse lengths and numbers of predictions that make no sequence."""
    lengths = lengths_of(asked)
    for length in (*lengths.by_phase, lengths.evaluate):
        if length < SHORTEST:
            raise UserError(f"data.length = {length} is too short for a sequence; at least {SHORTEST}")
    for length, most in zip(lengths.by_phase, asked.max_predictions, strict=False):
        if most is not None and most > length - 1:
            raise UserError(
                f"data.max_predictions = {most} is more than the tokens of a sequence of data.length = {length}; at "
                f"most {length - 1}"
            )


def folder_of(root: str | None) -> Path | None:
    """Where the pack lies: at ``data.root``, else in the folder ``text`` of the data folders."""
    if root is not None:
        folders = [Path(paths.expanded("data.root", root))]
    else:
        folders = [base / "text" for base in places.usual_folders()]
    return next((folder for folder in folders if (folder / MANIFEST).is_file()), None)


def _opened(asked: Asked) -> TextPack:
    from largebatch.data.text.pack import open_pack

    folder = folder_of(asked.root)
    if folder is not None:
        return open_pack(folder)
    looked = asked.root or " or ".join(str(base / "text") for base in places.usual_folders())
    raise UserError(f"no token pack in {looked}; data.root should be a folder that `largebatch data tokenize` made")


def blank_sequence(asked: Asked, length: int) -> Batch:
    """One sequence with nothing in it."""
    import torch

    from largebatch.data.text.masks import IGNORED

    phases = [number for number, other in enumerate(lengths_of(asked).by_phase) if other == length] or [-1]
    most = max(most_in(asked, phase) for phase in phases)
    positions = torch.zeros(1, most, dtype=torch.int64)
    labels = torch.full((1, most), IGNORED)
    labels[:, 0] = 0
    batch = {"tokens": torch.zeros(1, length, dtype=torch.int64), "positions": positions, "labels": labels}
    if asked.next_sentence:
        batch["segments"] = torch.zeros(1, length, dtype=torch.int64)
        batch["attended"] = torch.ones(1, length, dtype=torch.bool)
        batch["is_random"] = torch.zeros(1, dtype=torch.int64)
    return batch


def facts_of(asked: Asked) -> dict[str, str]:
    lengths = lengths_of(asked)
    tokens = " and ".join(str(length) for length in dict.fromkeys(lengths.by_phase))
    form = "pairs of segments" if asked.next_sentence else "sequences"
    whose = "held-out documents" if not asked.hold_out else f"{asked.hold_out} held out of the training documents"
    most = " and ".join(dict.fromkeys(str(most_in(asked, phase)) for phase in range(len(lengths.by_phase))))
    return {
        "examples": f"{form} of {tokens} tokens",
        "masked": f"{100 * asked.mask_share:g} % of the tokens, at most {most} in a sequence",
        "evaluated on": f"{whose}, in {form} of {lengths.evaluate} tokens",
    }


def preparation_of(asked: Asked, pack: TextPack) -> dict[str, object]:
    """How an input is made, to export."""
    return {
        "tokens": lengths_of(asked).evaluate,
        "vocabulary_sha256": pack.vocabulary_sha256,
        "special": dict(pack.special),
        "cased": pack.facts.cased,
    }


def contents_of(pack: TextPack) -> Contents:
    """What a resume knows the pack by: its vocabulary and its tokens."""
    import numpy as np

    from largebatch.data.contents import Listing

    nothing = np.zeros(0, dtype=np.int64)
    return {part: Listing((), nothing, numbers=pack.digest(part)) for part in ("train", "test")}
