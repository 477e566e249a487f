"""Images a second of a training epoch, data included: ours against the way of most public projects.

    python benchmarks/classification_throughput.py --data FOLDER --model custom_cnn

Theirs: torchvision's ImageFolder and PIL transforms in a DataLoader without workers, float32, contiguous tensors,
AdamW, `loss.item()` a step. Ours: the store, batched augmentation, channels_last, bf16 where the CPU or GPU has it,
averaged weights, the same network, batch and images. The two take turns; the table gives medians and the ratio.
"""

import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.options import CNNOptions
from utils import cli


@dataclass(frozen=True)
class Options:
    data: Path = CNNOptions.data
    """Folder with Training/ and its class folders."""
    model: Literal["custom_cnn", "alexnet", "vgg16", "vit"] = "custom_cnn"
    images: int = 1024
    """Images a turn."""
    turns: int = 3
    batch_size: int = 64
    image_size: int = 128
    cache: Path = CNNOptions.cache
    device: Literal["auto", "cpu", "cuda"] = "auto"


def theirs(options: Options, device: Any) -> float:
    """Images a second of the plain loop."""
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    import models

    change = transforms.Compose([
        transforms.Resize((options.image_size, options.image_size)), transforms.RandomHorizontalFlip(),
        transforms.RandomAffine(15, (0.08, 0.08), (0.85, 1.15)), transforms.ColorJitter(0.2, 0.2),
        transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    folder = datasets.ImageFolder(str(options.data / "Training"), change)
    chosen = torch.randperm(len(folder), generator=torch.Generator().manual_seed(0))[: options.images].tolist()
    loader = DataLoader(Subset(folder, chosen), options.batch_size, shuffle=True, num_workers=0)
    model = models.build(options.model, image_size=options.image_size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    criterion = torch.nn.CrossEntropyLoss()
    start, total = time.perf_counter(), 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        total += loss.item()
    return len(chosen) / (time.perf_counter() - start)


def ours(options: Options, device: Any, store: Any) -> float:
    """Images a second of `utils.train`, as the training scripts use it."""
    import numpy as np
    import torch

    import models
    from datasets.augment import ImageAugmentation
    from datasets.batches import Batches
    from training.classification import prepare
    from utils.device import best_precision
    from utils.journal import Journal
    from utils.losses import CrossEntropy
    from utils.signals import StopRequest
    from utils.train import Recipe, Run, train_one_epoch

    rows = np.random.default_rng(0).permutation(np.flatnonzero(store.index["part"] == 0))[: options.images]
    data = Batches(store, rows, options.batch_size, device, augment=ImageAugmentation(), prepare=prepare, resident=True)
    model = models.build(options.model, image_size=options.image_size).to(device)
    run = Run(model.to(memory_format=torch.channels_last), Recipe(1, precision=best_precision(device)), len(data))
    criterion = CrossEntropy(0.1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder), 0) as journal:
        train_one_epoch(run, data, criterion, journal, StopRequest(), str)
    return len(rows) / (time.perf_counter() - start)


def main(options: Options) -> None:
    import torch

    from datasets.image_store import open_images
    from utils.device import best_precision, choose, keep_freed_memory

    device = choose(options.device)
    store = open_images(options.data, options.cache, options.image_size)
    keep_freed_memory()
    found: dict[str, list[float]] = {"ImageFolder, PIL, fp32": [], "ours": []}
    for _ in range(options.turns):
        found["ImageFolder, PIL, fp32"].append(theirs(options, device))
        found["ours"].append(ours(options, device, store))
    print(f"{options.model}, {options.image_size} x {options.image_size}, batch {options.batch_size}, {options.images} "
          f"images of {options.data.name}, {options.turns} turns; {platform.machine()}, "
          f"{torch.get_num_threads()} threads, {device}, {best_precision(device)}, "
          f"torch {torch.__version__}")  # fmt: skip
    print("\n| | images/s, median | lowest | highest |\n|---|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} | {max(values):.0f} |")
    plain, quick = (statistics.median(values) for values in found.values())
    print(f"\nratio {quick / plain:.2f}")


if __name__ == "__main__":
    import tyro

    with cli.exits():
        main(tyro.cli(Options, description=__doc__))
