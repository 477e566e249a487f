"""Do the gates of AttentionUNet look at the tumour? Measured on patients that the weights have not seen.

    python benchmarks/attention_on_tumours.py --data FOLDER

Over the slices of a patient that show tumour, for each gate (its map stands at 1/16, 1/8, 1/4 or 1/2 of the image):

enrichment   share of the map's sum within the brain that falls into the tumour, over the tumour's share of the brain's
             area: 1 is a map that does not care, more looks at the tumour, less looks away from it
truth        the enrichment of the true mask on the same grid: what a map that knows the answer would have
tumour, rest the map's mean in the tumour, and in the rest of the brain
std          the map's standard deviation over the brain: near 0 it is blank
closed, open share of the brain where the map is < 0.05 and > 0.95: near 1 it is saturated
score        mean and standard deviation of what goes into the sigmoid

Masks are averaged over each cell of the map's grid. That weighs a cell by its pixels of tumour and brain, which is the
same as repeating each value of the map over its cell: nothing is interpolated that the gate did not say.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import models
from datasets.batches import Batches
from datasets.brats import MODALITIES
from datasets.splits import tumour_voxels
from datasets.store import Store
from models.unet import LEVELS, pad
from training.options import ROOT, UNetOptions
from training.seen import seen_by
from training.segmentation import open_data
from utils import cli, explain, explain_plots, markdown
from utils.evaluate import summary
from utils.files import write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDS = ROOT / "models" / "saved_models" / "brats_folds"
CLOSED, OPEN = 0.05, 0.95
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Path
    """Folder with BraTS cases."""
    cache: Path = UNetOptions.cache
    weights: tuple[str, ...] = (
        "AttentionUNet",
        str(FOLDS / "attention_unet_16_fold1of3.safetensors"),
        str(FOLDS / "attention_unet_16_fold2of3.safetensors"),
    )
    """Each is measured on the patients that it has not seen."""
    table: Path = ROOT / "runs" / "attention_on_tumours.csv"
    figure: Path = ROOT / "runs" / "attention_gates.png"


def brain_and_tumour(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, 2, H', W') masks as float, padded as the model pads its images: where there is brain, and tumour in it."""
    brain = (images != 0).any(dim=1)
    return pad(torch.stack([brain, brain & (labels > 0)], dim=1).float(), 2**LEVELS)


def sums(model: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    """(gates, 2, 8): over the brain and over the tumour, the sums of 1, the map, its square, closed, open, truth, score
    and its square."""
    total: torch.Tensor | float = 0.0
    for images, labels in batches:
        masks = brain_and_tumour(images, labels)
        gates = []
        for score in explain.attention_scores(model, images.contiguous(memory_format=torch.channels_last)):
            found = score.sigmoid()  # (B, 1, h, w)
            shares = F.adaptive_avg_pool2d(masks, found.shape[-2:])  # (B, 2, h, w): of each cell
            one, truth = torch.ones_like(found), shares[:, 1:]
            values = [one, found, found**2, found < CLOSED, found > OPEN, truth, score, score**2]
            gates.append(torch.stack([(shares * value).sum(dim=(0, 2, 3)) for value in values], dim=1))
        total = total + torch.stack(gates).double()
    assert isinstance(total, torch.Tensor)
    return total


def measures(brain: torch.Tensor, tumour: torch.Tensor) -> dict[str, float]:
    """What stands at the top of this file, from the `sums` of one gate, (8,) each."""
    area, mass, _, _, _, truth, _, _ = (tumour / brain).tolist()  # the parts in the tumour
    _, mean, square, closed, opened, _, score, score_square = (brain / brain[0]).tolist()
    rest = brain - tumour
    return {
        "enrichment": mass / area, "truth": truth / area, "tumour": (tumour[1] / tumour[0]).item(),
        "rest": (rest[1] / rest[0]).item(), "std": deviation(mean, square), "closed": closed, "open": opened,
        "score": score, "score_std": deviation(score, score_square),
    }  # fmt: skip


def deviation(mean: float, mean_square: float) -> float:
    return max(mean_square - mean**2, 0) ** 0.5


def open_unseen(weights: str, options: Options) -> tuple[nn.Module, Store, np.ndarray]:
    """The model, the data, and the rows with tumour of patients that the model has not seen.

    Raises:
        ValueError: it has seen all.
    """
    model = models.load(weights)
    store = open_data(UNetOptions(data=options.data, cache=options.cache), model.header["preprocessing"])
    tumour = tumour_voxels(store)
    rows = np.flatnonzero((tumour > 0) & ~seen_by(model.header, store))
    if not rows.size:
        raise ValueError(f"{weights} has seen all patients in {options.data}: take other weights or other data")
    return model.to(memory_format=torch.channels_last), store, rows


def measure(weights: str, options: Options) -> Iterator[dict[str, Any]]:
    """A row a case and gate."""
    model, store, unseen = open_unseen(weights, options)
    for case in tqdm(dict.fromkeys(store.index["case"][unseen].tolist()), desc=Path(weights).stem, unit="case"):
        rows = unseen[store.index["case"][unseen] == case]
        about = {"weights": Path(weights).stem, "case": case, "patient": str(store.index["patient"][rows[0]])}
        found = sums(model, Batches(store, rows, 16, torch.device("cpu")))
        for level, (brain, tumour) in enumerate(found):
            yield about | {"gate": f"1/{2 ** (LEVELS - level)}"} | measures(brain, tumour)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over patients, of enrichment with the 95 % interval, as a Markdown table with a row a gate."""
    means = ("tumour", "rest", "std", "closed", "open")
    lines = [["gate", "patients", "enrichment", "truth", *means, "score"]]
    for gate in dict.fromkeys(row["gate"] for row in rows):
        mine = [{k: v for k, v in row.items() if k not in ("weights", "gate")} for row in rows if row["gate"] == gate]
        found = summary(mine)
        mean, low, high = found["enrichment"]
        cells = [gate, str(len({row["patient"] for row in mine})), f"{mean:.2f} ({low:.2f} to {high:.2f})"]
        cells += [f"{found['truth'][0]:.1f}", *(f"{found[name][0]:.2f}" for name in means)]
        lines.append([*cells, f"{found['score'][0]:.1f} ± {found['score_std'][0]:.1f}"])
    return markdown.table(lines)


def picture(options: Options) -> "Figure":
    """The gates over the slice with the most tumour of the first patient that the first weights have not seen."""
    model, store, unseen = open_unseen(options.weights[0], options)
    case = store.index["case"][unseen[0]]
    rows = unseen[store.index["case"][unseen] == case]
    row = rows[np.argmax([np.count_nonzero(store.targets[row]) for row in rows])]
    image = torch.from_numpy(store.images[row].astype(np.float32))
    maps = explain.attention_maps(model, image[None])
    flair = image[MODALITIES.index("flair")].numpy()
    title = f"{type(model).__name__} on {case}, whom it has not seen"
    return explain_plots.gates(flair, maps, store.targets[row], title)


def main(options: Options) -> None:
    rows = [row for weights in options.weights for row in measure(weights, options)]
    for path in (options.table, options.figure):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(options.table, rows)
    picture(options).savefig(options.figure)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main, __doc__, kind=Options)
