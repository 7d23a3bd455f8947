"""Every recipe against its paper: numbers typed here anew from the papers, never read from the files.

Then every recipe trains a few steps, with a tiny network and data set in place of its own, on one rank and on two.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool
import pytest
import yaml
from programs import REPOSITORY

from largebatch import models
from largebatch.errors import UserError
from largebatch.recipes import config, derive
from largebatch.run.train import train

CONFIGS = REPOSITORY / "configs"
WORKLOADS = {"imagenet": 1_281_167, "cifar10": 50_000, "mnist": 60_000}  # training images
RECIPES = sorted(path for workload in WORKLOADS for path in (CONFIGS / workload).glob("*.yaml"))
STUDIES = sorted(path for study in ("keskar", "lecture") for path in (CONFIGS / "studies" / study).glob("*.yaml"))


@dataclasses.dataclass(frozen=True)
class At:
    """What a paper says of one global batch. ``steps`` follow from the recipe; ``took`` is what a run measured."""

    lr: float
    warmup: float = 0.0  # epochs
    steps: int | None = None
    top1: float | None = None
    std: float | None = None
    took: int | None = None
    says: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Paper:
    headline: int  # the batch of the file as it stands
    says: dict[str, Any]  # dotted keys, at every batch
    at: dict[int, At]
    rounding: float = 0.0  # of the steps, relative


def of_error(error: float) -> float:
    return 100 - error


GOYAL = {
    "epochs": 90, "batch.bn_batch_size": 32, "optimizer.name": "sgd", "optimizer.momentum": 0.9,
    "optimizer.nesterov": True, "weight_decay.value": 1e-4, "weight_decay.skip": ("norm", "bias"),
    "lr.decay.name": "steps", "lr.decay.at_epochs": (30, 60, 80), "lr.decay.factor": 0.1,
    "model.name": "resnet50", "model.zero_init_residual": True, "model.head_init_std": 0.01,
    "batch_norm.momentum": 0.1, "evaluate.median_of": 5,
}  # fmt: skip
LARS = {
    "epochs": 100, "optimizer.name": "lars", "optimizer.variant": "you2017", "optimizer.momentum": 0.9,
    "optimizer.trust_coefficient": 0.001, "optimizer.eps": 0, "weight_decay.value": 5e-4,
    "lr.decay.name": "polynomial", "lr.decay.power": 2, "lr.decay.end_lr": 0,
}  # fmt: skip
NUS_LARS = {
    "epochs": 90, "optimizer.variant": "nus", "optimizer.momentum": 0.9, "weight_decay.value": 1e-4,
    "weight_decay.skip": ("norm", "bias"), "loss.label_smoothing": 0.1, "lr.decay.name": "polynomial",
    "lr.decay.power": 2, "lr.decay.end_lr": 0,
}  # fmt: skip
MLPERF = {
    "optimizer.name": "lars", "optimizer.variant": "you2017", "optimizer.eps": 0, "optimizer.trust_coefficient": 0.001,
    "loss.label_smoothing": 0.1, "lr.decay.name": "polynomial", "lr.decay.power": 2, "lr.decay.end_lr": 1e-4,
    "weight_decay.skip": ("norm", "bias"), "record.mllog": True, "evaluate.every_epochs": 4, "expect.top1": 75.9,
}  # fmt: skip
LAMB = {"epochs": 90, "optimizer.name": "lamb", "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.eps": 1e-6}
SQRT_LAMB = {"lr.scaling": "sqrt"} | {key: value for key, value in LAMB.items() if key != "epochs"}
HOFFER = {
    "batch.bn_batch_size": 128, "optimizer.momentum": 0.9, "max_grad_norm": 5.0,
    "regime_adaptation.reference_batch_size": 128, "lr.scaling": "sqrt",
}  # fmt: skip
HYSTS = {"epochs": 200, "optimizer.momentum": 0.9, "weight_decay.value": 1e-4, "lr.decay.name": "cosine"}
KESKAR = {"optimizer.name": "adam", "evaluate.train": True, "expect.source": "Table 2"}
F1 = {**KESKAR, "model.name": "mlp", "model.width": 512, "model.depth": 5, "model.norm": True}
C1 = {**KESKAR, "model.name": "keskar_c1", "data.augment": "none"}
ADASCALE = {"epochs": 100, "lr.scaling": "adascale", "optimizer.momentum": 0.9, "model.name": "resnet18_small"}


RSB = {  # as mmpretrain's files of it say; the accuracy of A1 is the abstract's
    "optimizer.name": "lamb", "optimizer.variant": "apex", "max_grad_norm": 1.0, "weight_decay.skip": ("norm", "bias"),
    "loss.name": "bce", "data.mix.cutmix": 1.0, "data.crop": 0.95, "lr.decay.name": "cosine", "lr.decay.end_lr": 1e-6,
    "model.name": "timm/resnet50",
}  # fmt: skip


KILOSTEP = 1 / (1 + 1 / (1 - 0.85))  # airbench's lr for the mean over 1024 examples
AIRBENCH = {
    "optimizer.name": "sgd", "optimizer.momentum": 0.85, "optimizer.nesterov": True, "loss.label_smoothing": 0.2,
    "model.name": "airbench", "data.augment": "crop_flip", "data.window.fill": "reflect",
    "data.window.flips": "alternating", "outer_momentum.every_steps": 5, "outer_momentum.lr": 1,
    "outer_momentum.end_lr": round(1 - 0.95**5, 10), "outer_momentum.power": 3, "outer_momentum.momentum": 0,
    "outer_momentum.drop_rest": True, "evaluate.flips": True, "evaluate.shift": 1, "weight_decay.skip": (),
    "weight_decay.even": True, "batch.bn_batch_size": 1024, "lr.decay.name": "linear",
}  # fmt: skip


def mlperf(lr, warmup, momentum, decay, bn, epochs, steps) -> At:
    keys = ("optimizer.momentum", "weight_decay.value", "batch.bn_batch_size", "epochs")
    return At(lr, warmup, steps, 75.9, took=steps, says=dict(zip(keys, (momentum, decay, bn, epochs), strict=True)))


def nus_lars(lr, warmup, eps, top1) -> At:
    return At(lr, warmup, top1=top1, says={"optimizer.eps": eps})


PAPERS = {
    # Goyal et al. 2017, table 1, table 2a, figures 1 and 3
    "imagenet/baseline": Paper(256, GOYAL, {256: At(0.1, top1=of_error(23.60), std=0.12)}),
    "imagenet/naive": Paper(8192, GOYAL, {8192: At(0.1, top1=of_error(41.67), std=0.10)}),
    "imagenet/goyal2017": Paper(
        8192,
        {**GOYAL, "lr.warmup.start": "base", "lr.scaling": "linear"},
        {
            batch: At(lr, 5, top1=of_error(error), std=std)
            for batch, lr, error, std in [
                (128, 0.05, 23.49, 0.12), (256, 0.1, 23.60, 0.12), (512, 0.2, 23.48, 0.09), (1024, 0.4, 23.53, 0.08),
                (2048, 0.8, 23.49, 0.11), (4096, 1.6, 23.56, 0.12), (8192, 3.2, 23.74, 0.09), (16384, 6.4, 24.79, 0.27),
                (32768, 12.8, 27.55, 0.28), (65536, 25.6, 33.96, 0.80),
            ]
        },
    ),
    # Nado et al. 2021: the lr is none of the paper's that could be verified
    "imagenet/nesterov2021": Paper(
        32768,
        {"steps": 2512, "batch.bn_batch_size": 64, "optimizer.nesterov": True},
        {32768: At(math.nan, math.nan, 2512, 75.9, took=2512)},
    ),
    # Wightman et al. 2021
    "imagenet/rsb2021-a1": Paper(
        2048,
        {
            **RSB, "epochs": 600, "weight_decay.value": 0.01, "data.mix.mixup": 0.2, "data.repeats": 3,
            "data.policy": "timm/rand-m7-mstd0.5-inc1", "model.model_extra": {"drop_path_rate": 0.05},
        },
        {2048: At(0.005, 5, math.ceil(600 * 1_281_167 / 2048), 80.4)},
    ),
    "imagenet/rsb2021-a2": Paper(
        2048,
        {
            **RSB, "epochs": 300, "weight_decay.value": 0.02, "data.mix.mixup": 0.1, "data.repeats": 3,
            "data.policy": "timm/rand-m7-mstd0.5-inc1", "model.model_extra": {"drop_path_rate": 0.05},
        },
        {2048: At(0.005, 5, 187_671, 79.8)},
    ),
    "imagenet/rsb2021-a3": Paper(
        2048,
        {
            **RSB, "epochs": 100, "weight_decay.value": 0.02, "data.mix.mixup": 0.1, "data.repeats": 1,
            "data.policy": "timm/rand-m6-mstd0.5-inc1", "data.image_size.last": 160, "data.image_size.evaluate": 224,
        },
        {2048: At(0.008, 5, 62_557, 78.1)},
    ),
    # torchvision's command line of ResNet-50's second weights
    "imagenet/torchvision2021": Paper(
        8 * 128,
        {
            "epochs": 600, "optimizer.name": "sgd", "optimizer.momentum": 0.9, "weight_decay.value": 2e-5,
            "weight_decay.skip": ("norm",), "loss.label_smoothing": 0.1, "data.mix.mixup": 0.2, "data.mix.cutmix": 1.0,
            "data.policy": "trivial_augment_wide", "data.erase.probability": 0.1, "data.repeats": 4,
            "data.image_size.last": 176, "data.image_size.evaluate": 224, "data.crop": round(224 / 232, 4),
            "lr.decay.name": "cosine", "lr.warmup.start": 0.01 * 0.5, "batch.bn_batch_size": 128,
            "ema.decay": round(1 - (1 - 0.99998) * 32 * 1024 / 600, 6), "ema.every_steps": 32,
        },
        {1024: At(0.5, 5)},
    ),
    # Touvron et al. 2020, the defaults of main.py of facebookresearch/deit and its README
    "imagenet/deit2021": Paper(
        4 * 256,
        {
            "epochs": 300, "optimizer.name": "adamw", "optimizer.eps": 1e-8, "weight_decay.value": 0.05,
            "loss.label_smoothing": 0.1, "data.mix.mixup": 0.8, "data.mix.cutmix": 1.0, "data.repeats": 3,
            "data.policy": "timm/rand-m9-mstd0.5-inc1", "data.erase.probability": 0.25, "data.erase.mode": "pixel",
            "lr.warmup.start": 1e-6, "lr.decay.end_lr": 1e-5, "ema.decay": 0.99996,
            "model.model_extra": {"drop_path_rate": 0.1},
        },
        {1024: At(5e-4 * 1024 / 512, 5, 375_342, 79.9)},
    ),
    # Beyer et al. 2022, big_vision/configs/vit_s16_i1k.py; there the decay is 1e-4 of a weight at the peak of the lr
    "imagenet/beyer2022": Paper(
        1024,
        {
            "epochs": 90, "optimizer.name": "adamw", "optimizer.beta1": 0.9, "optimizer.beta2": 0.999,
            "max_grad_norm": 1.0, "lr.warmup.steps": 10_000, "lr.warmup.start": "zero", "lr.decay.name": "cosine",
            "weight_decay.value": 1e-4 / 1e-3, "weight_decay.skip": ("norm", "bias"), "data.mix.mixup": 0.2,
            "data.mix.cutmix": 0, "data.policy": "timm/rand-m10-n2-p1", "loss.label_smoothing": 0,
            "model.model_extra": {},
        },
        {1024: At(1e-3, 10_000 * 1024 / 1_281_167, round(90 * 1_281_167 / 1024), 76.5)},
    ),
    # Liu et al. 2022, TRAINING.md and main.py of facebookresearch/ConvNeXt: 4 nodes of 8 devices of 128
    "imagenet/convnext2022": Paper(
        4 * 8 * 128,
        {
            "epochs": 300, "optimizer.name": "adamw", "optimizer.eps": 1e-8, "weight_decay.value": 0.05,
            "weight_decay.skip": ("norm", "bias", "*.gamma"), "loss.label_smoothing": 0.1, "data.mix.mixup": 0.8,
            "data.mix.cutmix": 1.0, "data.policy": "timm/rand-m9-mstd0.5-inc1", "data.erase.probability": 0.25,
            "data.erase.mode": "pixel", "lr.warmup.start": "zero", "lr.decay.name": "cosine", "lr.decay.end_lr": 1e-6,
            "ema.decay": 0.9999, "model.name": "timm/convnext_tiny", "max_grad_norm": None,
            "model.model_extra": {"drop_path_rate": 0.1, "ls_init_value": 1e-6},
        },
        {4096: At(4e-3, 20)},
    ),
    # mlcommons/algorithmic-efficiency, target_setting_algorithms: settings, and 0.75 of the workload's step hint
    "imagenet/algoperf-vit": Paper(
        1024,
        {
            "optimizer.name": "nadamw", "optimizer.beta1": 0.8895758153482813, "optimizer.eps": 1e-8,
            "optimizer.beta2": 0.9978504782314613, "weight_decay.value": 0.08135402759553023, "weight_decay.skip": (),
            "lr.warmup.steps": 6999, "lr.decay.name": "cosine", "lr.decay.end_lr": 0, "loss.label_smoothing": 0,
            "data.mix.mixup": 0.2, "max_grad_norm": None,
        },
        {1024: At(0.0008445074561975979, 6999 * 1024 / 1_281_167, int(0.75 * 167_999), 100 * (1 - 0.22691))},
    ),
    "imagenet/algoperf-resnet50": Paper(
        1024,
        {
            "optimizer.name": "sgd", "optimizer.momentum": 0.9274758113254791, "optimizer.nesterov": False,
            "weight_decay.value": 5.6687777311501786e-6, "weight_decay.skip": (), "loss.label_smoothing": 0.2,
            "lr.warmup.steps": 6999, "lr.decay.name": "linear", "batch.bn_batch_size": 1024 // 8,
            "lr.decay.end_step": 6999 + int((int(0.75 * 195_999) - 6999) * 0.9007765761611038),
            "model.zero_init_residual": True, "model.head_init_std": 0.01,
        },
        {1024: At(4.131896390902391, 6999 * 1024 / 1_281_167, int(0.75 * 195_999), 100 * (1 - 0.22569))},
    ),
    # Leclerc et al. 2023, rn50_16_epochs.yaml of the authors
    "imagenet/ffcv2023": Paper(
        4096,
        {
            "epochs": 16, "batch.bn_batch_size": 512, "optimizer.name": "sgd", "optimizer.momentum": 0.9,
            "weight_decay.value": 1e-4, "weight_decay.skip": ("norm",), "lr.decay.name": "linear",
            "loss.label_smoothing": 0.1, "model.name": "resnet50", "data.image_size.first": 160,
            "data.image_size.last": 192, "data.image_size.evaluate": 256, "data.image_size.from_epoch": 11,
            "data.image_size.until_epoch": 13, "data.image_size.multiple_of": 32,
        },
        {4096: At(1.7, 2, top1=73.8)},
    ),
    # You, Gitman, Ginsburg 2017, tables 3 and 4
    "imagenet/lars2017": Paper(
        32768,
        LARS,
        {
            256: At(4, 0, top1=75.8), 1024: At(9, 5, top1=75.4), 8192: At(30, 5, top1=75.2),
            16384: At(33, 12, top1=74.4), 32768: At(40, 12, top1=72.5),
        },
    ),
    "imagenet/lars2017-alexnet": Paper(
        8192,
        {**LARS, "model.name": "torchvision/alexnet"},
        {
            512: At(2, 2, top1=58.7), 4096: At(10, 2, top1=58.5), 8192: At(10, 2, top1=58.2),
            16384: At(14, 2, top1=55.0), 32768: At(14, 2, top1=46.9),
        },
    ),
    # NUS's README writes the lr as powers of two and the warm-up as fractions
    "imagenet/lars-nus": Paper(
        32768,
        NUS_LARS,
        {
            512: nus_lars(2**2, 10 / 64, 1e-5, 77.02), 1024: nus_lars(2**2.5, 10 / 32, 1e-5, 76.96),
            4096: nus_lars(2**3.5, 10 / 8, 1e-5, 77.38), 8192: nus_lars(2**4, 10 / 4, 1e-5, 77.14),
            16384: nus_lars(2**4.5, 5, 1e-5, 76.96), 32768: nus_lars(2**5, 14, 0, 76.75),
        },
    ),
    # rcps_resnet.json; the steps are of mean epochs that the file does not round as this table does
    "imagenet/mlperf-lars": Paper(
        32768,
        MLPERF,
        {
            1632: mlperf(7.4, 2, 0.9, 5e-5, 204, 35.0, 27476), 3264: mlperf(10.5, 2, 0.9, 5e-5, 204, 35.2, 13817),
            4096: mlperf(10, 5, 0.9, 2e-4, 64, 40.0, 12511), 8192: mlperf(17, 5, 0.9, 2e-4, 64, 42.0, 6568),
            32768: mlperf(21.2, 16, 0.94, 2.5e-5, 128, 56.0, 2189),
            58880: mlperf(23.246, 29, 0.951807, 1e-4, 230, 79.9, 1739),
            65536: mlperf(24.699, 31, 0.951807, 1e-4, 128, 84.5, 1652),
            67840: mlperf(24.699, 31, 0.951807, 1e-4, 424, 85.9, 1621),
        },
        rounding=0.0015,
    ),
    # You et al. 2019: the rule; lr and warm-up of 1K and 2K are not verified and not here
    "imagenet/lamb2019": Paper(
        32768,
        {**LAMB, "optimizer.variant": "you2019"},
        {
            512: At(4 / (2**3 * 100), 0.3125), 4096: At(4 / (2**1.5 * 100), 2.5), 8192: At(0.02, 5),
            16384: At(4 / (2**0.5 * 100), 10), 32768: At(0.04, 20, 3519, 76.3, took=3519),
        },
    ),
    "imagenet/lamb-nus": Paper(
        32768,
        {
            **LAMB, "optimizer.variant": "nus", "weight_decay.value": 1.5, "weight_decay.skip": ("norm", "bias"),
            "max_grad_norm": 1.0, "loss.label_smoothing": 0.1, "lr.decay.name": "polynomial", "lr.decay.power": 1,
        },
        {
            4096: At(4 / (2**1.5 * 100), 2.5, top1=77.14), 8192: At(0.02, 5, top1=77.31),
            16384: At(4 / (2**0.5 * 100), 10, top1=76.91), 32768: At(0.04, 20, top1=76.71),
        },
    ),
    # Akiba et al. 2017: batch and epochs from the abstract, the rest as quoted by later papers
    "imagenet/akiba2017": Paper(
        32768,
        {
            "epochs": 90, "optimizer.name": "rmsprop_sgd", "optimizer.momentum": 0.9, "optimizer.decay": 0.99,
            "optimizer.eps": 1e-8, "optimizer.rmsprop_lr": 3e-4, "optimizer.center_epoch": 10,
            "optimizer.period_epochs": 5, "optimizer.ramp": "smooth", "batch_norm.statistics": "last",
            "engine.all_reduce": "fp16", "expect.top1": 74.9,
        },
        {32768: At(12.8)},
    ),
    # Gupta et al. 2020: the method alone
    "imagenet/swap2020": Paper(
        2048, {"epochs": 28, "averaging.name": "swap", "averaging.workers": 8}, {2048: At(math.nan, math.nan)}
    ),
    "cifar10/swap2020": Paper(4096, {"averaging.name": "swap"}, {4096: At(math.nan, math.nan)}),
    # Smith et al. 2018, as quoted by later papers
    "imagenet/smith2018": Paper(
        8192,
        {"optimizer.momentum": 0.9, "batch.bn_batch_size": 32, "model.name": "timm/inception_resnet_v2"},
        {8192: At(3.0)},
    ),
    "cifar10/smith2018": Paper(
        128,
        {
            "optimizer.momentum": 0.9, "model.name": "wide_resnet", "model.depth": 16, "model.width": 4,
            "batch.ramp.factor": 5, "batch.ramp.largest": 5120, "expect.top1": 94.3,
        },
        {128: At(0.1)},
    ),
    # Johnson et al. 2020, table 2; 451k steps there are 90 epochs and a little
    "imagenet/adascale2020": Paper(
        32768,
        {**ADASCALE, "epochs": 90, "lr.reference_batch_size": 256, "model.name": "resnet50"},
        {
            256 * parts: At(0.1, 0, 451_000, top1, took=took)
            for parts, top1, took in [
                (1, 76.4, 451_000), (16, 76.5, 33_200), (32, 76.6, 18_700), (64, 76.5, 11_200), (128, 76.5, 7_290),
            ]
        },
        rounding=0.002,
    ),
    "cifar10/adascale2020": Paper(
        8192,
        {**ADASCALE, "lr.reference_batch_size": 128},
        {
            128 * parts: At(0.1, 0, 39_100, top1, took=took)
            for parts, top1, took in [
                (1, 94.1, 39_100), (8, 94.1, 5_850), (16, 94.1, 3_360), (32, 94.1, 2_080), (64, 93.9, 1_410),
            ]
        },
        rounding=0.002,
    ),
    # its column LSW: the lr at 128 is ours, its multiples and the warm-up are the table's
    "cifar10/goyal2017": Paper(
        4096,
        {**ADASCALE, "lr.scaling": "linear", "lr.reference_batch_size": 128},
        {
            128: At(0.1, 0.055 * 100, 39_100, 94.1, took=39_100), 1024: At(0.8, 0.055 * 100, 4_880, 94.0, took=4_880),
            2048: At(1.6, 0.055 * 100, 2_440, 93.6, took=2_440), 4096: At(3.2, 0.055 * 100, 1_220, 92.8, took=1_220),
            8192: At(6.4, 0.055 * 100, 611, 76.6, took=611),
        },
        rounding=0.002,
    ),
    "cifar10/baseline": Paper(
        128, {**ADASCALE, "lr.scaling": "none"}, {128: At(0.1, 0, 39_100, 94.1, took=39_100)}, rounding=0.002
    ),
    # README of hysts/pytorch_image_classification
    "cifar10/krizhevsky2014": Paper(
        4096,
        {**HYSTS, "optimizer.name": "sgd", "optimizer.nesterov": True},
        {
            batch: At(lr, top1=of_error(error))
            for batch, lr, error in [
                (8, 0.00625, 7.70), (16, 0.0125, 7.75), (32, 0.025, 8.00), (64, 0.05, 8.22), (128, 0.1, 8.09),
                (256, 0.2, 8.61), (512, 0.4, 8.22), (1024, 0.8, 8.40), (2048, 1.6, 8.87), (4096, 3.2, 10.57),
            ]
        },
    ),
    "cifar10/lars2017": Paper(
        4096,
        {**HYSTS, "optimizer.name": "lars", "optimizer.trust_coefficient": 1.0},
        {
            batch: At(lr, top1=of_error(error))
            for batch, lr, error in [
                (128, 0.005, 7.96), (256, 0.005, 7.75), (512, 0.0075, 7.58), (1024, 0.01, 7.68), (2048, 0.02, 8.05),
                (4096, 0.02, 8.21),
            ]
        },
    ),
    # Hoffer et al. 2017, regimes of eladhoffer/bigBatch
    "cifar10/hoffer2017": Paper(
        4096,
        {**HOFFER, "weight_decay.value": 1e-4, "model.name": "resnet20", "model.depth": 44},
        {128: At(0.1), 4096: At(0.1 * 5.656854)},
    ),
    "cifar10/hoffer2017-wrn": Paper(
        4096, {**HOFFER, "model.depth": 16, "model.width": 4}, {128: At(0.1), 4096: At(0.1 * 5.656854)}
    ),
    "mnist/hoffer2017": Paper(
        4096,
        {
            **HOFFER, "weight_decay.value": 1e-4, "epochs": 50, "model.name": "mlp", "model.width": 512,
            "model.depth": 5, "model.norm": True,
        },
        {128: At(0.1, 0, math.ceil(50 * 60_000 / 128)), 4096: At(0.1 * 5.656854, 0, math.ceil(50 * 60_000 / 128))},
    ),
    # README of epfml/LocalSGD-Code; that "scaled up" means linearly is our reading
    "cifar10/postlocal2020": Paper(
        2048,
        {
            "epochs": 300, "averaging.workers": 16, "averaging.period": 16, "averaging.from_epoch": 150,
            "lr.decay.at_epochs": (150, 225), "lr.decay.factor": 0.1, "weight_decay.value": 1e-4,
            "optimizer.nesterov": True, "optimizer.momentum": 0.9, "batch.bn_batch_size": 128,
        },
        {2048: At(0.1 * 2048 / 64, 5)},
    ),
    # Foret et al. 2021: rho alone
    "imagenet/sam2021": Paper(4096, {"sam.rho": 0.05}, {4096: At(math.nan, math.nan)}),
    "cifar10/sam2021": Paper(256, {"sam.rho": 0.05}, {256: At(math.nan, math.nan)}),
    # README of KellerJordan/cifar10-airbench, 94_muon
    "cifar10/muon": Paper(
        2000,
        {
            "epochs": 8, "optimizer.name": "muon", "optimizer.momentum": 0.6, "optimizer.nesterov": True,
            "optimizer.others": "sgd", "weight_decay.value": 2e-6 * 2000, "loss.label_smoothing": 0.2,
        },
        {2000: At(0.24, steps=200, top1=94.01)},
    ),
    # Lou and You 2026, cifar10_davidnet.yaml and README.md of NUS-HPC-AI-Lab/OrScale
    "cifar10/orscale2026": Paper(
        512,
        {
            "epochs": 24, "optimizer.name": "muon", "optimizer.variant": "orscale", "optimizer.momentum": 0.95,
            "optimizer.nesterov": True, "optimizer.match": "none", "optimizer.ns_steps": 5, "optimizer.others": "adamw",
            "optimizer.min_trust_ratio": 0.5, "optimizer.max_trust_ratio": 1.5, "optimizer.others_lr_scale": 0.05,
            "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "weight_decay.value": 5e-4, "weight_decay.skip": (),
            "lr.decay.name": "cosine", "lr.decay.end_lr": 0, "loss.label_smoothing": 0, "data.window.padding": 4,
        },
        {512: At(0.02, 500 * 512 / 50_000, 2344, 94.05, std=0.08)},
    ),
    # Jordan 2024, legacy/airbench94.py, legacy/airbench96.py and airbench94_muon.py of KellerJordan/cifar10-airbench
    "cifar10/airbench94": Paper(
        1024,
        {
            **AIRBENCH, "batch_norm.momentum": 1 - 0.6, "data.window.padding": 2, "model.model_extra": {},
            "lr.warmup.steps": int(0.23 * 476), "data.erase": None,
        },
        {1024: At(11.5 * KILOSTEP, int(0.23 * 476) * 1024 / 50_000, math.ceil(9.9 * 48), 94.01)},
    ),
    "cifar10/airbench96": Paper(
        1024,
        {
            **AIRBENCH, "batch_norm.momentum": None, "data.window.padding": 4, "lr.warmup.steps": int(0.1 * 1776),
            "model.model_extra": {"channels": [128, 384, 512], "convolutions": 3}, "data.erase.probability": 1,
            "data.erase.area": (144 / 1024, 144 / 1024), "data.erase.ratio": (1, 1), "data.erase.mode": "constant",
        },
        {1024: At(9 * KILOSTEP, int(0.1 * 1776) * 1024 / 50_000, 37 * 48, 96.03)},
    ),
    "cifar10/airbench94-muon": Paper(
        2000,
        {
            "epochs": 8, "optimizer.name": "muon", "optimizer.momentum": 0.6, "optimizer.nesterov": True,
            "optimizer.ns_steps": 3, "optimizer.match": "none", "optimizer.normalised": True,
            "optimizer.others_momentum": 0.85, "optimizer.others": "sgd", "optimizer.others_lr_scale": 1,
            "loss.label_smoothing": 0.2, "lr.decay.name": "linear", "lr.decay.end_lr": 0, "data.window.padding": 2,
            "batch_norm.momentum": 1 - 0.6, "weight_decay.even": True, "outer_momentum": None, "evaluate.shift": 1,
            "model.model_extra": {"logit_scale": 1 / 256, "head_init_std": 1},
        },
        {2000: At(0.24, steps=200, top1=94.01)},
    ),
    # the speed records: batch, accuracy, method
    "imagenet/mikami2018": Paper(
        34816,
        {"optimizer.name": "lars", "batch.ramp.sizes": (69632,), "expect.top1": 75.03},  # 75.03 as quoted later
        {34816: At(math.nan, math.nan)},
    ),
    "imagenet/jia2018": Paper(65536, {"optimizer.name": "lars"}, {65536: At(math.nan, math.nan, top1=75.8)}),
    "imagenet/ying2018": Paper(32768, {}, {32768: At(math.nan, math.nan, top1=76.3)}),
    "imagenet/yamazaki2019": Paper(81920, {"optimizer.name": "lars"}, {81920: At(math.nan, math.nan, top1=75.08)}),
    # the lecture: the batches of slides 21 to 24, with one lr that is ours, and the formulas
    "mnist/baseline": Paper(
        100,
        {"optimizer.name": "heavy_ball"},
        {batch: At(0.01) for batch in (1, 10, 100, 1000, 10_000, 60_000)},
    ),
    "mnist/naive": Paper(10_000, {"optimizer.name": "heavy_ball"}, {10_000: At(0.01)}),
    "mnist/lecture-adagrad": Paper(100, {"optimizer.name": "adagrad", "optimizer.variant": "lecture"}, {}),
    "mnist/lecture-rmsprop": Paper(100, {"optimizer.name": "rmsprop", "optimizer.variant": "lecture"}, {}),
    "mnist/lecture-adam": Paper(100, {"optimizer.name": "adam", "optimizer.variant": "lecture"}, {}),
    # slide 24, validation; the rules of Goyal and LAMB on it: only their multiples of an lr that is ours
    "lecture/mnist": Paper(
        100,
        {"optimizer.name": "adam"},
        {
            1: At(1e-3, top1=99.14), 10: At(1e-3, top1=99.32), 100: At(1e-3, top1=99.23), 1000: At(1e-3, top1=98.99),
            10_000: At(1e-3, top1=97.00), 60_000: At(1e-3, top1=87.06),
        },
    ),
    "lecture/cifar10": Paper(
        100,
        {"optimizer.name": "adam"},
        {
            1: At(1e-3, top1=61.0), 10: At(1e-3, top1=55.1), 100: At(1e-3, top1=45.8), 1000: At(1e-3, top1=42.6),
            10_000: At(1e-3, top1=43.8), 50_000: At(1e-3, top1=33.4),
        },
    ),
    "lecture/mnist-goyal": Paper(
        1000, {"lr.scaling": "linear", "lr.warmup.start": "base", "optimizer.momentum": 0.9}, {1000: At(0.1, 1)}
    ),
    "lecture/cifar10-goyal": Paper(
        1000, {"lr.scaling": "linear", "lr.warmup.start": "base", "optimizer.momentum": 0.9}, {1000: At(0.1, 0.5)}
    ),
    "lecture/mnist-lamb": Paper(1000, SQRT_LAMB, {1000: At(0.0316228, 0.5), 10_000: At(0.1, 0.5)}),
    "lecture/cifar10-lamb": Paper(1000, SQRT_LAMB, {1000: At(0.0316228, 0.5), 10_000: At(0.1, 0.5)}),
    # Keskar et al. 2017, table 2
    "keskar/f1-small": Paper(256, {**F1, "expect.top1": 98.03}, {256: At(1e-3)}),
    "keskar/f1-large": Paper(60_000 // 10, {**F1, "expect.top1": 97.81}, {6000: At(1e-3)}),
    "keskar/c1-small": Paper(256, {**C1, "expect.top1": 80.04}, {256: At(1e-3)}),
    "keskar/c1-large": Paper(50_000 // 10, {**C1, "expect.top1": 77.26}, {5000: At(1e-3)}),
}  # fmt: skip
OURS = {  # no paper has these numbers
    "imagenet/lars-sam", "imagenet/lamb-sam", "imagenet/lamb2019-two-phases", "cifar10/naive", "cifar10/lamb2019",
}  # fmt: skip

NOT_READ_AT_THE_SOURCE = {  # so their `expect` holds words, no number
    "imagenet/swap2020", "imagenet/sam2021", "cifar10/swap2020", "cifar10/sam2021", "cifar10/hoffer2017",
    "cifar10/hoffer2017-wrn", "cifar10/postlocal2020", "mnist/hoffer2017",
}  # fmt: skip
SHAPE_ALONE = {"lecture/mnist", "lecture/cifar10", "imagenet/ffcv2023"}  # another network or test: no number of its own
UNVERIFIED = {  # numbers from memory: their lines say so
    "imagenet/nesterov2021": ["0.9761", "7.05", "16.32", "6e-6", "5.8e-5", "0.15"],
    "imagenet/akiba2017": ["{value: 1e-4", "bn_batch_size: 32"],
    "cifar10/swap2020": ["resnet9", "4096", "1.2", "98", "512", "30  ", "0.15"],
    "cifar10/sam2021": ["width: 10"],
    "imagenet/rsb2021-a1": ["label_smoothing: 0.1"],
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


FILES = {name_of(path): path for path in (*RECIPES, *STUDIES)}


def load(name: str, *overrides: str) -> config.Run:
    return config.load(FILES[name], overrides)


def derived(name: str, *overrides: str):
    """(run, plan, schedule as a function of epochs) at the recipe's real data set."""
    run = load(name, *overrides)
    examples = WORKLOADS[run.data.name]
    plan = derive.plan_of(run, examples, world_size=1, largest_micro_batch=2048)
    schedule = derive.learning_rate_of(run, plan).schedule
    return run, plan, lambda epoch: schedule(epoch * examples)


