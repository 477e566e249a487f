"""Several processes that train one model: a process a GPU, started by `torchrun`, or by `srun` under Slurm.

    torchrun --nproc-per-node=2 training/unet_training.py ...

In a process that is alone everything here does nothing. Li 2020, arXiv 2006.15704 (DistributedDataParallel).
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

# Before any group exists: the default arguments of this module keep the group that they find, and its threads then
# outlive Python and at times abort the process. PyTorch itself imports it, but later.
import torch.distributed.nn.functional
from torch import nn

from utils.device import choose
from utils.signals import Interrupted

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class Place(NamedTuple):
    """Which process of how many this one is, and which on its machine."""

    rank: int
    size: int
    local_rank: int


def place(environment: Mapping[str, str]) -> Place:
    """What the starter of the process says: torchrun's variables, or those of a Slurm step."""
    if all(name in environment for name in TORCHRUN):  # a cluster's own scripts may set one
        names = TORCHRUN
    elif "SLURM_STEP_NUM_TASKS" in environment:  # set by srun; a batch script alone has the job's variables only
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Place(0, 1, 0)
    return Place(*(int(environment[name]) for name in names))


def address(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the processes of a Slurm step meet: on its first machine, at a port that follows from the job's number."""
    if "MASTER_ADDR" in environment:
        return {}
    nodes = ["scontrol", "show", "hostnames", environment["SLURM_STEP_NODELIST"]]
    first = subprocess.run(nodes, capture_output=True, text=True, check=True).stdout.split()[0]
    number = int(environment["SLURM_JOB_ID"]) * 7 + int(environment["SLURM_STEP_ID"])
    return {"MASTER_ADDR": first, "MASTER_PORT": str(20_000 + number % 20_000)}


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Join the other processes, if there are any, for as long as the block runs; the device of this one.

    Raises:
        ValueError: a GPU is asked for, and none is visible.
        ConnectionError: another process has ended before its time.
    """
    rank, size, local_rank = place(os.environ)
    chosen = choose(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
    if size == 1:
        yield chosen
        return
    os.environ.update(address(os.environ))
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size)
    together = False
    try:
        yield chosen
        together = True
    except Interrupted:
        together = True
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "onnection" in str(error):
            lines = str(error).splitlines() or [type(error).__name__]  # NCCL says in the last one what it is about
            here = "; ".join(dict.fromkeys((lines[0], lines[-1])))
            raise ConnectionError(f"another process of this run has ended, and says why; or here: {here}") from error
        raise
    finally:
        if together or chosen.type == "cpu":  # NCCL would wait for the others, and nobody would hear of the error
            dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Come back when all processes have come here."""
    if size() > 1:
        dist.barrier()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in each of them; gradients flow back to all."""
    return _Total.apply(values) if size() > 1 else values


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def share(mine: int, of_mine: int) -> float:
    """The sum of `mine` over all processes divided by that of `of_mine`: such as a part's share of the batch."""
    part, whole = total(torch.tensor([float(mine), float(of_mine)])).tolist()  # on the CPU: nothing waits for a GPU
    return part / whole


def anywhere(flag: bool) -> bool:
    """Whether a flag is set in any process: all get the same answer, at the same step."""
    if size() == 1:
        return flag
    flags = torch.tensor(float(flag))  # on the CPU: a GPU would have to be waited for
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def gathered(items: list[Any]) -> list[Any]:
    """The items of all processes, in each of them; dealt as `items[rank::size]`, they are in their old order again."""
    if size() == 1:
        return items
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, items)
    return [parts[place % size()][place // size()] for place in range(sum(map(len, parts)))]


def shared(model: nn.Module) -> nn.Module:
    """The model to train with: its gradients are the mean over all processes."""
    if size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model)


def align(model: nn.Module) -> None:
    """Give the buffers of the first process to all: on CPUs each has batch norm's statistics of its own samples."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norms that see the whole batch, where PyTorch has them: on GPUs."""
    if size() == 1 or device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
