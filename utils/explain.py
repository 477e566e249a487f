"""What a model looked at, taken from outside: hooks that are removed again, never a copy of the model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models.attention_unet import AttentionGate


def attention_maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Where the gates of an AttentionUNet are open (1) and closed (0), in eval mode.

    images: (B, C, H, W). Returns one map (B, 1, h, w) in [0, 1] a gate, the finest last: h and w are 1/16,
    1/8, 1/4 and 1/2 of the image's sides, rounded up to multiples of 16 first (the model pads at the right
    and the bottom). Raises ValueError for a model without gates. The model is left as it was.
    """
    gates = [module for module in model.modules() if isinstance(module, AttentionGate)]
    if not gates:
        raise ValueError(f"{type(model).__name__} has no attention gates; AttentionUNet has.")
    with torch.no_grad(), _eval_mode(model), _recorder([gate.sigmoid for gate in gates]) as maps:
        model(images)
    return maps


@contextmanager
def _recorder(modules: list[nn.Sigmoid]) -> Iterator[list[torch.Tensor]]:
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
