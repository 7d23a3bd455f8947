"""How a step is carried out. Every engine has the same verbs: place, prepare, forward, backward, step, save, load."""

from largebatch.engines.ddp import Ddp
from largebatch.engines.deepspeed import DeepSpeed
from largebatch.engines.engine import Engine
from largebatch.engines.fsdp import Fsdp

ENGINES: dict[str, type[Engine]] = {engine.NAME: engine for engine in (Ddp, Fsdp, DeepSpeed)}
