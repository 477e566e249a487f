"""Which images there are, how each is read, and the crop to the head: every mode, every border, every damage."""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image as Pillow

from datasets import preprocessing
from datasets.images import CLASSES, Image, find_images, read_gray
from datasets.parallel import ahead
from datasets.preprocessing import STRONG, crop_box, crop_to_head, preprocess_folder


def head(shape: tuple[int, int] = (120, 100), box: tuple[int, int, int, int] = (20, 90, 30, 80)) -> np.ndarray:
    """A bright ellipse that fills `box` (top, bottom, left, right) of a black image, darker inside."""
    top, bottom, left, right = box
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    radius = ((y - (top + bottom) / 2) / (bottom - top)) ** 2 + ((x - (left + right) / 2) / (right - left)) ** 2
    image = np.where(radius < 0.25, 180, 0) - np.where(radius < 0.15, 90, 0)
    return image.astype(np.uint8)


def tree(folder: Path, images: int = 2, parts: tuple[str, ...] = ("Training", "Testing")) -> Path:
    """A small data set of noisy heads."""
    rng = np.random.default_rng(0)
    for part in parts:
        for label in CLASSES:
            (folder / part / label).mkdir(parents=True)
            for number in range(images):
                noisy = head(box=(5, 115, 8, 92)) + rng.integers(0, 20, (120, 100), dtype=np.uint8)
                Pillow.fromarray(noisy).save(folder / part / label / f"{part[:2]}-{label[:2]}_{number}.png")
    return folder


def test_a_tree_is_found_whole_also_one_folder_deeper(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path / "data" / "brain-tumor-mri-dataset").parent)
    assert len(found) == 16
    assert {image.part for image in found} == {"Training", "Testing"}
    assert {image.label for image in found} == set(CLASSES)
    assert found[0].name.startswith("Training/glioma/")
    preprocess_folder(tmp_path / "data", tmp_path / "data" / "preprocessed")
    assert find_images(tmp_path / "data") == found  # copies do not count


def test_hidden_files_are_no_images_and_two_data_sets_are_one_too_many(tmp_path: Path) -> None:
    folder = tree(tmp_path / "data" / "kaggle")
    (folder / "Training" / "glioma" / "._Tr-gl_0.png").write_bytes(b"left by macOS")
    assert len(find_images(tmp_path / "data")) == 16
    tree(tmp_path / "data" / "hospital")
    with pytest.raises(ValueError, match=r"hospital and .*kaggle are two data sets"):
        find_images(tmp_path / "data")


