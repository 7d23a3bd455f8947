"""Models by name: our small ones, then anything torchvision or timm creates.

``resnet50`` is torchvision's and ``timm/resnet50`` is timm's; a plain name that torchvision lacks is timm's.
Weights are freshly initialised, or read from a safetensors file: nothing is downloaded. Every model takes
``head_init_std``.

arguments.py   what builders of other projects are given
weights.py     weights to begin with
auxiliary.py   classifiers that only training has
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from largebatch.errors import UserError, first_words, suggestion
from largebatch.models import keskar, small
from largebatch.models.arguments import check_arguments, check_truth
from largebatch.models.weights import take_weights

__all__ = ["SMALL", "build", "initialise_head"]

SMALL: dict[str, Callable[..., nn.Module]] = {
    "tiny_cnn": small.tiny_cnn,
    "mlp": small.mlp,
    "resnet20": small.resnet20,
    "resnet18_small": small.resnet18,
    "resnet9": small.resnet9,
    "wide_resnet": small.wide_resnet,
    "keskar_c1": keskar.keskar_c1,
    "keskar_c2": keskar.keskar_c2,
}
ANY_SHAPE = ("mlp",)


def build(
    name: str,
    num_classes: int,
    image_shape: tuple[int, ...],
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
    weights: str | None = None,
) -> nn.Module:
    """A model on the CPU in float32: freshly initialised, the same for the same seed, or with a file's ``weights``.

    ``num_classes`` are the numbers it gives for an example, whose inputs have ``image_shape``: (channels, height,
    width) of an image, which all but ``mlp`` need. The global random state is left as it was. ``head_init_std`` among
    the ``arguments`` belongs to no builder: see :func:`initialise_head`.
    """
    if len(image_shape) != 3 and name not in ANY_SHAPE:
        shape = "×".join(map(str, image_shape)) or "single numbers"
        raise UserError(f"model.name = {name} takes images, the inputs are {shape}; valid: {', '.join(ANY_SHAPE)}")
    arguments = dict(arguments or {})
    head_init_std = arguments.pop("head_init_std", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = _builder(name)(num_classes, image_shape, dict(arguments))
        except UserError:
            raise
        except Exception as error:  # a builder of another project may raise anything
            raise UserError(
                f"model {name} cannot be built with {arguments or 'these data'}: {first_words(error)}"
            ) from error
        if head_init_std is not None:
            initialise_head(model, name, head_init_std)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model {name} has no parameters to train")
    if weights is not None:
        take_weights(model, weights, name)
    return model


def initialise_head(model: nn.Module, name: str, std: Any) -> None:
    """The last linear layer starts as N(0, std²) with a bias of 0 (Goyal et al. 2017, §5.1: 0.01)."""
    if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 <= std < float("inf"):
        raise UserError(f"model.head_init_std = {std} should be a standard deviation of at least 0, such as 0.01")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"model.head_init_std has nothing to act on: model.name = {name} has no linear layer")
    nn.init.normal_(linear[-1].weight, std=std)
    if linear[-1].bias is not None:
        nn.init.zeros_(linear[-1].bias)


def _builder(name: str) -> Callable[[int, tuple[int, ...], dict[str, Any]], nn.Module]:
    source, _, plain = name.rpartition("/")
    if source not in ("", "timm", "torchvision"):
        raise UserError(
            f"model.name = {name[:60]}: {source[:60]} is no source of models; valid: timm/..., torchvision/..."
        )
    if not source and name in SMALL:
        return lambda classes, shape, arguments: _small(name, classes, shape, arguments)
    if source != "timm":
        import torchvision
        from torchvision.models import get_model_builder, list_models

        if plain in list_models(module=torchvision.models):
            return lambda classes, shape, arguments: _torchvision(
                get_model_builder(plain), plain, classes, shape, arguments
            )
    if source != "torchvision":
        import timm

        if timm.is_model(plain):
            return lambda classes, shape, arguments: _timm(plain, classes, shape, arguments)
    raise UserError(f"model.name = {name[:60]} is not known{suggestion(plain, _all_names(source))}")


def _all_names(source: str) -> list[str]:
    import timm
    import torchvision

    names = [] if source else list(SMALL)
    names += [] if source == "timm" else torchvision.models.list_models(module=torchvision.models)
    names += [] if source == "torchvision" else timm.list_models()
    return names


def _small(name: str, num_classes: int, image_shape: tuple[int, ...], arguments: dict[str, Any]) -> nn.Module:
    builder = SMALL[name]
    parameters = inspect.signature(builder).parameters
    valid = [key for key in parameters if key not in ("num_classes", "image_shape")]
    for key, value in arguments.items():
        if key not in valid:
            raise UserError(f"unknown key model.{key} for {name}{suggestion(key, valid)}")
        check_truth(key, value, isinstance(parameters[key].default, bool))
    return builder(num_classes, image_shape, **arguments)


def _torchvision(
    builder: Callable[..., nn.Module],
    name: str,
    num_classes: int,
    image_shape: tuple[int, ...],
    arguments: dict[str, Any],
) -> nn.Module:
    if image_shape[0] != 3:
        raise UserError(
            f"model {name} of torchvision takes 3 channels, the images have {image_shape[0]}; "
            f"timm/{name} or one of {', '.join(SMALL)} takes them"
        )
    check_arguments(name, arguments)
    if "googlenet" in name or "inception" in name:
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    return builder(weights=None, num_classes=num_classes, **arguments)


def _timm(name: str, num_classes: int, image_shape: tuple[int, ...], arguments: dict[str, Any]) -> nn.Module:
    import timm

    check_arguments(name, arguments)
    if "zero_init_residual" in arguments:  # torchvision's word for it
        arguments["zero_init_last"] = arguments.pop("zero_init_residual")
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=image_shape[0], **arguments)
