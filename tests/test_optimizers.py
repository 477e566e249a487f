"""Muon against its definition by singular values, against PyTorch's, and in a run that is interrupted."""

import copy
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.vit import VisionTransformer
from tests.test_train import DyingLoss, Numbers, same
from utils.optimizers import Muon, hidden_matrices, newton_schulz, optimizers
from utils.signals import Interrupted
from utils.train import Recipe, fit


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 48), nn.Linear(48, 36),
        nn.Unflatten(1, (1, 6, 6)),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_newton_schulz_bends_the_singular_values_and_nothing_else(shape: tuple[int, int]) -> None:
    matrices = np.random.default_rng(0).normal(size=(2, *shape))
    found = newton_schulz(torch.from_numpy(matrices)).numpy()
    for matrix, result in zip(matrices, found, strict=True):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        values /= np.linalg.norm(matrix)
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        np.testing.assert_allclose(result, left * values @ right, atol=1e-9)
        assert np.all((values > 0.6) & (values < 1.3))


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 0.02), ("bf16", 0.01)])  # theirs are products in bfloat16
def test_muon_steps_as_that_of_pytorch_does(precision: str, apart: float) -> None:
    ours, theirs = network(), network()
    mine = Muon(hidden_matrices(ours), lr=1e-2, weight_decay=0.1, precision=precision)
    other = torch.optim.Muon(hidden_matrices(theirs), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = copy.deepcopy(hidden_matrices(ours))
    for step in range(4):
        torch.manual_seed(step)
        for one, same_one in zip(hidden_matrices(ours), hidden_matrices(theirs), strict=True):
            one.grad = torch.randn_like(one)
            same_one.grad = one.grad.clone()
        mine.step()
        other.step()
    for before, one, same_one in zip(start, hidden_matrices(ours), hidden_matrices(theirs), strict=True):
        assert (one - same_one).norm() < apart * (one - before).norm()


def test_every_weight_has_one_optimizer_and_the_head_is_not_muons() -> None:
    model = VisionTransformer(dim=16, depth=2, heads=2, mlp_dim=32)
    adamw, muon = optimizers(model, "muon", 1e-3, 0.1, "fp32")
    moved = [[id(w) for group in o.param_groups for w in group["params"]] for o in (adamw, muon)]
    assert sorted(moved[0] + moved[1]) == sorted(id(weight) for weight in model.parameters())
    assert {id(weight) for weight in model.blocks.parameters() if weight.ndim == 2} == set(moved[1])
    assert len(optimizers(model, "adamw", 1e-3, 0.1, "fp32")) == 1
    assert len(optimizers(nn.Conv2d(1, 1, 1), "muon", 1e-3, 0.1, "fp32")) == 1  # no matrices inside


def test_a_stopped_run_with_muon_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, lr=1e-2, ema=0.9, optimizer="muon")
    with pytest.raises(Interrupted):
        fit(network(), Numbers(), DyingLoss(8, signal.SIGUSR1), recipe, tmp_path)
    resumed = fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path)
    assert same(resumed, fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path / "whole"))
    by_adamw = fit(network(), Numbers(), nn.MSELoss(), Recipe(epochs=3, lr=1e-2, ema=0.9), tmp_path / "adamw")
    assert not same(resumed, by_adamw)
