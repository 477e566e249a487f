"""Tests of the choice of precision."""

import pytest
import torch

from utils import device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("known", "seconds", "expected"),
    [(True, 0.5, "bf16"), (True, 2.0, "fp32"), (False, 0.5, "fp32")],
    ids=["fast bf16", "slow bf16", "no bf16"],
)
def test_a_cpu_computes_in_bf16_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, known: bool, seconds: float, expected: str
) -> None:
    times = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: known)
    monkeypatch.setattr(device, "seconds_to_multiply", times.__getitem__)
    assert device.best_precision.__wrapped__(CPU) == expected


def test_matrices_are_multiplied_to_measure() -> None:
    small, large = (min(device.seconds_to_multiply(torch.float32, side) for _ in range(5)) for side in (64, 1024))
    assert small < large / 50  # 4096 times the work
