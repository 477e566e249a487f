"""What is wrong with a data set of images: copies, also across Training and Testing, labels, patients on both sides.

    python datasets/audit.py datasets/classification
    python datasets/audit.py FOLDER --out RESULTS

FOLDER may be any tree with a folder a class, divided into Training/ and Testing/ or not. Prints tables (Markdown), and
writes audit_pairs.csv, a row for each pair of copies, and audit_examples.png, some of them to look at.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import patients
from datasets.duplicates import digest, groups, identical, identical_pairs, near_pairs, thumbnails
from datasets.images import PARTS, Image, find_images, read_gray
from datasets.parallel import ahead
from utils.files import replacing
from utils.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("identical", "near-identical", "mirrored")
EXAMPLES = 3  # pairs of a kind in the figure


@dataclass(frozen=True)
class Audit:
    """What was found; images are named by their place in `images`."""

    images: list[Image]  # those that can be read
    damaged: list[str]  # a sentence for each of the others
    twins: list[list[int]]  # pixel-identical files
    pairs: np.ndarray  # of `duplicates.near_pairs`, and all pixel-identical ones
    kinds: np.ndarray  # of KINDS, for each pair
    known: list[patients.Known]

    @cached_property
    def parts(self) -> list[str]:
        return [part for part in PARTS if any(image.part == part for image in self.images)]

    @cached_property
    def conflicts(self) -> np.ndarray:
        """Whether the two images of a pair lie in folders of different classes."""
        labels = np.array([image.label for image in self.images])
        return labels[self.pairs["i"]] != labels[self.pairs["j"]]


def inspect(folder: Path) -> Audit:
    """Read and compare all images below a folder.

    Raises:
        FileNotFoundError: no folder, or no image in it.
        ValueError: none of the images can be read, or patients.csv names others.
    """
    from tqdm import tqdm

    def read(image: Image) -> tuple[str, np.ndarray] | ValueError:
        try:
            pixels = read_gray(image.path)
        except ValueError as error:
            return error
        return digest(pixels), thumbnails([pixels])[0]

    files = find_images(folder, classes=None)
    done = list(tqdm(ahead(read, files), total=len(files), desc="reading", unit="image", dynamic_ncols=True))
    damaged = [str(result) for result in done if isinstance(result, ValueError)]
    _, about = patients.look_up(files, folder)
    whole = [(image, known, *result) for image, known, result in zip(files, about, done, strict=True)
             if not isinstance(result, ValueError)]  # fmt: skip
    if not whole:
        raise ValueError(f"none of the {len(files)} images in {folder} can be read: {damaged[0]}")
    images, known, digests, thumbs = map(list, zip(*whole, strict=True))

    near, same = near_pairs(np.stack(thumbs)), np.array(digests)
    near = near[same[near["i"]] != same[near["j"]]]
    exact = identical_pairs(digests)
    kinds = np.concatenate([np.full(len(exact), "identical"), np.where(near["mirrored"], "mirrored", "near-identical")])
    return Audit(images, damaged, identical(digests), np.concatenate([exact, near]), kinds, known)


def report(audit: Audit) -> str:
    """The findings as Markdown."""
    tables = [_images(audit), _copies(audit)]
    if len(audit.parts) == len(PARTS):
        tables.append(_testing(audit))
    return "\n\n".join([*tables, "\n".join(f"- {sentence}" for sentence in _sentences(audit))])


def _images(audit: Audit) -> str:
    classes = sorted({image.label for image in audit.images})
    places = [(image.part, image.label) for image in audit.images]
    lines = [["images", *classes, "all"]]
    for part in audit.parts or [""]:
        counts = [places.count((part, label)) for label in classes]
        lines.append([part or "all", *map(str, counts), str(sum(counts))])
    return table(lines)


def _copies(audit: Audit) -> str:
    """Copies in the whole set, within each part, and across them."""
    columns = ["all", *audit.parts, "across"] if len(audit.parts) > 1 else ["all"]

    def row(name: str, sets: Iterable[Sequence[int]], files: bool = False) -> list:
        counts = dict.fromkeys(columns, 0)
        for members in sets:
            there = {audit.images[place].part for place in members}
            for column in {"all", there.pop() if len(there) == 1 else "across"} & set(columns):
                counts[column] += len(members) if files else 1
        return [name, *counts.values()]

    def pairs(chosen: np.ndarray) -> list[list[int]]:
        return audit.pairs[["i", "j"]][chosen].tolist()

    return table([
        ["copies", *(f"within {column}" if column in PARTS else column for column in columns)],
        row("groups of pixel-identical files", audit.twins),
        row("files in them", audit.twins, files=True),
        row("pixel-identical pairs", pairs(audit.kinds == "identical")),
        row("other near-identical pairs, as they are", pairs(audit.kinds == "near-identical")),
        row("other near-identical pairs, mirrored", pairs(audit.kinds == "mirrored")),
        row("pairs with conflicting labels", pairs(audit.conflicts)),
    ])  # fmt: skip


def _testing(audit: Audit) -> str:
    """How much of the test set was seen in training, class by class."""
    labels = np.array([image.label for image in audit.images])
    testing = np.array([image.part == "Testing" for image in audit.images])
    names = np.array([known.patient for known in audit.known])
    known = testing & (names != "")

    def leaked(pairs: np.ndarray) -> np.ndarray:
        across = pairs[testing[pairs["i"]] != testing[pairs["j"]]]
        return testing & np.isin(np.arange(len(testing)), np.concatenate([across["i"], across["j"]]))

    rows = {
        "all": testing,
        "with a pixel-identical training image": leaked(audit.pairs[audit.kinds == "identical"]),
        "with an identical, near-identical or mirrored training image": leaked(audit.pairs),
    }
    if known.any():
        rows["whose patient is known"] = known
        rows["whose patient is in Training, too"] = known & np.isin(names, names[~testing])
    classes = sorted(set(labels[testing]))
    return table([["test images", *classes, "all"], *(
        [name, *(int((chosen & (labels == label)).sum()) for label in classes), int(chosen.sum())]
        for name, chosen in rows.items()
    )])  # fmt: skip


def _sentences(audit: Audit) -> list[str]:
    """What fits no table: groups, patients, labels to correct, damaged files."""
    labels, names = [image.label for image in audit.images], [known.patient for known in audit.known]
    group = groups(len(labels), audit.pairs, names)
    sizes = np.bincount(group)
    classes = Counter(place for place, _ in set(zip(group.tolist(), labels, strict=True)))
    mixed = sum(count > 1 for count in classes.values())
    sentences = [f"Groups joined by copies and known patients: {len(sizes)}, the largest of {sizes.max()} images; "
                 f"with several classes: {mixed}."]  # fmt: skip
    if any(names):
        sides = [{name for name, image in zip(names, audit.images, strict=True) if name and image.part == part}
                 for part in PARTS]  # fmt: skip
        both = f"; in both Training and Testing: {len(sides[0] & sides[1])}" if any(sides) else ""
        sentences.append(f"Known patients: {len(set(names) - {''})}, of {sum(map(bool, names))} images{both}.")
        wrong = sum("" != names[i] != names[j] != "" for i, j in audit.pairs[["i", "j"]].tolist())
        sentences.append(f"Pairs of copies that the table gives to two patients: {wrong}.")
    for image, known in zip(audit.images, audit.known, strict=True):
        if known.label != image.label:
            sentences.append(f"Wrong label: {image.name} is {known.label} by the table of patients.")
    return sentences + [f"Left out: {sentence}" for sentence in audit.damaged]


def write_pairs(audit: Audit, path: Path) -> None:
    """A row for each pair: kind, correlation, and the name, class, part and patient of both."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        fields = [f"{field}_{side}" for side in "ab" for field in ("file", "label", "part", "patient")]
        writer.writerow(["kind", "correlation", "conflict", *fields])
        for kind, pair, conflict in zip(audit.kinds, audit.pairs, audit.conflicts, strict=True):
            cells = [kind, f"{pair['correlation']:.5f}", int(conflict)]
            for image, known in ((audit.images[place], audit.known[place]) for place in (pair["i"], pair["j"])):
                cells += [image.name, image.label, image.part, known.patient]
            writer.writerow(cells)


