"""What a model looked at, taken from outside: hooks that are removed again, never a copy of the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from models.attention_unet import AttentionGate
from models.cnn import CNN
from models.vit import Attention, VisionTransformer


def attention_maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Where the gates of an AttentionUNet are open (1) and closed (0), in eval mode.

    images: (B, C, H, W). Returns one map (B, 1, h, w) in [0, 1] a gate, the finest last: h and w are 1/16,
    1/8, 1/4 and 1/2 of the image's sides, rounded up to multiples of 16 first (the model pads at the right
    and the bottom). Raises ValueError for a model without gates. The model is left as it was.
    """
    gates = [module for module in model.modules() if isinstance(module, AttentionGate)]
    if not gates:
        raise ValueError(f"{type(model).__name__} has no attention gates; AttentionUNet has.")
    return _outputs(model, [gate.sigmoid for gate in gates], images)


def token_attention(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """How much each token of a VisionTransformer looks at each other one, in eval mode.

    images: (B, C, H, W). Returns one (B, heads, T, T) a block, the first block first; rows sum to 1, token 0 is the
    class token, the others are the patches row by row. Raises ValueError for another model.
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{type(model).__name__} has no tokens; VisionTransformer has.")
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    maps = []
    for layer, qkv in zip(layers, _outputs(model, [layer.qkv for layer in layers], images), strict=True):
        query, key, _ = layer.split(qkv)
        maps.append((query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1))
    return maps


def feature_maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What each convolution of a CNN passes on, after its activation, in eval mode.

    images: (B, C, H, W). Returns one (B, channels, h, w) a convolution. Raises ValueError for another model.
    """
    return _outputs(model, [block for block in _features(model) if not isinstance(block, nn.MaxPool2d)], images)


def kernels(model: nn.Module) -> torch.Tensor:
    """The kernels of a CNN's first convolution, a copy: (channels, in_channels, k, k). Raises ValueError like above."""
    first = next(module for module in _features(model).modules() if isinstance(module, nn.Conv2d))
    return first.weight.detach().clone()


def _features(model: nn.Module) -> nn.Sequential:
    if not isinstance(model, CNN):
        raise ValueError(f"{type(model).__name__} is no CNN; CustomCNN, AlexNet and VGG16 are.")
    return model.features


def _outputs(model: nn.Module, modules: Sequence[nn.Module], images: torch.Tensor) -> list[torch.Tensor]:
    """What the modules return when the model sees the images."""
    with torch.no_grad(), _eval_mode(model), _recorder(modules) as outputs:
        model(images)
    return outputs


@contextmanager
def _recorder(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Yields a list that receives the output of each module, in the order in which they run."""
    outputs: list[torch.Tensor] = []

    def record(_module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        outputs.append(output)

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within, then the mode that each single module had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
