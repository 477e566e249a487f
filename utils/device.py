"""Where to compute, and how precisely."""

from contextlib import AbstractContextManager
from typing import Any

import torch


def choose(name: str) -> torch.device:
    """The device called "cpu" or "cuda"; "auto" is a GPU where there is one.

    Raises:
        ValueError: a GPU is asked for, and none is visible.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no GPU is visible: take --device cpu, or ask the cluster for one")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def best_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision where `precision` is "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
