"""Where to compute, and how precisely."""

import ctypes
import sys
from contextlib import AbstractContextManager
from functools import cache
from time import perf_counter
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def choose(name: str) -> torch.device:
    """The device called "cpu" or "cuda"; "auto" is a GPU where there is one that this PyTorch can use.

    Raises:
        ValueError: a GPU is asked for, and none is visible, or it is too old for this PyTorch.
    """
    visible = torch.cuda.is_available()
    if name == "cuda" and not visible:
        raise ValueError("no GPU is visible: take --device cpu, or ask the cluster for one")
    if name == "cuda" and not has_kernels():
        old = f"this PyTorch has nothing for {torch.cuda.get_device_name()}, which is older"
        raise ValueError(f"{old}: take --device cpu, or install a PyTorch for an older CUDA")
    if name == "auto":
        name = "cuda" if visible and has_kernels() else "cpu"
    return torch.device(name)


def has_kernels() -> bool:
    """Whether this PyTorch was built for GPUs as old as the one that is visible."""
    built_for = [int("".join(filter(str.isdigit, name))) for name in torch.cuda.get_arch_list() if "sm_" in name]
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= min(built_for, default=0)


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors for the next step, as a GPU's allocator does (Linux's glibc).

    Otherwise every large activation goes back to the kernel and is zeroed anew page by page: a third of a training step
    of ImprovedUNet on a CPU. The price is about 13 % more memory at the peak.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        # the older glibc of many clusters refuses so much (0): nothing is mapped there, else all above 128 kB would be
        libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@cache
def best_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it, on a CPU faster than fp32, else fp32.

    Not every CPU that knows bf16 gains by it: some multiply matrices twice as fast as in fp32, a Xeon with AVX-512 but
    without AMX at half the speed. Hence it is measured once, in about 20 ms.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if not torch.cpu._is_avx512_bf16_supported():
        return "fp32"
    turns = [(seconds_to_multiply(torch.bfloat16), seconds_to_multiply(torch.float32)) for _ in range(6)]
    bf16, fp32 = map(min, zip(*turns, strict=True))  # in turns, as the machine may have other work at times
    return "bf16" if bf16 < fp32 else "fp32"


def seconds_to_multiply(dtype: torch.dtype, side: int = 512) -> float:
    """Time of a product of two square matrices on the CPU."""
    matrix = torch.ones(side, side, dtype=dtype)
    start = perf_counter()
    torch.mm(matrix, matrix)
    return perf_counter() - start


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision where `precision` is "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in the memory order that convolutions like.

    On a CPU gray ones whose channels are one in memory stay so, for `models.quick_cnn.GrayConv2d`.
    """
    if images.is_cpu and images.stride(1) == 0:
        return images
    return images.contiguous(memory_format=torch.channels_last)
