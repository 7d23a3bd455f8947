"""Models by name: our small ones, those that were registered, then anything torchvision or timm creates.

A builder is given ``num_classes``, the numbers that a model gives for an example, and ``image_shape``, that of its
inputs, if it has parameters of these names; all others are keys of ``model:`` in a recipe.

``resnet50`` is torchvision's and ``timm/resnet50`` is timm's; a plain name that torchvision lacks is timm's.
Weights are freshly initialised, then read from a file where a recipe names one: nothing is downloaded. Every model
takes ``head_init_std``.

arguments.py   what builders of other projects are given
weights.py     weights to begin with
airbench.py    images of 32 × 32, a first layer that whitens
plain_vit.py   a vision transformer without a class token
bert.py        sequences of tokens
pretrained.py  those that timm and torchvision have names for
heads.py       the layers that give the outputs
frozen.py      what is not trained
recomputed.py  what is computed again in the backward pass
auxiliary.py   classifiers that only training has
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from largebatch.errors import UserError, first_words, suggestion
from largebatch.models import airbench, keskar, small
from largebatch.models.arguments import check_arguments, check_truth
from largebatch.models.bert import bert
from largebatch.models.frozen import freeze
from largebatch.models.heads import initialise_head
from largebatch.models.layers import layer_scales
from largebatch.models.plain_vit import plain_vit
from largebatch.models.weights import begin_with, file_of
from largebatch.recipes.registry import Registry

__all__ = ["SMALL", "begin_with", "build", "file_of", "freeze", "initialise_head", "layer_scales", "register"]

SMALL: dict[str, Callable[..., nn.Module]] = {
    "tiny_cnn": small.tiny_cnn,
    "mlp": small.mlp,
    "resnet20": small.resnet20,
    "resnet18_small": small.resnet18,
    "resnet9": small.resnet9,
    "wide_resnet": small.wide_resnet,
    "keskar_c1": keskar.keskar_c1,
    "keskar_c2": keskar.keskar_c2,
    "airbench": airbench.airbench,
    "plain_vit": plain_vit,
    "bert": bert,
}
ANY_SHAPE = ("mlp",)
OF_SEQUENCES = ("bert",)
HALF = (torch.float16, torch.bfloat16)
Builder = Callable[..., nn.Module]


def _buildable(name: str, thing: Any) -> Any:
    """A builder; a module stands for copies of itself."""
    if isinstance(thing, nn.Module):
        return lambda: _copied(thing)
    if not callable(thing):
        raise UserError(f"model.name = {name} is a {type(thing).__name__}; it should be a module or a function of one")
    return thing


def _copied(module: nn.Module) -> nn.Module:
    """As it is on the CPU, wherever it lies, and in float32 where it is in half precision: what is computed in that is
    for the engine's precision to say."""
    if any(nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise UserError("the model has lazy layers, whose shapes nobody knows yet; call it once on a batch first")
    copied = copy.deepcopy(module).to("cpu")
    return copied.float() if any(tensor.dtype in HALF for tensor in copied.parameters()) else copied


REGISTRY: Registry[Builder] = Registry("model.name", _buildable, lambda: list(SMALL))
register = REGISTRY.register


def build(
    name: str,
    num_classes: int | None,
    image_shape: tuple[int, ...],
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
) -> nn.Module:
    """A model on the CPU in float32: freshly initialised, the same for the same seed.

    ``num_classes`` are the numbers it gives for an example, where the data set says it, and ``image_shape`` is that of
    its inputs: (channels, height, width) of an image, which all of the package but ``mlp`` need. The global random
    state is left as it was. ``head_init_std`` among the ``arguments`` belongs to no builder: see
    :func:`initialise_head`.
    """
    registered = REGISTRY.get(name)
    builder = _builder(name) if registered is None else functools.partial(_with_keys, registered, name)
    if registered is None and len(image_shape) != 3 and name not in (*ANY_SHAPE, *OF_SEQUENCES):
        shape = "×".join(map(str, image_shape)) or "single numbers"
        raise UserError(f"model.name = {name} takes images, the inputs are {shape}; valid: {', '.join(ANY_SHAPE)}")
    arguments = dict(arguments or {})
    head_init_std = arguments.pop("head_init_std", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            given = {"num_classes": num_classes, "image_shape": image_shape}
            model = builder(given, arguments)
        except UserError:
            raise
        except Exception as error:  # a builder of another project may raise anything
            raise UserError(
                f"model {name} cannot be built with {arguments or 'these data'}: {first_words(error)}"
            ) from error
        if head_init_std is not None:
            initialise_head(model, name, head_init_std)
    if not isinstance(model, nn.Module):
        raise UserError(f"the builder of model.name = {name} gives a {type(model).__name__}; it should give a module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model {name} has no parameters to train")
    return model


def _builder(name: str) -> Callable[[dict[str, Any], dict[str, Any]], nn.Module]:
    source, _, plain = name.rpartition("/")
    if source not in ("", "timm", "torchvision"):
        raise UserError(
            f"model.name = {name[:60]}: {source[:60]} is no source of models; valid: timm/..., torchvision/..."
        )
    if not source and name in SMALL:
        return lambda given, arguments: _with_keys(SMALL[name], name, given, arguments)
    if source != "timm":
        import torchvision
        from torchvision.models import get_model_builder, list_models

        if plain in list_models(module=torchvision.models):
            return lambda given, arguments: _torchvision(get_model_builder(plain), plain, arguments, **given)
    if source != "torchvision":
        import timm

        if timm.is_model(plain):
            return lambda given, arguments: _timm(plain, arguments, **given)
    raise UserError(f"model.name = {name[:60]} is not known{suggestion(plain, _all_names(source))}")


def _all_names(source: str) -> list[str]:
    import timm
    import torchvision

    names = [] if source else [*SMALL, *REGISTRY.names()]
    names += [] if source == "timm" else torchvision.models.list_models(module=torchvision.models)
    names += [] if source == "torchvision" else timm.list_models()
    return names


def _with_keys(builder: Builder, name: str, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> nn.Module:
    """What the builder makes of the keys of a recipe, and of what is ``given`` where it has a parameter for it."""
    parameters = inspect.signature(builder).parameters
    valid = [key for key in parameters if key not in given]
    for key, value in arguments.items():
        if key not in valid:
            takes = suggestion(key, valid) if valid else "; it takes none"
            raise UserError(f"unknown key model.{key} for {name}{takes}")
        check_truth(key, value, isinstance(parameters[key].default, bool))
    if "num_classes" in parameters:
        given = {**given, "num_classes": _known(given["num_classes"], name)}
    return builder(**{key: value for key, value in given.items() if key in parameters}, **arguments)


def _torchvision(
    builder: Builder, name: str, arguments: dict[str, Any], num_classes: int | None, image_shape: tuple[int, ...]
) -> nn.Module:
    if image_shape[0] != 3:
        raise UserError(
            f"model {name} of torchvision takes 3 channels, the images have {image_shape[0]}; "
            f"timm/{name} or one of {', '.join(SMALL)} takes them"
        )
    check_arguments(name, arguments)
    if "googlenet" in name or "inception" in name:
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    return builder(weights=None, num_classes=_known(num_classes, name), **arguments)


def _timm(name: str, arguments: dict[str, Any], num_classes: int | None, image_shape: tuple[int, ...]) -> nn.Module:
    import timm

    check_arguments(name, arguments)
    arguments = dict(arguments)
    if "zero_init_residual" in arguments:  # torchvision's word for it
        arguments["zero_init_last"] = arguments.pop("zero_init_residual")
    classes = _known(num_classes, name)
    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=image_shape[0], **arguments)


def _known(num_classes: int | None, name: str) -> int:
    if num_classes is None:
        raise UserError(f"model {name} asks for num_classes, and the data set does not say how many; give it outputs=")
    return num_classes
