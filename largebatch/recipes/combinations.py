"""Which methods do not go together: each refusal is one sentence with the keys."""

from __future__ import annotations

from largebatch.errors import UserError
from largebatch.recipes import config


def check_combinations(run: config.Run, precision: str) -> None:
    """Refuse a run whose methods contradict one another. ``precision``: the one that was chosen."""
    adascale = run.lr.scaling == "adascale"
    alone = run.averaging.name != "none"
    noise = run.record.noise_scale is not None
    engine = run.engine.name
    for asked, name in (
        (adascale, "lr.scaling = adascale"),
        (noise, "record.noise_scale"),
        (run.sam is not None, "sam"),
        (alone, f"averaging.name = {run.averaging.name}"),
    ):
        if asked and engine != "ddp":
            raise UserError(
                f"{name} needs engine.name = ddp, which keeps whole weights on every rank; here it is {engine}"
            )
        if asked and precision == "fp16":
            raise UserError(
                f"{name} does not go with precision = fp16, whose losses are scaled; valid: bf16, fp32, fp64"
            )
    if run.nonfinite_gradients.action == "skip":
        for asked, name in (
            (engine == "deepspeed", "engine.name = deepspeed"),
            (precision == "fp16", "precision = fp16, whose loss scaler skips such steps itself"),
            (adascale, "lr.scaling = adascale"),
            (run.sam is not None, "sam"),
            (alone, f"averaging.name = {run.averaging.name}"),
            (noise, "record.noise_scale"),
        ):
            if asked:
                raise UserError(
                    f"nonfinite_gradients.action = skip does not go with {name}; valid there: "
                    "nonfinite_gradients.action = stop"
                )
    sizes = run.data.image_size
    varying = sizes is not None and sizes.first != sizes.last
    if getattr(run.engine, "cuda_graphs", False):
        for asked, name in (
            (run.sam is not None, "sam"),
            (alone, f"averaging.name = {run.averaging.name}"),
            (run.batch.bn_batch_size is not None, "batch.bn_batch_size"),
            (run.batch_norm.statistics == "last", "batch_norm.statistics = last"),
            (run.batch.ramp is not None, "batch.ramp"),
            (varying and not run.compile, "data.image_size that grows, without compile = true"),
        ):
            if asked:
                raise UserError(f"engine.cuda_graphs = true does not go with {name}; leave engine.cuda_graphs out")
    if run.record.directions_every_steps and precision == "fp16":
        raise UserError(
            "record.directions_every_steps does not go with precision = fp16, whose gradients are scaled; valid: bf16, "
            "fp32, fp64"
        )
    for both, sentence in (
        (
            adascale and run.batch.ramp,
            "lr.scaling = adascale and batch.ramp both change what a step is worth; choose one",
        ),
        (
            adascale and run.sam,
            "lr.scaling = adascale measures gradients at the weights, sam takes them elsewhere; choose one",
        ),
        (
            noise and run.sam,
            "record.noise_scale measures gradients at the weights, sam takes them elsewhere; choose one",
        ),
        (
            (noise or run.record.directions_every_steps) and run.averaging.name == "post_local_sgd",
            "averaging.name = post_local_sgd has as many gradients and directions as workers; leave out "
            "record.noise_scale and record.directions_every_steps",
        ),
        (
            adascale and alone,
            f"lr.scaling = adascale needs one set of weights; averaging.name = {run.averaging.name} has many",
        ),
        (
            adascale and run.regime_adaptation,
            "lr.scaling = adascale and regime_adaptation both lengthen the run; choose one",
        ),
        (
            run.averaging.name == "swap" and run.ema,
            "averaging.name = swap ends with an average of its own; ema would follow only what came before: choose one",
        ),
        (
            run.averaging.name == "swap" and run.regime_adaptation,
            "averaging.name = swap and regime_adaptation: its workers' epochs are stated as they are meant; choose one",
        ),
        (
            isinstance(run.averaging, config.Swap) and run.averaging.lr.scaling == "adascale",
            "averaging.lr.scaling = adascale: a worker has one batch and no gain to measure; valid: linear, sqrt, none",
        ),
        (
            run.averaging.name == "post_local_sgd" and run.batch.ramp,
            "averaging.name = post_local_sgd divides one batch among its workers, batch.ramp changes it; choose one",
        ),
        (
            run.averaging.name == "post_local_sgd" and run.sam and run.sam.m is None,
            "averaging.name = post_local_sgd with sam needs sam.m: workers that step alone share no perturbation",
        ),
        (
            varying and (adascale or run.averaging.name == "swap"),
            "data.image_size that grows follows the examples of one plan, which lr.scaling = adascale ends early and "
            "averaging.name = swap begins anew; choose one",
        ),
        (
            run.batch_norm.statistics == "last" and run.batch.bn_batch_size is None and (alone or run.batch.ramp),
            "batch_norm.statistics = last needs batch.bn_batch_size where the micro-batch changes during the run "
            "(batch.ramp, averaging)",
        ),
        (
            run.ema and getattr(run.engine, "weights", "fp32") == "bf16",
            "ema cannot follow weights that are kept in bf16; valid: engine.weights = fp32",
        ),
    ):
        if both:
            raise UserError(sentence)
    if run.regime_adaptation is not None and run.epochs is None:
        raise UserError("regime_adaptation stretches a budget in epochs; this run states steps")
