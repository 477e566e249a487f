"""The plain loop that many public projects train with, written out as they write it.

One sample at a time is read from its file in the main process (no loader workers), float32, contiguous tensors, Adam,
`.item()` of the loss and of the metrics at every step. Segmentation: whole 240 x 240 HDF5 slices, each modality of
each slice scaled to 0..1, no augmentation, binary cross-entropy, seven metrics of three channels. Classification: JPEG
files through torchvision's transforms of PIL images, cross-entropy, accuracy.
"""

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.pipeline import Setting, build, open_store
from benchmarks.timing import Batch, Loop, Stint
from datasets.images import root
from models.quick_conv import QuickConv2d

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of a predicted and a true mask, 0 or 1
    "dice": lambda p, t: 2 * (p * t).sum() / (p.sum() + t.sum()),
    "iou": lambda p, t: (p * t).sum() / (p.sum() + t.sum() - (p * t).sum()),
    "accuracy": lambda p, t: (p == t).float().mean(),
    "fpr": lambda p, t: (p * (1 - t)).sum() / (1 - t).sum(),
    "fnr": lambda p, t: ((1 - p) * t).sum() / t.sum(),
    "precision": lambda p, t: (p * t).sum() / p.sum(),
    "recall": lambda p, t: (p * t).sum() / t.sum(),
}


def metric(name: str, logits: Tensor, masks: Tensor, channel: int) -> float:
    """One metric of one channel of a batch, (B, 3, H, W): each thresholds anew, and waits for its number."""
    predicted = (torch.sigmoid(logits) > 0.5).float()
    return METRICS[name](predicted[:, channel], masks[:, channel]).item()


class Slices(Dataset):
    """Kaggle's HDF5 slices, read one by one: image (4, 240, 240) and mask (3, 240, 240), float32."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        with h5py.File(self.paths[number]) as file:
            image, mask = file["image"][()], file["mask"][()]
        image, mask = (np.moveaxis(array, -1, 0).astype(np.float32) for array in (image, mask))
        low, high = image.min(axis=(1, 2), keepdims=True), image.max(axis=(1, 2), keepdims=True)
        return torch.from_numpy((image - low) / (high - low + 1e-8)), torch.from_numpy(np.ascontiguousarray(mask))


def plain(module: nn.Module) -> nn.Module:
    """The network with PyTorch's own convolution in place of our quicker one.

    The quick layers of the CNNs are PyTorch's own here: float32, and three channels of their own.
    """
    for name, child in module.named_children():
        if isinstance(child, QuickConv2d):
            conv = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size, padding=child.padding,
                             groups=child.groups)  # fmt: skip
            setattr(module, name, conv)
        else:
            plain(child)
    return module


def slices(setting: Setting, rows: np.ndarray | None = None) -> Slices:
    """The slices that our store has (some of its rows), each from its file."""
    store, every = open_store(setting)
    chosen = every if rows is None else rows
    names = zip(store.index["case"][chosen], store.index["slice"][chosen], strict=True)
    return Slices([setting.data / f"{case}_slice_{slice}.h5" for case, slice in names])


def segmentation(setting: Setting, rows: np.ndarray | None = None) -> Loop:
    """A U-Net on these slices."""

    def measure(logits: Tensor, masks: Tensor) -> float:
        return sum(metric(name, logits, masks, channel) for name in METRICS for channel in range(3))

    return loop(setting, slices(setting, rows), nn.BCEWithLogitsLoss(), measure)


def images(setting: Setting, rows: np.ndarray | None = None, augmented: bool = True) -> Dataset:
    """The images of Training (some rows of our store), with an augmentation like ours."""
    from torchvision import datasets, transforms

    change = transforms.Compose([
        transforms.Resize((setting.image_size, setting.image_size)),
        *([transforms.RandomHorizontalFlip(), transforms.RandomAffine(15, (0.08, 0.08), (0.85, 1.15)),
           transforms.ColorJitter(0.2, 0.2)] if augmented else []),
        transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    top = root(setting.data)
    data = datasets.ImageFolder(str(top / "Training"), change)
    if rows is None:
        return data
    places = {Path(path).relative_to(top).as_posix(): place for place, (path, _) in enumerate(data.samples)}
    store, _ = open_store(setting)
    return Subset(data, [places[name] for name in store.index["case"][rows].tolist()])


def classification(setting: Setting, rows: np.ndarray | None = None) -> Loop:
    """A classifier on these images."""

    def measure(logits: Tensor, labels: Tensor) -> float:
        return (logits.argmax(dim=1) == labels).float().mean().item()

    return loop(setting, images(setting, rows), nn.CrossEntropyLoss(), measure)


def loop(setting: Setting, data: Dataset, criterion: nn.Module, measure: Callable[[Tensor, Tensor], float]) -> Loop:
    """The loop of both tasks."""
    model = plain(build(setting)).to(setting.device).train()
    optimizer = torch.optim.Adam(model.parameters())

    def train(stint: Stint) -> None:
        total_loss = total_metrics = 0.0
        for images, targets in stint:
            images, targets = images.to(setting.device), targets.to(setting.device)
            optimizer.zero_grad()
            logits = model(images)
            loss = criterion(logits, targets)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            total_metrics += measure(logits.detach(), targets)

    return Loop(model, endless(DataLoader(data, setting.batch_size, shuffle=True, num_workers=0)), train)


def endless(loader: DataLoader) -> Iterator[Batch]:
    """Epoch after epoch."""
    return chain.from_iterable(repeat(loader))
