"""How fast training is: ours beside a plain loop, others' pipelines and networks, and the limit of the hardware.

    python benchmarks/training.py --segmentation FOLDER --classification FOLDER
    python benchmarks/training.py --models classic_unet vgg16 --seconds 5 --turns 5
    python benchmarks/training.py --device cuda --n-filters 32 --batch-size 64

A table a model, slices (images) a second end to end. The cases take turns, each in a process of its own; a figure is
the median of its turns (lowest to highest), a ratio that of the ratios turn by turn.

predecessor    the plain loop of many public projects, see `predecessor.py`
pipelines      MONAI's CacheDataset or torchvision's ImageFolder with loader workers, around our network and step
ours           `utils.train` on our batches: from the whole 240 x 240 slice and from our crop; VisionTransformer on all
               patches of an image, on half of them, and, as in its recipe, moved by Muon too
compiled       on a GPU: ours with kernels that torch.compile fused, and with the network's launches as CUDA graphs
limit          ours on one batch that lies ready: the same training step, no data work
networks       those of MONAI, nnU-Net and torchvision in our pipeline

Waiting is the share of the time in which the loop had no batch, as the host sees it. Memory is the process's peak:
resident on a CPU, allocated on a GPU. Two patients (and all images) are read once into a temporary folder.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.options import CNNOptions, UNetOptions
from utils import cli

if TYPE_CHECKING:
    from benchmarks.pipeline import Setting
    from benchmarks.timing import Case, Result

Name = Literal["custom_cnn", "alexnet", "vgg16", "vit", "classic_unet", "improved_unet", "attention_unet"]
BATCH_SIZES = {"custom_cnn": 64, "alexnet": 64, "vit": 64, "vgg16": 8}  # on a CPU a step then takes less than 3 s
SLICES = 4  # a batch of a U-Net
WHOLE = (240, 240)


@dataclass(frozen=True)
class Options:
    models: tuple[Name, ...] = get_args(Name)
    segmentation: Path = UNetOptions.data
    """Folder with BraTS cases; its first two patients are taken."""
    classification: Path = CNNOptions.data
    """Folder with Training/ and Testing/ and their class folders."""
    n_filters: int = 16
    image_size: int = CNNOptions.image_size
    batch_size: int | None = None
    """By default 4 slices; 64 images, for VGG16 8."""
    seconds: float = 2.0
    """A turn of a case; it has two steps at least."""
    turns: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"


def cases(setting: "Setting", best: str) -> list["Case"]:
    """The cases of a model; the first is the predecessor, the last the limit."""
    from benchmarks import peers, pipeline, predecessor
    from benchmarks.timing import Case

    quick = replace(setting, precision=best)
    found = []
    if setting.segmentation:
        crop = "{} x {}".format(*setting.window)
        limit = f"limit, {crop}, {best}"
        found.append(Case("predecessor, 240 x 240, fp32", partial(predecessor.segmentation, setting)))
        around = partial(pipeline.ours, quick, data=peers.monai_batches)
        found.append(Case(f"MONAI's pipeline, {crop}, {best}", around, limit))
        for window in (WHOLE, setting.window):
            for precision in dict.fromkeys(("fp32", best)):
                mine = replace(setting, window=window, precision=precision)
                name = f"ours, {window[0]} x {window[1]}, {precision}"
                found.append(Case(name, partial(pipeline.ours, mine), limit if mine == quick else None))
        return [*found, *variants(quick), Case(limit, partial(pipeline.limit, quick))]
    limit = f"limit, {best}"
    found.append(Case("predecessor, fp32", partial(predecessor.classification, setting)))
    found.append(Case(f"torchvision's pipeline, {best}", partial(peers.torchvision_pipeline, quick), limit))
    if setting.model in peers.CLASSIFICATION:
        other = partial(pipeline.ours, quick, peers.torchvision_network)
        found.append(Case(f"torchvision's {setting.model}, our pipeline, {best}", other))
    for precision in dict.fromkeys(("fp32", best)):
        mine = replace(setting, precision=precision)
        found.append(Case(f"ours, {precision}", partial(pipeline.ours, mine), limit if mine == quick else None))
    return [*found, *variants(quick), Case(limit, partial(pipeline.limit, quick))]


def variants(setting: "Setting") -> list["Case"]:
    """Other ways to train the same network, each with the limit of its own."""
    from benchmarks import pipeline
    from benchmarks.timing import Case

    ways = {}
    if setting.model == "vit":
        half = replace(setting, patch_dropout=0.5)
        ways |= {"half of the patches": half, "half, Muon": replace(half, optimizer="muon")}
    if setting.device.type == "cuda":
        graphs = replace(setting, compiled="reduce-overhead")
        ways |= {"compiled": replace(setting, compiled="default"), "CUDA graphs": graphs}
    found = []
    for name, way in ways.items():
        limit = f"limit, {name}, {way.precision}"
        found.append(Case(f"ours, {name}, {way.precision}", partial(pipeline.ours, way), limit))
        found.append(Case(limit, partial(pipeline.limit, way)))
    return found


def networks(setting: "Setting", mine: list[str]) -> list["Case"]:
    """Our U-Nets and others' networks, all in our pipeline."""
    from benchmarks import peers, pipeline
    from benchmarks.timing import Case

    ours = [Case(f"our {name}", partial(pipeline.ours, replace(setting, model=name))) for name in mine]
    return ours + [
        Case(name, partial(pipeline.ours, setting, partial(peers.segmentation_network, name)))
        for name in peers.SEGMENTATION
    ]


