"""Forms of image sets that a run does not read, and what to type so that it does."""

from __future__ import annotations

from pathlib import Path

from largebatch.data.packs.parquet import is_parquet
from largebatch.errors import UserError

SAVED_TO_DISK = ("state.json", "dataset_dict.json", "train/state.json")  # by datasets' save_to_disk
COMPRESSED = ("train-*.tar.gz", "train-*.tgz")


def refuse_other_forms(root: Path) -> None:
    """Where ``root`` is a parquet folder, a folder of ``save_to_disk``, or holds compressed shards."""
    if is_parquet(root):
        raise UserError(
            f"{root} is a parquet folder, which is read once, in order: `largebatch data pack {root} PACK` packs it "
            "for data.root=PACK"
        )
    refuse_unpackable(root)


def refuse_unpackable(root: Path) -> None:
    """The last two, which cannot be packed either."""
    if any((root / name).is_file() for name in SAVED_TO_DISK):
        raise UserError(
            f"{root} was written by save_to_disk of Hugging Face's datasets, which is not read; "
            f"`datasets.load_from_disk({str(root)!r})[SPLIT].to_parquet('DIR/SPLIT-00000-of-00001.parquet')` for each "
            "split makes a parquet folder, and `largebatch data pack DIR PACK` a pack for data.root=PACK"
        )
    if shards := sorted(path.name for pattern in COMPRESSED for path in root.glob(pattern)):
        suffix = shards[0].partition(".")[2]
        raise UserError(
            f"{root} holds compressed shards ({shards[0]}), of which no part can be read alone; "
            f"`gunzip {root}/*.{suffix}` makes .tar of them"
        )
