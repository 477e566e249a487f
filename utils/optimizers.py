"""AdamW for all weights, or for all but the matrices inside a network, which Muon moves."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn


def optimizers(
    model: nn.Module, name: str, lr: float, weight_decay: float, precision: str
) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov 2019, arXiv 1711.05101), and Muon where `name` is "muon"; precision: "fp32" or "bf16"."""
    inside = {id(matrix): matrix for matrix in hidden_matrices(model)} if name == "muon" else {}
    rest = [weight for weight in model.parameters() if id(weight) not in inside]
    groups = [
        {"params": [weight for weight in rest if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in rest if weight.ndim <= 1], "weight_decay": 0.0},  # biases and norms
    ]
    adamw = torch.optim.AdamW(groups, lr=lr, fused=True)
    return [adamw, Muon(inside.values(), lr, weight_decay, precision)] if inside else [adamw]


def hidden_matrices(model: nn.Module) -> list[torch.Tensor]:
    """The weights (out, in) of all linear layers but the last."""
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)][:-1]


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, its step made orthogonal: as long in all directions, also those of small gradients.

    Jordan 2024, kellerjordan.github.io/posts/muon; scaled as in Liu 2025, arXiv 2502.16982, so that learning rate and
    weight decay are those of AdamW. `torch.optim.Muon` is the same, but computes in bfloat16 wherever it is, which
    many CPUs only imitate.

    Args:
        matrices: 2-D weights; not those of the last layer, which has a row a class.
        precision: "bf16" or "fp32", of the products.
    """

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float, precision: str) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients; matrices of one shape go together."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for shape, weights in alike.items():
                self._move(weights, group["lr"], group["lr"] * 0.2 * max(shape) ** 0.5, group)

    def _move(self, weights: list[torch.Tensor], lr: float, length: float, group: dict[str, float]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
        directions = newton_schulz(torch.stack(ahead).to(self.dtype)).float().unbind()
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_add_(weights, directions, alpha=-length)


def newton_schulz(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (N, rows, columns) made almost orthogonal: five steps of a polynomial in the S of U S V'.

    With Jordan's coefficients singular values above 0.2 % of a matrix's norm come between 0.68 and 1.2; smaller ones
    grow, too.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return newton_schulz(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x
