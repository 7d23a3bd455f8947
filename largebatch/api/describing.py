"""``lb.layers``: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from largebatch.api.handed_over import Handed, standing_in
from largebatch.errors import UserError
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
    if device not in ("cuda", "cpu"):
        raise UserError(f"device = {device} is not known; valid: cuda, cpu")
    if not isinstance(world_size, int) or world_size < 1:
        raise UserError(f"world_size = {world_size} should be a whole number of ranks, at least 1")
    from largebatch.api.training import one_at_a_time
    from largebatch.machine.as_found import as_found
    from largebatch.studies.dry_run import Cluster
    from largebatch.studies.layers import measured

    with one_at_a_time(), standing_in(run, Handed(model, dataset, task)) as standing, as_found():
        return measured(standing, Cluster(world_size, device))