def test_a_tree_without_parts_is_one_part(tmp_path: Path) -> None:
    tree(tmp_path, parts=("",))
    assert {image.part for image in find_images(tmp_path)} == {""}


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "no folder"),
        (lambda folder: (folder / "Training" / "cyst").mkdir(), "cyst is no class: the folders there are cyst, glioma"),
        (lambda folder: shutil.rmtree(folder / "Testing" / "notumor"), "lacks the class notumor"),
        (lambda folder: shutil.copytree(folder / "Testing" / "glioma", folder / "Testing" / "glioma" / "p1"),
         "lies in a folder within its class"),
        (lambda folder: [path.unlink() for path in (folder / "Training" / "glioma").iterdir()], "holds no image"),
    ],
)
def test_a_tree_that_is_not_right_is_one_sentence(tmp_path: Path, harm, sentence: str) -> None:  # type: ignore[no-untyped-def]
    folder = tree(tmp_path / "data")
    harm(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        find_images(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image"):
        find_images(tmp_path / "empty", classes=None)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK", "1"])
def test_every_mode_shows_the_same_head(tmp_path: Path, mode: str) -> None:
    image = head()
    ending = "tif" if mode == "CMYK" else "png"
    Pillow.fromarray(image).convert(mode).save(tmp_path / f"image.{ending}")
    found = read_gray(next(tmp_path.iterdir()))
    assert found.shape == image.shape and found.dtype == np.uint8
    if mode != "1":
        assert np.abs(found.astype(int) - image).max() <= 3
    np.testing.assert_allclose(crop_box(found), (20, 90, 30, 80), atol=4)


def test_transparent_is_black_and_16_bits_are_scaled(tmp_path: Path) -> None:
    pixels = np.full((20, 20, 4), 255, np.uint8)
    pixels[:10, :, 3] = 0
    Pillow.fromarray(pixels).save(tmp_path / "clear.png")
    assert (read_gray(tmp_path / "clear.png")[:10] == 0).all()
    Pillow.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 10).save(tmp_path / "deep.png")
    deep = read_gray(tmp_path / "deep.png")
    assert deep.min() == 0 and deep.max() == 255 and (np.diff(deep.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "tiny"])
def test_a_damaged_file_is_one_sentence_with_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "scan.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)
    Pillow.fromarray(noise[:1, :1] if kind == "tiny" else noise).save(path)
    if kind == "text":
        path.write_text("this is not an image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"scan\.jpg .*(replace or remove it)"):
        read_gray(path)


@pytest.mark.parametrize("border", [0, 12, 60, 128, 190, 211, 230, 255])
@pytest.mark.parametrize("width", [0, 1, 10, 40])
def test_margins_of_any_colour_are_cropped(border: int, width: int) -> None:
    framed = np.pad(head(), width, constant_values=border)  # around the black margin
    np.testing.assert_allclose(crop_box(framed), np.array((20, 90, 30, 80)) + width, atol=4)
    white = np.pad(head(box=(0, 120, 0, 100)), width, constant_values=255)  # no margin but the white one
    np.testing.assert_allclose(crop_box(white), np.array((0, 120, 0, 100)) + width, atol=4)


@pytest.mark.parametrize("colour", ["black", "white", "gray", "red", "blue", "yellow", "olive", "#1c1c1c"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "I;16"])
def test_a_frame_of_any_colour_is_cropped_in_every_mode(tmp_path: Path, colour: str, mode: str) -> None:
    page = Pillow.new("RGB", (140, 160), colour)
    page.paste(Pillow.fromarray(head()), (20, 20))
    if mode == "I;16":
        page = Pillow.fromarray(np.asarray(page.convert("L")).astype(np.uint16) * 200)
    else:
        page = page.quantize() if mode == "P" else page.convert(mode)
    page.save(path := tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}")
    np.testing.assert_allclose(crop_box(read_gray(path)), np.array((20, 90, 30, 80)) + 20, atol=4)


def test_a_head_that_fills_the_image_is_no_frame() -> None:
    textured = np.random.default_rng(0).integers(60, 180, (120, 100)).astype(np.uint8)
    assert crop_box(textured) == (0, 120, 0, 100)


def test_specks_do_not_count_and_nothing_at_all_is_the_whole_image() -> None:
    image = head()
    image[5, 5] = image[110, 95] = 255
    np.testing.assert_allclose(crop_box(image), (20, 90, 30, 80), atol=3)
    assert crop_box(np.zeros((50, 40), np.uint8)) == (0, 50, 0, 40)
    assert crop_to_head(np.zeros((50, 40), np.uint8)).shape == (256, 256)
    for columns in range(1, 6):  # a white page with a dark edge
        page = np.full((200, 200), 255, np.uint8)
        page[:, :columns] = 0
        assert crop_to_head(page).shape == (256, 256)


@pytest.mark.parametrize("image", [np.zeros((50, 40, 3), np.uint8), np.zeros((50, 40), np.uint16)])
def test_only_gray_levels_of_8_bits_are_cropped(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="take read_gray"):
        crop_to_head(image)


def test_a_folder_is_preprocessed_once_and_what_is_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree(tmp_path / "data")
    (folder / "Training" / "glioma" / "broken.jpg").write_text("no")
    Pillow.fromarray(head((300, 300))).save(folder / "Testing" / "glioma" / "small_head.png")
    for name in ("glioma/twin.png", "glioma/twin.bmp", "notumor/twin.png"):  # of one class, two would become one
        Pillow.fromarray(head((100, 90))).save(folder / "Testing" / name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    told = preprocess_folder(folder, tmp_path / "out")
    assert len(told) == 2 and any("broken.jpg" in line for line in told) and any("small_head" in line for line in told)
    made = sorted((tmp_path / "out").rglob("*.png"))
    twins = [path.relative_to(tmp_path / "out" / "Testing").as_posix() for path in made if "twin" in path.name]
    assert twins == ["glioma/twin.bmp.png", "glioma/twin.png.png", "notumor/twin.png"]
    assert len(made) == 20 and all(Pillow.open(path).size == (256, 256) for path in made)
    times = [path.stat().st_mtime_ns for path in made]
    preprocess_folder(folder, tmp_path / "out")
    assert times == [path.stat().st_mtime_ns for path in made]
    made[0].write_bytes(b"")  # by a disk that was full, say
    monkeypatch.setattr(preprocessing, "CROP", preprocessing.CROP + 1)  # an update with another crop
    preprocess_folder(folder, tmp_path / "out")
    assert all(old < path.stat().st_mtime_ns for old, path in zip(times, made, strict=True))
    theirs = tmp_path / "out" / "Testing" / "notumor" / "twin.png"
    Pillow.new("L", (20, 20)).save(theirs)  # of another data set
    content = theirs.read_bytes()
    assert any("was not made here and stays" in line for line in preprocess_folder(folder, tmp_path / "out"))
    assert theirs.read_bytes() == content
    with pytest.raises(ValueError, match="holds the originals"):
        preprocess_folder(folder, folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}  # originals stay


@pytest.mark.real_data
def test_no_crop_of_the_whole_set_is_too_strong(real_data: Path) -> None:
    """178 are reported; of the 64 strongest, which were looked at, all are small heads in a wide margin."""
    def share(image: Image) -> float:
        pixels = read_gray(image.path)
        top, bottom, left, right = crop_box(pixels)
        return (bottom - top) * (right - left) / pixels.size

    shares = np.array(list(ahead(share, find_images(real_data / "classification"))))
    assert len(shares) == 7023 and shares.min() > 0.17
    assert (shares < STRONG).sum() == 178


@pytest.mark.real_data
def test_the_originals_of_every_mode_are_read_and_cropped(real_data: Path) -> None:
    images = find_images(real_data / "classification_originals", classes=None)
    assert len(images) == 178
    modes = set()
    for image in images:
        modes.add(Pillow.open(image.path).mode)
        pixels = read_gray(image.path)
        top, bottom, left, right = crop_box(pixels)
        assert (bottom - top) * (right - left) > 0.75 * STRONG * pixels.size, image.name
        bright = pixels > 0.5 * np.percentile(pixels, 99)
        kept = np.zeros_like(bright)
        kept[top:bottom, left:right] = True
        if np.median(np.concatenate([pixels[0], pixels[-1]])) < 200:  # a white frame is bright, too, and not kept
            assert (bright & kept).sum() > 0.95 * bright.sum(), image.name  # a loose rim of scalp may go
    assert {"L", "RGB", "RGBA", "P"} <= modes


def test_an_original_that_was_replaced_is_cropped_anew(tmp_path: Path) -> None:
    folder = tree(tmp_path / "data", images=1)
    preprocess_folder(folder, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    original = next((folder / "Training" / "glioma").iterdir())
    Pillow.linear_gradient("L").save(original, "png")
    later = time.time_ns() + 10**9
    os.utime(original, ns=(later, later))
    preprocess_folder(folder, tmp_path / "out")
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert [path.stem for path in changed] == [original.stem] and changed[0].parent.name == "glioma"


def test_of_two_that_crop_at_once_one_waits(tmp_path: Path) -> None:
    folder = tree(tmp_path / "data", images=1)
    second = threading.Thread(target=preprocess_folder, args=(folder, tmp_path / "out"))
    with FileLock(tmp_path / ".out.lock"):
        second.start()
        second.join(0.5)
        assert second.is_alive() and not (tmp_path / "out").exists()
    second.join(60)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 8
