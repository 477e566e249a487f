"""Predict: a U-Net, or several, on BraTS cases.

Each case becomes `<case>_pred.nii.gz`, which lies on the case's own grid, and `<case>_pred.png` to look at; all
together `volumes.csv`, and `scores.csv` of those that come with the truth.
"""

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from datasets import brats, slices
from datasets.brats_files import MSD_FOLDERS
from datasets.images import SUFFIXES
from datasets.parallel import ahead
from models import Model, recorded
from utils import evaluate, metrics, plots, resample, results
from utils.device import best_precision
from utils.files import replacing, spare, writable, write_csv
from utils.markdown import table
from utils.postprocess import believed

BRAIN = (500, 2500)  # ml; the brains of BraTS patients measured here have 1200 to 1800


@dataclass(frozen=True)
class Segmenter:
    """Models of one or several trainings, asked together.

    The mean is that of their probabilities: a network that shouts (large logits) must not outvote the others, and
    probabilities can be resampled.
    """

    models: Sequence[Model]
    device: torch.device
    batch_size: int = 16
    tta: bool = False

    def __call__(self, case: brats.Case) -> np.ndarray:
        """Label codes (X, Y, Z) uint8 on the grid of the case. ValueError: its brain is not one."""
        grid = resample.to_network_grid(case)
        total = reduce(np.add, (self.probabilities(model, grid) for model in self.models))
        mean = resample.resize(total / len(self.models), case.images.shape[1:3])
        # a logit above 0 is a probability above 0.5: the one rule holds for both
        labels = metrics.to_labels(torch.from_numpy(mean - 0.5)[None])[0].numpy()
        return believed(labels, case.spacing, max(model.header["min_volume"] for model in self.models))

    def probabilities(self, model: Model, case: brats.Case) -> np.ndarray:
        """Of NCR, ED and ET, (3, X, Y, Z) float32 for a case of 1 mm pixels; 0 outside the window on the brain."""
        made = model.header["preprocessing"]
        try:
            seen = slices.network_slices(case, made["window"], made["normalise"])
        except slices.WindowTooSmall as error:
            seen = slices.network_slices(case, error.needed, made["normalise"])
        images = torch.from_numpy(seen.images).split(self.batch_size)
        found = torch.cat([self._slices(model, batch.to(self.device).float()).cpu() for batch in images])
        volume = np.zeros((len(brats.CLASSES), *case.images.shape[1:]), np.float32)
        volume[..., seen.kept] = slices.uncrop(np.moveaxis(found.numpy(), 0, -1), seen.start, case.images.shape[1:3])
        return volume

    def _slices(self, model: Model, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 4, H, W) to probabilities (B, 3, H, W); H runs from the patient's right to left."""
        precision = best_precision(self.device)
        found = evaluate.predict(model, images, precision).sigmoid()
        if self.tta:
            mirrored = evaluate.predict(model, images.flip(-2), precision).sigmoid().flip(-2)
            found = (found + mirrored) / 2
        return found


def run(
    paths: Sequence[Path], segmenter: Segmenter, out: Path, labels: str = "2021",
    modalities: Sequence[str] = brats.MODALITIES,
) -> tuple[int, list[str]]:  # fmt: skip
    """Segment all cases in `paths`, and write what was found into `out`.

    Args:
        labels: convention of the values written, a key of `brats.LABELS`.
        modalities: order of the channels in HDF5 slices.

    Returns:
        how many were segmented, and a sentence for each case that could not be.

    Raises:
        ValueError, FileNotFoundError: there is no case at all, or `out` cannot be written.
        OSError: no space left; no file is half-written.
    """
    sources, failed = find(paths)
    writable(out)
    inputs = [path for source in sources for path in source.paths()]
    headers = [model.header for model in segmenter.models]
    seen = set().union(*map(recorded, headers))
    volumes: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []

    def read(source: brats.Source) -> brats.Case | str:
        try:
            return brats.read_case(source, modalities=modalities, need_labels=False)
        except brats.BadLabels as error:
            tqdm.write(f"{source.case}: not scored, {str(error).partition(';')[0]}")
            files = {part: path for part, path in source.files.items() if part != "seg"}
            return read(replace(source, files=files))
        except (ValueError, OSError) as error:
            return str(error)

    bar = tqdm(ahead(read, sources, workers=1), total=len(sources), desc="segmenting", unit="case", dynamic_ncols=True)
    for case in bar:
        try:
            if isinstance(case, str):
                raise ValueError(case)
            codes = segmenter(case)
            target = spare(out / f"{case.case}_pred.nii.gz", inputs)
        except ValueError as error:
            failed.append(str(error))
            continue
        volumes.append(measure(case, codes))
        text = sentence(volumes[-1])
        bar.write(text)
        if case.labels is not None:
            found = metrics.region_scores(codes, case.labels, case.spacing, brats.REGIONS)
            known = bool({case.case, case.patient} & seen)
            scores.append({"case": case.case, "patient": case.patient, "trained_on": known, **found})
        content = gzip.compress(brats.as_image(case, codes, labels).to_bytes(), compresslevel=6)
        with replacing(target) as temporary:
            temporary.write_bytes(content)
        with replacing(out / f"{case.case}_pred.png") as temporary:
            plots.overview(case, codes, text).savefig(temporary, format="png")
        write_csv(out / "volumes.csv", volumes)  # after each case: what is done stays, however this ends
        if scores:
            write_csv(out / "scores.csv", scores)
        else:
            (out / "scores.csv").unlink(missing_ok=True)  # of an earlier call, on other cases
    if scores:
        print("\n\n".join([*leaks(headers), score_table(scores)]))
    return len(volumes), failed


