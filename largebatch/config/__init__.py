"""What the user wrote: a frozen :class:`Run`, read strictly from YAML and ``key=value`` overrides; no torch.

run.py         Run, and how it is read: file, table row, overrides
sections.py    what each key may hold
mistakes.py    what is wrong, in one sentence
"""

from largebatch.config.optimizers import (
    Adagrad,
    Adam,
    AdamW,
    HeavyBall,
    Lamb,
    Lars,
    Muon,
    Optimizer,
    Rmsprop,
    RmspropSgd,
    Sgd,
)
from largebatch.config.run import Run, from_dict, json_schema, load, overlay, read, row_of, rows_of, setting
from largebatch.config.sections import (
    Checkpoint,
    CosineDecay,
    Data,
    Keep,
    LearningRate,
    LinearDecay,
    NoiseScale,
    PiecewiseDecay,
    PolynomialDecay,
    PostLocalSgd,
    Ramp,
    StepsDecay,
    Swap,
)

__all__ = [
    "Adagrad",
    "Adam",
    "AdamW",
    "Checkpoint",
    "CosineDecay",
    "Data",
    "HeavyBall",
    "Keep",
    "Lamb",
    "Lars",
    "LearningRate",
    "LinearDecay",
    "Muon",
    "NoiseScale",
    "Optimizer",
    "PiecewiseDecay",
    "PolynomialDecay",
    "PostLocalSgd",
    "Ramp",
    "Rmsprop",
    "RmspropSgd",
    "Run",
    "Sgd",
    "StepsDecay",
    "Swap",
    "from_dict",
    "json_schema",
    "load",
    "overlay",
    "read",
    "row_of",
    "rows_of",
    "setting",
]
