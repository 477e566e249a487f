"""Tests of the choice of precision, and of the memory that a process keeps."""

import subprocess
import sys

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


@pytest.mark.parametrize(("capability", "auto"), [((6, 1), "cpu"), ((7, 5), "cuda"), ((12, 0), "cuda")])
def test_a_gpu_too_old_for_this_pytorch_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], auto: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old card")
    assert device.choose("auto").type == auto
    if auto == "cuda":
        assert device.choose("cuda").type == "cuda"
    else:
        with pytest.raises(ValueError, match=r"an old card.*--device cpu"):
            device.choose("cuda")


def test_matrices_are_multiplied_to_measure() -> None:
    small, large = (min(device.seconds_to_multiply(torch.float32, side) for _ in range(5)) for side in (64, 1024))
    assert small < large / 50  # 4096 times the work


FAULTS = """
import resource
from ctypes import CDLL
import numpy as np
from utils import device

class OldGlibc:  # refuses a threshold above 32 MB
    def __init__(self, name):
        self.libc = CDLL(name)

    def mallopt(self, what, value):
        return 0 if what == -3 and value > 2**25 else self.libc.mallopt(what, value)

if {old}:
    device.ctypes.CDLL = OldGlibc
if {keep}:
    device.keep_freed_memory()
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**23).fill(1)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of Linux's glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    def faults(**how: bool) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FAULTS.format(**how)], text=True))

    assert faults(keep=False, old=False) > 100  # 10 times 64 MiB from the kernel (in huge pages, perhaps)
    assert faults(keep=True, old=False) < 20
    assert faults(keep=True, old=True) < 20