def find(paths: Sequence[Path]) -> tuple[list[brats.Source], list[str]]:
    """The cases that files belong to or folders hold, and a sentence for each path that leads to none.

    Raises:
        ValueError: there is no case at all.
    """
    found: dict[str, brats.Source] = {}
    failed: list[str] = []
    of_folder = cache(brats.find_cases)
    for path in paths:
        try:
            for source in of_folder(path) if path.is_dir() else _case_of(path, of_folder(_home(path))):
                if (other := found.setdefault(source.case, source)) != source:
                    failed.append(f"{source.pattern}: {other.pattern} has the same name; predict them separately")
        except FileNotFoundError as error:
            failed.append(f"{error}{_kind(path)}")
        except ValueError as error:
            failed.append(str(error))
    if not found:
        raise ValueError(failed[0])
    return list(found.values()), failed


def _home(path: Path) -> Path:
    """The folder in or below which all files of a case lie: Decathlon's has one for images and one for labels."""
    return path.parents[path.parent.name in MSD_FOLDERS]


def _case_of(path: Path, sources: Sequence[brats.Source]) -> list[brats.Source]:
    if not (mine := [source for source in sources if path in source.paths()]):
        raise FileNotFoundError(f"{path}: no file of a BraTS case; give the folder of the case")
    return mine


def _kind(path: Path) -> str:
    """What is said of images, which a U-Net does not take."""
    images = path.suffix.lower() in SUFFIXES if path.is_file() else any(
        file.suffix.lower() in SUFFIXES for file in path.rglob("*"))  # fmt: skip
    return "; the weights given are a U-Net's, images want a classifier's" if images else ""


def measure(case: brats.Case, codes: np.ndarray) -> dict[str, Any]:
    """Volumes in ml of the classes and regions, of the brain, and the share of the brain that is marked."""
    ml = float(np.prod(case.spacing)) / 1000
    voxels = {name: np.count_nonzero(codes == code) for code, name in enumerate(brats.CLASSES, 1)}
    voxels |= {name: np.count_nonzero(region) for name, region in brats.regions(codes).items()}
    brain = np.count_nonzero(case.brain)
    row = {f"{name}_ml": count * ml for name, count in voxels.items()}
    return {"case": case.case, **row, "brain_ml": brain * ml, "marked": voxels["WT"] / brain}


def sentence(row: dict[str, Any]) -> str:
    """What was found in a case, in words; `row` is that of `measure`."""
    if not row["WT_ml"]:
        text = f"{row['case']}: NOTHING MARKED, no tumour was found"
    else:
        listed = ", ".join(f"{name} {row[f'{name}_ml']:.1f}" for name in ("WT", "TC", "NCR", "ED", "ET"))
        text = f"{row['case']}: {listed} ml; {row['marked']:.1%} of the brain is marked"
    low, high = BRAIN
    if not low < row["brain_ml"] < high:
        text += f"; WARNING: {row['brain_ml']:.0f} ml is no brain: is the skull stripped, the voxel size right?"
    return text


def leaks(headers: Iterable[Mapping[str, Any]]) -> list[str]:
    """How those splits were made that had slices of one patient on both sides, "LEAKY: ...", each once."""
    splits = [header.get("split", {}) for header in headers]
    return sorted({split["about"] for split in splits if split.get("unit") == "slice"})


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """Dice and HD95 of each case, and the means over those patients that the weights have not seen, as Markdown."""
    regions = list(brats.REGIONS)
    names = [*(f"{name} Dice" for name in regions), *(f"{name} HD95 (mm)" for name in regions)]
    lines = [["case", *names]]
    for row in rows:
        cells = [f"{row[f'dice_{name}']:.3f}" for name in regions] + [f"{row[f'hd95_{name}']:.1f}" for name in regions]
        lines.append([f"{row['case']}{'*' if row['trained_on'] else ''}", *cells])
    parts = [table(lines)]
    fresh = [{name: row[name] for name in row if name != "trained_on"} for row in rows if not row["trained_on"]]
    if len(fresh) < len(rows):
        parts.append("\\* the weights were trained on this patient: its score is no measure of skill")
    if len(fresh) > 1:
        parts.append(results.region_table(fresh, regions))
    return "\n\n".join(parts)
