"""The methods of `segmentation_references.py`."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn

import models
from benchmarks import peers
from datasets.batches import Batches
from datasets.splits import Split, tumour_voxels
from datasets.store import Store
from training import segmentation, stages
from training.options import UNetOptions
from utils import checkpoint, cli
from utils.describe import parameters
from utils.device import choose, keep_freed_memory
from utils.files import write_text
from utils.losses import BCE
from utils.postprocess import MIN_VOLUME
from utils.train import Recipe, Run, fit

T1C, FLAIR = 1, 3  # channels
PREDECESSORS = {"predecessor": torch.optim.Adam, "predecessor_adamw": torch.optim.AdamW}


def run(method: str, options: UNetOptions) -> None:
    """Train one method and score it on the test patients of the split."""
    if method in PREDECESSORS:
        options = replace(options, window=(240, 240))
    device = choose(options.device)
    normalise = "minmax" if method in PREDECESSORS else "zscore"
    store = segmentation.open_data(options, {"window": options.window, "normalise": normalise})
    with checkpoint.locked(options.folder):
        split = stages.open_split(options, segmentation, store, options.folder / "split.json")
        cli.keep(options, options.folder, (*stages.FREE, "methods"))
        write_text(options.folder / "split.json", split.text)
        if (options.folder / stages.RESULTS).exists():
            print(f"{options.folder.name} is finished:\n\n{(options.folder / stages.RESULTS).read_text()}")
            return
        torch.manual_seed(options.seed)
        model = train(method, options, store, split, device)
        size = parameters(model)
        trained = f"{options.epochs} epochs, " if size else ""
        title = f"{method}, {size:,} parameters, {trained}{split.about}"
        rows, header = split.rows(store, "test"), {"split": asdict(split), "min_volume": MIN_VOLUME}
        measured = segmentation.measure(options, model, store, rows, header)
        text, _ = segmentation.report(options, title, model, store, rows, header, measured)
        print(text)
        write_text(options.folder / stages.RESULTS, text)


def train(method: str, options: UNetOptions, store: Store, split: Split, device: torch.device) -> nn.Module:
    """The trained model of a method."""
    keep_freed_memory()
    if method == "threshold":
        return Threshold(store, split.rows(store, "train")).to(device)
    if method in PREDECESSORS:
        return predecessor(options, store, split, device, PREDECESSORS[method])
    network = peers.basic_unet(options.n_filters) if method == "basic_unet" else peers.segresnet(options.n_filters)
    network = network.to(device).to(memory_format=torch.channels_last)
    return segmentation.train(options, network, store, split, device)


class Threshold(nn.Module):
    """Edema where FLAIR is bright, enhancing tumour where T1c is; nothing else is found.

    The two thresholds (standard deviations above the brain's mean) are those with the best Dice on the rows given.
    """

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        super().__init__()
        images, labels = store.images[rows[::4]], store.targets[rows[::4]]
        self.flair = best_threshold(images[:, FLAIR], labels > 0)
        self.t1c = best_threshold(images[:, T1C], labels == 3)
        print(f"thresholds: FLAIR > {self.flair:.2f}, T1c > {self.t1c:.2f}")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 4, H, W) to "logits" (B, 3, H, W)."""
        edema = (images[:, FLAIR] > self.flair).float()
        enhancing = 2 * (images[:, T1C] > self.t1c).float()  # above edema where both are
        return torch.stack([torch.zeros_like(edema), edema, enhancing], dim=1)


def best_threshold(values: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the best Dice of `values > threshold` against `truth`."""

    def dice(threshold: float) -> float:
        found = values > threshold
        return 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))

    return float(max(np.arange(0, 5, 0.1), key=dice))


@dataclass(frozen=True)
class ExponentialRecipe(Recipe):
    """The learning rate falls by a factor an epoch; no warm-up, no clipping, no average."""

    clip: float = float("inf")
    ema: float = 0.0

    def factor(self, progress: float) -> float:
        return 0.9 ** int(progress * self.epochs * (1 - 1e-9))


def predecessor(
    options: UNetOptions, store: Store, split: Split, device: torch.device, optimizer: type[torch.optim.Optimizer]
) -> nn.Module:
    """ClassicUNet, trained as described in `segmentation_references.py`."""
    model = models.build("classic_unet", n_filters=options.n_filters).to(device)
    rows = split.rows(store, "train")
    empty = tumour_voxels(store)[rows] == 0
    data = Batches(store, rows, options.batch_size, device, options.seed, empty, options.tumour_free)

    def with_adam(run: Run) -> None:
        run.optimizers = [optimizer(run.model.parameters(), lr=2e-3, weight_decay=1e-2)]  # type: ignore[call-arg]

    return fit(model, data, BCE(), ExponentialRecipe(options.epochs, lr=2e-3), options.folder, prepare=with_adam)
