"""Classifying images: seen as in training, whatever the file, and what is said of bad input."""

import csv
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags
from PIL import Image as Pillow

import models
from datasets.augment import prepare
from datasets.batches import Batches
from datasets.image_store import open_images
from datasets.images import CLASSES, read_gray
from tests import test_predict_scans as segmentation
from tests.test_images import head, tree
from utils import classification, explain, predict, predict_images

CPU = torch.device("cpu")
SIZE = 72
HEADER = {
    "preprocessing": {"image_size": SIZE, "side": 256, "classes": list(CLASSES)}, "classes": list(CLASSES),
    "mirror": True, "temperature": 1.7,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str = "alexnet") -> models.Model:
    torch.manual_seed(0)
    small = {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32, "patch_size": 8} if name == "vit" else {}
    made = models.build(name, image_size=SIZE, **small).eval()
    made.header = HEADER
    return made


class Projection(models.Model):
    """Sees every pixel, each with a weight of its own, unlike a new network, to which all images are alike."""

    def __init__(self, seed: int = 0, **header: object) -> None:
        super().__init__()
        self.weights = 0.01 * torch.randn(SIZE * SIZE, len(CLASSES), generator=torch.Generator().manual_seed(seed))
        self.header = HEADER | header

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0].flatten(1) @ self.weights


def classifier(*networks: models.Model, tta: bool = False) -> predict_images.Classifier:
    return predict_images.Classifier(networks or (Projection(),), CPU, 5, tta)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "AlexNet.safetensors"
    models.save(network(), path, **HEADER)
    return path


@pytest.fixture
def pixels() -> np.ndarray:
    """A head with something bright on one side, of a wide range of gray levels."""
    image = head(box=(4, 116, 4, 96))
    image[40:60, 20:40] = np.linspace(0, 250, 400).reshape(20, 20)
    return image


