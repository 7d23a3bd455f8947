"""Checkpoints: written beside the training, whole or not there, exact to the example, read without running code.

manifest.py    a checkpoint's folder, and whether it is what it was
tree.py        a state as JSON with tensors beside it
pieces.py      a tensor of which every rank holds some, and the part of it that a rank takes
writer.py      the copy, the thread that writes it, the name it gets when everything is on the disk
reader.py      the newest that is whole
retention.py   which ones stay
named.py       RUN, RUN@120, RUN@best: which one is meant
export.py      plain weights for others
randomness.py  the random state that each rank keeps to itself

torch.distributed.checkpoint shards, too, and can write safetensors. This format is kept for state that is no tensor
(plain JSON), ranges of ZeRO's flat partitions, checksums of every file, and retention.
"""

from largebatch.checkpoint.manifest import Damaged, existing, path_of, step_of
from largebatch.checkpoint.randomness import seed_rank
from largebatch.checkpoint.reader import Loaded, load_newest, state_of
from largebatch.checkpoint.retention import Retention
from largebatch.checkpoint.writer import Outcome, Writer, clear_up

__all__ = [
    "Damaged",
    "Loaded",
    "Outcome",
    "Retention",
    "Writer",
    "clear_up",
    "existing",
    "load_newest",
    "path_of",
    "seed_rank",
    "state_of",
    "step_of",
]
