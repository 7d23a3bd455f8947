"""What a run would meet here, before it starts: what is seen, and what would go wrong, a sentence with its remedy each.

look      what one rank sees of its own machine
recipe    what a recipe needs there
services  whether the services of record.to can be used
ranks     the same of all ranks, and what only ranks together can tell: an all-reduce, clocks, a shared folder
judge     the facts -> sentences; pure
lines     the facts -> what is printed
"""

from largebatch.studies.doctor.lines import lines
from largebatch.studies.doctor.ranks import NotTogether, examine, together

__all__ = ["NotTogether", "examine", "lines", "together"]
