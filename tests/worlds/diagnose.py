"""Every measurement of ``largebatch diagnose``, small, on one rank or several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from largebatch.machine import distributed
from largebatch.studies.diagnose import critical, noise, path, plateau, sharpness, spectrum

CPU = torch.device("cpu")
MEASURES: dict[str, Callable[[dict[str, Path]], Any]] = {
    "noise": lambda t: noise.measure(t["a"], CPU, small=10, big=60, batches=3, precision="fp64", hessian=True),
    "sharpness": lambda t: sharpness.measure(
        t["a"], CPU, examples=600, batch_size=100, dimensions=7, epsilons=[1e-3], precision="fp64"
    ),
    "spectrum": lambda t: spectrum.measure(
        t["a"], CPU, examples=600, batch_size=100, vectors=2, eigenvalues=2, exact_up_to=10, precision="fp64"
    ),
    "path": lambda t: path.measure(t["a"], t["b"], CPU, points=4, examples=600, batch_size=100, precision="fp64"),
    "plateau": lambda t: plateau.measure(t["a"], CPU, examples=600, batch_size=100, precision="fp64"),
}


def measure_all(runs: str) -> None:
    """``runs``: their folders by name, in JSON."""
    trained = {name: Path(folder) for name, folder in json.loads(runs).items()}
    with distributed.group(CPU):
        for measure in MEASURES.values():
            measure(trained)


def critical_of(run: str) -> None:
    with distributed.group(CPU):
        critical.measure(
            Path(run), CPU, factors=(1, 2), steps=(6,), window=300, orders=2, judge="held_out", noise_scale=False
        )
