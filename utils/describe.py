"""What a network says about itself: its sizes, its cost, a word for each layer. Nothing is computed, no memory taken.

Models are built on PyTorch's meta device, where tensors have shapes and no values.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
from models import Model

Shapes = Mapping[nn.Module, tuple[int, ...]]


def traced(name: str, size: tuple[int, int], **options: Any) -> tuple[Model, Shapes]:
    """A model without values, and the shape (1, ...) of what each of its modules returns for one image.

    size: (height, width) of the image in pixels. Raises ValueError as `models.build` does.
    """
    model = _hollow(name, **options)
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        shapes[module] = tuple(output.shape)

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    _look(model, size)
    for hook in hooks:
        hook.remove()
    return model, shapes


def cost(name: str, size: tuple[int, int], **options: Any) -> tuple[int, int]:
    """Parameters of a model, and the multiply-adds of its convolutions and products for one image (height, width)."""
    model = _hollow(name, **options)
    with FlopCounterMode(display=False) as counter:
        _look(model, size)
    return parameters(model), counter.get_total_flops() // 2  # it counts a multiply-add as two


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def _hollow(name: str, **options: Any) -> Model:
    with torch.device("meta"):
        return models.build(name, **options).eval()


def _look(model: Model, size: tuple[int, int]) -> None:
    with torch.no_grad():
        model(torch.empty(1, model.options["in_channels"], *size, device="meta"))


def words(layer: nn.Module) -> tuple[str, str]:
    """Kind of a layer (a key of `utils.drawing.KINDS`) and two lines of text: what it is, and its channels."""
    if isinstance(layer, nn.Conv2d):
        depthwise = 1 < layer.groups == layer.in_channels
        stride = f", stride {layer.stride[0]}" if layer.stride[0] > 1 else ""
        what = f"{'depthwise' if depthwise else 'conv'} {times(layer.kernel_size)}{stride}"
        return "convolution", f"{what}\n{layer.in_channels} → {layer.out_channels}"
    if isinstance(layer, nn.Linear):
        return "linear", f"linear\n{layer.in_features} → {layer.out_features}"
    if isinstance(layer, nn.BatchNorm2d):
        return "normalisation", f"batch norm\n{layer.num_features}"
    if isinstance(layer, nn.LayerNorm):
        return "normalisation", f"layer norm\n{times(layer.normalized_shape)}"
    if isinstance(layer, nn.MaxPool2d):
        return "pooling", f"max-pool\n{layer.kernel_size}×{layer.kernel_size}"
    if isinstance(layer, nn.Dropout):
        return "dropout", f"dropout\n{layer.p}"
    return "activation", type(layer).__name__


def times(sizes: Iterable[int]) -> str:
    """3×3, or 32×160×192."""
    return "×".join(map(str, sizes))
