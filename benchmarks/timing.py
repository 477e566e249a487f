"""Several ways of doing one thing, timed side by side: each in a process of its own, taking turns.

A B C A B C ...: a slow minute of the machine hits all of them, and the ratio of two is taken turn by turn. A process
of its own, because a peak of memory, an allocator's settings and a library's threads belong to a process.
"""

import atexit
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from datasets.parallel import cores
from training.stages import commit
from utils.describe import parameters

Batch = tuple[torch.Tensor, torch.Tensor]
Argument, Answer = TypeVar("Argument"), TypeVar("Answer")


class Loop(NamedTuple):
    """What a case does: `train` takes batches until there are no more."""

    model: nn.Module
    batches: Iterator[Batch]  # without end, on the device
    train: Callable[["Stint"], None]
    lead: int = 2  # steps before each turn that are not timed: what loader workers have read ahead is then used up
    least: int = 2  # steps that a turn has at least


class Case(NamedTuple):
    """`make` builds the loop, in the case's own process: a function of a module, or a partial of one."""

    name: str
    make: Callable[[], Loop]
    limit: str | None = None  # the name of the limit with the same network, pixels and precision


class Turn(NamedTuple):
    samples: int
    seconds: float
    waited: float  # share of the seconds, as the host sees it, in which the loop had no batch


class Result(NamedTuple):
    """What was measured of a case."""

    turns: list[Turn]
    parameters: int
    memory: float  # GB at the peak: resident on a CPU, allocated on a GPU

    @property
    def speeds(self) -> list[float]:
        """Samples a second."""
        return [turn.samples / turn.seconds for turn in self.turns]


class Stint:
    """The batches of one turn: passed on until the time is over, and metered."""

    def __init__(self, batches: Iterator[Batch], seconds: float, least: int) -> None:
        self.batches, self.seconds, self.least = batches, seconds, least
        self.samples, self.waited = 0, 0.0

    def __iter__(self) -> Iterator[Batch]:
        start, steps = time.perf_counter(), 0
        while steps < self.least or time.perf_counter() - start < self.seconds:
            asked = time.perf_counter()
            images, targets = next(self.batches)
            self.waited += time.perf_counter() - asked
            self.samples += len(images)
            steps += 1
            yield images, targets


def side_by_side(cases: Sequence[Case], turns: int, seconds: float) -> dict[str, Result]:
    """Let the cases take turns of so many seconds each."""
    found: dict[str, list[Turn]] = {case.name: [] for case in cases}
    with ExitStack() as stack:
        pools = {case.name: stack.enter_context(_process()) for case in cases}
        ready = [pools[case.name].submit(_build, case) for case in cases]  # at the same time
        sizes = [future.result() for future in ready]
        for number in tqdm(range(turns * len(cases)), desc=cases[0].name, unit="turn", dynamic_ncols=True):
            name = cases[number % len(cases)].name
            found[name].append(pools[name].submit(_take_turn, name, seconds).result())
        memory = [pool.submit(peak_memory).result() for pool in pools.values()]
    return {case.name: Result(found[case.name], *rest) for case, *rest in zip(cases, sizes, memory, strict=True)}


def alone(function: Callable[[Argument], Answer], argument: Argument) -> Answer:
    """Call a function in a process of its own."""
    with _process() as pool:
        return pool.submit(function, argument).result()


def _process() -> Executor:
    """One fresh process."""
    return ProcessPoolExecutor(1, get_context("spawn"))


_loops: dict[str, Loop] = {}  # of a case's process: its own
atexit.register(_loops.clear)  # before Python takes the modules away that their threads still use


def _build(case: Case) -> int:
    """Make the loop of this process; the parameters of its model."""
    _loops[case.name] = loop = case.make()
    return parameters(loop.model)


def _take_turn(name: str, seconds: float) -> Turn:
    loop = _loops[name]
    if loop.lead:
        loop.train(Stint(loop.batches, 0.0, loop.lead))
    stint = Stint(loop.batches, seconds, loop.least)
    wait_for_gpu()
    start = time.perf_counter()
    loop.train(stint)
    wait_for_gpu()
    passed = time.perf_counter() - start
    torch.cuda.empty_cache()  # for the cases that take turns on the same GPU
    return Turn(stint.samples, passed, stint.waited / passed)


def wait_for_gpu() -> None:
    """A GPU works behind the host's back: what was asked of it is done when this returns."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory() -> float:
    """GB that this process and its loader workers had at their peaks (pages that they share count for each); of a
    process on a GPU what its tensors had there. NaN where the system does not say."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    processes = [Path("/proc/self/status"), *(Path(f"/proc/{child.pid}/status") for child in active_children())]
    try:  # not getrusage: what it says of a new process includes the one that it was started from
        peaks = [line.split()[1] for path in processes for line in path.read_text().splitlines() if "VmHWM" in line]
    except FileNotFoundError:
        return float("nan")
    return sum(map(int, peaks)) * 1024 / 1e9


def compared(results: dict[str, Result], one: str, other: str, digits: int) -> str:
    """How many times the speed of `other` `one` has: median of the turns, lowest and highest."""
    pairs = zip(results[one].speeds, results[other].speeds, strict=True)
    return spread([a / b for a, b in pairs], digits)


def spread(values: Sequence[float], digits: int) -> str:
    """Median, lowest and highest."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def machine(device: torch.device) -> str:
    """One line: where the figures come from."""
    names = ("torch", "torchvision", "monai", "dynamic-network-architectures")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    where = f"{processor()}, {cores()} cores, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}; {where}"
    return f"{where}; Python {platform.python_version()}, {versions}; commit {commit() or 'unknown'}"


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
