"""What a recipe's model is made of, layer by layer, before anything is trained.

measure.py   one forward and backward pass of a micro-batch on tensors without memory
show.py      the table
"""

from largebatch.studies.layers.measure import measured
from largebatch.studies.layers.show import heading, sentences, table

__all__ = ["heading", "measured", "sentences", "table"]
