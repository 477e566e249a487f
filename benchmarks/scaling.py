"""What a training step costs and how it scales, on paper: counted and computed, nothing is run.

    python benchmarks/scaling.py

FLOPs, activations and parameters are counted by letting PyTorch trace a step of each script's default recipe on the
"meta" device, which knows shapes and no numbers. The time of a step is a lower bound (what an H100 needs at its peak,
for the arithmetic or for reading and writing the activations), and nothing is taken to overlap: so the efficiencies are
lower bounds too. They are given for the default batch on each GPU ("batch x n"), and for the default batch dealt out to
all ("batch / n"), as the scripts do it unless --batch-size is raised.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import models
from training.options import CNNOptions, UNetOptions, ViTOptions
from utils.describe import parameters
from utils.markdown import table
from utils.optimizers import hidden_matrices, newton_schulz

PEAK, BANDWIDTH = 989e12, 3.35e12  # of an H100 (SXM), data sheet: FLOP/s in bf16, bytes/s of memory
LINKS = {"4 GPUs, NVLink": (4, 450e9), "2 nodes, 100 Gbit/s": (2, 12.5e9)}  # ranks, bytes/s in each direction
STATE = 20  # bytes a parameter: weight, gradient, two moments of AdamW, averaged weight; float32


@dataclass(frozen=True)
class Step:
    """One training step of one model."""

    model: str
    batch: int
    parameters: int
    flops: float
    activations: int  # bytes kept for the backward pass, bf16

    @property
    def memory(self) -> float:
        """Bytes: the state, and the activations with the largest gradient beside them, roughly a tenth."""
        return STATE * self.parameters + 1.1 * self.activations

    @property
    def seconds(self) -> float:
        """The least that an H100 needs: each activation is written once, read twice, and its gradient too."""
        return max(self.flops / PEAK, 6 * self.activations / BANDWIDTH)

    def all_reduce(self, ranks: int, bandwidth: float) -> float:
        """Seconds of a ring all-reduce of the gradients (float32): each rank sends 2 (n - 1) / n of them."""
        return 2 * (ranks - 1) / ranks * 4 * self.parameters / bandwidth


def count(name: str, batch: int, shape: tuple[int, ...], optimizer: str = "adamw", **options: Any) -> Step:
    """Trace a step; shape: (C, H, W). AdamW's FLOPs are too few to count, Muon's are not."""
    model = models.build(name, **options).to("meta", torch.bfloat16)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # by memory: views of one tensor count once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    images = torch.empty(batch, *shape, device="meta", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images).sum().backward()
        for matrix in hidden_matrices(model) if optimizer == "muon" else ():
            newton_schulz(matrix.detach()[None])
    activations = sum(storage.nbytes() for storage in kept.values())
    return Step(name, batch, parameters(model), counter.get_total_flops(), activations)


def all_steps() -> list[Step]:
    """The default recipe of each model."""
    unet, cnn, vit = UNetOptions(), CNNOptions(), ViTOptions()
    side = cnn.image_size
    steps = [count(name, unet.batch_size, (4, *unet.window), **unet.architecture)
             for name in ("classic_unet", "improved_unet", "attention_unet")]  # fmt: skip
    steps += [count(name, cnn.batch_size, (3, side, side)) for name in ("custom_cnn", "alexnet", "vgg16")]
    return [*steps, count(vit.model, vit.batch_size, (3, side, side), vit.optimizer)]


def main() -> None:
    """Print the costs of a step, and how it scales."""
    steps = all_steps()
    costs = [[f"{step.model}, {step.batch}", f"{step.parameters:,}", f"{step.flops / 1e9:,.0f}",
              f"{STATE * step.parameters / 1e9:.2f}", f"{step.activations / 1e9:.2f}", f"{step.memory / 1e9:.1f}"]
             for step in steps]  # fmt: skip
    head = ["model, batch", "parameters", "GFLOP a step", "state (GB)", "activations (GB)", "memory (GB)"]
    print(table([head, *costs]), end="\n\n")
    head, rows = ["model", "steps/s, at most", "all-reduced (MB)"], [[step.model] for step in steps]
    for link in LINKS:
        head += [f"{link}: all-reduce (ms)", "efficiency, batch x n", "batch / n"]
    for step, row in zip(steps, rows, strict=True):
        row += [f"{1 / step.seconds:,.0f}", f"{4 * step.parameters / 1e6:.0f}"]
        for ranks, bandwidth in LINKS.values():
            talk = step.all_reduce(ranks, bandwidth)
            row += [f"{1000 * talk:.2f}", *(f"{t / (t + talk):.0%}" for t in (step.seconds, step.seconds / ranks))]
    print(table([head, *rows]))


if __name__ == "__main__":
    main()
