"""How the gates of AttentionUNet learn where to look: images/attention_epochs.gif.

    python benchmarks/attention_epochs.py

Trains AttentionUNet (n_filters 8) on every second slice with tumour of four simulated patients. After each epoch the
gates' maps are drawn for one slice of a fifth patient, who is not trained on; the first frame is the untrained network.
"""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn

import models
from datasets import phantom
from datasets.augment import Augmentation
from datasets.batches import Batches
from datasets.brats import MODALITIES
from datasets.slices import open_slices
from datasets.splits import tumour_voxels
from datasets.store import Store
from training.options import ROOT, UNetOptions
from utils import cli, explain, explain_plots
from utils.device import choose, keep_freed_memory
from utils.losses import LOSSES
from utils.pictures import as_image, gif, write_gif
from utils.train import Recipe, fit

if TYPE_CHECKING:
    from PIL.Image import Image

PATIENTS, EPOCHS = 5, 8
WIDTH = 900  # pixels of the GIF
PAUSE = 700  # milliseconds a frame; the last one stays four times as long


def frames(store: Store, epochs: int) -> list["Image"]:
    """Train on all patients but the last, and draw the gates on that one before the first and after each epoch."""
    last = store.info[-1]["case"]
    tumour = tumour_voxels(store)
    shown = int(np.argmax(np.where(store.index["case"] == last, tumour, -1)))
    rows = np.flatnonzero((store.index["case"] != last) & (tumour > 0))[::2]

    device = choose("auto")
    torch.manual_seed(0)
    model = models.build("attention_unet", n_filters=8).to(device).to(memory_format=torch.channels_last)
    image, truth = torch.from_numpy(store.images[shown].astype(np.float32)).to(device), store.targets[shown]
    flair = image[MODALITIES.index("flair")].cpu().numpy()
    pictures: list[Image] = []

    def draw(averaged: nn.Module) -> dict[str, float]:
        maps = [found.cpu() for found in explain.attention_maps(averaged, image[None])]
        title = f"AttentionUNet after {len(pictures)} of {epochs} epochs, simulated patient"
        pictures.append(as_image(explain_plots.gates(flair, maps, truth, title), WIDTH))
        return {}

    draw(model)
    data = Batches(store, rows, 8, device, augment=Augmentation())
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, LOSSES["dice_bce"](), Recipe(epochs, lr=2e-3), Path(folder), validate=draw)
    return pictures


def main(cache: Path = UNetOptions.cache, out: Path = ROOT / "images" / "attention_epochs.gif") -> None:
    keep_freed_memory()
    folder = phantom.write_phantom(cache / f"phantom_{PATIENTS}", PATIENTS)
    pictures = frames(open_slices(folder, cache), EPOCHS)
    write_gif(out, gif(pictures, PAUSE, rest=4 * PAUSE))
    print(f"{out}: {len(pictures)} frames, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    cli.run(main, __doc__)
