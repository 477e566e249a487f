"""What benchmarks/scaling.py counts."""

import pytest
import torch

from benchmarks import scaling
from models import build


def test_costs_are_those_of_a_step() -> None:
    one, two = (scaling.count("custom_cnn", batch, (3, 128, 128)) for batch in (2, 4))
    model = build("custom_cnn")
    assert one.parameters == sum(weight.numel() for weight in model.parameters())
    assert two.flops == 2 * one.flops and two.activations > 1.8 * one.activations
    shapes: list[tuple[int, float]] = []  # FLOPs by hand: 2 x outputs x inputs of an output

    def note(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        shapes.append((output[0].numel(), module.weight[0].numel()))  # type: ignore[index, operator, union-attr]

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(note)
    model.eval()(torch.zeros(1, 3, 128, 128))
    forward = [2 * outputs * inputs for outputs, inputs in shapes]
    assert one.flops == 2 * (3 * sum(forward) - forward[0])  # backward costs twice; none for the image


def test_muon_multiplies_whatever_the_batch() -> None:
    small = {"image_size": 32, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    without, muon = (scaling.count("vit", 4, (3, 32, 32), name, **small) for name in ("adamw", "muon"))
    matrices = [(16, 48), (16, 16), (16, 32), (16, 32)]  # qkv, out, and the two of the MLP
    assert muon.flops - without.flops == sum(5 * (2 * 2 * r * r * c + 2 * r**3) for r, c in matrices)
    assert muon.activations == without.activations


def test_an_all_reduce_sends_each_gradient_almost_twice() -> None:
    step = scaling.Step("any", 1, parameters=10**6, flops=0, activations=0)
    assert step.all_reduce(2, 4e6) == pytest.approx(1.0)
    assert step.all_reduce(4, 4e6) == pytest.approx(1.5)