def montage(audit: Audit) -> "Figure | None":
    """Pairs side by side, of each kind and of conflicting labels, from the least to the most alike; None without."""
    from utils import plots

    bands = {kind: np.flatnonzero(audit.kinds == kind) for kind in KINDS}
    bands["conflicting labels"] = np.flatnonzero(audit.conflicts)
    bands = {name: chosen for name, chosen in bands.items() if len(chosen)}
    if not bands:
        return None
    with plots.canvas(width=11, height=2.6 * len(bands)) as figure:
        rows = figure.subfigures(len(bands), 1, squeeze=False)[:, 0]
        for band, (name, chosen) in zip(rows, bands.items(), strict=True):
            band.suptitle(f"{name} ({len(chosen)})", x=0.01, ha="left", fontsize=10, fontweight="bold")
            ranked = chosen[np.argsort(audit.pairs["correlation"][chosen], kind="stable")]
            shown = ranked[np.linspace(0, len(ranked) - 1, min(EXAMPLES, len(ranked))).astype(int)]
            for panel, place in zip(band.subfigures(1, EXAMPLES), shown, strict=False):
                _side_by_side(panel, audit, place)
    return figure


def _side_by_side(panel: "SubFigure", audit: Audit, place: int) -> None:
    pair = audit.pairs[place]
    for axes, image in zip(panel.subplots(1, 2), (audit.images[pair["i"]], audit.images[pair["j"]]), strict=True):
        axes.imshow(read_gray(image.path), cmap="gray", vmin=0, vmax=255)
        axes.set_title(image.name.replace(f"/{image.path.name}", f"\n{image.path.name}"), fontsize=7)
        axes.set_axis_off()
    mirrored = ", mirrored" if pair["mirrored"] else ""
    panel.supxlabel(f"correlation {pair['correlation']:.4f}{mirrored}", fontsize=8)


def main(folder: Path, /, out: Path = ROOT / "runs" / "audit") -> None:
    """Compare all images below FOLDER with each other; the pairs and the figure go to OUT."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder with --out")
    audit = inspect(folder)
    print(report(audit))
    out.mkdir(parents=True, exist_ok=True)
    write_pairs(audit, out / "audit_pairs.csv")
    examples = out / "audit_examples.png"
    examples.unlink(missing_ok=True)  # of another data set, perhaps
    if figure := montage(audit):
        with replacing(examples) as temporary:
            figure.savefig(temporary, format="png")
    print(f"\nThe pairs are in {out / 'audit_pairs.csv'}" + (f", examples in {examples}" if figure else ": none"))


if __name__ == "__main__":
    from utils import cli

    cli.run(main, __doc__)
