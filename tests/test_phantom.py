"""The phantom: physics by hand, textbook contrasts, plausible anatomy, both layouts, all or nothing on disk."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import h5py
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from datasets import mri_signal, phantom
from datasets.mri_signal import TISSUES, Tissue
from datasets.phantom_anatomy import BOX, ED, ET, NCR
from datasets.phantom_folder import any_phantom
from tests.conftest import left


class Patient(NamedTuple):
    images: np.ndarray  # (4, 240, 240, 155)
    labels: np.ndarray  # (240, 240, 155)
    brain: np.ndarray  # in BOX
    tissues: dict[str, np.ndarray]  # (voxels of the brain,)


@pytest.fixture(scope="module")
def patient() -> Patient:
    rng = np.random.default_rng((0, 1))
    brain, tissues, _ = phantom.make_anatomy(rng, phantom.draw_lesion(rng, 1))
    return Patient(*phantom.make_patient(0, 1), brain, tissues)


@pytest.fixture(scope="module")
def medians(patient: Patient) -> dict[str, np.ndarray]:
    """The median intensity of each pure tissue in T1, T1c, T2 and FLAIR."""
    voxels = patient.images[(slice(None), *BOX)][:, patient.brain]  # (4, voxels of the brain)
    return {name: np.median(voxels[:, part > 0.95], axis=1) for name, part in patient.tissues.items()}


def test_spin_echo_by_hand() -> None:
    tissue = Tissue(t1=1000, t2=100, pd=0.8)
    assert mri_signal.spin_echo(tissue, tr=1000 * math.log(2), te=100 * math.log(2)) == pytest.approx(0.2)


def test_inversion_recovery_by_hand() -> None:
    tissue = Tissue(t1=1000, t2=100, pd=1.0)  # (1 - 2 / 2 + 1 / 4) / 2
    tr, te, ti = 1000 * math.log(4), 100 * math.log(2), 1000 * math.log(2)
    assert mri_signal.inversion_recovery(tissue, tr, te, ti) == pytest.approx(0.125)


def test_null_time_nulls() -> None:
    csf = TISSUES["csf"]
    ti = mri_signal.null_time(csf.t1, tr=9000)
    assert 2400 < ti < 2600  # as on scanners
    assert mri_signal.inversion_recovery(csf, 9000, 120, ti) == pytest.approx(0, abs=1e-9)


def test_gadolinium_shortens_t1_in_t1c_only() -> None:
    tissue = Tissue(t1=1000, t2=100, pd=1.0)  # 1 / s + 4 / mM / s * 0.25 mM = 2 / s
    assert mri_signal.enhance(tissue, 0.25) == Tissue(500, 100, 1.0)
    assert mri_signal.signal(tissue, "t1ce", 0.25) > 1.2 * mri_signal.signal(tissue, "t1ce")
    for modality in ("t1", "t2", "flair"):
        assert mri_signal.signal(tissue, modality, 0.25) == mri_signal.signal(tissue, modality)


def test_textbook_contrasts(medians: dict[str, np.ndarray]) -> None:
    t1, t1c, t2, flair = ({name: value[k] for name, value in medians.items()} for k in range(4))
    assert t1["wm"] > t1["gm"] > t1["csf"]
    assert t2["csf"] > t2["gm"] > t2["wm"]
    assert flair["csf"] < 0.5 * min(flair["wm"], flair["gm"])
    assert flair["ed"] > 1.2 * max(flair["wm"], flair["gm"])
    assert t2["ed"] > 1.2 * t2["gm"] and t1["ed"] < t1["wm"]
    assert t1["ncr"] < t1["ed"] and t1c["et"] > 1.3 * t1c["wm"]


def test_only_the_rim_and_blood_enhance(medians: dict[str, np.ndarray]) -> None:
    rise = {name: value[1] / value[0] for name, value in medians.items()}
    for name in ("gm", "ed", "ncr"):
        assert rise[name] == pytest.approx(rise["wm"], rel=0.12), name
    assert min(rise["et"], rise["blood"]) > 1.3 * rise["wm"]


def test_tissues_fill_the_brain(patient: Patient) -> None:
    parts = np.stack(list(patient.tissues.values()))
    assert parts.min() > -1e-5
    np.testing.assert_allclose(parts.sum(axis=0), 1, atol=1e-5)
    volumes = dict(zip(patient.tissues, parts.sum(axis=1) / 1000, strict=True))  # ml
    assert volumes["gm"] > 300 and volumes["wm"] > 300 and 50 < volumes["csf"] < 400


def test_brain_is_one_piece_of_the_real_size(patient: Patient) -> None:
    brain = patient.images[0] > 0
    assert all(np.array_equal(image > 0, brain) for image in patient.images)
    assert np.array_equal(brain[BOX], patient.brain) and brain.sum() == patient.brain.sum()
    assert ndimage.label(brain)[1] == 1
    assert 1.0e6 < brain.sum() < 1.7e6
    box = ndimage.find_objects(brain.astype(int))[0]
    assert all(s.stop - s.start <= limit for s, limit in zip(box, (148, 184, 150), strict=True))
    assert np.array_equal(patient.images, np.rint(patient.images)) and patient.images.max() < 2**15


def test_labels(patient: Patient) -> None:
    assert patient.images.dtype == np.float32 and patient.labels.dtype == np.uint8
    assert set(np.unique(patient.labels)) == {0, NCR, ED, ET}
    assert not patient.labels[patient.images[0] == 0].any()
    ncr = patient.labels == NCR
    around = ndimage.binary_dilation(ncr) & ~ncr & (patient.images[0] > 0)
    assert (patient.labels[around] == ET).mean() > 0.9  # the rim closes around the necrosis
    assert 5_000 < (patient.labels > 0).sum() < 250_000


def test_labels_are_where_the_tissues_are(patient: Patient) -> None:
    found = patient.labels[BOX][patient.brain]
    for name, value in (("ncr", NCR), ("ed", ED), ("et", ET)):
        assert (found[patient.tissues[name] > 0.8] == value).mean() > 0.95, name


def test_lesions_vary() -> None:
    lesions = [phantom.draw_lesion(np.random.default_rng((0, n)), n) for n in range(1, 21)]
    assert [n for n, lesion in enumerate(lesions, 1) if lesion.gadolinium == 0] == [6, 12, 18]
    radii = [lesion.core for lesion in lesions]
    assert min(radii) < 10 and max(radii) > 20  # mm
    assert {bool(lesion.centre[0] > 0) for lesion in lesions} == {True, False}


def test_other_seed_other_patient(patient: Patient) -> None:
    images, labels = phantom.make_patient(1, 1)
    assert not np.array_equal(images, patient.images) and not np.array_equal(labels, patient.labels)


def test_both_layouts_hold_the_patient(patient: Patient, tmp_path: Path) -> None:
    phantom.write_hdf5(tmp_path / "hdf5", 7, patient.images, patient.labels)
    phantom.write_nifti(tmp_path / "nifti", "Case", patient.images, patient.labels)
    assert len(list((tmp_path / "hdf5").iterdir())) == 155
    for m in (0, 60, 80, 154):
        with h5py.File(tmp_path / "hdf5" / f"volume_7_slice_{m}.h5") as file:
            image, mask = file["image"][()], file["mask"][()]
        assert image.shape == (240, 240, 4) and mask.shape == (240, 240, 3) and mask.dtype == np.uint8
        assert np.array_equal(np.moveaxis(image, -1, 0), patient.images[..., m])
        assert np.array_equal(mask @ np.array([NCR, ED, ET], dtype=np.uint8), patient.labels[..., m])
    for name, volume in zip(("t1", "t1ce", "t2", "flair", "seg"), [*patient.images, patient.labels], strict=True):
        file = nib.load(tmp_path / "nifti" / "Case" / f"Case_{name}.nii.gz")
        assert nib.aff2axcodes(file.affine) == ("L", "P", "S") and file.header.get_zooms() == (1, 1, 1)
        assert np.array_equal(np.asarray(file.dataobj), volume)


def test_same_seed_same_patient_in_another_process(patient: Patient, tmp_path: Path) -> None:
    folder = phantom.write_phantom(tmp_path / "set", patients=2, layout="nifti")
    assert sorted(path.name for path in folder.iterdir()) == ["Phantom_0_001", "Phantom_0_002", "phantom.json"]
    assert left(tmp_path) == ["set"]
    for name, volume in zip(("t1", "t1ce", "t2", "flair", "seg"), [*patient.images, patient.labels], strict=True):
        file = nib.load(folder / "Phantom_0_001" / f"Phantom_0_001_{name}.nii.gz")
        assert np.array_equal(np.asarray(file.dataobj), volume)


def quick_write(folder: Path, seed: int, layout: str, number: int) -> None:
    """In place of write_patient: an empty file, and no room for the third patient."""
    (folder / f"{layout}-{seed}-{number}").touch()
    if number == 3:
        raise OSError(28, "No space left on device")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing in threads of this process, by quick_write."""
    monkeypatch.setattr(phantom, "write_patient", quick_write)
    monkeypatch.setattr(phantom, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))