@pytest.fixture
def scan(pixels: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "data" / "scan.png"
    path.parent.mkdir()
    Pillow.fromarray(pixels).save(path)
    return path


def dicom(path: Path, pixels: np.ndarray, **tags: object) -> Path:
    """An uncompressed MR image with values 0 to 4000; tags of its header."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    stored = (pixels.astype(np.float64) * 4000 / 255).round().astype(np.uint16)
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def palette(entries: int, black: int, bits: int, stored: str = "") -> dict[str, object]:
    """The tags of colours from white over the grays to black."""
    grays = ((1 - np.arange(entries) / black).clip(0) * (2**bits - 1)).round().astype(stored or f"uint{bits}").tobytes()
    names = ("RedPaletteColorLookupTable", "GreenPaletteColorLookupTable", "BluePaletteColorLookupTable")
    tables = {f"{name}Descriptor": [entries, 0, bits] for name in names} | {f"{name}Data": grays for name in names}
    return {"PhotometricInterpretation": "PALETTE COLOR", **tables}


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").open()))


# ------------------------------------------------------------------------------------------------ as in training


def test_an_image_is_seen_as_in_training(tmp_path: Path) -> None:
    folder, model = tree(tmp_path / "data"), Projection()
    store = open_images(folder, tmp_path / "cache", SIZE)
    batches = Batches(store, np.arange(len(store)), 7, CPU, prepare=prepare)
    logits, _ = classification.logits_of(model, batches, mirror=True)
    expected = classification.softmax(logits, HEADER["temperature"])
    assert predict_images.run([folder], classifier(model), tmp_path) == (16, [])
    found = {Path(row["file"]).relative_to(folder).as_posix(): row for row in rows(tmp_path)}
    assert set(found) == set(store.index["case"]) and np.ptp(expected, axis=0).max() > 1e-3
    for name, row in zip(store.index["case"], expected, strict=True):
        np.testing.assert_allclose([float(found[name][of]) for of in CLASSES], row, atol=2e-2 * row.max())
        assert found[name]["prediction"] == CLASSES[row.argmax()]


def test_an_ensemble_is_the_mean_of_calibrated_probabilities(pixels: np.ndarray) -> None:
    several = [Projection(0, temperature=0.5), Projection(1, temperature=3.0), network("custom_cnn")]
    single = [classifier(one).probabilities([pixels, pixels[:, ::-1]]) for one in several]
    found = classifier(*several).probabilities([pixels, pixels[:, ::-1]])
    np.testing.assert_allclose(found, np.mean(single, axis=0), rtol=1e-6)
    assert np.abs(found - single[0]).max() > 1e-3 and found.sum(axis=1) == pytest.approx(1)


def test_tta_mirrors_and_so_do_weights_that_say_so(pixels: np.ndarray) -> None:
    def of(image: np.ndarray, mirror: bool, tta: bool = False) -> np.ndarray:
        return classifier(Projection(mirror=mirror), tta=tta).probabilities([image])

    plain, other = of(pixels, mirror=False), of(pixels[:, ::-1].copy(), mirror=False)
    both = of(pixels, mirror=True)
    np.testing.assert_allclose(of(pixels, mirror=False, tta=True), both, rtol=1e-6)
    product = np.sqrt(plain * other)  # the mean of logits is the geometric mean of probabilities
    np.testing.assert_allclose(both, product / product.sum(), atol=1e-3)
    assert np.abs(plain - both).max() > 0.01


# ------------------------------------------------------------------------------------------------ kinds of files


def test_every_kind_of_file_is_the_same_image(pixels: np.ndarray, tmp_path: Path) -> None:
    pixels[0, 0], pixels[0, 1] = 0, 255  # all gray levels, so that 16 bits are scaled back to what they were
    deep = pixels.astype(np.uint16) * 257
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    Pillow.fromarray(deep).save(tmp_path / "b.png")
    Pillow.fromarray(deep).save(tmp_path / "c.tiff")
    Pillow.fromarray(pixels).save(tmp_path / "d.jpg", quality=100)
    held = Pillow.Exif()
    held[ExifTags.Base.Orientation] = 6  # to be turned to the right by a quarter
    Pillow.fromarray(np.rot90(pixels)).save(tmp_path / "d6.jpg", quality=100, exif=held)
    colours = np.dstack([deep, deep, deep])
    cv2.imwrite(str(tmp_path / "c16.png"), colours // 16)  # 12 bits of 16
    cv2.imwrite(str(tmp_path / "c16.tiff"), colours)
    cv2.imwrite(str(tmp_path / "a16.png"), np.dstack([np.full_like(colours, 65535), deep]))  # white
    dicom(tmp_path / "e.dcm", pixels)
    dicom(tmp_path / "f.dcm", 255 - pixels, PhotometricInterpretation="MONOCHROME1")
    dicom(tmp_path / "g.dcm", 255 - pixels, **palette(4096, 4000, 16))
    small = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": (255 - pixels).tobytes()}
    dicom(tmp_path / "h.dcm", pixels, **small, **palette(256, 255, 8))
    dicom(tmp_path / "i.dcm", pixels, **small, **palette(256, 255, 8, stored="uint16"))
    dicom(tmp_path / "without_ending", pixels, RescaleSlope=2.0, RescaleIntercept=-1000.0)
    for path in sorted(tmp_path.iterdir()):
        found = read_gray(path)
        most = 6 if path.suffix == ".jpg" else 1
        assert found.dtype == np.uint8 and np.abs(found.astype(int) - pixels).max() <= most
    shutil.copy(tmp_path / "e.dcm", tmp_path / "DICOMDIR")  # of a CD: no image
    (tmp_path / "README").write_text("no image, and without an ending, too")
    inputs = [tmp_path, tmp_path / "without_ending"]  # in a folder, and by name
    assert predict_images.run(inputs, classifier(), tmp_path / ".") == (14, [])
    found = rows(tmp_path)
    assert [Path(row["file"]).name for row in found] == [
        "a.png", "a16.png", "b.png", "c.tiff", "c16.png", "c16.tiff", "d.jpg", "d6.jpg",
        "e.dcm", "f.dcm", "g.dcm", "h.dcm", "i.dcm", "without_ending",
    ]  # fmt: skip
    for row in found:
        assert float(row["glioma"]) == pytest.approx(float(found[0]["glioma"]), abs=0.01)


@pytest.mark.parametrize(
    ("tags", "value"),
    [({"PixelPaddingValue": 4095}, 4095),
     ({"PixelPaddingValue": 4095, "PhotometricInterpretation": "MONOCHROME1"}, 4095),
     ({"PixelPaddingValue": -2000, "PixelRepresentation": 1, "RescaleIntercept": -5.0, "RescaleSlope": 2.0}, -2000),
     ({"PixelPaddingValue": 4005, "PixelPaddingRangeLimit": 4095}, 4050)],
)  # fmt: skip
def test_the_padding_of_a_dicom_file_is_black(
    pixels: np.ndarray, tmp_path: Path, tags: dict[str, object], value: int
) -> None:
    light = 255 - pixels if "PhotometricInterpretation" in tags else pixels
    stored = (light.astype(np.float64) * 4000 / pixels.max()).round().astype(np.int16)
    stored[:3], stored[:, -2:] = value, value
    path = dicom(tmp_path / "a.dcm", pixels, **tags, PixelData=stored.tobytes(), BitsStored=16, HighBit=15)
    assert not pixels[:3].any() and not pixels[:, -2:].any()
    np.testing.assert_allclose(read_gray(path), pixels * (255 / pixels.max()), atol=1)


def test_a_dicom_window_is_what_a_viewer_shows(pixels: np.ndarray, tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", pixels, WindowCenter=1000, WindowWidth=1000)
    stored = pixels.astype(float) * 4000 / 255
    expected = ((stored - 500) / 1000).clip(0, 1) * 255
    np.testing.assert_allclose(read_gray(path), expected, atol=2)


def test_what_dicom_cannot_be_read_is_one_sentence(pixels: np.ndarray, tmp_path: Path) -> None:
    dicom(tmp_path / "frames.dcm", np.stack([pixels, pixels]), NumberOfFrames=2)
    whole = dicom(tmp_path / "cut.dcm", pixels).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:2000])
    (tmp_path / "text.dcm").write_text("hello")
    Pillow.fromarray(pixels).save(tmp_path / "pages.tiff", save_all=True, append_images=[Pillow.fromarray(pixels)])
    for name, sentence in {"frames.dcm": "holds 2 frames", "cut.dcm": "cannot be read as DICOM",
                           "text.dcm": "cannot be read", "pages.tiff": "holds 2 pages"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=sentence) as caught:
            read_gray(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_of_any_kind_is_one_sentence(pixels: np.ndarray, tmp_path: Path) -> None:
    """A byte is changed, or the rest is cut off, at each place of the header: it is read, or one sentence is said."""
    Pillow.fromarray(pixels).save(tmp_path / "a.tiff")
    dicom(tmp_path / "a.dcm", pixels)
    refused = dict.fromkeys((".tiff", ".dcm"), 0)
    for path in (tmp_path / "a.tiff", tmp_path / "a.dcm"):
        whole = path.read_bytes()
        places = {  # headers: that of a TIFF follows its pixels; this DICOM has 16 bits a pixel
            ".dcm": range(132, len(whole) - 2 * pixels.size), ".tiff": [*range(8), *range(8 + pixels.size, len(whole))]
        }  # fmt: skip
        for place in places[path.suffix]:
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
                path.write_bytes(damaged)
                try:
                    read_gray(path)
                except ValueError as error:
                    refused[path.suffix] += 1
                    assert str(path) in str(error) and "\n" not in str(error)
    assert min(refused.values()) > 50


# ------------------------------------------------------------------------------------------------ the script


def run(*inputs: Path | str, weights: tuple[Path, ...], out: Path, **options) -> int:  # type: ignore[no-untyped-def]
    try:
        predict.main(tuple(map(str, inputs)), weights=tuple(map(str, weights)), out=out, device="cpu", **options)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def test_a_bad_image_does_not_stop_the_others(
    scan: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scan.parent / "text.png").write_text("hello")
    (scan.parent / "notes.txt").write_text("passed over")
    (scan.parent / ".hidden.png").write_text("passed over")
    out = tmp_path / "out"
    assert run(scan.parent, weights=(weights,), out=out) == 1
    captured = capsys.readouterr()
    assert "text.png cannot be read as an image" in captured.err and "notes" not in captured.err
    row = rows(out)[0]
    assert row["file"] == str(scan) and sum(float(row[name]) for name in CLASSES) == pytest.approx(1, abs=1e-4)
    line = next(line for line in captured.out.splitlines() if line.startswith(str(scan)))
    assert line.split()[1:] == [row["prediction"], *(f"{float(row[name]):.3f}" for name in CLASSES)]
    assert run(str(scan.parent / "sc*.png"), weights=(weights,), out=out) == 0
    assert run(scan.parent / "text.png", weights=(weights,), out=tmp_path / "nothing") == 2
    assert not list((tmp_path / "nothing").iterdir())


class Stopping(predict_images.Classifier):
    """Somebody presses Ctrl-C when an image that is almost black is shown."""

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        if np.max(images) <= 1:
            raise KeyboardInterrupt
        return super().probabilities(images)


def test_slices_of_one_patient_have_one_answer(pixels: np.ndarray, weights: Path, tmp_path: Path) -> None:
    for number in range(3):
        Pillow.fromarray(np.roll(pixels, 9 * number)).save(tmp_path / f"{number}.png")
    assert run(tmp_path, weights=(weights,), out=tmp_path / "out", together=True) == 0
    found = rows(tmp_path / "out")
    assert [Path(row["file"]).name for row in found] == ["0.png", "1.png", "2.png", "the 3 together"]
    values = np.array([[float(row[name]) for name in CLASSES] for row in found])
    np.testing.assert_allclose(values[3], values[:3].mean(axis=0), atol=1e-5)
    assert found[3]["prediction"] == CLASSES[values[3].argmax()]


def test_a_folder_is_searched_behind_links_and_without_its_copies(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, closed = tmp_path / "top", tmp_path / "top" / "closed"
    for folder in (top / "preprocessed", top / ".hidden", closed):
        folder.mkdir(parents=True)
        shutil.copy(scan, folder / "copy.png")
    (top / "linked").symlink_to(scan.parent)
    (top / "linked" / "again").symlink_to(top)
    real = os.scandir

    def refuse(path: str) -> object:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, failed = predict_images.find([top])
    assert found == {top / "linked" / "scan.png": "linked/scan.png"}
    assert failed == [f"{closed}: cannot be read, see to its rights (Permission denied)"]


def test_a_blank_image_is_refused(tmp_path: Path) -> None:
    for value in (0, 255):
        Pillow.new("RGB", (80, 90), (value,) * 3).save(tmp_path / "blank.png")
        with pytest.raises(ValueError, match=r"blank\.png shows nothing, all its pixels are equal"):
            read_gray(tmp_path / "blank.png")


def test_what_was_found_before_a_stop_is_kept(scan: Path, tmp_path: Path) -> None:
    Pillow.fromarray(np.eye(80, dtype=np.uint8)).save(scan.with_name("z.png"))
    with pytest.raises(KeyboardInterrupt):
        predict_images.run([scan.parent], Stopping([Projection()], CPU, batch_size=1), tmp_path)
    assert [row["file"] for row in rows(tmp_path)] == [str(scan)]


def test_bad_input_is_one_sentence(scan: Path, weights: Path, tmp_path: Path) -> None:
    unet_weights = tmp_path / "unet.safetensors"
    models.save(segmentation.unet(), unet_weights, **segmentation.HEADER)
    empty, scans, other, mute = (tmp_path / name for name in ("empty", "scans", "o.safetensors", "m.safetensors"))
    empty.mkdir()
    scans.mkdir()
    (scans / "a_t1.nii.gz").write_bytes(b"")
    models.save(network(), other, **HEADER | {"classes": ["a", "b", "c", "d"]})
    models.save(network(), mute, preprocessing=HEADER["preprocessing"])
    for inputs, given, sentence in [
        ((empty,), (weights,), "empty: no image here"),
        ((scans,), (weights,), "scans want the weights of a U-Net"),
        ((scans / "a_t1.nii.gz",), (weights,), "scans want the weights of a U-Net"),
        ((scan,), (unet_weights,), "images want a classifier's"),
        ((scan,), (weights, unet_weights), "two tasks"),
        ((scan,), (weights, other), "different classes"),
        ((scan,), (mute,), "does not say how it was trained"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=sentence) as caught:
            run(*inputs, weights=given, out=tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_does_not_stop_the_others(
    scan: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, empty, volume = tmp_path / "patient", tmp_path / "empty", tmp_path / "a_t1.nii.gz"
    (folder / "series.png").mkdir(parents=True)  # a folder, whatever its name says
    (folder / "one.png").write_bytes(scan.read_bytes())
    empty.mkdir()
    volume.write_bytes(b"")
    assert run(folder, weights=(weights,), out=tmp_path / "out") == 0
    assert run(folder, empty, volume, weights=(weights,), out=tmp_path / "out") == 1
    assert [row["file"] for row in rows(tmp_path / "out")] == [str(folder / "one.png")]
    shown = capsys.readouterr().err
    assert "2 not predicted" in shown and "empty: no image here" in shown and "want the weights of a U-Net" in shown


def test_images_of_one_name_are_told_apart_by_their_folders(scan: Path, weights: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin" / scan.name
    twin.parent.mkdir()
    twin.write_bytes(scan.read_bytes())
    assert run(scan, twin, weights=(weights,), out=tmp_path / "out") == 0
    assert [row["file"] for row in rows(tmp_path / "out")] == [str(scan), str(twin)]
    with pytest.raises(ValueError, match="have one name: give the folder that holds both"):
        run(scan, twin, weights=(weights,), out=tmp_path / "explained", explain=True)
    assert not (tmp_path / "explained").exists()


def looks_left(model: models.Model, images: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
    """A stand-in: the left half."""
    maps = torch.zeros(len(images), *images.shape[-2:])
    maps[..., : images.shape[-1] // 2] = 1
    return maps


def test_a_model_of_ones_own_is_explained_by_its_gradients(pixels: np.ndarray) -> None:
    own = Projection()
    maps = classifier(own).looked_at([pixels], np.array([2]))[0]
    batch = classifier(own).prepared(own, [pixels])
    expected = (batch[0, 0] * own.weights[:, 2].view(SIZE, SIZE)).clamp(min=0)  # of a linear model
    expected = torch.nn.functional.interpolate((expected / expected.max())[None, None], (256, 256), mode="bilinear")
    np.testing.assert_allclose(maps, expected[0, 0], atol=1e-4)


def test_an_explanation_is_drawn_over_the_head(
    scan: Path, pixels: np.ndarray, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "grad_cam", looks_left)
    monkeypatch.setattr(explain, "rollout", looks_left)
    maps = classifier(network(), network("vit")).looked_at([pixels], np.array([2]))
    assert maps.shape == (1, 256, 256) and maps[0, :, :110].min() == 1 and maps[0, :, 146:].max() == 0
    (scan.parent / "deeper").mkdir()
    (scan.parent / "deeper" / "scan.png").write_bytes(scan.read_bytes())
    for _ in range(2):  # pictures in the folder of the images are no images the next time
        assert run(scan.parent, weights=(weights,), out=scan.parent, explain=True) == 0
        assert len(rows(scan.parent)) == 2
    made = sorted(path.relative_to(scan.parent).as_posix() for path in scan.parent.rglob("*_explained.png"))
    assert made == ["deeper/scan.png_explained.png", "scan.png_explained.png"]
    picture = np.asarray(Pillow.open(scan.parent / made[0]).convert("RGB")).astype(int)
    coloured = np.ptp(picture, axis=2) > 60
    columns = np.flatnonzero(coloured[: int(0.7 * len(coloured))].any(axis=0))
    assert len(columns) and columns.min() > picture.shape[1] * 0.4, "colour on the plain image"
    before = scan.read_bytes()
    scan.rename(scan.with_name("x.png_explained.png"))  # an input of that name, and an image that would make it
    (scan.parent / "x.png").write_bytes(before)
    with pytest.raises(ValueError, match="is an input"):
        run(scan.parent / "x.png", scan.parent / made[1].replace("scan", "x"), weights=(weights,), out=scan.parent,
            explain=True)  # fmt: skip


@pytest.mark.parametrize("name", ["custom_cnn", "vit"])
def test_explanations_of_both_kinds_of_networks(name: str, pixels: np.ndarray) -> None:
    found = classifier(network(name)).looked_at([pixels, pixels[:, ::-1].copy()], np.array([0, 1]))
    assert found.shape == (2, 256, 256) and found.min() >= 0 and 0.5 < found.max() <= 1
