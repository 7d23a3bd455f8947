"""Data sets: found, fetched, built by name (:mod:`largebatch.data.sets`), and read for training and evaluation.

Small sets live on the device and are augmented there (:mod:`largebatch.data.resident`); photographs are packs, folders
or shards (:mod:`largebatch.data.images`). Importing this loads no torch; what needs it is imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from largebatch.data.sets import Asked, build, built, finished
from largebatch.data.sizes import Sizes

if TYPE_CHECKING:
    from largebatch.data.dataset import Placement, Split, Splits

__all__ = ["Asked", "Placement", "Sizes", "Split", "Splits", "build", "built", "finished"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from largebatch.data import dataset

    return getattr(dataset, name)
