"""Training from a store that is larger than memory: how fast, how long it waits, and what it reads from the disk.

    python benchmarks/larger_than_memory.py                     # a store of twice this machine's memory
    python benchmarks/larger_than_memory.py --gigabytes 10      # in a control group of less

On Linux with control groups of version 1, as root, a limit of 4 GB is

    mkdir /sys/fs/cgroup/memory/small
    echo 4G > /sys/fs/cgroup/memory/small/memory.limit_in_bytes
    echo $$ > /sys/fs/cgroup/memory/small/cgroup.procs

(version 2: memory.max), and `systemd-run --scope -p MemoryMax=4G` where there is systemd. Two stores of noise are
written, a small one, which stays in memory, and the large one; what is read from them comes in the order of an epoch:
shuffled, each slice (246 kB) in one piece. Reading alone says how much faster a network could be.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.options import ROOT
from utils import cli

if TYPE_CHECKING:
    from benchmarks.pipeline import Setting
    from benchmarks.timing import Batch, Stint
    from datasets.store import Store

SMALL = 0.1  # GB
BLOCK = 64  # slices that are written at once


@dataclass(frozen=True)
class Options:
    gigabytes: float | None = None
    """Of the large store; by default twice this machine's memory."""
    folder: Path = ROOT / "datasets" / "cache"
    """On the disk that is to be measured; the stores are removed at the end."""
    model: Literal["classic_unet", "improved_unet", "attention_unet"] = "classic_unet"
    n_filters: int = 16
    batch_size: int = 4
    seconds: float = 20.0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Measured(NamedTuple):
    """Of one store."""

    speed: float  # slices a second
    waited: float  # share of the time without a batch
    disk: float  # MB/s that came from the disk


def noise(cache: Path, gigabytes: float) -> "Store":
    """A store in the layout of BraTS slices whose images take so much."""
    import numpy as np

    from datasets.slices import WINDOW
    from datasets.store import Block, open_or_build

    rng = np.random.default_rng(0)
    images = rng.standard_normal((BLOCK, 4, *WINDOW), np.float32).astype(np.float16)
    labels = rng.integers(0, 4, (BLOCK, *WINDOW), np.uint8)
    rows = [{"case": "noise", "patient": "noise", "slice": number} for number in range(BLOCK)]
    blocks = max(1, round(gigabytes * 1e9 / images.nbytes))

    def produce() -> "Iterator[Block]":
        return (Block(images, labels, rows, {}) for _ in range(blocks))

    return open_or_build(cache, "noise", [], {"blocks": blocks}, produce)


def batches(setting: "Setting", store: "Store", augmented: bool = True) -> "Iterator[Batch]":
    """As the training script makes them, from all rows, epoch after epoch."""
    import numpy as np

    from benchmarks.pipeline import endless
    from datasets.augment import Augmentation
    from datasets.batches import Batches

    augment = Augmentation() if augmented else None
    return endless(Batches(store, np.arange(len(store)), setting.batch_size, setting.device, augment=augment))


def train(job: "tuple[Setting, float, float]") -> Measured:
    """Train on a store of so many gigabytes for so many seconds."""
    from benchmarks import pipeline
    from benchmarks.timing import Stint

    setting, gigabytes, seconds = job
    store = noise(setting.cache, gigabytes)
    loop = pipeline.ours(setting, data=lambda _: batches(setting, store))
    loop.train(Stint(loop.batches, 0.0, loop.lead))
    return measure(Stint(loop.batches, seconds, loop.least), loop.train)


def read(job: "tuple[Setting, float, float]") -> Measured:
    """Only read."""
    from collections import deque

    from benchmarks.timing import Stint

    setting, gigabytes, seconds = job
    data = batches(setting, noise(setting.cache, gigabytes), augmented=False)
    next(data)  # starts a GPU
    return measure(Stint(data, seconds, 2), lambda stint: deque(stint, maxlen=0))


def measure(stint: "Stint", work: "Callable[[Stint], object]") -> Measured:
    """What was read and done in a stint."""
    from time import perf_counter

    from benchmarks.timing import wait_for_gpu

    wait_for_gpu()
    start, before = perf_counter(), from_disk()
    work(stint)
    wait_for_gpu()
    passed = perf_counter() - start
    return Measured(stint.samples / passed, stint.waited / passed, (from_disk() - before) / passed / 1e6)


def from_disk() -> float:
    """Bytes that this process has made the disk read so far; NaN where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return float("nan")
    return float(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def main(options: Options) -> None:
    from shutil import disk_usage

    from benchmarks.pipeline import Setting
    from benchmarks.timing import alone, machine
    from utils.device import best_precision, choose
    from utils.markdown import table

    device = choose(options.device)
    sizes = (SMALL, options.gigabytes or 2 * memory())
    options.folder.mkdir(parents=True, exist_ok=True)
    if (free := disk_usage(options.folder).free / 1e9) < 1.3 * sum(sizes):
        raise ValueError(f"{options.folder} has {free:.0f} GB free, {1.3 * sum(sizes):.0f} are needed: name another "
                         "--folder, or fewer --gigabytes in a control group")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        setting = Setting(options.model, Path(), Path(folder), device, options.batch_size, options.n_filters, 0,
                          best_precision(device))  # fmt: skip
        rows = []
        for gigabytes in sizes:
            noise(setting.cache, gigabytes)
            for name, work in (("training", train), ("reading alone", read)):
                found = alone(work, (setting, gigabytes, options.seconds))
                rows.append([f"{name}, {gigabytes:.3g} GB", f"{found.speed:.0f}", f"{found.waited:.1%}",
                             f"{found.disk:.0f}"])  # fmt: skip
    title = f"{options.model}, n_filters {options.n_filters}, batch {options.batch_size}, {setting.precision}"
    text = table([["store", "slices/s", "waiting", "from the disk (MB/s)"], *rows])
    print(machine(device), title, text, sep="\n\n")


def memory() -> float:
    """GB of this machine."""
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


if __name__ == "__main__":
    cli.run(main, __doc__, kind=Options)
