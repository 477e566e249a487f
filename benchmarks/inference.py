"""From a patient's arrays to a label volume: ours beside MONAI's sliding window, around the same network.

    python benchmarks/inference.py --segmentation FOLDER
    python benchmarks/inference.py --segmentation FOLDER --device cuda

Both take the first patient's volumes (4, 240, 240, Z), normalise them, run the network in the best precision on
batches of 32 windows, and give the labels of all voxels. Ours crops to the brain once and takes its slices, as
`training/unet_training.py` evaluates. MONAI's SlidingWindowInferer covers each slice with overlapping windows of the
same size, 160 x 192, overlap 0.25. The network has random weights: the figures are times and memory.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.options import UNetOptions
from utils import cli

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.pipeline import Setting
    from benchmarks.timing import Loop, Stint
    from datasets.brats import Case as Patient

    Labels = Callable[[Setting, Any, Patient], np.ndarray]

OVERLAP = 0.25
WINDOWS = 32  # a batch


@dataclass(frozen=True)
class Options:
    segmentation: Path = UNetOptions.data
    """Folder with BraTS cases; its first patient is taken."""
    models: tuple[Literal["classic_unet", "improved_unet", "attention_unet"], ...] = ("attention_unet",)
    n_filters: int = UNetOptions.n_filters
    turns: int = 3
    """A turn is a patient."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def ours(setting: "Setting", model: Any, patient: "Patient") -> "np.ndarray":
    """Label volume (240, 240, Z): the slices that show brain, cropped, in batches."""
    import numpy as np
    import torch

    from datasets.slices import case_block, uncrop
    from utils.evaluate import Scan, segment

    block = case_block(patient, setting.window)
    images, labels = (torch.from_numpy(array).split(WINDOWS) for array in (block.images, block.targets))
    batches = ((image.to(setting.device).float(), label) for image, label in zip(images, labels, strict=True))
    slices = np.array([row["slice"] for row in block.rows])
    scan = Scan(patient.case, patient.patient, batches, slices, patient.spacing)
    predicted, _ = segment(model, scan, setting.precision)
    above = patient.images.shape[-1] - predicted.shape[-1]  # slices above the brain
    return uncrop(np.pad(predicted, ((0, 0), (0, 0), (0, above))), block.info["start"], patient.images.shape[1:3])


def monai(setting: "Setting", model: Any, patient: "Patient") -> "np.ndarray":
    """Label volume (240, 240, Z): all slices, in overlapping windows."""
    import numpy as np
    import torch
    from monai.inferers import SlidingWindowInferer

    from datasets.slices import zscore
    from utils.evaluate import predict
    from utils.metrics import to_labels

    images = np.moveaxis(zscore(patient.images, patient.brain), -1, 0)  # (Z, 4, 240, 240)
    inferer = SlidingWindowInferer(setting.window, WINDOWS, OVERLAP)
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(setting.device)
        logits = inferer(batch, lambda windows: predict(model, windows, setting.precision))
        return np.moveaxis(to_labels(logits).cpu().numpy(), 0, -1)


def loop(setting: "Setting", labels: "Labels") -> "Loop":
    """One of the two as a case: a batch is a patient."""
    import torch

    from benchmarks.pipeline import build
    from benchmarks.timing import Loop
    from datasets.brats import find_cases, read_case
    from utils.device import keep_freed_memory

    keep_freed_memory()
    patient = read_case(find_cases(setting.data)[0])
    model = build(setting).to(setting.device).to(memory_format=torch.channels_last).eval()

    def work(stint: "Stint") -> None:
        for _ in stint:
            volume = labels(setting, model, patient)
            assert volume.shape == patient.images.shape[1:]

    slices = torch.empty(patient.images.shape[-1], 0)
    return Loop(model, repeat((slices, slices)), work, lead=1, least=1)


def report(setting: "Setting", turns: int) -> str:
    """The table of a model: both ways side by side."""
    from benchmarks.timing import Case, compared, side_by_side, spread
    from utils.markdown import table

    first, other = "ours: slices of the crop", f"MONAI's sliding window, overlap {OVERLAP}"
    cases = [Case(name, partial(loop, setting, way)) for name, way in ((first, ours), (other, monai))]
    results = side_by_side(cases, turns, 0.0)
    rows = [[name, spread([turn.seconds for turn in result.turns], 1), f"{result.memory:.2f}",
             compared(results, first, name, 2)] for name, result in results.items()]  # fmt: skip
    count = median(turn.samples for turn in results[other].turns)
    title = f"{setting.model}, n_filters {setting.n_filters}, {count} slices, {setting.precision}, {turns} turns"
    return f"{title}\n\n{table([['', 'seconds a patient', 'memory (GB)', 'times as long as ours'], *rows])}"


def main(options: Options) -> None:
    from benchmarks import startup
    from benchmarks.pipeline import Setting
    from benchmarks.timing import machine
    from utils.device import best_precision, choose

    device = choose(options.device)
    best = best_precision(device)
    print(machine(device))
    with tempfile.TemporaryDirectory() as folder:
        slices = Path(folder) / "slices"
        startup.write_slices(options.segmentation, slices, 1)
        for model in options.models:
            setting = Setting(model, slices, slices, device, WINDOWS, options.n_filters, 0, best)
            print(f"\n{report(setting, options.turns)}", flush=True)


if __name__ == "__main__":
    cli.run(main, __doc__, kind=Options)