def report(found: list["Case"], results: dict[str, "Result"], unit: str, baseline: str) -> str:
    """The table of a group of cases, ratios to the first."""
    from statistics import median

    from benchmarks.timing import compared, spread
    from utils.markdown import table

    first = found[0].name
    header = ["case", f"{unit}/s", f"x {baseline}", "waiting", "memory (GB)", "parameters"]
    limits = any(case.limit for case in found)
    header += ["of the limit"] if limits else []
    rows = []
    for case in found:
        result = results[case.name]
        share = [compared(results, case.name, case.limit, 3) if case.limit else ""] if limits else []
        waiting = f"{median(turn.waited for turn in result.turns):.1%}"
        rows.append([case.name, spread(result.speeds, 1), compared(results, case.name, first, 2), waiting,
                     f"{result.memory:.2f}", f"{result.parameters:,}", *share])  # fmt: skip
    return table([header, *rows])


def stores(options: Options, slices: Path, images: Path, cache: Path, scratch: Path, device: str) -> str:
    """Build the stores that the models need; how long that and a start take, as a table."""
    from benchmarks import startup
    from benchmarks.timing import spread
    from utils.markdown import table

    rows = []
    if any(name.endswith("unet") for name in options.models):
        crop, whole = (startup.build_slices(slices, cache, window) for window in (startup.WINDOW, WHOLE))
        for name, built in (("160 x 192", crop), ("240 x 240", whole)):
            rows.append([f"store of a patient, {name}", f"{built.seconds / startup.PATIENTS:.1f}",
                         f"{built.bytes / startup.PATIENTS / 1e6:.0f}"])  # fmt: skip
        starts = [startup.first_step(slices, cache, scratch / f"start{number}", device)
                  for number in range(options.turns)]  # fmt: skip
        rows.append(["start of unet_training.py to the end of its first step", spread(starts, 1), ""])
    if any(not name.endswith("unet") for name in options.models):
        built = startup.build_images(images, cache, options.image_size)
        rows.append([f"store of {built.samples} images", f"{built.seconds:.1f}", f"{built.bytes / 1e6:.0f}"])
    return table([["", "seconds", "MB"], *rows])


def main(options: Options) -> None:
    from benchmarks import roofline, startup
    from benchmarks.pipeline import Setting
    from benchmarks.timing import alone, machine, side_by_side
    from utils.device import best_precision, choose

    device = choose(options.device)
    best = best_precision(device)
    print(machine(device), f"{options.turns} turns of {options.seconds} s; best precision {best}", sep="\n\n")
    unets = [name for name in options.models if name.endswith("unet")]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        slices, cache, images = scratch / "slices", scratch / "cache", options.classification
        if unets:
            startup.write_slices(options.segmentation, slices)
        if len(unets) < len(options.models):
            images = startup.images_folder(images)
        show("Start", stores(options, slices, images, cache, scratch, device.type))

        def setting(name: str) -> Any:
            size = options.batch_size or BATCH_SIZES.get(name, SLICES)
            data = slices if name in unets else images
            return Setting(name, data, cache, device, size, options.n_filters, options.image_size)

        for name in options.models:
            mine = setting(name)
            found = cases(mine, best)
            results = side_by_side(found, options.turns, options.seconds)
            limit = found[-1].name
            unit = "slices" if name in unets else "images"
            title = f"{name}, batch {mine.batch_size}" + (f", n_filters {mine.n_filters}" if name in unets else "")
            roof = alone(roofline.measure, replace(mine, precision=best))
            show(title, report(found, results, unit, "predecessor"), roof.line(max(results[limit].speeds)))
        if unets:
            mine = replace(setting(unets[0]), precision=best)
            found = networks(mine, unets)
            results = side_by_side(found, options.turns, options.seconds)
            title = f"Networks in our pipeline, n_filters {mine.n_filters}, batch {mine.batch_size}, {best}"
            show(title, report(found, results, "slices", unets[0]))


def show(title: str, *paragraphs: str) -> None:
    print(f"\n**{title}**", *paragraphs, sep="\n\n", flush=True)


if __name__ == "__main__":
    cli.run(main, __doc__, kind=Options)
