"""Predictions of cases: where they lie in the world, what they hold, and what is said of bad input."""

import csv
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from PIL import Image as Pillow

import models
from datasets import brats, phantom, slices, splits
from datasets.brats_files import NAMES
from tests.test_brats import write_msd
from training.segmentation import case_scans
from utils import evaluate, predict_scans, resample
from utils.device import best_precision

CPU = torch.device("cpu")
HEADER = {
    "preprocessing": {"window": [96, 112], "labels": None, "modalities": list(brats.MODALITIES), "normalise": "zscore"},
    "min_volume": 0.0, "split": {"unit": "patient", "train": ["known"], "val": []},
}  # fmt: skip
GRIDS = {  # orientation and voxel size in mm of a case that fills the same part of the world
    "LPS": (1.0, 1.0, 1.0), "RAS": (1.0, 1.0, 1.0), "SRP": (1.0, 1.0, 1.0),
    "RAS thick": (1.2, 1.2, 3.0), "LPS fine": (0.6, 0.6, 2.0), "PIR uneven": (1.3, 2.0, 0.8),
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


class Threshold(models.Model):
    """Takes a voxel for NCR, ED or ET where T1, T1c or T2 is bright."""

    def __init__(self, least: float = 1.5) -> None:
        super().__init__()
        self.least = least
        self.header = HEADER

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 20 * (images[:, :3] - self.least)


def grid(name: str) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of a grid of 84 x 100 x 48 mm around the origin, its axes and voxels as GRIDS says."""
    codes, spacing = name.split()[0], GRIDS[name]
    axes = nib.orientations.axcodes2ornt(codes)
    extent = np.array([84, 100, 48])[axes[:, 0].astype(int)]
    shape = tuple((extent / spacing).round().astype(int).tolist())
    affine = np.zeros((4, 4))
    for axis, (world, flip) in enumerate(axes):
        affine[int(world), axis] = flip * spacing[axis]
    affine[:, 3] = (*(-affine[:3, :3] @ (np.array(shape) - 1) / 2), 1)
    return affine, shape  # type: ignore[return-value]


def world_case(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid with a tumour of three shells on its left, in front and above: images (4, ...), codes, as stored."""
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
    brain = (x / 36) ** 2 + (y / 44) ** 2 + (z / 21) ** 2 < 1
    codes = np.zeros(shape, np.uint8)
    for code, radius in ((2, 13), (3, 10), (1, 5)):
        codes[(x + 14) ** 2 + (y - 12) ** 2 + (z - 3) ** 2 < radius**2] = code
    images = 100 + np.random.default_rng(0).integers(0, 4, (4, *shape))
    for code in (1, 2, 3):
        images[code - 1][codes == code] = 500
    return np.where(brain, images, 0).astype(np.int16), codes


def write(folder: Path, name: str, grid_name: str = "LPS", convention: str = "2021", truth: bool = True) -> Path:
    affine, shape = grid(grid_name)
    images, codes = world_case(affine, shape)
    values = np.array([0, 1, 2, 4 if convention == "2021" else 3], np.uint8)[codes]
    (folder / name).mkdir(parents=True)
    mark, endings = NAMES[convention]
    for ending, part in endings.items():
        if part != "seg" or truth:
            volume = values if part == "seg" else images[brats.MODALITIES.index(part)]
            image = nib.Nifti1Image(volume, affine)
            image.set_qform(affine, 1)
            nib.save(image, folder / name / f"{name}{mark}{ending}.nii.gz")
    return folder / name


def segmenter(*networks: models.Model, tta: bool = False) -> predict_scans.Segmenter:
    return predict_scans.Segmenter(networks or (Threshold(),), CPU, 8, tta)


def read(folder: Path) -> brats.Case:
    return brats.read_case(brats.find_cases(folder)[0], need_labels=False)


def unet(seed: int = 0) -> models.Model:
    torch.manual_seed(seed)
    network = models.build("classic_unet", n_filters=2).eval()
    network.header = HEADER
    return network


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return write(tmp_path / "data", "a")


# ------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("name", GRIDS)
def test_a_prediction_lies_on_the_case(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a", name)
    assert predict_scans.run([folder], segmenter(), tmp_path) == (1, [])
    made, t1, truth = (nib.load(path) for path in (
        tmp_path / "a_pred.nii.gz", folder / "a_t1.nii.gz", folder / "a_seg.nii.gz"))  # fmt: skip
    assert made.shape == t1.shape and made.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(made.affine, t1.affine)
    for key in ("qform_code", "sform_code", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(made.header[key], t1.header[key])
    predicted, true = (np.asarray(image.dataobj) for image in (made, truth))
    if GRIDS[name] == (1, 1, 1):
        np.testing.assert_array_equal(predicted, true)
    for value in (1, 2, 4):
        dice = 2 * ((predicted == value) & (true == value)).sum() / ((predicted == value).sum() + (true == value).sum())
        assert dice > 0.85, f"label {value}: {dice}"
        centres = [nib.affines.apply_affine(made.affine, np.argwhere(volume == value).mean(0))
                   for volume in (predicted, true)]  # fmt: skip
        np.testing.assert_allclose(*centres, atol=0.4)  # mm, in the world


def test_the_network_grid_has_pixels_of_a_millimetre_in_the_same_place(tmp_path: Path) -> None:
    case = read(write(tmp_path, "a", "RAS thick"))
    brought = resample.to_network_grid(case)
    assert brought.images.shape == (4, 84, 100, 16) and brought.spacing == pytest.approx((1, 1, 3), abs=0.005)
    corners = [nib.affines.apply_affine(c.affine, [(-0.5, -0.5, 0), np.array(c.images.shape[1:]) - (0.5, 0.5, 1)])
               for c in (case, brought)]  # fmt: skip
    np.testing.assert_allclose(*corners, atol=1e-6)
    assert brought.images[3][brought.brain].min() > 99, "the rim of the brain is darkened"
    assert np.prod(brought.spacing) * brought.brain.sum() == pytest.approx(
        np.prod(case.spacing) * case.brain.sum(), rel=0.01)  # fmt: skip
    assert resample.to_network_grid(read(write(tmp_path / "b", "b"))).images.shape[1:] == (84, 100, 48)


def test_a_native_case_is_predicted_as_training_evaluates_it(cases: Path, tmp_path: Path) -> None:
    network, window = unet(), (48, 64)
    network.header = HEADER | {"preprocessing": HEADER["preprocessing"] | {"window": window}}  # type: ignore[operator]
    store = slices.open_slices(cases, tmp_path, window)
    scan = next(case_scans(store, np.arange(len(store)), CPU))
    expected, _ = evaluate.segment(network, scan, best_precision(CPU))
    case = read(cases / "Case_000")
    assert case.case == scan.case and len(np.unique(expected)) > 1, "the test needs something to be predicted"
    found = predict_scans.Segmenter((network,), CPU, 32)(case)
    expected = slices.uncrop(expected, store.info[0]["start"], found.shape[:2])
    differ = np.count_nonzero(found[..., : expected.shape[2]] != expected)
    assert differ <= 2, "only where a logit is so near 0 (1e-7) that its probability is 0.5"


def test_a_header_in_micrometres_does_not_stop_the_others(tmp_path: Path) -> None:
    for name, size in (("bad", 1000.0), ("good", 1.0)):
        write(tmp_path / "in", name)
        for path in (tmp_path / "in" / name).iterdir():
            image = nib.load(path)
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([size, size, size, 1])), path)
    done, failed = predict_scans.run([tmp_path / "in"], segmenter(), tmp_path / "out")
    assert done == 1 and len(failed) == 1 and "bad: 84000 x 100000 mm are no head" in failed[0]


def test_hdf5_slices(tmp_path: Path) -> None:
    images, codes = np.zeros((4, 240, 240, 6), np.float32), np.zeros((240, 240, 6), np.uint8)
    images[:, 80:160, 70:170], codes[90:110, 80:100, 1:4] = 100, 4
    images[:, 80:160, 70:170] += np.random.default_rng(0).integers(0, 4, (4, 80, 100, 6))
    images[2][codes == 4] = 500
    order = ("flair", "t2", "t1c", "t1")
    phantom.write_hdf5(tmp_path / "in", 7, images[::-1], codes)
    assert predict_scans.run([tmp_path / "in"], segmenter(), tmp_path, modalities=order) == (1, [])
    made = nib.load(tmp_path / "volume_7_pred.nii.gz")
    np.testing.assert_array_equal(np.asarray(made.dataobj), codes)
    np.testing.assert_array_equal(made.affine, brats.AFFINE)


def test_the_truth_of_a_decathlon_file_lies_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = write_msd(tmp_path / "Task01")
    for path in (top / "imagesTr" / "BRATS_001.nii.gz", Path("imagesTr/BRATS_001.nii.gz")):
        monkeypatch.chdir(top)
        (source,), failed = predict_scans.find([path])
        assert set(source.files) == {"image", "seg"} and not failed


def test_one_slice_is_a_case_too(tmp_path: Path) -> None:
    images, codes = np.zeros((4, 240, 240, 1), np.float32), np.zeros((240, 240, 1), np.uint8)
    images[:, 80:160, 70:170], codes[90:110, 80:100] = 100, 4
    images[:, 80:160, 70:170] += np.random.default_rng(0).integers(0, 4, (4, 80, 100, 1))
    images[2][codes == 4] = 500
    phantom.write_hdf5(tmp_path / "in", 7, images, codes)
    assert predict_scans.run([tmp_path / "in"], segmenter(), tmp_path) == (1, [])
    assert (tmp_path / "volume_7_pred.png").exists() and (tmp_path / "scores.csv").exists()


def test_a_large_brain_enlarges_the_window(case: Path) -> None:
    network = Threshold()
    network.header = HEADER | {"preprocessing": HEADER["preprocessing"] | {"window": [32, 32]}}  # type: ignore[operator]
    np.testing.assert_array_equal(segmenter(network)(read(case)), segmenter()(read(case)))


# ------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize(("named", "written", "enhancing"), [("2021", "2023", 3), ("2023", "2021", 4)])
def test_label_conventions(named: str, written: str, enhancing: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a", convention=named)
    assert predict_scans.run([folder], segmenter(), tmp_path, labels=written) == (1, [])
    made = np.asarray(nib.load(tmp_path / "a_pred.nii.gz").dataobj)
    assert np.unique(made).tolist() == [0, 1, 2, enhancing]
    assert float(next(csv.DictReader((tmp_path / "scores.csv").open()))["dice_ET"]) == 1


def test_volumes_scores_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    names = {"a": "RAS thick", "known": "LPS", "untold": "LPS"}
    paths = {name: write(folder, name, on, truth=name != "untold") for name, on in names.items()}
    assert predict_scans.run([folder], segmenter(), tmp_path) == (3, [])
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "volumes.csv").open())}
    assert list(rows) == list(names)
    truth = np.asarray(nib.load(paths["known"] / "known_seg.nii.gz").dataobj)
    counts = [(truth == value).sum() / 1000 for value in (1, 2, 4)]
    for name, ml in zip(("NCR", "ED", "ET", "WT", "TC"), (*counts, sum(counts), counts[0] + counts[2]), strict=True):
        assert float(rows["known"][f"{name}_ml"]) == pytest.approx(ml, rel=1e-5)
        assert float(rows["a"][f"{name}_ml"]) == pytest.approx(ml, rel=0.15)
    brain = 4 / 3 * np.pi * 36 * 44 * 21 / 1000
    assert float(rows["known"]["brain_ml"]) == pytest.approx(brain, rel=0.02)
    assert float(rows["known"]["marked"]) == pytest.approx(sum(counts) / brain, rel=0.02)
    scores = {row["case"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert list(scores) == ["a", "known"] and float(scores["known"]["dice_WT"]) == 1
    text = capsys.readouterr().out
    assert "known: WT " in text and "of the brain is marked" in text
    assert "| known* | 1.000" in text and "was no measure" not in text and "no measure of skill" in text
    assert "ml is no brain" in text  # 139 ml
    with Pillow.open(tmp_path / "known_pred.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0, 158, 115), (213, 94, 0)):  # the outlines of WT and ET
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 3).sum() > 50


def test_leaky_weights_have_seen_the_patients_of_their_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("known", "new"):
        write(tmp_path / "in", name)
    split = splits.Split("slice", ["known:3", "other:4"], [], ["known:5"], "LEAKY: slices shuffled, seed 0")
    network = Threshold()
    network.header = HEADER | {"split": asdict(split)}
    assert predict_scans.run([tmp_path / "in"], segmenter(network), tmp_path) == (2, [])
    scores = {row["case"]: row["trained_on"] for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert scores == {"known": "True", "new": "False"}
    said = capsys.readouterr().out
    assert "LEAKY: slices shuffled, seed 0\n\n| case |" in said and "| known* |" in said and "| new |" in said


def test_truth_that_cannot_be_understood_is_no_hindrance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in", "a")
    assert predict_scans.run([tmp_path / "in"], segmenter(), tmp_path) == (1, [])
    assert (tmp_path / "scores.csv").exists()
    path = tmp_path / "in" / "a" / "a_seg.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(values == 4, 3, values).astype(np.uint8), image.affine), path)
    assert predict_scans.run([tmp_path / "in"], segmenter(), tmp_path) == (1, [])
    assert "a: not scored, " in (said := capsys.readouterr().out) and "label 3 is not among 0, 1, 2, 4" in said
    assert (np.asarray(nib.load(tmp_path / "a_pred.nii.gz").dataobj) == 4).sum() == (values == 4).sum()
    assert not (tmp_path / "scores.csv").exists(), "those of the call before"


class Stopping(predict_scans.Segmenter):
    """Somebody presses Ctrl-C at the second case."""

    def __call__(self, case: brats.Case) -> np.ndarray:
        if case.case == "b":
            raise KeyboardInterrupt
        return super().__call__(case)


def test_what_was_found_before_a_stop_is_kept(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / "in", name)
    with pytest.raises(KeyboardInterrupt):
        predict_scans.run([tmp_path / "in"], Stopping([Threshold()], CPU, 8), tmp_path)
    for table in ("volumes.csv", "scores.csv"):
        assert [row["case"] for row in csv.DictReader((tmp_path / table).open())] == ["a"]


def test_nothing_marked_is_said_loudly(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_scans.run([case], segmenter(Threshold(least=9)), tmp_path) == (1, [])
    assert "a: NOTHING MARKED" in capsys.readouterr().out
    assert not np.asarray(nib.load(tmp_path / "a_pred.nii.gz").dataobj).any()
    assert (tmp_path / "a_pred.png").stat().st_size > 0


def test_small_pieces_are_not_believed(case: Path) -> None:
    network = Threshold()
    network.header = HEADER | {"min_volume": 1e5}
    assert not segmenter(network)(read(case)).any()


# ------------------------------------------------------------------------------------------------ many answers in one


def test_an_ensemble_is_the_mean_of_probabilities(case: Path) -> None:
    networks = [unet(seed) for seed in range(3)]
    grid = resample.to_network_grid(read(case))
    single = [segmenter(network).probabilities(network, grid) for network in networks]
    mean = np.mean(single, axis=0)
    expected = np.where(mean.max(axis=0) > 0.5, mean.argmax(axis=0) + 1, 0)
    found = segmenter(*networks)(read(case))
    sure = np.abs(mean - 0.5).min(axis=0) > 1e-5
    np.testing.assert_array_equal(found[sure], expected[sure])
    assert len(np.unique(found)) > 1 and any(
        (segmenter(network)(read(case)) != found).any() for network in networks)  # fmt: skip


def test_tta_is_the_mean_with_the_mirrored_patient(case: Path) -> None:
    network, seen = unet(), read(case)
    grid = resample.to_network_grid(seen)
    mirrored = brats.Case("m", "m", grid.images[:, ::-1], None, grid.affine)  # x runs from right to left
    plain, other = (segmenter(network).probabilities(network, c) for c in (grid, mirrored))
    found = segmenter(network, tta=True).probabilities(network, grid)
    np.testing.assert_allclose(found, (plain + other[:, ::-1]) / 2, atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.real_data
@pytest.mark.slow
def test_a_real_case_on_another_grid_is_predicted_alike(real_data: Path, tmp_path: Path) -> None:
    """BraTS2021_00000, which the weights have not seen, in RAS with voxels of 1.2 x 1.2 x 3 mm."""
    name, source = "BraTS2021_00000", real_data / "brats" / "BraTS2021_00000"
    (tmp_path / "other").mkdir()
    for part in ("t1", "t1ce", "t2", "flair"):
        image = nib.as_closest_canonical(nib.load(source / f"{name}_{part}.nii.gz"))
        affine = image.affine @ np.diag([1.2, 1.2, 3, 1])
        coarse = resample_from_to(image, ((200, 200, 52), affine), order=1)
        nib.save(coarse, tmp_path / "other" / f"{name}_{part}.nii.gz")
    network = predict_scans.Segmenter([models.load("AttentionUNet")], CPU)
    native, other = (read(folder) for folder in (source, tmp_path / "other"))
    found = brats.as_image(other, network(other))
    back = np.asarray(resample_from_to(found, brats.as_image(native, native.labels), order=0).dataobj) > 0

    def dice(a: np.ndarray, b: np.ndarray) -> float:
        return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))

    true = native.labels > 0
    assert abs(dice(back, true) - dice(network(native) > 0, true)) < 0.05
