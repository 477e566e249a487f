"""The image phantom: tissues in the right order of brightness, tumours where they belong, patients on one side only."""

import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from datasets import phantom_slices as phantom
from datasets.images import CLASSES, find_images, read_gray
from datasets.phantom_head import Head
from tests.conftest import left

TUMOURS = ("et", "ncr", "meningioma", "adenoma")


class Slice(NamedTuple):
    head: Head
    plane: str
    image: np.ndarray  # (256, 256) uint8
    where: np.ndarray  # (3, 256, 256) mm
    tissues: dict[str, np.ndarray]  # (256, 256), 0 outside of the head


def look(number: int, plane: str) -> Slice:
    head = phantom.draw_head(0, number)
    rng = np.random.default_rng(number)
    points, spacing = phantom.slice_points(rng, head, plane)
    there, maps = phantom.tissues_at(head, points, spacing)
    tissues = {name: np.zeros(there.shape) for name in maps}
    for name, fraction in maps.items():
        tissues[name][there] = fraction
    return Slice(head, plane, phantom.scan(rng, head, points[..., 1], there, maps), points[..., 1], tissues)


@pytest.fixture(scope="module")
def slices() -> dict[str, list[Slice]]:
    """Slices of two patients a class, of each in the three planes."""
    numbers = {label: (k, k + 4) for k, label in enumerate(CLASSES)}
    return {label: [look(n, plane) for n in some for plane in phantom.PLANES] for label, some in numbers.items()}


def bright(shown: list[Slice], *names: str) -> np.ndarray:
    """Of each slice, the median of the pixels that are nearly all of this tissue relative to those of white matter."""
    found = []
    for one in shown:
        pure = sum(one.tissues.get(name, 0) for name in names) > 0.9
        if np.count_nonzero(pure) > 20:
            found.append(np.median(one.image[pure]) / np.median(one.image[one.tissues["wm"] > 0.9]))
    assert found, names
    return np.array(found)


def tumour(one: Slice) -> np.ndarray:
    return sum(one.tissues.get(name, np.zeros(one.image.shape)) for name in TUMOURS) > 0.5


def test_healthy_contrasts(slices: dict[str, list[Slice]]) -> None:
    shown = [one for some in slices.values() for one in some]
    grey, fluid = bright(shown, "gm"), bright(shown, "csf")
    assert np.all(grey < 1) and np.median(grey) > 0.75
    assert np.median(fluid) < 0.75 * np.median(grey)
    assert np.median(bright(shown, "fat")) > 1.5
    assert np.median(bright(shown, "bone")) < 0.3 and np.median(bright(shown, "air")) < 0.3


def test_tumours_enhance_as_they_should(slices: dict[str, list[Slice]]) -> None:
    enhancing = [one for one in slices["glioma"] if one.head.lesion.gadolinium > 0]
    assert np.all(bright(enhancing, "et") > 1.1)
    assert np.all(bright(enhancing, "ncr") < 0.8)
    assert np.all(bright(slices["glioma"], "ed") < 1)
    assert np.all(bright(slices["meningioma"], "meningioma") > 1.2)
    assert np.all(bright(slices["pituitary"], "adenoma") > 1)
    for one in slices["meningioma"]:  # evenly, noise and texture apart
        values = one.image[one.tissues["meningioma"] > 0.98].astype(float)
        assert values.std() < 0.15 * values.mean()


def test_every_slice_shows_the_tumour_and_notumor_none(slices: dict[str, list[Slice]]) -> None:
    for label, some in slices.items():
        for one in some:
            assert (np.count_nonzero(tumour(one)) > 30) == (label != "notumor"), (label, one.plane)


def test_tissues_fill_the_head(slices: dict[str, list[Slice]]) -> None:
    for some in slices.values():
        for one in some:
            parts = np.stack(list(one.tissues.values()))
            total = parts.sum(axis=0)
            assert parts.min() > -1e-4
            np.testing.assert_allclose(total[total > 0], 1, atol=1e-3)


