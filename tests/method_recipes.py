"""One tiny recipe for each method beside the loop and each task: what tests of invariance and resuming go through."""

from __future__ import annotations

from typing import Any

import texts

PLAIN: dict[str, Any] = {
    "model": {"name": "tiny_cnn", "channels": [4, 6, 8], "norm": False},
    "data": {"name": "digits", "augment": "crop_flip"},
    "batch": {"global_batch_size": 120},
    "precision": "fp64",
    "device": "cpu",
    "epochs": 2,
    "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "weight_decay": {"value": 0.01},
    "lr": {"base": 0.05, "warmup": {"epochs": 0.5}, "decay": {"name": "cosine"}},
    "checkpoint": {"every_epochs": 0.5, "keep": 100},
    "record": {"to": []},
}
NORM = {"name": "tiny_cnn", "channels": [4, 6, 8], "norm": True}
CONSTANT = {"base": 0.05}
METHODS: dict[str, dict[str, Any]] = {
    "ramp": {
        "batch": {"global_batch_size": 60, "ramp": {"at_epochs": [0.5, 1.1, 1.5], "factor": 2, "largest": 240}},
        "lr": CONSTANT,
    },
    "adaptive_ramp": {
        "batch": {
            "global_batch_size": 60,
            "ramp": {
                "rule": "adaptive", "factor": 2, "largest": 480, "above": 0.05, "every_epochs": 0.3, "least_steps": 3,
                "lr": "sqrt",
            },
        },
        "model": {"name": "tiny_cnn", "channels": [4, 6, 8], "norm": False},
        "record": {"to": [], "noise_scale": {"every_steps": 2, "smoothing": 0.8, "small_batch_size": 30}},
    },
    "ramp_of_sizes": {"batch": {"global_batch_size": 120, "ramp": {"at_epochs": [0.7], "sizes": [300]}}},
    "phases": {  # batch down, size up, warm-up again; the stream crosses both edges within an epoch
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 15},
        "optimizer": {"name": "lars", "trust_coefficient": 0.01},
        "phases": [
            {"batch.global_batch_size": 240, "until_epoch": 0.7},
            {"batch.global_batch_size": 60, "steps": 11, "lr": {"base": 0.03}, "optimizer.momentum": 0.8},
            {"lr.warmup.epochs": 0.2, "batch.micro_batch_size": 15, "weight_decay.value": 0.05},
        ],
    },
    "ghost": {"model": NORM, "batch": {"global_batch_size": 120, "bn_batch_size": 20}},
    "ghost_in_micro_batches": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20, "micro_batch_size": 20},
    },
    "synchronised": {"model": NORM, "batch": {"global_batch_size": 120, "bn_batch_size": 120}},
    "last_statistics": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "batch_norm": {"statistics": "last"},
        "optimizer": {"name": "rmsprop_sgd", "center_epoch": 0.7, "period_epochs": 1},
        "lr": {"base": 0.05, "decay": {"name": "piecewise", "at_epochs": [1, 1.5], "factors": [0.5, 0.075, 0.01]}},
    },
    "precise_statistics": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "batch_norm": {"statistics": "precise", "examples": 500},
    },
    "adascale": {"lr": {"base": 0.05, "scaling": "adascale", "reference_batch_size": 20}, "epochs": 1},
    "sam": {"sam": {"rho": 0.1}},
    "sam_of_examples": {"sam": {"rho": 0.1, "m": 20}, "optimizer": {"name": "lars", "trust_coefficient": 0.01}},
    "sam_with_norm": {
        "model": NORM,
        "sam": {"rho": 0.1},
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "optimizer": {"name": "lamb"},
    },
    "post_local_sgd": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 15},
        "averaging": {"name": "post_local_sgd", "workers": 4, "period": 3},
        "lr": {"base": 0.05, "decay": {"name": "steps", "at_epochs": [0.7]}},
        "optimizer": {"name": "heavy_ball", "momentum_correction": True},
    },
    "post_local_sgd_with_ema": {
        "averaging": {"name": "post_local_sgd", "workers": 2, "period": 4, "from_epoch": 0.5},
        "ema": {"decay": 0.9},
        "optimizer": {"name": "lamb"},
        "lr": {"base": 0.01},
        "max_grad_norm": 1.0,
    },
    "swap": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 15},
        "data": {"name": "digits"},
        "epochs": 4,
        "averaging": {
            "name": "swap",
            "stop_at_train_accuracy": 50,
            "workers": 4,
            "worker_batch_size": 30,
            "epochs": 0.5,
            "lr": {"base": 0.02, "decay": {"name": "linear"}},
        },
        "lr": {"base": 0.1, "warmup": {"epochs": 0.5}},
    },
    "ema": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "ema": {"decay": 0.9, "every_steps": 2},
    },
    "ema_that_begins_small": {"ema": {"decay": 0.9, "every_steps": 2, "warmup": True}},
    "lawa": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "lawa": {"latest": 3, "every_steps": 4},
        "batch_norm": {"examples": 500},
    },
    "outer_momentum": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "optimizer": {"name": "adamw"},
        "outer_momentum": {"every_steps": 4},
        "ema": {"decay": 0.9},
        "lr": {"base": 0.01},
    },
    "looking_ahead": {  # as airbench does it, with views, rates and a decay as there
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "data": {
            "name": "digits",
            "augment": "crop_flip",
            "window": {"padding": 1, "fill": "reflect", "flips": "alternating"},
            "erase": {"probability": 1, "area": [0.140625, 0.140625], "ratio": [1, 1]},
        },
        "outer_momentum": {"every_steps": 4, "lr": 1, "end_lr": 0.2, "power": 3, "momentum": 0, "drop_rest": True},
        "lr": {"base": 0.02, "scales": {"norm": 4, "0.weight": {"until_epoch": 1.1}}},
        "weight_decay": {"value": 0.01, "skip": [], "even": True},
        "evaluate": {"flips": True, "shift": 1},
    },
    "outer_momentum_of_workers": {
        "averaging": {"name": "post_local_sgd", "workers": 4, "period": 2, "from_epoch": 0.3},
        "outer_momentum": {"every_steps": 4, "momentum": 0.9},
        "optimizer": {"name": "adamw"},
        "lr": {"base": 0.005},
    },
    "schedule_free": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "optimizer": {"name": "adamw", "beta1": 0},
        "schedule_free": {"beta": 0.8},
        "batch_norm": {"examples": 500},
        "lr": {"base": 0.01, "warmup": {"epochs": 0.5}},
    },
    "regime_adaptation": {
        "batch": {"global_batch_size": 120},
        "regime_adaptation": {"reference_batch_size": 60},
        "epochs": 1,
        "lr": {
            "base": 0.05,
            "reference_batch_size": 60,
            "scaling": "sqrt",
            "decay": {"name": "steps", "at_epochs": [0.5]},
        },
    },
    "lecture_adam": {"optimizer": {"name": "adam", "variant": "lecture"}, "lr": {"base": 0.002}},
    "mixed": {
        "data": {"name": "digits", "augment": "crop_flip", "mix": {"mixup": 0.4, "cutmix": 1.0, "per": "pair"}},
        "loss": {"name": "bce", "label_smoothing": 0.1, "threshold": 0.2},
    },
    "erased_and_repeated": {
        "data": {
            "name": "digits",
            "augment": "crop_flip",
            "policy": "trivial_augment_wide",
            "repeats": 3,
            "erase": {"probability": 0.5, "mode": "pixel"},
            "mix": {"mixup": 0.4},
        },
        "batch": {"global_batch_size": 120, "micro_batch_size": 20},
    },
    "mixed_by_batches_with_sam": {
        "data": {"name": "digits", "mix": {"mixup": 0.4, "cutmix": 1.0, "probability": 0.8}},
        "loss": {"label_smoothing": 0.1},
        "sam": {"rho": 0.1, "m": 20},
    },
    "regression": {
        "model": {"name": "mlp", "width": 16, "depth": 1},
        "data": {"name": "diabetes"},
        "batch": {"global_batch_size": 38},
    },
    "multilabel": {"data": {"name": "digit_pairs"}, "optimizer": {"name": "lars", "trust_coefficient": 0.01}},
    "masked_lm": {  # units that vary, two lengths of sequences, a second warm-up
        "model": {"name": "bert", "layers": 2, "width": 16, "heads": 2, "positions": 32, "dropout": 0.0},
        "data": {"name": "text", "root": str(texts.shared_pack()), "length": 32},
        "batch": {"global_batch_size": 96},
        "optimizer": {"name": "lamb"},
        "lr": {"base": 0.01, "warmup": {"epochs": 0.3}, "decay": {"name": "linear"}},
        "phases": [{"data.length": 16, "until_share": 0.6}, {"batch.global_batch_size": 48}],
        "evaluate": {"train": True},
    },
    "next_sentence": {
        "model": {"name": "bert", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "next_sentence": True},
        "data": {"name": "text", "root": str(texts.shared_pack()), "length": 24, "next_sentence": True},
        "optimizer": {"name": "adamw"},
        "lr": {"base": 0.01},
        "epochs": 1,
        "evaluate": {"train": True},
    },
    "target": {
        "model": {"name": "mlp", "width": 16, "depth": 1},
        "data": {"name": "digits"},
        "lr": {"base": 0.05},
        "evaluate": {"every_epochs": 0.2, "median_of": 2, "stop_at": {"score": 55, "patience": 2}},
    },
    "muon_normalised": {
        "model": NORM,
        "batch": {"global_batch_size": 120, "bn_batch_size": 20},
        "optimizer": {"name": "muon", "normalised": True, "match": "none", "ns_steps": 3, "iteration": "fp64"},
        "lr": {"base": 0.05, "scales": {"norm": 2, "11.*": 3}},
    },
    "muon_with_trust_ratio": {
        "optimizer": {"name": "muon", "variant": "orscale_lm", "iteration": "fp64"},
        "lr": {"base": 0.01},
    },
    "muon": {"optimizer": {"name": "muon", "variant": "normuon", "iteration": "fp64"}, "lr": {"base": 0.01}},
    "shampoo": {
        "optimizer": {"name": "shampoo", "grafting": "adagrad", "matrix_eps": 0.01, "roots": "svd", "block_size": 5},
        "lr": {"base": 0.02},
    },
    "shampoo_of_2018": {
        "optimizer": {"name": "shampoo", "variant": "gupta2018", "matrix_eps": 0.01},
        "lr": {"base": 0.02},
    },
    "soap": {  # no axis is longer than its gradient's rank, so that every basis is determined
        "optimizer": {"name": "soap", "max_preconditioner_dim": 8, "precondition_frequency": 3},
        "lr": {"base": 0.01},
    },
}  # fmt: skip


def recipe_of(method: str, **more: Any) -> dict[str, Any]:
    return {"name": method, **PLAIN, **METHODS[method], **more}
