"""``lb.layers``: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from largebatch.api.handed_over import Handed, standing_in
from largebatch.recipes import config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from largebatch.records.looking import ModelRecord


def layers(
    run: config.Run | str | Path | Mapping[str, Any],
    *,
    model: Any = None,
    dataset: Any = None,
    task: Any = None,
    world_size: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
) -> ModelRecord:
    """Parameters, output shapes, operations and activations of every module, for one micro-batch. Nothing is trained.

    Args:
        run: a recipe, as :func:`largebatch.recipe` takes or makes it.
        model, dataset, task: as in :func:`largebatch.train`. A module that is handed over is left as it is.
        world_size: ranks, which decide the micro-batch.
        device: theirs, which decides the precision. None need be here.

    Operations are FLOP of matrix products, attention and convolutions, two for each multiply-add; activations are the
    bytes that autograd keeps for the backward pass.
    """
    from largebatch.studies.dry_run import Cluster
    from largebatch.studies.layers import measured

    with standing_in(run, Handed(model, dataset, task)) as standing:
        return measured(standing, Cluster(world_size, device))