@pytest.mark.usefixtures("quick")
def test_reused_or_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()  # an empty folder is fine
    assert phantom.write_phantom(folder, patients=2) == folder
    (folder / "mark").touch()
    phantom.write_phantom(folder, patients=2)
    assert (folder / "mark").exists()
    phantom.write_phantom(folder, patients=2, seed=5)
    assert sorted(path.name for path in folder.iterdir()) == ["hdf5-5-1", "hdf5-5-2", "phantom.json"]
    assert left(tmp_path) == ["set"]


@pytest.mark.usefixtures("quick")
def test_a_crash_leaves_nothing_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for end in ("part", "old"):
        (tmp_path / f".set.{end}" / "half").mkdir(parents=True)
    folder = phantom.write_phantom(tmp_path / "set", patients=1)
    assert left(tmp_path) == ["set"] and not capsys.readouterr().out
    (folder / "phantom.json").write_bytes(b"")  # cut off by a crash
    phantom.write_phantom(folder, patients=1)
    assert "is replaced" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_any_phantom_of_this_version_will_do(tmp_path: Path) -> None:
    folder = phantom.write_phantom(tmp_path / "set", patients=1, seed=5)
    assert any_phantom(folder, phantom.VERSION, pytest.fail) == folder
    for other, version in ((folder, phantom.VERSION - 1), (tmp_path / "none", phantom.VERSION)):
        assert any_phantom(other, version, Path.absolute) == other.absolute()


def test_a_worker_that_is_killed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(phantom, "write_patient", dies)
    monkeypatch.setattr(phantom, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    with pytest.raises(OSError, match="for want of memory"):
        phantom.write_phantom(tmp_path / "set", patients=2)
    assert not left(tmp_path)


@pytest.mark.usefixtures("quick")
def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        phantom.write_phantom(tmp_path / "new", patients=3)
    assert not left(tmp_path)
    old = phantom.write_phantom(tmp_path / "old", patients=1)
    with pytest.raises(OSError, match="No space left"):
        phantom.write_phantom(old, patients=3)
    assert sorted(path.name for path in old.iterdir()) == ["hdf5-0-1", "phantom.json"]  # untouched


@pytest.mark.usefixtures("quick")
def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=tmp_path.name):
        phantom.write_phantom(tmp_path)
    assert left(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("wrong", [{"patients": 0}, {"seed": -1}, {"layout": "dicom"}])
def test_senseless_arguments(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        phantom.write_phantom(tmp_path / "set", **wrong)
    assert not left(tmp_path)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, phantom.__file__, str(tmp_path / "set"), "--patients", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    unknown = subprocess.run([*command[:3], "--layout", "dicom"], capture_output=True, check=False)
    assert unknown.returncode == 2