def value_at(run: config.Run, key: str) -> Any:
    found: Any = run
    for name in key.split("."):
        found = getattr(found, name)
    return found


def test_every_recipe_is_in_the_table():
    assert set(FILES) == set(PAPERS) | OURS
    assert not set(PAPERS) & OURS


@pytest.mark.parametrize("name", PAPERS)
def test_what_the_paper_says(name):
    """At every batch, then at each one it published: the lr, the steps, and what else it says of that one."""
    paper, run = PAPERS[name], load(name)
    offenders = [] if run.batch.global_batch_size == paper.headline else [(name, run.batch.global_batch_size)]
    offenders += contradicted(run, paper.says)
    for size, row in paper.at.items():
        offenders += [(size, *wrong) for wrong in contradicted_at(name, size, row, paper.rounding)]
    assert not offenders


def contradicted(run: config.Run, says: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(key, what the recipe says, what the paper says)"""
    return [(key, value_at(run, key), value) for key, value in says.items() if value_at(run, key) != value]


def contradicted_at(name: str, size: int, row: At, rounding: float) -> list[tuple[Any, ...]]:
    """The same of what follows at a batch."""
    run, plan, _ = derived(name, f"batch.global_batch_size={size}")
    schedule = derive.learning_rate_of(run, plan).schedule
    pairs: list[tuple[str, Any, Any]] = []
    if not math.isnan(row.lr):
        pairs.append(("peak lr", schedule.peak, pytest.approx(row.lr, rel=1e-6)))
        pairs.append(("warm-up", schedule.warmup / plan.dataset_size, pytest.approx(row.warmup)))
    if row.steps is not None:
        pairs.append(("steps", plan.steps, pytest.approx(row.steps, rel=rounding)))
    return [pair for pair in pairs if pair[1] != pair[2]] + contradicted(run, row.says)


@pytest.mark.parametrize("name", PAPERS)
def test_the_published_results(name):
    paper, expect = PAPERS[name], load(name).expect
    published = {} if expect is None else expect.by_batch_size
    wanted = {size for size, row in paper.at.items() if row.top1 is not None or row.took is not None}
    assert wanted <= set(published) <= set(paper.at)
    for size, found in published.items():
        row = paper.at[size]
        assert found.top1 == (None if row.top1 is None else pytest.approx(row.top1)), size
        assert (found.top1_std, found.steps) == (row.std, row.took), size
        assert found.epochs in (None, load(name, f"batch.global_batch_size={size}").epochs), size
    headline = published.get(paper.headline)
    if headline is not None and headline.top1 is not None:
        assert expect.top1 == (None if name in SHAPE_ALONE else headline.top1)
    if name in NOT_READ_AT_THE_SOURCE:
        assert expect.top1 is None
        assert not published
        assert expect.note


def test_numbers_from_memory_say_so():
    offenders = []
    for name, numbers in UNVERIFIED.items():
        lines = (CONFIGS / f"{name}.yaml").read_text().split("\nmodel:")[1].splitlines()
        for number in numbers:
            written = [line for line in lines if re.search(rf"(?<![\d.]){re.escape(number)}", line)]
            if not any("unverified" in line for line in written):
                offenders.append((name, f"{number}: {written}"))
    assert not offenders


@pytest.mark.worlds
def test_a_recipe_can_be_planned_as_it_stands_and_its_model_is_known():
    offenders = []
    for name, path in FILES.items():
        run, plan, lr = derived(name)
        models._builder(run.model.name)
        wrong = {"no steps": plan.steps <= 0, "lr below 0": lr(0) < 0, "no header": path.read_text()[:2] != "# "}
        offenders += [(name, what) for what, is_so in wrong.items() if is_so]
    assert not offenders


def test_the_page_of_recipes_has_every_file_and_its_published_result():
    rows = (REPOSITORY / "docs" / "recipes.md").read_text().splitlines()
    for path in RECIPES:
        (row,) = [line for line in rows if re.match(rf"\| [^|]*`{name_of(path)}`", line)]
        *_, batch, published, _ = row.split("|")
        run = load(name_of(path))
        assert batch.strip().startswith(f"{run.batch.global_batch_size:,}"), row
        top1 = run.expect.top1 if run.expect else None
        assert published.strip().startswith(("none", "the ") if top1 is None else f"{top1:g}"), row


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_naive_row_is_the_baseline_with_another_batch(workload):
    baseline, naive = (yaml.safe_load((CONFIGS / f"{workload}/{n}.yaml").read_text()) for n in ("baseline", "naive"))
    assert naive["batch"].pop("global_batch_size") > baseline["batch"].pop("global_batch_size")
    for one in (baseline, naive):
        one.pop("title"), one.pop("expect", None)
    assert naive == baseline


def at(step: float) -> float:
    """Epochs of CIFAR-10 before this step of 1024."""
    return step * 1024 / 50_000


def image(step: float) -> float:
    """The same of ImageNet."""
    return step * 1024 / 1_281_167


GOYAL_8K = [(0, 0.1), (2.5, 1.65), (5, 3.2), (29.9, 3.2), (30, 0.32), (60, 0.032), (80, 0.0032), (89.9, 0.0032)]
AKIBA_32K = [(0, 6.4), (39.9, 6.4), (40, 0.96), (70, 0.128), (85, 0.0128), (89.9, 0.0128)]  # 12.8 times .5, .075, ...


@pytest.mark.parametrize(
    ("name", "size", "points"),
    [
        ("imagenet/goyal2017", 8192, GOYAL_8K),
        ("imagenet/goyal2017", 256, [(0, 0.1), (5, 0.1), (29.9, 0.1), (30, 0.01)]),
        ("imagenet/goyal2017", 128, [(0, 0.05), (2.5, 0.05), (30, 0.005)]),
        ("imagenet/akiba2017", 32768, AKIBA_32K),
        # γ0·(1 − t/T)², from the end of the warm-up: half-way between epochs 12 and 100 a quarter
        ("imagenet/lars2017", 32768, [(0, 0), (6, 20), (12, 40), (56, 10), (100, 0)]),
        ("imagenet/mlperf-lars", 32768, [(0, 0), (8, 10.6), (16, 21.2), (56, 1e-4)]),
        ("imagenet/lamb2019", 8192, [(0, 0), (2.5, 0.01), (5, 0.02)]),
        ("cifar10/krizhevsky2014", 4096, [(0, 3.2), (100, 1.6), (200, 0)]),
        # Hoffer's boundaries: those of 128, times 32
        ("cifar10/hoffer2017", 128, [(80.9, 0.1), (81, 0.01), (122, 1e-3), (164, 1e-4)]),
        ("cifar10/hoffer2017", 4096, [(81 * 32 - 1, 0.5656854), (81 * 32, 0.05656854), (164 * 32, 5.656854e-4)]),
        ("cifar10/hoffer2017-wrn", 128, [(59.9, 0.1), (60, 0.02), (120, 0.004), (140, 1e-4)]),
        ("cifar10/hoffer2017-wrn", 4096, [(60 * 32, 0.1131371), (140 * 32, 5.656854e-4)]),
        ("mnist/hoffer2017", 128, [(9.9, 0.1), (10, 0.01), (20, 1e-3), (30, 1e-4), (49.9, 1e-4)]),
        ("mnist/hoffer2017", 4096, [(319, 0.5656854), (320, 0.05656854), (960, 5.656854e-4)]),
        # airbench's get_lr: 0.2 to 1 over 109 of 476 steps, then to 0.07; 0.1 of 1776, then to 0
        ("cifar10/airbench94", 1024, [(at(0), 0.3), (at(54.5), 0.9), (at(109), 1.5), (at(476), 0.105)]),
        ("cifar10/airbench94", 1024, [(at(109 + 367 / 2), 1.5 * (1 + 0.07) / 2)]),
        ("cifar10/airbench96", 1024, [(at(0), 1.8 * KILOSTEP), (at(177), 9 * KILOSTEP), (at(1776), 0)]),
        ("cifar10/airbench94-muon", 2000, [(0, 0.24), (2, 0.18), (8, 0)]),
        ("imagenet/beyer2022", 1024, [(image(0), 0), (image(2500), 2.5e-4), (image(10_000), 1e-3), (90, 0)]),
        ("imagenet/beyer2022", 1024, [((90 + image(10_000)) / 2, 5e-4)]),
        ("imagenet/convnext2022", 4096, [(0, 0), (10, 2e-3), (20, 4e-3), (160, (4e-3 + 1e-6) / 2), (300, 1e-6)]),
        ("imagenet/algoperf-vit", 1024, [(image(6999), 0.0008445074561975979), (image(125_999), 0)]),
        (
            "imagenet/algoperf-resnet50",
            1024,
            [(image(6999), 4.131896390902391), (image(133_107), 4.131896e-3), (image(146_999), 4.131896e-3)],
        ),
        ("cifar10/postlocal2020", 2048, [(5, 3.2), (149.9, 3.2), (150, 0.32), (225, 0.032)]),
    ],
)
def test_the_lr_at_an_epoch(name, size, points):
    _, _, lr = derived(name, f"batch.global_batch_size={size}")
    assert [lr(epoch) for epoch, _ in points] == pytest.approx([wanted for _, wanted in points], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("name", "lr", "decay"), [("airbench94", 11.5, 0.0153), ("airbench96", 9.0, 0.012)])
def test_airbenchs_groups(name, lr, decay):
    """Its code: sums over a batch, biases of norms at 64 times the lr, as much decay of each, a bias for 144 steps."""
    run = load(f"cifar10/{name}")
    kilostep_scale = 1024 * (1 + 1 / (1 - 0.85))
    of_sum, decay_of_sum = lr / kilostep_scale, decay * 1024 / kilostep_scale
    groups = [(1.0, decay_of_sum / of_sum), (64.0, decay_of_sum / (64 * of_sum))]
    for factor, theirs in groups:  # the gradient of a sum is 1024 times that of a mean
        assert factor * run.lr.base == pytest.approx(1024 * factor * of_sum)
        assert run.weight_decay.value / factor == pytest.approx(theirs / 1024, rel=1e-6)
    scales = run.lr.scales
    assert (scales["norm"].factor, scales["norm"].until_epoch) == (64, None)
    assert (scales["whiten.bias"].factor, scales["whiten.bias"].until_epoch) == (1, at(3 * (50_000 // 1024)))


def test_the_groups_of_airbenchs_muon():
    run = load("cifar10/airbench94-muon")
    wd = 2e-6 * 2000
    for pattern, lr in (("norm", 0.053), ("whiten.bias", 0.053), ("head", 0.67)):
        factor = run.lr.scales[pattern].factor
        assert factor * run.lr.base == pytest.approx(2000 * lr)
        assert run.weight_decay.value / factor == pytest.approx(wd / lr / 2000)
    assert run.lr.scales["whiten.bias"].until_epoch == 3
    assert run.weight_decay.skip == ("blocks.*.conv*",)


def test_the_constant_steps_of_goyals_warm_up():
    _, plan, lr = derived("imagenet/goyal2017")
    rise = [lr(plan.examples_before(step) / plan.dataset_size) for step in range(700)]
    gains = [after - before for before, after in zip(rise, rise[1:], strict=False)]
    assert gains == pytest.approx([gains[0]] * 699)


@pytest.mark.parametrize("name", ["cifar10/hoffer2017", "cifar10/hoffer2017-wrn", "mnist/hoffer2017"])
def test_hoffers_regime_keeps_the_number_of_steps(name):
    small, large = (derived(name, f"batch.global_batch_size={size}")[1] for size in (128, 4096))
    assert large.budget_examples == 32 * small.budget_examples
    assert large.steps == small.steps


def test_smiths_batches_grow_where_the_lr_would_fall():
    """128 -> 640 -> 3200, and 16000 would be more than 5120: the lr falls by 5 instead."""
    run, plan, lr = derived("cifar10/smith2018")
    at = run.batch.ramp.at_epochs
    assert [stage.global_batch_size for stage in plan.stages] == [128, 640, 3200]
    assert [lr(epoch) for epoch in (0, at[0], at[1], at[2] - 0.1, at[2])] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.02])
    # the noise scale ε·N/(B·(1−m)) ÷5 either way
    noise = [0.1 * 50_000 / (stage.global_batch_size * (1 - 0.9)) for stage in plan.stages]
    assert noise == pytest.approx([390.625, 78.125, 15.625])


def test_smiths_updates_on_imagenet():
    """Less than 6,000 updates against 14,000 of the control: both as quoted by later papers."""
    assert derived("imagenet/smith2018")[1].steps < 6000
    control = ["batch.ramp=null", "lr.decay={name: steps, at_epochs: [30, 60, 80]}"]
    assert derived("imagenet/smith2018", *control)[1].steps == pytest.approx(14_000, rel=0.01)


def test_mikamis_batch_control():
    _, plan, _ = derived("imagenet/mikami2018")
    assert [stage.global_batch_size for stage in plan.stages] == [34_816, 69_632]
    assert 34_816 == 2176 * 16


@pytest.mark.parametrize(
    ("name", "reference", "steps"),
    [
        ("cifar10/adascale2020", 128, {1: 39_100, 8: 4_880, 16: 2_440, 32: 1_220, 64: 611}),
        ("imagenet/adascale2020", 256, {1: 451_000, 16: 28_200, 32: 14_100, 64: 7_040, 128: 3_520}),
    ],
)
def test_the_fewest_steps_of_adascale_are_those_of_linear_scaling(name, reference, steps):
    for parts, fewest in steps.items():
        run, plan, _ = derived(name, f"batch.global_batch_size={reference * parts}")
        clock = derive.clock_of(run)
        assert clock is not None
        assert clock.parts == parts
        assert plan.steps / parts == pytest.approx(fewest, rel=0.003)
        took = run.expect.by_batch_size[reference * parts].steps
        assert math.ceil(plan.steps / parts) <= took * 1.002
        assert took <= plan.steps * 1.002


@pytest.mark.parametrize(
    ("size", "updates"), [(1, 60_000), (10, 6_000), (100, 600), (1_000, 60), (10_000, 6), (60_000, 1)]
)
def test_the_lectures_updates_per_epoch(size, updates):
    assert derived("mnist/baseline", f"batch.global_batch_size={size}", "epochs=1")[1].steps == updates


def test_mlperf_has_no_row_where_the_reference_is_doubtful():
    with pytest.raises(Exception, match=r"table has no row for batch.global_batch_size = 2048"):
        load("imagenet/mlperf-lars", "batch.global_batch_size=2048")


# ---- every recipe trains ----

EXAMPLES, BATCH, BN = 512, 32, 8


def made_small(path: Path, directory: Path) -> list[str]:
    """Overrides that keep a recipe's methods and make its network, data, batch and lengths tiny."""
    written, run = config.read(path), config.load(path)
    small: dict[str, Any] = {key: "" for row in written.get("table", {}).values() for key in row}
    small |= {
        "model": "{name: tiny_cnn, channels: [4, 8]}",
        "data": f"{{name: synthetic, examples: {EXAMPLES}, num_classes: 10, image_shape: [3, 8, 8]}}",
        "batch.global_batch_size": BATCH,
        "epochs": 1,
        "device": "cpu",
        "record.dir": directory / f"{path.parent.name}-{path.stem}",
        "record.to": "[]",
        "checkpoint.every_epochs": 0,
        "lr.warmup.epochs": 0,
        "evaluate.every_epochs": 0.5,
    }
    if run.lr.warmup.steps:
        small |= {"lr.warmup.steps": 2, "lr.warmup.from": "zero"}
    if run.lr.scales:
        small |= {"lr.scales": "{norm: 2}", "weight_decay.skip": "[]"}
    if "*.gamma" in run.weight_decay.skip:
        small["weight_decay.skip"] = "[norm, bias]"
    small["lr.base" if run.lr.table is None else "lr.table"] = 0.02 if run.lr.table is None else f"{{{BATCH}: 0.02}}"
    lars_keys = {"optimizer.momentum": 0.9, "optimizer.eps": 0, "weight_decay.value": 1e-4, "batch.bn_batch_size": BN}
    small |= {key: value for key, value in lars_keys.items() if small.get(key) == ""}
    if run.batch.bn_batch_size is not None:
        small["batch.bn_batch_size"] = BN
    if run.lr.reference_batch_size is not None:
        small["lr.reference_batch_size"] = BATCH // 2
    if run.lr.warmup.epochs:
        small["lr.warmup.epochs"] = 0.1
    if run.lr.decay.name in ("polynomial", "linear", "cosine") and run.lr.decay.end_lr:
        small["lr.decay.end_lr"] = 1e-5
        if run.lr.decay.end_step is not None:
            small["lr.decay.end_step"] = 10
    if run.lr.decay.name in ("steps", "piecewise"):
        small["lr.decay.at_epochs"] = part_way(len(run.lr.decay.at_epochs))
    if run.regime_adaptation is not None:
        small["regime_adaptation.reference_batch_size"] = BATCH // 2
    if run.batch.ramp is not None:
        small["batch.ramp.at_epochs"] = part_way(len(run.batch.ramp.at_epochs))
        if run.batch.ramp.sizes is not None:
            small["batch.ramp.sizes"] = [2 * BATCH]
        else:
            small["batch.ramp.largest"] = run.batch.ramp.factor * BATCH
    if run.phases is not None:
        ends = [{"until_share": share} for share in part_way(len(run.phases) - 1)]
        keys = [{"batch.global_batch_size": 2 * BATCH // n, "lr.warmup.epochs": 0.1} for n in range(1, len(ends) + 2)]
        small["phases"] = json.dumps([end | key for end, key in zip([*ends, {}], keys, strict=True)])
    if run.sam is not None and run.sam.m is not None:
        small["sam.m"] = BN
    if "swap" in run.methods:
        small |= {"averaging.workers": 2, "averaging.worker_batch_size": 16, "averaging.epochs": 0.25}
        small |= {"averaging.stop_at_train_accuracy": 1, "averaging.lr.base": 0.01}
    if "post_local_sgd" in run.methods:
        small |= {"averaging.workers": 4, "averaging.period": 2, "averaging.from_epoch": 0.5}
    if run.optimizer.name == "rmsprop_sgd":
        small |= {"optimizer.center_epoch": 0.5, "optimizer.period_epochs": 0.5}
    return [f"{key}={value}" for key, value in small.items()]


def part_way(count: int) -> list[float]:
    return [round((number + 1) / (count + 1), 3) for number in range(count)]


def unfit(numbers: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a result: every small run ends, and with a loss."""
    if numbers["status"] != "finished":
        yield f"status: {numbers['status']}"
    elif not math.isfinite(numbers["test_loss"]):
        yield f"test loss {numbers['test_loss']}"


@pytest.mark.slow
def test_every_recipe_trains_a_few_steps(tmp_path):
    """And as many of them as its methods make of an epoch."""
    offenders = [(name, wrong) for name, path in FILES.items() for wrong in wrong_of_small_run(path, tmp_path)]
    assert not offenders


def wrong_of_small_run(path: Path, folder: Path) -> Iterator[str]:
    run = config.load(path, made_small(path, folder))
    try:
        result = train(run, quiet=True)
    except UserError as refusal:
        yield f"refused: {refusal}"
        return
    yield from unfit({"status": result.status, **result.numbers})
    steps, took = EXAMPLES // BATCH, result.numbers.get("steps", 0)
    if run.lr.scaling == "adascale":  # from those of the batch to those of its half
        right = steps <= took < 2 * steps
    elif run.regime_adaptation is not None:
        right = took == 2 * steps
    elif run.batch.ramp is not None or run.phases is not None:
        right = 0 < took < steps
    elif "swap" in run.methods:
        right = len(result.numbers["workers"]) == run.averaging.workers
    else:
        right = took == steps
    if not right:
        yield f"{took} steps: {result.numbers}"
    if (result.directory / "mllog.txt").exists() != run.record.mllog:
        yield "mllog.txt is there" if not run.record.mllog else "mllog.txt is missing"


@pytest.mark.worlds
def test_every_recipe_trains_a_few_steps_on_two_ranks(tmp_path):
    recipes = {name: (str(path), made_small(path, tmp_path / "runs")) for name, path in FILES.items()}
    (tmp_path / "recipes.json").write_text(json.dumps(recipes))
    ended = pool.ranks(2, "worlds.recipes:train_all", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ends = json.loads((tmp_path / "ends.json").read_text())
    assert set(ends) == set(recipes)
    assert not [(name, wrong) for name, numbers in ends.items() for wrong in unfit(numbers)]
