"""The store and the slices in it, against arrays made by hand and the disk's own mishaps."""

import ctypes
import errno
import json
import mmap
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datasets import brats, phantom, slices, store
from tests.conftest import AFFINE, make_case, write_case

WINDOW = (48, 64)


def blocks(count: int = 3):
    for number in range(count):
        images = np.full((number + 1, 2, 3, 4), number, np.float16)
        rows = [{"case": f"c{number}", "slice": z} for z in range(number + 1)]
        yield store.Block(images, images[:, 0].astype(np.uint8), rows, {"case": f"c{number}"})


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    built = store.open_or_build(tmp_path, "toy", [], {"a": 1}, blocks)
    assert built.images.shape == (6, 2, 3, 4) and built.images.dtype == np.float16
    assert built.images[:, 0, 0, 0].tolist() == built.targets[:, 0, 0].tolist() == [0, 1, 1, 2, 2, 2]
    assert built.index["slice"].tolist() == [0, 0, 1, 0, 1, 2]
    assert built.index["case"].tolist() == ["c0", "c1", "c1", "c2", "c2", "c2"]
    assert [info["case"] for info in built.info] == ["c0", "c1", "c2"]
    assert np.load(built.folder / "images.npy").shape == (6, 2, 3, 4)


def test_built_once_and_anew_when_sources_or_options_change(tmp_path: Path) -> None:
    source = tmp_path / "scan.nii"
    source.write_text("a")
    calls = []

    def produce():
        calls.append(1)
        return blocks()

    def build(options: dict) -> store.Store:
        return store.open_or_build(tmp_path / "cache", "toy", [source], options, produce)

    first = build({"a": 1})
    assert build({"a": 1}).folder == first.folder and len(calls) == 1
    assert build({"a": 2}).folder != first.folder and len(calls) == 2
    source.write_text("ab")
    assert build({"a": 1}).folder != first.folder and len(calls) == 3


