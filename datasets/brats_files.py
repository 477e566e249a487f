"""Finding BraTS cases: which files below a folder make up which case, from their names alone.

Three layouts are published, and told apart by the names:

    nifti   <case>_{t1,t1ce,t2,flair,seg}.nii[.gz]    BraTS 2018-2021: convention "2021", ET = 4
            <case>-{t1n,t1c,t2w,t2f,seg}.nii[.gz]     BraTS 2023: convention "2023", ET = 3
    msd     imagesTr/<case>.nii.gz, labelsTr/<case>.nii.gz     Medical Segmentation Decathlon, Task01: "msd"
    hdf5    volume_<N>_slice_<M>.h5                   BraTS 2020 on Kaggle (awsaf49/brats2020-training-data)

They are re-releases of largely the same patients, under other names. A folder therefore holds one kind: two
at once would put one patient on both sides of a split. (2018 to 2021 are named alike: whoever mixes these has
to know that their patients differ.)
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

MODALITIES = ("t1", "t1c", "t2", "flair")  # the project's channel order

NAMES = {  # convention -> the mark before the ending of a file name, and what each ending means
    "2021": ("_", {"t1": "t1", "t1ce": "t1c", "t2": "t2", "flair": "flair", "seg": "seg"}),
    "2023": ("-", {"t1n": "t1", "t1c": "t1c", "t2w": "t2", "t2f": "flair", "seg": "seg"}),
}
MSD_FOLDERS = {"imagesTr": "image", "imagesTs": "image", "labelsTr": "seg", "labelsTs": "seg"}
HDF5_NAME = re.compile(r"(volume_\d+)_slice_(\d+)\.h5")
KAGGLE = 369  # the patients there; the phantom's numbers are larger
TIME_POINT = re.compile(r"(-\d{3,})-\d{1,3}$")  # BraTS-GLI-00000-000: a patient may come back

Layout = Literal["nifti", "msd", "hdf5"]


@dataclass(frozen=True)
class Source:
    """Where one case lies on disk. `files` maps each part to its file: the modalities and "seg" (nifti),
    "image" and "seg" (msd), or the slice numbers, ascending (hdf5). `convention` says what the label values
    mean (a key of `brats.LABELS`); None for hdf5, whose masks have a channel per class."""

    case: str
    patient: str
    layout: Layout
    convention: str | None
    files: Mapping[str, Path] = field(hash=False)

    def paths(self) -> list[Path]:
        """Every file the case is made of, sorted."""
        return sorted(self.files.values())

    @property
    def pattern(self) -> Path:
        """All files of the case in one path, to name them in a message."""
        first = self.paths()[0]
        return first.with_name(f"{self.case}{'_slice_*.h5' if self.layout == 'hdf5' else '*'}")

    def check(self, need_labels: bool = True) -> None:
        """Raise FileNotFoundError if the case is incomplete by its file names. `read_case` does this first;
        to read a whole data set, do it for all cases before reading any."""
        if self.layout == "hdf5":
            numbers = [int(number) for number in self.files]
            if gaps := sorted(set(range(numbers[0], numbers[-1])) - set(numbers)):
                raise FileNotFoundError(f"{self.pattern}: no slice {listing(gaps)}; download what is missing")
            return
        parts = ("image",) if self.layout == "msd" else MODALITIES
        for part in (*parts, "seg") if need_labels else parts:
            if part not in self.files:
                raise FileNotFoundError(f"{self._expected(part)}: missing, so the case has no {part}; add it "
                                        f"or take the case away{self._hint(part)}")

    def _expected(self, part: str) -> Path:
        """The path that a missing file should have, after the example of one that is there."""
        example = self.paths()[0]
        if self.convention not in NAMES:
            folder = next(name for name, content in MSD_FOLDERS.items() if content == part)
            return example.parent.with_name(folder) / example.name
        mark, endings = NAMES[self.convention]
        ending = next(ending for ending, meaning in endings.items() if meaning == part)
        return example.with_name(f"{self.case}{mark}{ending}.nii{'.gz' if example.suffix == '.gz' else ''}")

    def _hint(self, part: str) -> str:
        """Kaggle's BraTS 2020 has `W39_1998.09.19_Segm.nii` in place of `BraTS20_Training_355_seg.nii`."""
        beside = [path for path in sorted(self.paths()[0].parent.glob("[!.]*[Ss]eg*.nii*"))
                  if _recognise(path.parent.name, path.name) is None]
        return f" (or rename {beside[0].name}, if that is it)" if part == "seg" and beside else ""


