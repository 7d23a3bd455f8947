"""How a step is carried out. Every engine has the same verbs: prepare, forward, backward, step, save, load."""

from largebatch.engines.ddp import Ddp

ENGINES = {"ddp": Ddp}
