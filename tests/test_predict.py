"""The script: what is said of bad input, of weights and of options, and its exit codes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

import models
from tests.test_predict_scans import HEADER, grid, segmenter, unet, world_case, write
from utils import predict, predict_scans

MADE = Path(predict.__file__)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ClassicUNet.safetensors"
    models.save(unet(), path, **HEADER)
    return path


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return write(tmp_path / "data", "a")


def run(*inputs: Path | str, weights: Path | str, out: Path, **options) -> int:  # type: ignore[no-untyped-def]
    """The script's main function; its exit code."""
    try:
        predict.main(tuple(map(str, inputs)), weights=(str(weights),), out=out, device="cpu", **options)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def remove(case: Path) -> None:
    (case / "a_t2.nii.gz").unlink()


def regrid(case: Path) -> None:
    image = nib.load(case / "a_t2.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-2], image.affine), case / "a_t2.nii.gz")


def four_dimensions(case: Path) -> None:
    image = nib.load(case / "a_t2.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, -1), image.affine), case / "a_t2.nii.gz")


def cut(case: Path) -> None:
    path = case / "a_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [(remove, "a_t2.nii.gz: missing"), (regrid, "a_t2.nii.gz: shape"), (four_dimensions, "3-D expected"),
     (cut, "a_t2.nii.gz: cannot be read")],
)  # fmt: skip
def test_a_bad_case_does_not_stop_the_others(
    harm: Callable[[Path], None], sentence: str, case: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    harm(case)
    assert run(case.parent, weights=weights, out=tmp_path / "nothing") == 2
    assert not list((tmp_path / "nothing").iterdir())
    assert "Results are in" not in capsys.readouterr().out
    write(case.parent, "b")
    assert run(case.parent, weights=weights, out=tmp_path / "out") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "b_pred.nii.gz", "b_pred.png", "volumes.csv", "scores.csv"}  # fmt: skip
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in last and str(case) in last


def test_what_is_no_case_is_one_sentence(case: Path, weights: Path, tmp_path: Path) -> None:
    text, empty, out = case.parent / "notes.txt", tmp_path / "empty", tmp_path / "out"
    text.write_text("hello")
    empty.mkdir()
    picture = tmp_path / "pictures" / "x.png"
    picture.parent.mkdir()
    Pillow.new("L", (64, 64)).save(picture)
    for inputs, sentence in {
        (text,): "notes.txt: no file of a BraTS case", (empty,): "empty: no BraTS case here",
        (picture,): "images want a classifier's", (picture.parent,): "images want a classifier's",
        (tmp_path / "nowhere",): "no such file or folder", (): "scans stand first", ("",): "an empty path",
    }.items():  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=sentence) as caught:
            run(*inputs, weights=weights, out=out)
        assert "\n" not in str(caught.value)
    assert not out.exists()
    assert run(text, case, weights=weights, out=out) == 1, "a good case goes on"
    assert (out / "a_pred.nii.gz").exists()


def test_two_cases_of_one_name(weights: Path, tmp_path: Path) -> None:
    first, second = write(tmp_path / "x", "a"), write(tmp_path / "y", "a", "RAS")
    assert run(first, second, first, weights=weights, out=tmp_path / "out") == 1  # the first one is predicted, once
    assert nib.aff2axcodes(nib.load(tmp_path / "out" / "a_pred.nii.gz").affine) == ("L", "P", "S")
    write(tmp_path / "y", "b")  # behind the one that is not predicted
    assert run(tmp_path / "x", tmp_path / "y", weights=weights, out=tmp_path / "both") == 1
    assert {path.name for path in (tmp_path / "both").glob("*.nii.gz")} == {"a_pred.nii.gz", "b_pred.nii.gz"}


def test_bad_weights_and_options(case: Path, weights: Path, tmp_path: Path) -> None:
    damaged, silent, out = tmp_path / "damaged.safetensors", tmp_path / "silent.safetensors", tmp_path / "out"
    damaged.write_bytes(weights.read_bytes()[:1000])
    models.save(unet(), silent)
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for options, sentence in [
        ({"weights": tmp_path / "none.safetensors"}, "no weights file"),
        ({"weights": "NoSuchModel"}, "no weights file"),
        ({"weights": damaged}, "damaged"),
        ({"weights": silent}, "does not say how it was trained"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"explain": True}, "--explain is for classifiers"),
        ({"out": taken}, "taken cannot be written"),
        ({"out": taken / "below"}, "cannot be written"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            run(case, **({"weights": weights, "out": out} | options))  # type: ignore[arg-type]
    assert not out.exists()


def test_an_input_is_never_written_over(tmp_path: Path) -> None:
    """A folder of the Decathlon's layout into which somebody predicted before: the older output is a case now."""
    folder = tmp_path / "imagesTr"
    affine, shape = grid("LPS")
    images, _ = world_case(affine, shape)
    folder.mkdir()
    for name in ("a", "a_pred"):
        nib.save(nib.Nifti1Image(np.moveaxis(images, 0, -1), affine), folder / f"{name}.nii.gz")
    before = (folder / "a_pred.nii.gz").read_bytes()
    _, failed = predict_scans.run([folder], segmenter(), folder)
    assert "a_pred.nii.gz is an input" in failed[0] and (folder / "a_pred.nii.gz").read_bytes() == before
    for _ in range(2):  # an older output is replaced
        assert predict_scans.run([folder / "a.nii.gz"], segmenter(), tmp_path) == (1, [])


def started(*words: str) -> subprocess.CompletedProcess[str]:
    there = MADE.parents[1]
    environment = os.environ | {"PYTHONPATH": str(there)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=there, env=environment)


def test_the_script(case: Path, weights: Path, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--out", str(tmp_path), "--weights", str(weights)]
    good = started(str(MADE), str(case.parent / "*"), *options)
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "a_pred.nii.gz").exists() and "not for diagnosis" in good.stdout
    for call in ([str(MADE)], ["-m", "utils.predict"]):
        bad = started(*call, *options)
        assert bad.returncode == 2 and bad.stderr.startswith("error: ") and len(bad.stderr.splitlines()) == 1
