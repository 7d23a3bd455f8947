"""Image sets in a form that a run does not read: a sentence with what to type."""

from __future__ import annotations

import pytest

from largebatch.data import sets
from largebatch.data.packs.origins import origins
from largebatch.errors import UserError


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["data/train-00000-of-00001.parquet"], "is a parquet folder, .*: `largebatch data pack .* PACK` packs it for"),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], "is a parquet folder"),
        (
            ["train-000.tar.gz", "val-000.tar.gz"],
            r"compressed shards \(train-000.tar.gz\), .*; `gunzip .*/\*.tar.gz` makes",
        ),
        (["train-000.tgz"], r"`gunzip .*/\*.tgz` makes .tar of them"),
        (["dataset_dict.json", "train/state.json", "train/data-00000-of-00001.arrow"], "was written by save_to_disk"),
        (
            ["state.json", "data-00000-of-00001.arrow"],
            r"load_from_disk\('.*'\)\[SPLIT\].to_parquet\('DIR/SPLIT-00000-of",
        ),
    ],
)
def test_what_to_type_is_said(tmp_path, files, said):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=said):
        sets.build("folder", root=str(tmp_path))
    if "parquet" not in files[0]:  # which can be packed
        with pytest.raises(UserError, match=said):
            origins(str(tmp_path))
