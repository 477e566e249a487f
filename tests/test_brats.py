"""datasets/brats.py and brats_files.py: every layout gives the same case, and bad input one clear sentence."""

import csv
import gzip
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from datasets.brats import CLASSES, LABELS, MODALITIES, background, find_cases, read_case, regions
from datasets.brats_files import NAMES

SHAPE = (12, 10, 8)
LPS = np.array([[-1.5, 0, 0, 4], [0, -1, 0, 239], [0, 0, 2, -3], [0, 0, 0, 1]])


def simulate(shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Images (4, X, Y, Z) float32 with background 0 around a box of brain, and label codes 0-3."""
    random = np.random.default_rng(0)
    images = np.zeros((4, *shape), dtype=np.float32)
    images[:, 2:-2, 2:-2] = random.integers(1, 1000, images[:, 2:-2, 2:-2].shape)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[3:6, 3:6] = random.integers(0, 4, (3, 3, shape[2]))
    labels[3, 3:6, 0] = 1, 2, 3
    return images, labels


IMAGES, CODES = simulate()


def in_file(codes: np.ndarray, convention: str) -> np.ndarray:
    """Label codes -> the values that a file of this convention holds."""
    values = np.zeros(4, dtype=np.int16)
    for value, code in LABELS[convention].items():
        values[code] = value
    return values[codes]


def save(path: Path, values: np.ndarray, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def write_nifti(folder: Path, case: str = "BraTS20_Training_001", convention: str = "2021", suffix: str = ".nii.gz",
                affine: np.ndarray = LPS, dtype: type = np.int16) -> Path:
    mark, endings = NAMES[convention]
    for ending, part in endings.items():
        values = in_file(CODES, convention) if part == "seg" else IMAGES[MODALITIES.index(part)].astype(dtype)
        save(folder / f"{case}{mark}{ending}{suffix}", values, affine)
    return folder


def write_msd(folder: Path, case: str = "BRATS_001") -> Path:
    order = [MODALITIES.index(modality) for modality in ("flair", "t1", "t1c", "t2")]
    save(folder / "imagesTr" / f"{case}.nii.gz", np.moveaxis(IMAGES[order], 0, -1))
    save(folder / "labelsTr" / f"{case}.nii.gz", in_file(CODES, "msd").astype(np.uint8))
    return folder


def write_hdf5(folder: Path, images: np.ndarray, codes: np.ndarray, volume: int = 1, start: int = 0,
               dtype: type = np.uint8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(codes.shape[2]):
        with h5py.File(folder / f"volume_{volume}_slice_{start + z}.h5", "w") as file:
            file["image"] = images[..., z].transpose(1, 2, 0)
            file["mask"] = (codes[..., z, None] == np.array([1, 2, 3])).astype(dtype)
    return folder


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    return write_nifti(tmp_path / "BraTS20_Training_001")


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    return write_hdf5(tmp_path / "data", *simulate((240, 240, 3)))


def read(folder: Path, **options):
    return read_case(find_cases(folder)[0], **options)


def refusal(folder: Path, error: type[Exception] = ValueError, **options) -> str:
    """The one sentence with which the only case of a folder is refused."""
    with pytest.raises(error) as caught:
        read(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)
    return message


# ---------------------------------------------------------------------------------------------- good input


@pytest.mark.parametrize("write", [
    write_nifti,
    lambda folder: write_nifti(folder, suffix=".nii"),
    lambda folder: write_nifti(folder, dtype=np.float64),
    lambda folder: write_nifti(folder, case="BraTS-GLI-00000-000", convention="2023"),
    write_msd,
])
def test_every_nifti_layout_gives_the_same_case(write: Callable[[Path], Path], tmp_path: Path) -> None:
    case = read(write(tmp_path / "a" / "b"))
    np.testing.assert_array_equal(case.images, IMAGES)
    np.testing.assert_array_equal(case.labels, CODES)
    np.testing.assert_allclose(case.affine, LPS)
    assert case.images.dtype == np.float32 and case.labels.dtype == np.uint8
    assert case.spacing == (1.5, 1.0, 2.0)
    assert set(LABELS) == {*NAMES, "msd"}


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float64])
def test_hdf5(dtype: type, tmp_path: Path) -> None:
    images, codes = simulate((240, 240, 3))
    case = read(write_hdf5(tmp_path, images, codes, dtype=dtype))
    np.testing.assert_array_equal(case.images, images)
    np.testing.assert_array_equal(case.labels, codes)
    np.testing.assert_array_equal(case.affine, [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert (case.case, case.patient) == ("volume_1", "BraTS20_Training_001")


def test_hdf5_slices_are_stacked_by_number_and_placed_by_it(tmp_path: Path) -> None:
    images, codes = simulate((240, 240, 4))
    case = read(write_hdf5(tmp_path, images, codes, start=8))  # 8, 9, 10, 11
    np.testing.assert_array_equal(case.images, images)
    assert case.affine[2, 3] == 8


def test_hdf5_order_of_modalities(hdf5: Path) -> None:
    images, _ = simulate((240, 240, 3))
    case = read(hdf5, modalities=("flair", "t2", "t1c", "t1"))
    np.testing.assert_array_equal(case.images, images[::-1])


@pytest.mark.parametrize("axcodes", ["RAS", "LAS", "SRA", "PSL"])
def test_any_orientation_is_brought_to_lps(axcodes: str, tmp_path: Path) -> None:
    folder = write_nifti(tmp_path)
    target = nib.orientations.axcodes2ornt(axcodes)
    for path in folder.iterdir():
        image = nib.load(path)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
        save(path, np.array(turned.dataobj), turned.affine)
    case = read(folder)
    np.testing.assert_array_equal(case.images, IMAGES)
    np.testing.assert_array_equal(case.labels, CODES)
    np.testing.assert_allclose(case.affine, LPS)


def test_scaled_integers(tmp_path: Path) -> None:
    image = nib.Nifti1Image(IMAGES[0].astype(np.int16), LPS)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, write_nifti(tmp_path) / "BraTS20_Training_001_t1.nii.gz")
    np.testing.assert_array_equal(read(tmp_path).images[0], np.asarray(nib.load(image.get_filename()).dataobj))


def test_labels_option_overrides_the_name(tmp_path: Path) -> None:
    folder = write_nifti(tmp_path)
    save(folder / "BraTS20_Training_001_seg.nii.gz", in_file(CODES, "2023"))
    assert "label 3 is not among 0, 1, 2, 4" in refusal(folder)
    np.testing.assert_array_equal(read(folder, labels="2023").labels, CODES)


def test_labels_may_be_absent_when_not_needed(nifti: Path, hdf5: Path) -> None:
    (nifti / "BraTS20_Training_001_seg.nii.gz").unlink()
    assert read(nifti, need_labels=False).labels is None
    with h5py.File(hdf5 / "volume_1_slice_1.h5", "a") as file:
        del file["mask"]
    assert read(hdf5, need_labels=False).labels is None


def test_brain_is_what_differs_from_the_background(tmp_path: Path) -> None:
    images, codes = simulate((240, 240, 3))
    brain = images.any(axis=0)
    constants = np.array([-0.4, 0.0, 7.0, -1.25], dtype=np.float32).reshape(4, 1, 1, 1)
    case = read(write_hdf5(tmp_path, images / 100 + constants, codes))
    np.testing.assert_array_equal(case.brain, brain)
    assert [background(volume) for volume in case.images] == pytest.approx(constants.ravel().tolist())


def test_regions() -> None:
    masks = regions(np.array([0, 1, 2, 3], dtype=np.uint8))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "WT": [False, True, True, True], "TC": [False, True, False, True], "ET": [False, False, False, True]}


def test_cases_are_found_anywhere_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        write_hdf5(tmp_path / "content" / "data", *simulate((240, 240, 1)), volume=number)
    (tmp_path / "content" / "data" / "._volume_9_slice_0.h5").write_text("AppleDouble")
    (tmp_path / "content" / "meta.csv").write_text("not a case")
    sources = find_cases(tmp_path)
    assert [source.case for source in sources] == ["volume_9", "volume_10", "volume_100"]
    assert sources[0].paths() == [tmp_path / "content" / "data" / "volume_9_slice_0.h5"]
    assert len(set(sources)) == 3


def test_time_points_of_a_patient(tmp_path: Path) -> None:
    for case in ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-MEN-RT-0001-1"):
        write_nifti(tmp_path / case, case, "2023")
    assert [(source.case, source.patient) for source in find_cases(tmp_path)] == [
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005"), ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001")]


def test_patients_of_other_layouts_are_cases(tmp_path: Path) -> None:
    case = "Brats18_TCIA01_131_1"
    assert [source.patient for source in find_cases(write_nifti(tmp_path, case))] == [case]


def test_threads_read_the_same(nifti: Path, hdf5: Path) -> None:
    for folder in (nifti, hdf5):
        source = find_cases(folder)[0]
        with ThreadPoolExecutor(4) as pool:
            first, *others = pool.map(lambda _, source=source: read_case(source), range(8))
        assert all(np.array_equal(first.images, other.images) for other in others)


# ----------------------------------------------------------------------------------------------- bad input


def test_no_folder_and_no_case(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path, FileNotFoundError)
    assert "nowhere" in refusal(tmp_path / "nowhere", FileNotFoundError)


@pytest.mark.parametrize("ending", ["t1", "t1ce", "t2", "flair", "seg"])
def test_missing_file(ending: str, nifti: Path) -> None:
    (nifti / f"BraTS20_Training_001_{ending}.nii.gz").unlink()
    assert f"BraTS20_Training_001_{ending}.nii.gz: missing" in refusal(nifti, FileNotFoundError)


def test_segmentation_of_case_355(tmp_path: Path) -> None:
    folder = write_nifti(tmp_path, "BraTS20_Training_355", suffix=".nii")
    (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    message = refusal(folder, FileNotFoundError)
    assert "BraTS20_Training_355_seg.nii: missing" in message and "rename W39_1998.09.19_Segm.nii" in message


@pytest.mark.parametrize(("folder", "missing"), [("labelsTr", "seg"), ("imagesTr", "image")])
def test_msd_half_a_case(folder: str, missing: str, tmp_path: Path) -> None:
    shutil.rmtree(write_msd(tmp_path) / folder)
    message = refusal(tmp_path, FileNotFoundError)
    assert f"{folder}/BRATS_001.nii.gz: missing" in message and missing in message


def test_missing_slice(hdf5: Path) -> None:
    (hdf5 / "volume_1_slice_1.h5").unlink()
    assert "volume_1_slice_*.h5: no slice 1;" in refusal(hdf5, FileNotFoundError)


def test_two_files_for_one_part(nifti: Path) -> None:
    shutil.copytree(nifti, nifti.parent / "copy")
    assert "BraTS20_Training_001_" in refusal(nifti.parent)
    shutil.rmtree(nifti.parent / "copy")
    save(nifti / "BraTS20_Training_001_t1.nii", IMAGES[0])
    message = refusal(nifti)
    assert "BraTS20_Training_001_t1.nii.gz" in message and "BraTS20_Training_001_t1.nii" in message


def test_two_releases_in_one_folder(nifti: Path, hdf5: Path) -> None:
    message = refusal(nifti.parent)
    assert "BraTS20_Training_001_" in message and "volume_1_slice_" in message


def huge(data: bytes) -> bytes:
    """The header of a NIfTI file says 32767 voxels along each axis, more than any memory holds."""
    whole = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    damaged = whole[:42] + np.full(3, 32767, "<i2").tobytes() + whole[48:]
    return gzip.compress(damaged) if data.startswith(b"\x1f\x8b") else damaged


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("damage", [
    lambda data: data[: len(data) // 2],
    lambda data: data[:-4],
    lambda data: b"",
    lambda data: b"<html>404 Not Found</html>" * 100,
    lambda data: huge(data),
], ids=["half", "four bytes short", "empty", "text", "huge"])
def test_damaged_nifti(damage: Callable[[bytes], bytes], suffix: str, tmp_path: Path) -> None:
    path = write_nifti(tmp_path, suffix=suffix) / f"BraTS20_Training_001_t2{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path}: cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-1000], lambda data: b"", lambda data: b"hello\n" * 500],
                         ids=["short", "empty", "text"])
def test_damaged_hdf5(damage: Callable[[bytes], bytes], hdf5: Path) -> None:
    path = hdf5 / "volume_1_slice_2.h5"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path}: cannot be read" in refusal(hdf5)


def test_file_that_went_away(nifti: Path) -> None:
    source = find_cases(nifti)[0]
    source.files["flair"].unlink()
    with pytest.raises(FileNotFoundError, match="the file has gone"):
        read_case(source)


@pytest.mark.parametrize("ending", ["t2", "seg"])
def test_other_grid(ending: str, nifti: Path) -> None:
    path, values = nifti / f"BraTS20_Training_001_{ending}.nii.gz", in_file(CODES, "2021")
    save(path, values[:-1])
    assert f"{path}: shape (11, 10, 8)" in refusal(nifti)
    save(path, values, LPS + np.diag([0, 0, 0.1, 0]))
    assert f"{path}: the affine differs" in refusal(nifti)
    save(path, values, LPS + np.diag([0, 0, 1e-4, 0]))
    assert read(nifti).images.shape == (4, *SHAPE)


def test_same_shape_but_turned_is_another_grid(nifti: Path) -> None:
    path = nifti / "BraTS20_Training_001_seg.nii.gz"
    turned = nib.as_closest_canonical(nib.load(path))
    save(path, np.array(turned.dataobj), turned.affine)
    assert f"{path}: the affine differs" in refusal(nifti)


def test_singular_affine(nifti: Path) -> None:
    path = nifti / "BraTS20_Training_001_t1.nii.gz"
    data = bytearray(nib.Nifti1Image(IMAGES[0], LPS).to_bytes())
    data[280:296] = bytes(16)  # the first row of the sform
    path.write_bytes(data)
    assert f"{path}: the affine of the header is singular" in refusal(nifti)


def test_a_folder_is_known_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_msd(tmp_path / "msd") / "imagesTr")
    assert [source.case for source in find_cases(Path())] == [source.case for source in find_cases(tmp_path / "msd")]


def test_number_of_dimensions_and_channels(nifti: Path, tmp_path: Path) -> None:
    path = save(nifti / "BraTS20_Training_001_t1ce.nii.gz", np.moveaxis(IMAGES, 0, -1))
    assert f"{path}: 3-D expected" in refusal(nifti)
    path = save(write_msd(tmp_path / "msd") / "imagesTr" / "BRATS_001.nii.gz", IMAGES[0])
    assert f"{path}: 4-D expected" in refusal(tmp_path / "msd")
    save(path, np.moveaxis(IMAGES[:3], 0, -1))
    assert f"{path}: 3 channels instead of the four" in refusal(tmp_path / "msd")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value: float, nifti: Path, tmp_path: Path) -> None:
    image = IMAGES[1].copy()
    image[5, 5, 5] = value
    path = save(nifti / "BraTS20_Training_001_t1ce.nii.gz", image)
    assert f"{path}: t1c holds NaN or infinite" in refusal(nifti)
    images, codes = simulate((240, 240, 2))
    images[0, 5, 5, 1] = value
    assert "volume_1_slice_1.h5: 'image' holds NaN" in refusal(write_hdf5(tmp_path / "data", images, codes))


@pytest.mark.parametrize("value", [0, 5])
def test_constant_modality(value: int, nifti: Path, tmp_path: Path) -> None:
    path = save(nifti / "BraTS20_Training_001_flair.nii.gz", np.full(SHAPE, value, np.int16))
    assert f"{path}: flair is {value} everywhere" in refusal(nifti)
    images, codes = simulate((240, 240, 2))
    images[1] = value
    assert f"volume_1_slice_*.h5: t1c is {value}" in refusal(write_hdf5(tmp_path / "data", images, codes))


@pytest.mark.parametrize("value", [7, 3, -1, 257, 0.5, np.nan])
def test_labels_outside_the_convention(value: float, nifti: Path) -> None:
    values = in_file(CODES, "2021").astype(np.float32)
    values[5, 5, 5] = value
    path = save(nifti / "BraTS20_Training_001_seg.nii.gz", values)
    assert f"{path}: label {value:g} is not among 0, 1, 2, 4" in refusal(nifti)


def test_label_4_is_the_resection_cavity(tmp_path: Path) -> None:
    folder = write_nifti(tmp_path, "BraTS-GLI-00005-100", "2023")
    path = save(folder / "BraTS-GLI-00005-100-seg.nii.gz", in_file(CODES, "2021"))
    assert f"{path}: label 4 is the resection cavity from 2024 on" in refusal(folder)
    np.testing.assert_array_equal(read(folder, labels="2021").labels, CODES)


@pytest.mark.parametrize("name", ["image", "mask"])
def test_hdf5_data_set_missing_or_of_another_shape(name: str, hdf5: Path) -> None:
    path = hdf5 / "volume_1_slice_1.h5"
    with h5py.File(path, "a") as file:
        del file[name]
    assert f"{path}: no data set '{name}'" in refusal(hdf5)
    with h5py.File(path, "a") as file:
        file[name] = np.zeros((240, 240, 2), dtype=np.uint8)
    assert f"{path}: '{name}' has shape (240, 240, 2)" in refusal(hdf5)


def test_hdf5_mask_is_binary_and_exclusive(hdf5: Path) -> None:
    path = hdf5 / "volume_1_slice_1.h5"
    with h5py.File(path, "a") as file:
        file["mask"][0, 0] = 1
    assert f"{path}: {', '.join(CLASSES)} overlap" in refusal(hdf5)
    with h5py.File(path, "a") as file:
        file["mask"][0, 0] = 0, 4, 0
    assert f"{path}: the mask holds values other than 0 and 1" in refusal(hdf5)


def test_unknown_options(nifti: Path, hdf5: Path) -> None:
    assert "2021, 2023, msd" in refusal(nifti, labels="2019")
    assert "t1, t1c, t2, flair" in refusal(hdf5, modalities=("t1", "t1gd", "t2", "flair"))
    assert "t1, t1c, t2, flair" in refusal(hdf5, modalities=("t1", "t1", "t2", "flair"))
    assert str(hdf5) in refusal(hdf5, labels="2021")
    assert str(nifti) in refusal(nifti, modalities=("flair", "t1", "t1c", "t2"))


# ----------------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
@pytest.mark.parametrize("patient", ["BraTS2021_00006", "BraTS20_Training_272", "BraTS20_Training_275",
                                     "BraTS20_Training_278"])
def test_real_patients(patient: str, real_data: Path) -> None:
    folder = real_data / "brats"
    with (folder / "manifest.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["patient"] == patient)
    case = read(folder / patient)
    assert case.patient == patient and case.images.shape == (4, 240, 240, 155) and case.spacing == (1, 1, 1)
    counts = np.bincount(case.labels.ravel(), minlength=4)
    assert counts[1:].tolist() == [int(row[name]) for name in ("ncr", "ed", "et")]
    assert (counts[3] == 0) == (patient != "BraTS2021_00006")
    assert case.brain[case.labels > 0].all() and 1.2e6 < case.brain.sum() < 1.8e6
