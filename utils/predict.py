"""Run trained models on your own scans.

    python utils/predict.py CASE_FOLDER --weights AttentionUNet             # BraTS cases: label volumes and pictures
    python utils/predict.py FOLDER --weights runs/*/AttentionUNet.safetensors --tta --out FOLDER   # an ensemble
    python utils/predict.py scan.png slice.dcm "more/*.jpg" --weights runs/mine/CustomCNN.safetensors --explain

The weights say what they take. A U-Net segments cases in any layout of `datasets/brats_files.py`, with or without
truth; a classifier tells what an image shows (JPEG, PNG, TIFF, BMP, DICOM; folders are searched). For research and
teaching: not a medical device, not for diagnosis.

Exit code 0: all was predicted; 1: all but some, which are named; 2: nothing was, since the input is bad.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {  # task -> what its weights must say of themselves
    "segmentation": ("min_volume",),
    "classification": ("classes", "mirror", "temperature"),
}


def main(
    inputs: tuple[str, ...] = (),
    /,
    *,
    weights: tuple[str, ...],
    out: Path = ROOT / "runs" / "predictions",
    tta: bool = False,
    explain: bool = False,
    together: bool = False,
    labels: Literal["2021", "2023"] = "2021",
    modalities: tuple[str, str, str, str] = ("t1", "t1c", "t2", "flair"),
    batch_size: int = 16,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Predict.

    Args:
        inputs: Files, folders or patterns; before the options.
        weights: Files, or names in models/saved_models. Several are an ensemble: the mean of their probabilities.
        out: Folder for what is made.
        tta: Take the mean with the left-right mirrored scan (classifiers: as their weights say, or so).
        explain: Classifiers: a picture an image of where they looked.
        together: Classifiers: the images are slices of one patient; the last row is their mean.
        labels: Segmentation: 2021 writes the enhancing tumour as 4, 2023 as 3.
        modalities: Segmentation: order of the channels in HDF5 slices.
        batch_size: Slices or images at once.
    """
    if not inputs or not weights:
        raise ValueError("scans or weights are missing: scans stand first, predict.py SCANS --weights WEIGHTS")
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}: it must be 1 or more")

    import models  # torch and its kind are slow to import: --help does without
    from utils import predict_images, predict_scans
    from utils.device import choose, keep_freed_memory

    keep_freed_memory()
    where = choose(device)
    task = one_task({name: models.read_header(name) for name in weights})
    if explain and task == "segmentation":
        raise ValueError("--explain is for classifiers: a U-Net's label volume says where it looked")
    if together and task == "segmentation":
        raise ValueError("--together is for classifiers: a U-Net sees all slices of a case anyway")
    ensemble = [models.load(name, where) for name in weights]
    paths = expand(inputs)
    if task == "segmentation":
        segmenter = predict_scans.Segmenter(ensemble, where, batch_size, tta)
        done, failed = predict_scans.run(paths, segmenter, out, labels, modalities)
    else:
        classifier = predict_images.Classifier(ensemble, where, batch_size, tta)
        done, failed = predict_images.run(paths, classifier, out, explain, together)
    if done:
        print(f"Results are in {out}. For research and teaching: not for diagnosis.")
    if failed:
        print("\n".join([f"error: {len(failed)} not predicted:", *failed]), file=sys.stderr)
        sys.exit(1 if done else 2)


def one_task(headers: Mapping[str, Mapping[str, Any]]) -> str:
    """The task that all weights are for, "segmentation" or "classification"; headers: name of the weights -> header.

    Raises:
        ValueError: they do not say, or are for several tasks.
    """
    tasks = {}
    for name, header in headers.items():
        made = header.get("preprocessing", {})
        task = "segmentation" if "window" in made else "classification" if "image_size" in made else None
        if task is None or not set(NEEDED[task]) <= set(header):
            raise ValueError(f"{name} does not say how it was trained: take weights of a finished run")
        tasks[name] = task
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name} ({task})" for name, task in tasks.items())
        raise ValueError(f"--weights are for two tasks: give those of one ({listed})")
    return next(iter(tasks.values()))


def expand(inputs: Sequence[str]) -> list[Path]:
    """Paths of files and folders; patterns such as "scans/*.png" are looked up.

    Raises:
        FileNotFoundError: there is no such file, or nothing fits a pattern.
    """
    paths = []
    for text in inputs:
        if not text:  # which Python takes for the folder one is in
            raise FileNotFoundError("an empty path stands among the scans: is a variable of the shell not set?")
        path = Path(text)
        found = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not found:
            raise FileNotFoundError(f"{text}: there is no such file or folder; check the path")
        paths += found
    return list(dict.fromkeys(paths))


if __name__ == "__main__":
    cli.run(main, __doc__)
