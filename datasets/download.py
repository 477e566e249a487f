"""Fetch the data sets from Kaggle, with a Kaggle account.

    python datasets/download.py                    # both
    python datasets/download.py classification     # Brain Tumor MRI Dataset: 0.2 GB, and the cropped images made of it
    python datasets/download.py segmentation       # BraTS 2020 as HDF5 slices: 7 GB, 15 GB when unpacked

A data set that is there, fetched or put there by hand, is left as it is. An interrupted download goes on where it
stopped. A data set appears whole: it is fetched and unpacked in a hidden folder beside its own, and renamed.
"""

import io
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.archives import DamagedArchive, require_space, unpack
from datasets.brats_files import find_cases, listing
from datasets.images import find_images

if TYPE_CHECKING:
    from kaggle.api.kaggle_api_extended import KaggleApi

HERE = Path(__file__).resolve().parent
CREDENTIALS = (
    "make a token at https://www.kaggle.com/settings/api and put it into KAGGLE_API_TOKEN or ~/.kaggle/access_token; "
    "an API key as KAGGLE_USERNAME + KAGGLE_KEY or in ~/.kaggle/kaggle.json works too, and so does `kaggle auth login`"
)
ANSWERS = {  # status -> what it means and what helps
    401: f"Kaggle does not accept these credentials (401): {CREDENTIALS}",
    403: "Kaggle refuses {slug} to this account (403): sign in at {page}, accept its terms if asked, and run the same "
         "command again",
    404: "Kaggle has no data set {slug} any more (404): see {page}, or put a copy into the folder by hand",
    429: "Kaggle had too many requests from here (429): wait some minutes and run the same command again",
}  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A data set on Kaggle, and what it should hold."""

    name: str  # its folder, beside this file
    slug: str
    unit: str
    archive: int  # bytes
    unpacked: int  # bytes, with what is made of it
    count: Callable[[Path], Counter[str]]  # in a folder; FileNotFoundError where there are no data
    expected: Mapping[str, int]

    @property
    def page(self) -> str:
        return f"https://www.kaggle.com/datasets/{self.slug}"


def count_images(folder: Path) -> Counter[str]:
    """Images in each class folder, such as Training/glioma, whatever the classes."""
    return Counter(f"{image.part}/{image.label}".strip("/") for image in find_images(folder, classes=None))


def count_slices(folder: Path) -> Counter[str]:
    """HDF5 slices of each volume; empty for BraTS in another layout."""
    return Counter({case.case: len(case.files) for case in find_cases(folder) if case.layout == "hdf5"})


CLASSIFICATION = DataSet(
    "classification", "masoudnickparvar/brain-tumor-mri-dataset", "images",
    archive=160_000_000, unpacked=460_000_000,  # 7023 JPEG files, hardly compressible; 0.3 GB of cropped PNG files
    count=count_images,
    expected={"Training/glioma": 1321, "Training/meningioma": 1339, "Training/notumor": 1595,
              "Training/pituitary": 1457, "Testing/glioma": 300, "Testing/meningioma": 306, "Testing/notumor": 405,
              "Testing/pituitary": 300},
)  # fmt: skip
SEGMENTATION = DataSet(
    "segmentation", "awsaf49/brats2020-training-data", "slices",
    archive=7_000_000_000, unpacked=15_000_000_000,  # as those say who fetched it
    count=count_slices,
    expected={f"volume_{number}": 155 for number in range(1, 370)},
)  # fmt: skip


def describe(dataset: DataSet, folder: Path) -> str:
    """What a folder holds of a data set, in a sentence that names what differs from Kaggle's.

    Raises:
        FileNotFoundError: it holds no data.
        ValueError: it holds data that cannot be read, such as two releases of BraTS.
    """
    found, expected = dataset.count(folder), dataset.expected
    if not found:
        return "cases in another layout than Kaggle's"
    names = [*expected, *sorted(found.keys() - expected.keys())]
    changed = [f"{name} {found[name]} (not {expected.get(name, 0)})" for name in names
               if found[name] != expected.get(name, 0)]  # fmt: skip
    number = f"{found.total():,} {dataset.unit}"
    return f"{number}; WARNING: {sum(expected.values()):,} were expected: {listing(changed)}" if changed else number


def fetch(dataset: DataSet, target: Path) -> None:
    """Put a data set into a folder, unless it is there.

    Raises:
        ValueError: no credentials, or Kaggle refuses; the folder holds something else, or is a mount point; the archive
            is damaged twice, or would write outside of its folder.
        OSError: no network, or the disk is too small. What was downloaded is kept, and gone on with by the next call.
    """
    from filelock import FileLock

    if _there(dataset, target):
        return
    place = target.resolve()  # it may be a link to a larger disk
    if place.is_mount():
        raise ValueError(f"{target} is a mount point, which cannot be replaced: "
                         "make it a link to a folder on that disk, or unpack the data there by hand")
    work = place.with_name(f".{place.name}.download")
    archive, unpacked = work / f"{dataset.slug.partition('/')[2]}.zip", work / "unpacked"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f".{place.name}.lock")):  # it stays: others may be waiting for it
        try:
            if _there(dataset, target):  # another process was quicker
                return
            work.mkdir(exist_ok=True)
            fetched = archive.stat().st_size if archive.exists() else 0
            require_space(place.parent, max(0, dataset.archive - fetched) + dataset.unpacked, f"fetch {dataset.slug}")
            contents = _download_and_unpack(dataset, archive, unpacked)
            if place.exists():
                for hidden in place.iterdir():
                    hidden.rename(unpacked / hidden.name)
                place.rmdir()
            unpacked.rename(place)
            archive.unlink()
            print(f"{target}: {contents}")
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
            if not archive.exists():
                shutil.rmtree(work, ignore_errors=True)


def _there(dataset: DataSet, target: Path) -> bool:
    try:
        print(f"{target} is there and left as it is: {describe(dataset, target)}")
    except FileNotFoundError:
        if target.is_dir() and any(not path.name.startswith(".") for path in target.iterdir()):
            raise ValueError(f"{target} holds something, but no data set: move it away, or unpack it there") from None
        return False
    return True


def _download_and_unpack(dataset: DataSet, archive: Path, unpacked: Path) -> str:
    """Download the archive, or the rest of it, and describe what was in it; a damaged one is fetched again, once."""
    for again in (True, False):
        with _in_one_sentence(dataset), redirect_stdout(io.StringIO()):  # the progress bar goes to stderr
            client().dataset_download_files(dataset.slug, path=str(archive.parent), quiet=False)
        try:
            unpack(archive, unpacked)
            return describe(dataset, unpacked)
        except DamagedArchive as error:
            archive.unlink()
            print(f"{error}; {'it is fetched again' if again else 'so was the one before'}")
        except FileNotFoundError:
            archive.unlink()
            raise ValueError(f"{dataset.slug} holds no {dataset.unit} any more: see {dataset.page}") from None
        except ValueError:
            archive.unlink()
            raise
    raise ValueError(f"{archive.name} arrived damaged twice and was removed: try again later, or get it from "
                     f"{dataset.page} with a browser and unpack it by hand")


def client() -> "KaggleApi":
    """Kaggle's own client, signed in.

    Raises:
        ValueError: there are no credentials, or the token is not valid.
    """
    from kaggle.api.kaggle_api_extended import KaggleApi  # signs in at import, and prints a page of help if it can't
    from kagglesdk import get_access_token_from_env

    api = KaggleApi()
    try:
        api.authenticate()
    except SystemExit:
        _, source = get_access_token_from_env()
        found = f"Kaggle does not accept the token in {source}" if source else "there are no Kaggle credentials"
        raise ValueError(f"{found}: {CREDENTIALS}") from None
    return api


@contextmanager
def _in_one_sentence(dataset: DataSet) -> Iterator[None]:
    """Say what went wrong and what helps; what the libraries say may hold a signed address, so it is not repeated."""
    import requests

    try:
        yield
    except requests.HTTPError as error:
        assert error.response is not None
        status = error.response.status_code
        sentence = f"Kaggle answers with an error ({status}): run the same command again later"
        if error.response.request.method == "POST":  # else it is the storage, whose signed address may have expired
            sentence = ANSWERS.get(status, sentence).format(slug=dataset.slug, page=dataset.page)
        raise ValueError(sentence) from error
    except requests.RequestException as error:
        raise ConnectionError(f"the connection to Kaggle fails ({type(error).__name__}): check network and proxy, and "
                              "run the same command again, it goes on where it stopped") from error  # fmt: skip


def main(what: Literal["classification", "segmentation", "all"] = "all", /) -> None:
    """Fetch what is not there yet; the images for classification are cropped, too."""
    if what != "segmentation":
        source = HERE / CLASSIFICATION.name
        fetch(CLASSIFICATION, source)
        from datasets.preprocessing import preprocess_folder

        preprocess_folder(source, source / "preprocessed")
    if what != "classification":
        fetch(SEGMENTATION, HERE / SEGMENTATION.name)


if __name__ == "__main__":
    from utils import cli

    cli.run(main, __doc__, resumes=True)
