"""What the user wrote: a frozen :class:`Run`, read strictly from YAML and ``key=value`` overrides; no torch.

run.py             Run, and how it is read: file, table row, overrides
phases.py          keys that are laid over a recipe for a stretch of the run
model.py           the section of the model: what it begins with, what of it is trained
learning_rate.py   that of the learning rate: its peak at a batch, its warm-up, its decay
ramp.py            that of a batch that grows: when, by how much, and what the lr does then
recorded.py        that of the records: how often, and who gets the numbers beside the run's own files
engines.py         those of the engines
sections.py        what each other key may hold; those of optimizers and decays are in folders of their own
mistakes.py        what is wrong, in one sentence
"""

from largebatch.recipes.config.learning_rate import LearningRate, NoiseExamples
from largebatch.recipes.config.phases import of_phases
from largebatch.recipes.config.ramp import Ramp
from largebatch.recipes.config.run import Run, from_dict, json_schema, load, overlay, read, row_of, rows_of, setting
from largebatch.recipes.config.sections import Checkpoint, Data, Keep

__all__ = [
    "Checkpoint",
    "Data",
    "Keep",
    "LearningRate",
    "NoiseExamples",
    "Ramp",
    "Run",
    "from_dict",
    "json_schema",
    "load",
    "of_phases",
    "overlay",
    "read",
    "row_of",
    "rows_of",
    "setting",
]
