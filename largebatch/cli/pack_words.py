"""What is said of a pack, of images or of text, and what a user should know before training on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from largebatch.data.packs.manifest import PackRecord
    from largebatch.data.text.pack import TextPackRecord


def in_short(facts: PackRecord | TextPackRecord) -> str:
    return of_images(facts) if hasattr(facts, "splits") else of_text(facts)  # type: ignore[arg-type]


def notes(facts: PackRecord | TextPackRecord) -> list[str]:
    return image_notes(facts) if hasattr(facts, "splits") else text_notes(facts)  # type: ignore[arg-type]


def of_images(facts: PackRecord) -> str:
    images = " and ".join(f"{split.examples:,} {name}" for name, split in facts.splits.items())
    files = [file for split in facts.splits.values() for file in split.promised]
    form = "encoded as they were" if facts.size is None else f"of {facts.size} × {facts.size} pixels"
    size = sum(file.bytes for file in files)
    return f"{images} images of {len(facts.classes):,} classes, {form}, {size / 1e9:,.2f} GB in {len(files)} files"


def image_notes(facts: PackRecord) -> list[str]:
    lines = []
    for name, split in facts.splits.items():
        small = split.smallest
        if split.enlarged:
            lines.append(
                f"{split.enlarged:,} {name} image{'s were' if split.enlarged > 1 else ' was'} enlarged; the smallest, "
                f"{small.name}, is {small.width} × {small.height}"
            )
        if split.left_out:
            first, reason = next(iter(split.left_out.items()))
            lines.append(f"{len(split.left_out):,} of the {name} images left out, all in pack.json: {first} ({reason})")
    if "test" not in facts.splits:
        lines.append("no test images: no val or test was found beside train")
    return lines


def of_text(facts: TextPackRecord) -> str:
    parts = " and ".join(
        f"{part.documents:,} {name} documents of {part.tokens:,} tokens" for name, part in facts.parts.items()
    )
    size = sum(file.bytes for part in facts.parts.values() for file in part.files.values())
    case = "cased" if facts.cased else "in lower case"
    return f"{parts}, {case}, a vocabulary of {facts.vocabulary_size:,}, {size / 1e6:,.1f} MB"


def text_notes(facts: TextPackRecord) -> list[str]:
    if facts.parts["test"].documents:
        return [f"{100 * facts.held_out_share:g} % of the documents are held out to evaluate on, by their text"]
    return ["no document is held out to evaluate on: data.hold_out, or --hold-out of data tokenize"]
