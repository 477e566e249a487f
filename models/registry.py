"""The models by name. A model is imported when it is built, not before."""

from importlib import import_module
from inspect import signature
from typing import Any

from models.base import Model

MODELS = {  # the file -> the class in it
    "custom_cnn": "CustomCNN",
    "alexnet": "AlexNet",
    "vgg16": "VGG16",
    "vit": "VisionTransformer",
    "classic_unet": "ClassicUNet",
    "improved_unet": "ImprovedUNet",
    "attention_unet": "AttentionUNet",
}


def build(name: str, **options: Any) -> Model:
    """A freshly initialised model: `build("attention_unet", n_filters=16)`.

    The model remembers its `name` and all its `options`, defaults included. Raises ValueError, listing the
    valid ones, for an unknown name or option.
    """
    options = full_options(name, **options)
    model = _class(name)(**options)
    model.name, model.options = name, options
    return model


def full_options(name: str, **options: Any) -> dict[str, Any]:
    """The options completed with the defaults of the model. Raises ValueError like `build`."""
    valid = signature(_class(name))
    if unknown := [option for option in options if option not in valid.parameters]:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(valid.parameters)}.")
    arguments = valid.bind(**options)
    arguments.apply_defaults()
    return dict(arguments.arguments)


def _class(name: str) -> type[Model]:
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}; the models are {', '.join(MODELS)}.")
    return getattr(import_module(f"models.{name}"), MODELS[name])
