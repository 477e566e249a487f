"""What a model looked at, taken from outside: hooks that are removed again, never a copy of the model.

Every function leaves the model as it was: its mode, its gradients, its hooks.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F

from models.attention_unet import AttentionGate
from models.cnn import CNN
from models.vit import Attention, VisionTransformer, attention_weights


def attention_maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Where the gates of an AttentionUNet are open (1) and closed (0), in eval mode.

    images: (B, C, H, W). Returns one map (B, 1, h, w) in [0, 1] a gate, the finest last: h and w are 1/16,
    1/8, 1/4 and 1/2 of the image's sides, rounded up to multiples of 16 first (the model pads at the right
    and the bottom). Raises ValueError for a model without gates. The model is left as it was.
    """
    return [score.sigmoid() for score in attention_scores(model, images)]


def attention_scores(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What goes into the sigmoids of `attention_maps`: how far has a gate gone that is all open or closed?"""
    gates = [module for module in model.modules() if isinstance(module, AttentionGate)]
    if not gates:
        raise ValueError(f"{type(model).__name__} has no attention gates; AttentionUNet has.")
    return _outputs(model, [gate.score for gate in gates], images)


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
        maps.append(attention_weights(query, key))
    return maps


def rollout(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the class token of a VisionTransformer drew on through all blocks: attention rollout.

    A block passes on half of each token and half of what it attends to (the mean over heads); the product over the
    blocks says how much of each patch reaches the class token. images: (B, C, H, W). Returns (B, H, W) in [0, 1], the
    largest value 1. Raises ValueError for another model.

    Source: Abnar 2020, arXiv 2005.00928.
    """
    maps = [attention.mean(dim=1) for attention in token_attention(model, images)]  # (B, T, T) each
    tokens = torch.eye(maps[0].shape[-1], device=images.device)
    reach = reduce(lambda before, block: (block + tokens) / 2 @ before, maps, tokens)
    patches = reach[:, 0, 1:]  # row 0 is the class token
    side = math.isqrt(patches.shape[1])
    return _over_image(patches.unflatten(1, (side, side)), images)


def grad_cam(model: nn.Module, images: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
    """Where the last convolution of a CNN found what speaks for a class.

    Its feature maps, weighted by the mean gradient of the class's logit, summed; only what speaks for the class stays.
    The mean forgets where a gradient stands, but our dense layers see where a feature is: a map may be empty, or beside
    the point (Draelos 2020, arXiv 2011.08891). `integrated_gradients` has no such gap.

    Args:
        images: (B, C, H, W).
        classes: (B,) codes; by default those that the model predicts.

    Returns:
        (B, H, W) in [0, 1], the largest value 1; all 0 where nothing speaks for the class.

    Raises:
        ValueError: the model is no CNN of this project.

    Source: Selvaraju 2017, arXiv 1610.02391.
    """
    from captum.attr import LayerGradCam

    blocks = list(_features(model))
    last = max(place for place, block in enumerate(blocks) if not isinstance(block, nn.MaxPool2d))
    with _eval_mode(model):
        found = LayerGradCam(model, blocks[last]).attribute(
            _with_gradient(images), _predicted(model, images, classes), relu_attributions=True
        )
    return largest_one(_where_it_looks(found.detach()[:, 0], blocks[: last + 1], images.shape[-1]))


def integrated_gradients(model: nn.Module, images: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
    """How much each pixel of an image raised or lowered the logit of a class, for any classifier.

    Gradients are summed along the straight way from a black image, so that a map adds up to the difference of the two
    logits. That many gradients take a while: 64 an image.

    Args:
        images: (B, C, H, W); 0 is black.
        classes: (B,) codes; by default those that the model predicts.

    Returns:
        (B, H, W), in units of the logit, of both signs; the channels of a pixel are added up.

    Source: Sundararajan 2017, arXiv 1703.01365.
    """
    from captum.attr import IntegratedGradients

    with _eval_mode(model):
        found = IntegratedGradients(model).attribute(
            _with_gradient(images), target=_predicted(model, images, classes), n_steps=64, internal_batch_size=64
        )
    return found.detach().sum(dim=1)


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
        name = type(model).__name__
        raise ValueError(f"{name} is none of the CNNs CustomCNN, AlexNet and VGG16: take integrated_gradients")
    return model.features


def _predicted(model: nn.Module, images: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    """The classes given, else those with the largest logit: (B,)."""
    if classes is not None:
        return classes
    with torch.no_grad():
        return model(images).argmax(dim=1)


def _with_gradient(images: torch.Tensor) -> torch.Tensor:
    """A copy that gradients flow to, so that a model with frozen weights can be explained too."""
    return images.detach().clone().requires_grad_()


def _where_it_looks(maps: torch.Tensor, blocks: Sequence[nn.Module], side: int) -> torch.Tensor:
    """Maps (B, n, n) behind these blocks over the image, (B, side, side): each value where its receptive field has its
    centre, bilinear between, fading beyond the outermost. Convolutions without padding look away from the border, so
    a map that is merely stretched would point too far out: by 13 to 25 pixels of 128 in CustomCNN."""
    first, step = receptive_field(blocks)
    last = maps.shape[-1] - 1
    pixels = (torch.arange(side, device=maps.device) - first) / step  # in pixels of the map
    beyond = pixels - pixels.clamp(-0.5, last + 0.5)
    at = 2 * (pixels.clamp(0, last) + beyond) / max(last, 1) - 1
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).to(maps.dtype)
    return F.grid_sample(maps[:, None], grid.expand(len(maps), -1, -1, -1), align_corners=True)[:, 0]


def receptive_field(blocks: Sequence[nn.Module]) -> tuple[float, float]:
    """Where the first value behind some blocks of a CNN looks, and how far from there the next one: in pixels of the
    image along each side, from the centre of one receptive field to that of the next.

    Args:
        blocks: in their order; each has one convolution that counts, or is a max-pool; squares all.

    Source: Araujo 2019, 10.23915/distill.00021.
    """
    first, step = 0.0, 1.0
    for block in blocks:
        layer = next(m for m in block.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d))  # not a skip's 1x1
        kernel, stride, padding = (
            size[0] if isinstance(size, tuple) else size for size in (layer.kernel_size, layer.stride, layer.padding)
        )
        first += step * ((int(kernel) - 1) / 2 - int(padding))
        step *= int(stride)
    return first, step


def _over_image(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Maps (B, h, w), not negative, that tile the images, enlarged to their size; the largest value of each 1."""
    return largest_one(F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear")[:, 0])


def largest_one(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, H, W), not negative, the largest value of each 1 (or all 0)."""
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


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
