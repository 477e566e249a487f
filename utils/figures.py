"""Draw the README's figures: a simulated patient, the images a class, what the three U-Nets reached on patients, and
how VisionTransformer and VGG16 were trained.

    python utils/figures.py --out images

The scores are those of models/saved_metrics/brats_folds: every patient by the model of the fold that never saw them.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import models
from datasets import phantom
from datasets.brats import AFFINE, LABELS, REGIONS, Case
from datasets.download import CLASSIFICATION
from datasets.images import CLASSES
from datasets.slices import case_block
from datasets.store import Block
from utils import cli, data_plots, gather, image_plots, plots
from utils.describe import parameters
from utils.files import read_csv, writable
from utils.metrics import mean_interval
from utils.pictures import gif, save_png, write_gif
from utils.unet_diagrams import UNETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = Path(__file__).resolve().parents[1] / "models" / "saved_metrics"
FOLDS = METRICS / "brats_folds"
N_FILTERS = 16
PATIENT = 14  # of the built-in phantom
STEP, PAUSE = 4, 160  # of the film: slices, and milliseconds


@cache
def simulated() -> Block:
    """One simulated patient, as a network sees it."""
    images, values = phantom.make_patient(0, PATIENT)
    codes = np.zeros_like(values)
    for value, code in LABELS["2021"].items():
        codes[values == value] = code
    name = f"simulated patient {PATIENT}"
    return case_block(Case(name, name, images, codes, AFFINE))


def modalities() -> "Figure":
    """The slice of the simulated patient with the most tumour."""
    patient = simulated()
    largest = (patient.targets > 0).sum(axis=(1, 2)).argmax()
    return data_plots.modalities(patient.images[largest], patient.targets[largest], patient.info["case"])


def walk() -> bytes:
    """A film through the simulated patient."""
    patient = simulated()
    numbers = [row["slice"] for row in patient.rows[::STEP]]
    frames = data_plots.walk(patient.images[::STEP], patient.targets[::STEP], numbers, patient.info["case"])
    return gif(frames, PAUSE, rest=10 * PAUSE)


def unets() -> dict[str, gather.Result]:
    """ClassicUNet, ImprovedUNet and AttentionUNet -> what they scored, a row a case."""
    tables = [path for name in UNETS for path in sorted(FOLDS.glob(f"{name}_{N_FILTERS}_fold*.csv"))]
    found, _ = gather.read(tables)
    return {models.MODELS[method.removesuffix(f"_{N_FILTERS}")]: result for method, result in found.items()}


def dice() -> "Figure":
    """Dice of every patient, for each region and model."""
    return plots.patients({
        model: {region: result.column(f"dice_{region}") for region in REGIONS} for model, result in unets().items()
    })  # fmt: skip


def scores() -> "Figure":
    """The mean Dice of the regions against the parameters of the models."""
    table = {}
    for name, result in zip(UNETS, unets().values(), strict=True):
        of_patients = np.mean([result.column(f"dice_{region}") for region in REGIONS], axis=0)
        size = parameters(models.build(name, n_filters=N_FILTERS))
        table[models.MODELS[name]] = size, mean_interval(of_patients)
    return plots.score_by_size(table, f"Dice (0 to 1), mean of {', '.join(REGIONS)}")


def training(model: str) -> "Figure":
    """The loss, learning rate and recall of a classifier's training."""
    history = read_csv(METRICS / f"{model}_history.csv")
    return plots.curves(history, CLASSES, "recall", "recall")


FIGURES: dict[str, Callable[[], "Figure"]] = {  # the file (without .png) -> what draws it
    "phantom_modalities": modalities,
    "brats_dice": dice,
    "unet_scores": scores,
    "vit_training": partial(training, "VisionTransformer"),
    "vgg16_training": partial(training, "VGG16"),
    "class_distribution": partial(image_plots.class_distribution, CLASSIFICATION.expected),
}


def write(out: Path = Path("images")) -> None:
    """Draw all figures.

    Args:
        out: the folder that receives a PNG file each, and a GIF.
    """
    folder = writable(out)
    for name, draw in FIGURES.items():
        save_png(draw(), folder / f"{name}.png", colours=256)  # greys, and the colours of a tumour
        print(folder / f"{name}.png")
    write_gif(folder / "phantom_walk.gif", walk())
    print(folder / "phantom_walk.gif")


if __name__ == "__main__":
    cli.run(write, __doc__)