class Part(NamedTuple):
    """What a file name says."""

    layout: Layout
    convention: str | None
    case: str
    part: str


def find_cases(folder: Path) -> list[Source]:
    """All cases in or below `folder`, in natural order (volume_2 before volume_10), from one walk. Symbolic
    links are followed, hidden files and macOS leftovers skipped, other files ignored.

    Raises FileNotFoundError if there is no folder or no case; ValueError if two files claim the same part of
    a case, or if the folder holds several layouts or namings.
    """
    cases: dict[tuple[Layout, str | None, str], dict[str, Path]] = {}
    for path, (layout, convention, case, part) in _walk(Path(folder)):
        files = cases.setdefault((layout, convention, case), {})
        if part in files:
            raise ValueError(f"{path}: {files[part]} is the same part ({part}) of case {case}; keep one")
        files[part] = path
    if not cases:
        raise FileNotFoundError(f"{folder}: no BraTS case here; expected files like <case>_t1.nii.gz, "
                                "<case>-t1n.nii.gz, imagesTr/<case>.nii.gz or volume_<N>_slice_<M>.h5")
    kinds = {key[:2]: next(iter(files.values())) for key, files in cases.items()}
    if len(kinds) > 1:
        raise ValueError(f"{folder}: holds several releases of BraTS, which share patients "
                         f"({listing(kinds.values())}); give the folder of one")
    sources = []
    for (layout, convention, case), files in cases.items():
        in_order = {part: files[part] for part in sorted(files, key=_natural)}
        sources.append(Source(case, _patient(case, layout, convention), layout, convention, in_order))
    return sorted(sources, key=lambda source: _natural(source.case))


def _patient(case: str, layout: Layout, convention: str | None) -> str:
    """Who a case shows: names of BraTS 2023 end with a time point, and Kaggle's numbers are those of BraTS 2020."""
    if layout == "hdf5" and (number := int(case.removeprefix("volume_"))) <= KAGGLE:
        return f"BraTS20_Training_{number:03d}"
    return TIME_POINT.sub(r"\1", case) if convention == "2023" else case


def _walk(folder: Path) -> Iterator[tuple[Path, Part]]:
    """Every file in or below `folder` that belongs to a case."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the one that holds the BraTS data")
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX"))]
        here = Path(parent)
        for name in names:
            if not name.startswith(".") and (part := _recognise(here.absolute().name, name)):
                yield here / name, part


def _raise(error: OSError) -> NoReturn:
    raise error


def _recognise(folder: str, name: str) -> Part | None:
    """What the name of a file, and of the folder it lies in, says; None if it is no part of a case."""
    if match := HDF5_NAME.fullmatch(name):
        return Part("hdf5", None, match[1], str(int(match[2])))
    if not name.endswith((".nii", ".nii.gz")):
        return None
    stem = name.removesuffix(".gz").removesuffix(".nii")
    if folder in MSD_FOLDERS:
        return Part("msd", "msd", stem, MSD_FOLDERS[folder])
    for convention, (mark, endings) in NAMES.items():
        case, _, ending = stem.rpartition(mark)
        if case and ending in endings:
            return Part("nifti", convention, case, endings[ending])
    return None


def _natural(name: str) -> list[str | int]:
    """Sort key that puts volume_2 before volume_10."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def listing(things: Iterable[object], most: int = 5) -> str:
    """`1, 2, 3` for a message; of many things, the first few."""
    words = [str(thing) for thing in things]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
