"""Where compressed images come from: one order, one label each, any of them at any time.

    Files        train/<class>/*.jpg               folder.py
    Shards       WebDataset's tar files            shards/
    Parquet      Hugging Face's folders            packs/parquet.py, for packing alone
    JpegPack     ``data pack --jpeg``              packs/pack.py

A source crosses to worker processes by pickle: it holds paths and arrays of numbers, and opens files where it is read.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class ImageSource(Protocol):
    """Encoded images ``0 .. N-1`` of one split."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), each below ``len(classes)``."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file, or the archive and the member in it: what a message calls image ``index``."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded image, as it was written. Raises OSError."""
        ...

    def part(self, chosen: np.ndarray) -> ImageSource:
        """The images at the indices (or where the mask is true), in that order."""
        ...
