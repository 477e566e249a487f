"""How fast a training step could be on this machine: its arithmetic and its traffic, over what the machine reaches.

Williams 2009, 10.1145/1498765.1498785. FLOPs are those of matrix products and convolutions, forward and backward, as
PyTorch counts them; bytes are what all operations read and write when none is fused with another (what stays in a
cache is counted as well, so small networks can beat this bound).
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pipeline
from benchmarks.timing import Stint, wait_for_gpu


class Roofline(NamedTuple):
    """Of one training step, and of the machine."""

    flops: float
    bytes: float
    flops_a_second: float
    bytes_a_second: float
    samples: int

    @property
    def seconds(self) -> float:
        """No step of unfused operations is quicker."""
        return max(self.flops / self.flops_a_second, self.bytes / self.bytes_a_second)

    def line(self, samples_a_second: float) -> str:
        """What a measured speed is beside it."""
        share = self.seconds * samples_a_second / self.samples
        bound = "arithmetic" if self.flops / self.flops_a_second == self.seconds else "memory traffic"
        return (
            f"Roofline: {self.flops / 1e9:.1f} GFLOP and {self.bytes / 1e9:.2f} GB a step of {self.samples}; the "
            f"machine multiplies matrices at {self.flops_a_second / 1e9:.0f} GFLOP/s and copies at "
            f"{self.bytes_a_second / 1e9:.1f} GB/s. {bound.capitalize()} bounds a step at {self.seconds * 1e3:.1f} ms; "
            f"the limit runs at {share:.0%} of that."
        )


class Traffic(TorchDispatchMode):
    """Adds up the bytes of what operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = [result.alias_info for result in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return out


def measure(setting: pipeline.Setting) -> Roofline:
    """Of the step of `pipeline.limit`."""
    loop = pipeline.limit(setting)
    loop.train(Stint(loop.batches, 0.0, 1))
    stint = Stint(loop.batches, 0.0, 1)
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        loop.train(stint)
    del loop
    kind = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    side, length = (8192, 2**28) if setting.device.type == "cuda" else (2048, 2**26)
    one, other = (torch.randn(side, side, device=setting.device).to(kind) for _ in range(2))
    product = 2 * side**3 / quickest(lambda: one @ other)
    source = torch.zeros(length, device=setting.device)
    target = torch.zeros_like(source)
    copy = 2 * source.nbytes / quickest(lambda: target.copy_(source))
    return Roofline(flops.get_total_flops(), traffic.bytes, product, copy, stint.samples)


def quickest(work: Callable[[], object], times: int = 10) -> float:
    """Seconds, the best of several."""
    found = []
    for _ in range(times):
        wait_for_gpu()
        start = time.perf_counter()
        work()
        wait_for_gpu()
        found.append(time.perf_counter() - start)
    return min(found)