def in_memory(path: Path) -> np.ndarray:
    """(pages,) bool: which pages of a file the system holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    content = np.memmap(path, np.uint8, mode="c")
    found = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
    length, into = ctypes.c_size_t(len(content)), ctypes.c_void_p(found.ctypes.data)
    assert libc.mincore(ctypes.c_void_p(content.ctypes.data), length, into) == 0
    return (found & 1).astype(bool)


@pytest.mark.skipif(
    not hasattr(os, "posix_fadvise") or mmap.PAGESIZE != 4096, reason="asks Linux which 4 kB pages it holds in memory"
)
def test_expected_rows_are_fetched_and_no_others(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 1, 256, 256), np.uint8)
    rows = [{"case": "c", "patient": "p", "slice": number} for number in range(40)]
    block = store.Block(images, np.arange(40), rows, {})
    built = store.open_or_build(tmp_path, "s", [], {}, lambda: iter([block]))
    path = built.folder / "images.npy"
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(path).any():
        pytest.skip("this file system lives in memory")
    built.expect(np.array([39, 7]))
    for _ in range(1500):
        time.sleep(0.02)
        held = np.flatnonzero(in_memory(path))
        if len(held) >= 34:
            break
    # 16 pages a row, and one more: the header shifts them
    assert held.tolist() == [*range(7 * 16, 8 * 16 + 1), *range(39 * 16, 40 * 16 + 1)]
    assert np.array_equal(built.images[[39, 7]], images[[39, 7]])


def test_names_of_digits_stay_names(tmp_path: Path) -> None:
    block = store.Block(np.zeros((2, 1, 2, 2), np.float16), np.zeros((2, 2, 2), np.uint8),
                        [{"case": "001", "patient": "001", "slice": 0}, {"case": "1", "patient": "1", "slice": 0}], {})
    index = store.open_or_build(tmp_path, "toy", [], {}, lambda: iter([block])).index  # fmt: skip
    assert index["patient"].tolist() == ["001", "1"] and index["slice"].tolist() == [0, 0]


@pytest.mark.parametrize("damage", ["version", "truncated", "empty", "no index", "zeros", "half"])
def test_an_old_or_damaged_store_is_built_again(tmp_path: Path, damage: str) -> None:
    folder = store.open_or_build(tmp_path, "toy", [], {}, blocks).folder
    if damage == "version":
        about = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps(about | {"version": store.VERSION - 1}))
    elif damage == "truncated":
        os.truncate(folder / "images.npy", 150)
    elif damage == "empty":
        os.truncate(folder / "images.npy", 0)
    elif damage == "no index":
        (folder / "index.csv").unlink()
    elif damage == "zeros":  # what a power cut leaves
        (folder / "index.csv").write_bytes(bytes(200_000))
    else:
        folder.rename(folder.with_name(folder.name + ".part"))
    again = store.open_or_build(tmp_path, "toy", [], {}, blocks)
    assert len(again) == 6 and again.images[-1, 0, 0, 0] == 2
    assert not list(tmp_path.glob("*.part"))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fails():
        yield from blocks()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.open_or_build(tmp_path, "toy", [], {}, fails)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_full_disk_is_an_error_not_a_crash() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space"), store.NpyWriter(Path("/dev/full")) as writer:
        for block in blocks(200):
            writer.append(block.images)


def slow_build(cache: Path, log: Path) -> None:
    def produce():
        with log.open("a") as file:
            file.write("built\n")
        import time

        time.sleep(0.5)
        yield from blocks()

    assert len(store.open_or_build(cache, "toy", [], {}, produce)) == 6


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=slow_build, args=(tmp_path, tmp_path / "log")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_crop_and_back() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 4, (20, 30, 5))
    inside = np.zeros_like(volume)
    inside[3:13, 0:26] = volume[3:13, 0:26]
    window = slices.crop(volume, (3, -2), (10, 28))  # leaves the volume on the low side of y
    assert window.shape == (10, 28, 5) and not window[:, :2].any()
    np.testing.assert_array_equal(slices.uncrop(window, (3, -2), (20, 30)), inside)


def test_slices_of_a_case() -> None:
    images, labels = make_case(1)
    codes = np.where(labels == 4, 3, labels).astype(np.uint8)
    case = brats.Case("a", "p", images.astype(np.float32), codes, np.diag([1.0, 1, 2, 1]))
    block = slices.case_block(case, WINDOW)
    brain = images.any(axis=0)
    kept = np.flatnonzero(brain.any(axis=(0, 1)))
    assert 0 < len(kept) < images.shape[-1], "the test needs slices without brain"
    assert [row["slice"] for row in block.rows] == kept.tolist()
    assert sum(row["et"] for row in block.rows) == (labels == 4).sum()
    x, y = block.info["start"]
    back = slices.uncrop(np.moveaxis(block.images, 0, -1), (x, y), images.shape[1:3])  # (4, X, Y, kept)
    for modality in range(4):
        inside = images[modality][brain].astype(np.float64)
        expected = np.zeros(brain.shape)
        expected[brain] = ((inside - inside.mean()) / inside.std()).clip(-slices.LIMIT, slices.LIMIT)
        np.testing.assert_allclose(back[modality], expected[..., kept], atol=4e-3)  # float16


def test_tumour_on_slices_without_brain_is_part_of_the_truth() -> None:
    images, labels = make_case(1)
    bare = int(np.flatnonzero(~images.any(axis=(0, 1, 2)))[0])
    x, y = (int(place.mean()) for place in np.nonzero(images.any(axis=(0, 3))))
    codes = np.where(labels == 4, 3, labels).astype(np.uint8)
    codes[x : x + 2, y : y + 2, bare] = 2
    block = slices.case_block(brats.Case("a", "p", images.astype(np.float32), codes, np.eye(4)), WINDOW)
    assert bare in [row["slice"] for row in block.rows]
    assert sum(row["ed"] for row in block.rows) == (codes == 2).sum() == (block.targets == 2).sum()


def test_a_large_brain_enlarges_the_window(cases: Path, tmp_path: Path) -> None:
    opened = slices.open_slices(cases, tmp_path, window=(16, 16))
    box = np.array(opened.images.shape[2:])
    assert (box % 16 == 0).all() and (box > 16).all()
    whole = slices.open_slices(cases, tmp_path, window=(48, 64))
    assert (opened.targets > 0).sum() == (whole.targets > 0).sum()
    before = sorted(tmp_path.iterdir())
    again = slices.open_slices(cases, tmp_path, window=(16, 16))
    assert opened.options["window"] == again.options["window"] == box.tolist()
    assert sorted(tmp_path.iterdir()) == before


def test_a_window_of_any_size_that_holds_the_brain_is_taken() -> None:
    brain = np.zeros((40, 40, 2), bool)
    brain[5:26, 10:33] = True  # 21 x 23
    assert slices.window_start(brain, (22, 23)) == (4, 10)
    with pytest.raises(slices.WindowTooSmall) as small:
        slices.window_start(brain, (22, 22))
    assert small.value.needed == (22, 32)


def test_hdf5_and_nifti_of_a_patient_give_the_same_store(tmp_path: Path) -> None:
    images, labels = phantom.make_patient(seed=0, number=3)
    phantom.write_hdf5(tmp_path / "hdf5", 3, images, labels)
    phantom.write_nifti(tmp_path / "nifti", "volume_3", images, labels)
    one, other = (slices.open_slices(tmp_path / layout, tmp_path / "cache") for layout in ("hdf5", "nifti"))
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.targets, other.targets)
    assert set(one.index.pop("patient")) == {"BraTS20_Training_003"}  # whom Kaggle's third volume shows
    assert set(other.index.pop("patient")) == {"volume_3"}
    for name, column in one.index.items():
        np.testing.assert_array_equal(column, other.index[name])
    assert [{**row, "patient": ""} for row in one.info] == [{**row, "patient": ""} for row in other.info]
    assert set(np.unique(one.targets)) <= {0, 1, 2, 3} and (one.targets > 0).sum() == (labels > 0).sum()


def test_pixels_of_another_size_are_refused() -> None:
    case = brats.Case("a", "p", *make_case(0), np.diag([-0.5, 0.5, 3, 1]))
    with pytest.raises(ValueError, match=r"a has pixels of 0\.5 x 0\.5 mm: resample its files to 1 mm"):
        slices.case_block(case, WINDOW)


def test_test_images_of_the_decathlon_count_when_they_are_labelled(tmp_path: Path) -> None:
    for folder, case in (("imagesTr", "a"), ("labelsTr", "a"), ("imagesTs", "b"), ("labelsTs", "b"), ("imagesTs", "c")):
        images, labels = make_case(ord(case))
        content = np.moveaxis(images, 0, -1) if folder.startswith("images") else np.where(labels == 4, 3, labels)
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(content, AFFINE), tmp_path / "data" / folder / f"{case}.nii.gz")
    found = slices.open_slices(tmp_path / "data", tmp_path / "cache", WINDOW)
    assert [info["case"] for info in found.info] == ["a", "b"]


def test_a_bad_case_among_good_ones_stops_the_build(cases: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(cases, folder)
    images, labels = make_case(7)
    labels[20, 24, 6] = 7
    write_case(folder, "Case_bad", images, labels)
    with pytest.raises(ValueError, match="Case_bad_seg"):
        slices.open_slices(folder, tmp_path / "cache", WINDOW)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_store_larger_than_memory_opens(tmp_path: Path) -> None:
    if not (info := Path("/proc/meminfo")).exists():
        pytest.skip("asks Linux how much memory there is")
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in info.read_text().splitlines() if "kB" in line}
    memory = sizes["MemTotal"] + sizes["SwapTotal"]
    row = np.ones((1, 1, 2048, 2048), np.uint8)
    block = store.Block(row, np.ones(1, np.uint8), [{"slice": 0}], {})
    folder = store.open_or_build(tmp_path, "s", [], {}, lambda: iter([block])).folder
    count = memory // row.nbytes * 5 // 4
    for name, one in (("images", row), ("targets", block.targets)):
        with store.NpyWriter(folder / f"{name}.npy") as writer:
            writer.append(one)
            writer.file.truncate(count * one.nbytes + 128)  # a hole, which takes no space
            writer.length = count
    (folder / "index.csv").write_text("slice\n" + "\n".join(map(str, range(count))) + "\n")
    found = store.open_or_build(tmp_path, "s", [], {}, blocks)
    assert found.images.nbytes > memory and len(found) == count
    assert found.images[0].all() and not found.images[count - 1].any()
    shutil.rmtree(folder)


def test_a_store_that_may_not_be_read_is_not_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.open_or_build(tmp_path, "toy", [], {}, blocks).folder

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(np, "load", refuse)
        with pytest.raises(PermissionError, match=r"images\.npy"):
            store.open_or_build(tmp_path, "toy", [], {}, lambda: pytest.fail("built anew"))  # type: ignore[arg-type]
    assert store.open_or_build(tmp_path, "toy", [], {}, lambda: pytest.fail("built anew")).folder == folder


def test_a_block_may_be_empty(tmp_path: Path) -> None:
    def produce():
        yield store.Block(np.zeros((0, 2, 3, 4), np.float16), np.zeros((0, 3, 4), np.uint8), [], {"case": "none"})
        yield from blocks()

    built = store.open_or_build(tmp_path, "toy", [], {}, produce)
    assert built.images[:, 0, 0, 0].tolist() == [0, 1, 1, 2, 2, 2] == built.targets[:, 0, 0].tolist()