def touches(mask: np.ndarray, other: np.ndarray, reach: int) -> bool:
    return bool(np.any(ndimage.binary_dilation(mask, iterations=reach) & other))


def test_glioma_lies_inside_the_brain(slices: dict[str, list[Slice]]) -> None:
    for one in slices["glioma"]:
        ring = ndimage.binary_dilation(tumour(one), iterations=2) & ~tumour(one)
        within = sum(one.tissues[name] for name in ("wm", "gm", "csf", "ed", "et", "ncr", "blood", "wmh", "dura"))
        assert within[ring].min() > 0.5, one.plane
        around = ndimage.binary_dilation(tumour(one), iterations=8) & ~tumour(one)
        assert (one.tissues["wm"] + one.tissues["ed"])[around].mean() > 0.4


def test_meningioma_sits_on_the_dura(slices: dict[str, list[Slice]]) -> None:
    touching = []
    for one in slices["meningioma"]:
        bone = one.tissues["bone"] + one.tissues["marrow"] > 0.5
        touching.append(touches(tumour(one), bone, 4))
        outside = one.tissues["bone"] + one.tissues["fat"] + one.tissues["muscle"] > 0.6
        assert not np.any(tumour(one) & outside)
    assert np.mean(touching) > 0.7  # a slice beside its middle may pass the dura by


def test_adenoma_is_in_the_sella(slices: dict[str, list[Slice]]) -> None:
    for one in slices["pituitary"]:
        x, y, z = one.where[:, tumour(one)].mean(axis=1)
        assert abs(x) < 8 and -35 < y < 0 and -50 < z < -8, (one.plane, x, y, z)
        if one.plane != "axial":  # at the bottom of the skull
            assert z < one.where[2][one.tissues["gm"] > 0.5].max() - 70
        assert "gland" not in one.tissues or one.tissues["gland"].max() < 0.1


def test_the_healthy_gland_is_small_and_bright() -> None:
    for number in range(2, 60, 4):
        if abs(phantom.draw_head(0, number).lesion.centre[0]) < 5:
            one = look(number, "coronal")
            break
    gland = one.tissues["gland"] > 0.5
    assert 10 < np.count_nonzero(gland) < 250  # mm²
    assert np.median(one.image[gland]) > np.median(one.image[one.tissues["gm"] > 0.9])


def test_planes_are_shown_as_radiologists_look_at_them(slices: dict[str, list[Slice]]) -> None:
    shown = {one.plane: one for one in slices["notumor"]}
    down = {plane: one.where[:, -1, 128] - one.where[:, 0, 128] for plane, one in shown.items()}
    right = {plane: one.where[:, 128, -1] - one.where[:, 128, 0] for plane, one in shown.items()}
    assert set(shown) == {"axial", "coronal", "sagittal"}
    assert down["axial"][1] > 200 and right["axial"][0] > 200  # front up, the patient's right on the left
    assert down["coronal"][2] < -200 and right["coronal"][0] > 200
    assert down["sagittal"][2] < -200 and abs(right["sagittal"][1]) > 200


def test_slices_agree_where_they_cross() -> None:
    head = phantom.draw_head(0, 0)
    side = np.arange(256) - 127.5
    steps = np.stack(np.meshgrid(side, side, (-1.0, 0.0, 1.0), indexing="ij"))
    maps = []
    for order in ((1, 0, 2), (2, 0, 1)):  # an axial slice, rows y; a coronal one, rows z; columns x
        points = np.empty_like(steps)
        for axis, step in zip(order, steps, strict=True):
            points[axis] = step
        points[1 if order[0] == 2 else 2] += 0.5  # cross on a row of pixels
        there, tissues = phantom.tissues_at(head, points.astype(np.float32), 1.0)
        picture = np.zeros((3, 256, 256))
        for k, name in enumerate(("wm", "csf", "fat")):
            picture[k][there] = tissues[name]
        maps.append(picture[:, 128])
    for one, other in zip(*maps, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.85


def test_same_seed_same_images() -> None:
    first, again, other = ([image for _, image in phantom.make_slices(seed, 3)] for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0], first[3])  # the same plane, another slice


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_image_phantom(tmp_path_factory.mktemp("images") / "set", patients=8)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "patients.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_is_one_of_the_real_layout(written: Path) -> None:
    images = find_images(written)
    assert Counter((image.part, image.label) for image in images) == {
        (part, label): 5 for part in ("Training", "Testing") for label in CLASSES
    }
    assert {(row["file"], row["label"]) for row in table(written)} == {(image.name, image.label) for image in images}
    for image in images:
        pixels = read_gray(image.path)
        assert pixels.shape == (256, 256)
        assert np.median(pixels[:16, :16]) < 25 and np.median(pixels[:16, -16:]) < 25 and pixels.max() > 200


