"""Optimizers: each states its equation in its module. Usable without the rest of the project."""

from largebatch.optim.directions import Directions, StepNumbers
from largebatch.optim.groups import TensorRate, Treatment, parameter_groups, tensor_rates, treatments
from largebatch.optim.heavy_ball import HeavyBall
from largebatch.optim.lamb import Lamb
from largebatch.optim.lars import Lars
from largebatch.optim.lecture import LectureAdagrad, LectureAdam, LectureRmsprop
from largebatch.optim.matrices import muon_groups, orthogonalised_names
from largebatch.optim.muon import Muon
from largebatch.optim.rmsprop_sgd import RmspropSgd, sgd_share
from largebatch.optim.shards import Partition, Segment
from largebatch.optim.telemetry import LayerNumbers, LayerValues, Watch

__all__ = [
    "Directions",
    "HeavyBall",
    "Lamb",
    "Lars",
    "LayerNumbers",
    "LayerValues",
    "LectureAdagrad",
    "LectureAdam",
    "LectureRmsprop",
    "Muon",
    "Partition",
    "RmspropSgd",
    "Segment",
    "StepNumbers",
    "TensorRate",
    "Treatment",
    "Watch",
    "muon_groups",
    "orthogonalised_names",
    "parameter_groups",
    "sgd_share",
    "tensor_rates",
    "treatments",
]
