"""Packs and what they are made from, for tests: small image folders, shards, parquet files, and packs by hand."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from largebatch.data import folder
from largebatch.data.folder import Files, scan
from largebatch.data.packs import packing
from largebatch.data.packs.manifest import PackRecord
from largebatch.data.packs.origins import origins
from largebatch.data.sources import ImageSource


def packed(source: Path | str, dest: Path, val: str | None = None, **options: Any) -> PackRecord | None:
    settings: dict[str, Any] = {"size": 16, "workers": 2, **options}
    return packing.pack(origins(str(source), val), dest, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def encoded(width: int, height: int, seed: int = 0, form: str = "JPEG") -> bytes:
    """A photograph's kin: smooth, with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.clip(np.asarray(coarse) + rng.integers(-9, 10, (height, width, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, form)
    return file.getvalue()


def folder_sources(root: Path) -> dict[str, ImageSource]:
    return {"train": scan(root / "train"), "test": scan(root / "val")}


def as_shards(sources: dict[str, ImageSource], root: Path, per_shard: int = 8) -> Path:
    """WebDataset's form: 000000.jpg and 000000.cls, a few to a tar file."""
    root.mkdir()
    for split, source in sources.items():
        for begin in range(0, len(source), per_shard):
            with tarfile.open(root / f"{'val' if split == 'test' else split}-{begin // per_shard:06d}.tar", "w") as tar:
                for index in range(begin, min(begin + per_shard, len(source))):
                    for suffix, data in (("jpg", source.read(index)), ("cls", b"%d" % source.labels[index])):
                        member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return root


def as_parquet(sources: dict[str, ImageSource], root: Path, files: int = 3, row_group_size: int = 4) -> Path:
    """Hugging Face's form, a few row groups to a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, source in sources.items():
        features = {"image": {"_type": "Image"}, "label": {"names": list(source.classes), "_type": "ClassLabel"}}
        schema = pa.schema(
            [("image", image), ("label", pa.int64())],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        for number, rows in enumerate(np.array_split(np.arange(len(source)), files)):
            images = [{"bytes": source.read(i), "path": f"{i:03d}.jpg"} for i in rows.tolist()]
            table = pa.table({"image": images, "label": source.labels[rows]}, schema=schema)
            name = f"{'validation' if split == 'test' else split}-{number:05d}-of-{files:05d}.parquet"
            pq.write_table(table, root / "data" / name, row_group_size=row_group_size)
    return root


class SlowFiles(Files):
    """A worker that reads an image waits as long as ``<image>.wait`` lies beside it, as for a slow disk."""

    def read(self, index: int) -> bytes:
        gate = f"{self.name(index)}.wait"
        while multiprocessing.parent_process() is not None and os.path.exists(gate):
            time.sleep(0.01)
        return super().read(index)


def slow_files() -> None:
    """In a program: every folder that is scanned from now on may be slow."""
    folder.Files = SlowFiles


def by_hand(root: Path, per_file: list[int], side: int = 2, change: Callable[[dict], Any] = lambda facts: None) -> Path:
    """A pack as a stranger would write it, its pixels random; ``change`` has the last word on pack.json."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    count = sum(per_file)

    def saved(name: str, array: np.ndarray) -> dict[str, Any]:
        np.save(root / name, array)
        return promised(root / name)

    first = np.cumsum([0, *per_file]).tolist()
    files = [
        saved(f"train-{number:05d}.npy", rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8))
        | {"first": first[number], "examples": images}
        for number, images in enumerate(per_file)
    ]
    split = {
        "examples": count,
        "files": files,
        "labels": saved("train-labels.npy", np.arange(count) % 3),
        "names": saved("train-names.npy", np.array([f"{i}.jpg" for i in range(count)], np.bytes_)),
        "index": None,
        "enlarged": 0,
        "smallest": {"name": "0.jpg", "width": side, "height": side},
        "left_out": {},
    }
    facts = {
        "format": "largebatch pack",
        "version": 1,
        "form": "pixels",
        "size": side,
        "classes": ["a", "b", "c"],
        "splits": {"train": split},
        "source": {"given": "elsewhere", "kind": "by hand", "sha256": "0" * 64},
        "largebatch": "0",
    }
    change(facts)
    return sealed(root, facts)


def promised(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def facts_of(root: Path) -> dict[str, Any]:
    facts = json.loads((root / "pack.json").read_text())
    del facts["sha256"]
    return facts


def sealed(root: Path, facts: Any) -> Path:
    """pack.json with the checksum that fits its text."""
    before = json.dumps(facts, indent=1).removesuffix("\n}")
    checksum = hashlib.sha256(before.encode()).hexdigest()
    (root / "pack.json").write_text(f'{before},\n "sha256": "{checksum}"\n}}\n')
    return root