def test_files_are_the_same_from_another_process(written: Path, tmp_path: Path) -> None:
    rows = phantom.write_patient(tmp_path, 0, 5)
    assert [row for row in table(written) if row["patient"] == "Phantom_0_005"] == [
        dict(zip(("file", "patient", "label"), row, strict=True)) for row in rows
    ]
    for file, _, _ in rows:
        assert (tmp_path / file).read_bytes() == (written / file).read_bytes()
    assert {file.split("_")[-1] for file, _, _ in rows} == {f"{plane}.jpg" for plane in phantom.PLANES}


def blank_slices(seed: int, number: int) -> Iterator[tuple[str, np.ndarray]]:
    """In place of make_slices: no picture, and no room for patient 8 of seed 7."""
    if (seed, number) == (7, 8):
        raise OSError(28, "No space left on device")
    yield from (("axial", np.zeros((16, 16), np.uint8)) for _ in range(phantom.SLICES))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing in threads of this process, without drawing."""
    monkeypatch.setattr(phantom, "make_slices", blank_slices)
    monkeypatch.setattr(phantom, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))


@pytest.mark.usefixtures("quick")
def test_no_patient_is_on_both_sides(tmp_path: Path) -> None:
    rows = table(phantom.write_image_phantom(tmp_path / "set"))
    assert Counter(row["file"].split("/")[0] for row in rows) == {"Training": 480, "Testing": 120}
    sides: dict[str, set[str]] = {}
    for row in rows:
        assert row["file"].split("/")[1] == row["label"]
        sides.setdefault(row["patient"], set()).add(row["file"].split("/")[0] + row["label"])
    assert len(sides) == 120 and all(len(side) == 1 for side in sides.values())


@pytest.mark.usefixtures("quick")
def test_reused_or_replaced(tmp_path: Path) -> None:
    folder = phantom.write_image_phantom(tmp_path / "set", patients=8)
    (folder / "mark").touch()
    phantom.write_image_phantom(folder, patients=8)
    assert (folder / "mark").exists()
    phantom.write_image_phantom(folder, patients=8, seed=5)
    assert sorted(path.name for path in folder.iterdir()) == ["Testing", "Training", "patients.csv", "phantom.json"]
    assert left(tmp_path) == ["set"]


@pytest.mark.usefixtures("quick")
def test_full_disk_leaves_nothing_new(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        phantom.write_image_phantom(tmp_path / "new", patients=9, seed=7)
    assert not left(tmp_path)
    old = phantom.write_image_phantom(tmp_path / "old", patients=8)
    before = table(old)
    with pytest.raises(OSError, match="No space left"):
        phantom.write_image_phantom(old, patients=9, seed=7)
    assert table(old) == before and left(tmp_path) == ["old"]


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "holiday.png")
    done = subprocess.run([sys.executable, phantom.__file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr
    assert left(tmp_path) == ["holiday.png"]


@pytest.mark.parametrize("wrong", [{"patients": 7}, {"seed": -1}])
def test_senseless_arguments(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        phantom.write_image_phantom(tmp_path / "set", **wrong)
    assert not left(tmp_path)


def test_command_line_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, phantom.__file__, str(tmp_path / "set"), "--patients", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
