"""The classification scripts as their users run them, on a small tree of made-up heads."""

import csv
import errno
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import models
from datasets import phantom_slices
from datasets.augment import ImageAugmentation
from datasets.image_store import group_names, open_images
from datasets.images import CLASSES
from tests.test_images import head
from training import classification, stages
from training.cnn_training import main
from training.options import CNNOptions, ImageOptions, ViTOptions
from training.seen import names, seen_by, unseen
from utils import cli

TRAINING = Path(__file__).parents[1] / "training"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads with a bright spot in a corner of the class: 5 and 2 patients a class, 2 images a patient."""
    folder = tmp_path_factory.mktemp("data") / "heads"
    rng = np.random.default_rng(0)
    rows = []
    for part, count in (("Training", 5), ("Testing", 2)):
        for code, label in enumerate(CLASSES):
            (folder / part / label).mkdir(parents=True)
            for patient in range(count):
                noise = rng.integers(0, 60, (120, 100))
                for number in range(2):
                    image = head(box=(4, 116, 4, 96)).astype(int) + noise + rng.integers(0, 40, (120, 100))
                    image[40 + 30 * (code // 2) :, 30 + 30 * (code % 2) :][:12, :12] = 255
                    name = f"{part}/{label}/{part[:2]}-{label[:2]}_{patient}{number}.png"
                    Pillow.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
                    rows.append({"file": name, "patient": f"{part}{label}{patient}", "label": label})
    with (folder / "patients.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "patient", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def options(tree: Path, tmp_path: Path) -> CNNOptions:
    return CNNOptions(
        data=tree, image_size=72, epochs=1, batch_size=8, val=0.4, cache=tmp_path / "cache", device="cpu",
        name=str(tmp_path / "run"),
    )  # fmt: skip


@pytest.mark.parametrize("model", ["custom_cnn", "alexnet", "vgg16", "vit"])
def test_one_epoch_leaves_all_results(options: CNNOptions, model: str, tmp_path: Path) -> None:
    script = "vit_training.py" if model == "vit" else "cnn_training.py"
    size = "32" if model in ("vit", "vgg16") else "72"
    done = subprocess.run(
        [sys.executable, str(TRAINING / script), "--model", model, "--data", str(options.data), "--image-size", size,
         "--epochs", "1", "--batch-size", "8", "--val", "0.4", "--cache", str(options.cache), "--device", "cpu",
         "--name", str(options.folder)],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    left = {path.name for path in options.folder.iterdir()}
    assert {f"{models.MODELS[model]}.safetensors", "history.csv", "metrics.csv", "predictions.csv", "results.md",
            "curves.png", "confusion.png", "calibration.png", "split.json", "last.pt", "best.pt"} <= left  # fmt: skip
    assert "accuracy" in done.stdout and "no patient on both sides" in done.stdout
    rows = list(csv.DictReader((options.folder / "predictions.csv").open()))
    assert len(rows) == 16
    for row in rows:
        probabilities = [float(row[name]) for name in CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == CLASSES[int(np.argmax(probabilities))] and row["file"].split("/")[1] == row["truth"]
    history = list(csv.DictReader((options.folder / "history.csv").open()))
    assert len(history) == 1 and {"loss", "lr", "accuracy", "recall_glioma", "ece"} <= set(history[0])


@pytest.mark.parametrize(("kind", "strength"), [(CNNOptions, 1.0), (ViTOptions, 0.3)])
def test_each_recipe_has_its_strength_of_augmentation(
    options: CNNOptions, kind: type[ImageOptions], strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(classification, "fit", lambda model, data, *_, **__: given.append(data.augment))
    for extra in ({}, {"augment": 0.5}):
        mine = kind(data=options.data, cache=options.cache, image_size=72, val=0.0, device="cpu", **extra)
        store = classification.open_data(mine)
        split = classification.make_split(mine, store)
        classification.train(mine, torch.nn.Identity(), store, split, torch.device("cpu"))
    assert given == [ImageAugmentation().times(strength), ImageAugmentation().times(0.5)]


def test_help_needs_no_torch() -> None:
    for script in ("cnn_training.py", "vit_training.py"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", str(TRAINING / script), "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0 and "--label-smoothing" in done.stdout
        imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
        assert not imported & {"torch", "sklearn", "matplotlib", "numpy", "cv2"}


def evaluation(options: CNNOptions, weights: Path, name: Path) -> CNNOptions:
    return CNNOptions(data=options.data, cache=options.cache, device="cpu", evaluate=str(weights), name=str(name))


def test_folds_keep_patients_apart_and_evaluation_leaves_out_what_was_seen(options: CNNOptions, tmp_path: Path) -> None:
    folds = replace(options, split="patient", fold=0, folds=3, val=0.0)
    stages.run(folds, classification)
    split = json.loads((folds.folder / "split.json").read_text())
    assert split["unit"] == "patient" and not set(split["train"]) & set(split["test"])
    header = models.read_header(folds.folder / "CustomCNN.safetensors")
    assert header["temperature"] == 1.0 and header["classes"] == list(CLASSES)
    asked = evaluation(options, folds.folder / "CustomCNN.safetensors", tmp_path / "evaluated")
    stages.evaluate(asked, classification)
    with pytest.raises(ValueError, match=r"--fold, --split: .* leave it out"):
        stages.evaluate(replace(asked, split="patient", fold=0, name=str(tmp_path / "fold")), classification)
    mute = tmp_path / "mute.safetensors"
    models.save(models.load(str(folds.folder / "CustomCNN.safetensors"), torch.device("cpu")), mute,
                preprocessing=header["preprocessing"], split=header["split"])  # fmt: skip
    with pytest.raises(ValueError, match=r"mute\.safetensors does not say how it was trained"):
        stages.evaluate(replace(asked, evaluate=str(mute), name=str(tmp_path / "nothing")), classification)
    files = [
        {row["file"] for row in csv.DictReader((folder / "predictions.csv").open())}
        for folder in (folds.folder, asked.folder)
    ]
    assert files[0] == files[1] and len(files[0]) < 56
    only = tmp_path / "only"  # without its first files, which gave groups their names, and with another ending
    for path in sorted((options.data / "Testing").rglob("*0.png")):
        (only / path.relative_to(options.data)).parent.mkdir(parents=True, exist_ok=True)
        Pillow.open(path).convert("RGB").save((only / path.relative_to(options.data)).with_suffix(".tif"))
    moved = replace(asked, data=only, name=str(tmp_path / "moved"))
    stages.evaluate(moved, classification)
    left = {row["file"][:-4] for row in csv.DictReader((moved.folder / "predictions.csv").open())}
    assert left and left <= {name[:-4] for name in files[0]}
    elsewhere = tmp_path / "elsewhere"  # other people under the same file names, in other classes
    for path in (options.data / "Training").rglob("*.png"):
        target = elsewhere / CLASSES[(CLASSES.index(path.parent.name) + 1) % 4] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    others = open_images(elsewhere, options.cache, options.image_size)
    assert not seen_by(header, others).any()
    whole = {"split": {"train": ["Training/glioma/Tr-gl_00.jpg"], "val": []}}  # whole paths
    assert seen_by(whole, open_images(options.data, options.cache, options.image_size)).sum() == 1
    assert not seen_by({"seen": ["Tr-gl_00"]}, others).any(), "a patient may be called like a file of another"
    tuned = replace(options, init=asked.evaluate, split="patient", fold=1, folds=3, name=str(tmp_path / "tuned"))
    with pytest.raises(ValueError, match="which this split tests on"):
        stages.run(tuned, classification)
    with pytest.raises(ValueError, match="holds custom_cnn; this script scores vit"):
        wrong = ViTOptions(data=options.data, evaluate=asked.evaluate, name=str(tmp_path / "wrong"))
        stages.evaluate(wrong, classification)


def test_fine_tuning_on_the_official_split(
    options: CNNOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.run(replace(options, temperature=0.37), classification)
    weights = str(options.folder / "CustomCNN.safetensors")
    rows = list(csv.DictReader((options.data / "patients.csv").open()))
    shared = tmp_path / "patients on both sides"
    shutil.copytree(options.data, shared)
    with (shared / "patients.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "patient", "label"])
        writer.writeheader()
        writer.writerows({**row, "patient": row["patient"].replace("Testing", "Training")} for row in rows)
    tuned = replace(options, data=shared, init=weights, name=str(tmp_path / "tuned"))
    stages.run(tuned, classification)
    assert "has not seen the files that it is tested on" in (tuned.folder / "results.md").read_text()
    watched = len(json.loads((tuned.folder / "split.json").read_text())["val"])
    assert f"has seen {watched} of the {watched} samples to watch: their scores flatter" in capsys.readouterr().out
    assert models.read_header(tuned.folder / "CustomCNN.safetensors")["temperature"] == 0.37


def test_temperature_is_fitted_on_images_of_patients_that_the_start_has_not_seen(
    options: CNNOptions, tmp_path: Path
) -> None:
    store = open_images(options.data, options.cache, options.image_size)
    split = classification.make_split(options, store)
    watched = split.rows(store, "val")
    weights = tmp_path / "start.safetensors"
    models.save(models.build("custom_cnn", image_size=72), weights, seen=names(store, "file", watched[:1]))
    left = unseen(replace(options, init=str(weights)), split, store, "val")
    patient = store.index["patient"]
    assert left.tolist() == [row for row in watched if patient[row] != patient[watched[0]]] and len(left)
    assert np.array_equal(unseen(options, split, store, "val"), watched)


def test_files_of_one_name_in_training_and_testing_are_told_apart(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "numbered"
    for part in ("Training", "Testing"):
        for name in CLASSES:
            for number, path in enumerate(sorted((tree / part / name).iterdir())):
                target = folder / part / name / f"{number}{path.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    store = open_images(folder, tmp_path / "cache", 32)
    rows = np.flatnonzero(store.index["part"] == 0)
    header = {"seen": store.index["case"][rows].tolist()}
    assert np.array_equal(np.flatnonzero(seen_by(header, store)), rows)
    (folder / "Testing").rename(tmp_path / "moved")
    elsewhere = open_images(tmp_path / "moved", tmp_path / "cache", 32)
    assert seen_by({"seen": [f"anywhere/{name}" for name in elsewhere.index["case"]]}, elsewhere).all()


def test_each_model_has_its_own_recipe_unless_another_is_given() -> None:
    found = {model: CNNOptions(model=model) for model in ("custom_cnn", "alexnet", "vgg16")}  # type: ignore[arg-type]
    assert len({options.lr for options in found.values()}) == 3 and all(options.lr for options in found.values())
    assert {model: options.epochs for model, options in found.items()} == {"custom_cnn": 60, "alexnet": 60, "vgg16": 30}
    own = CNNOptions(model="my_cnn", lr=0.5)  # type: ignore[arg-type]
    assert (own.epochs, own.lr) == (60, 0.5)
    other = CNNOptions(model="vgg16", lr=3e-3, epochs=2)
    assert (other.lr, other.epochs) == (3e-3, 2)
    with pytest.raises(ValueError, match="--epochs is -1"):
        CNNOptions(epochs=-1)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "seed", "save_every"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_numbers_that_make_no_training_are_refused_before_it(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is {value}: it must be finite and not negative"):
        CNNOptions(**{name: value})  # type: ignore[arg-type]


def test_the_temperature_is_fitted_on_validation_or_given(options: CNNOptions, tmp_path: Path) -> None:
    stages.run(options, classification)
    fitted = models.read_header(options.folder / "CustomCNN.safetensors")["temperature"]
    given = replace(options, val=0.0, temperature=2.5, name=str(tmp_path / "given"))
    stages.run(given, classification)
    assert fitted != 1.0
    assert models.read_header(given.folder / "CustomCNN.safetensors")["temperature"] == 2.5


def test_damaged_images_are_left_out_and_groups_join_copies(tree: Path, tmp_path: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "heads"
    shutil.copytree(tree, folder)
    (folder / "patients.csv").unlink()
    (folder / "Training" / "glioma" / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
    first = Pillow.open(folder / "Training" / "glioma" / "Tr-gl_00.png")
    first.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT).save(folder / "Testing" / "glioma" / "mirrored.png")
    store = open_images(folder, tmp_path / "cache", 72)
    assert "broken.jpg" in capfd.readouterr()[0]
    assert store.images.shape == (57, 1, 72, 72) and store.images.dtype == np.uint8
    groups = dict(zip(store.index["case"], store.index["patient"], strict=True))
    assert "Training/glioma/broken.jpg" not in groups
    assert groups["Testing/glioma/mirrored.png"] == groups["Training/glioma/Tr-gl_00.png"]
    assert len(set(groups.values())) == 56  # nothing else is joined
    labels = dict(zip(store.index["case"], store.targets, strict=True))
    assert all(CLASSES[label] == name.split("/")[1] for name, label in labels.items())


def test_an_image_that_may_not_be_read_is_not_left_out_for_ever(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Pillow.Image:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("datasets.images.Pillow.open", refuse)
        with pytest.raises(ValueError, match="Permission denied"):
            open_images(tree, tmp_path, 32)
    assert len(open_images(tree, tmp_path, 32)) == 56


def test_one_store_of_mixed_modes_and_a_class_that_is_damaged(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    shutil.copytree(tree, folder)
    (folder / "patients.csv").unlink()
    paths = sorted((folder / "Training" / "glioma").iterdir())
    for mode, path in zip(("RGB", "RGBA", "P", "I;16"), paths, strict=False):
        image = Pillow.open(path)
        deep = Pillow.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        deep.save(path)
    mixed, plain = open_images(folder, tmp_path / "cache", 32), open_images(tree, tmp_path / "cache", 32)
    assert np.abs(mixed.images.astype(int) - plain.images).max() <= 3
    for part, left in (("Testing", 53), ("Training", 44)):
        damaged = sorted((folder / part / "glioma").iterdir())
        for path in damaged[1:]:
            path.write_bytes(b"")
        assert len(open_images(folder, tmp_path / "cache", 32)) == left
        whole = damaged[0].read_bytes()
        damaged[0].write_bytes(b"")
        with pytest.raises(ValueError, match=f"no image in {part}/glioma can be read"):
            open_images(folder, tmp_path / "cache", 32)
        damaged[0].write_bytes(whole)


def test_without_data_the_phantom_takes_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(folder: Path) -> Path:
        calls.append(folder)
        for name in [f"{part}/{label}" for part in ("Training", "Testing") for label in CLASSES]:
            (folder / name).mkdir(parents=True)
            Pillow.fromarray(head()).save(folder / name / "1.png")
        (folder / "phantom.json").write_text(json.dumps({"version": phantom_slices.VERSION, "patients": 8}))
        return folder

    calls: list[Path] = []
    monkeypatch.setattr(phantom_slices, "FOLDER", tmp_path / "phantom")
    monkeypatch.setattr(phantom_slices, "write_image_phantom", small)
    monkeypatch.setattr(stages, "no_data", lambda options: options.data == tmp_path / "none")
    monkeypatch.setattr(classification, "no_data", stages.no_data)
    for _ in range(2):  # the second time it is taken as it is, whatever it was made with
        store = classification.open_data(CNNOptions(data=tmp_path / "none", cache=tmp_path / "cache", image_size=32))
        assert len(store) == 8 and "using the built-in phantom" in capsys.readouterr().out
    assert calls == [tmp_path / "phantom"]


def test_there_are_no_data_where_nobody_named_a_folder_and_the_default_one_is_empty(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Here(CNNOptions):
        data: Path = tmp_path / "data"

    assert stages.no_data(Here())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".DS_Store").touch()
    assert stages.no_data(Here()) and not stages.no_data(Here(data=tmp_path))
    (tmp_path / "data" / "Training").mkdir()
    assert not stages.no_data(Here())


def test_a_letter_behind_the_number_is_the_same_patient() -> None:
    thumbs = np.eye(4, 64 * 64, dtype=np.float32)
    names = group_names(["a", "b", "c", "d"], ["MR12", "MR12B", "", "MR13"], thumbs)
    assert names == ["MR12", "MR12", "like c", "MR13"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("--split", "patient"), "--fold 0"), (("--fold", "0"), "no folds"), (("--data", "/nowhere"), "/nowhere"),
     (("--split", "patient", "--fold", "0", "--folds", "30"), "cannot be dealt into 30 parts"),
     (("--image-size", "20"), "image_size of 69 or more"), (("--model", "alexnet", "--residual"), "--residual"),
     (("--evaluate", "CustomCNN", "--model", "alexnet"), "holds custom_cnn: leave --model out"),
     (("--evaluate", "ClassicUNet"), "holds classic_unet"), (("--temperature", "0"), "above 0"),
     (("--evaluate", "CustomCNN", "--temperature", "2"), "--temperature: for trainings only"),
     (("--evaluate", "CustomCNN", "--no-mirror", "--seed", "1"), "--seed, --mirror: for trainings only"),
     (("--folds", "3"), "without --fold"),
     (("--init", "CustomCNN", "--image-size", "72"), "image_size=128"),
     (("--init", "two.safetensors", "--image-size", "72"), "num_classes=2"),
     (("--evaluate", "two.safetensors"), "tell benign, malignant apart"), (("--data", "empty"), "no image in"),
     (("--data", "halved"), "halved: the data set is not divided into Training and Testing")],
)  # fmt: skip
def test_bad_options_are_one_sentence(
    options: CNNOptions, arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    shutil.copytree(options.data / "Training", tmp_path / "halved" / "Training")
    places = {name: tmp_path / name for name in ("empty", "halved", "two.safetensors")}
    models.save(
        models.build("custom_cnn", image_size=72, num_classes=2), places["two.safetensors"],
        classes=["benign", "malignant"], preprocessing={"image_size": 72}, split={"train": [], "val": []},
        mirror=True, temperature=1.0,
    )  # fmt: skip
    arguments = tuple(str(places.get(text, text)) for text in arguments)
    start = ["--data", options.data, "--cache", options.cache, "--name", options.name]
    start += [] if "--evaluate" in arguments else ["--val", "0.4"]
    monkeypatch.setattr(sys, "argv", ["script", *map(str, start), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main(main, CNNOptions, None)
    assert stop.value.code == cli.BAD_INPUT
    assert sentence in capsys.readouterr().err
    assert not (options.folder / "options.json").exists()


def test_a_loss_that_is_not_finite_names_images_and_leaves_no_results(
    options: CNNOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", options.data, "--cache", options.cache, "--name", options.name, "--image-size", "72",
                 "--lr", "1e30", "--epochs", "3", "--batch-size", "8", "--val", "0", "--device", "cpu"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main(main, CNNOptions, None)
    assert stop.value.code == cli.BAD_INPUT
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and "not finite" in said and "Training/" in said and ".png" in said
    assert not (options.folder / "results.md").exists() and not list(options.folder.glob("*.safetensors"))


@pytest.mark.real_data
def test_one_epoch_on_the_real_set_learns_more_than_half(real_data: Path, tmp_path: Path) -> None:
    run = CNNOptions(
        data=real_data / "classification", epochs=1, cache=tmp_path / "cache", name=str(tmp_path / "run"), device="cpu"
    )
    stages.run(run, classification)
    row = next(csv.DictReader((run.folder / "history.csv").open()))
    assert float(row["accuracy"]) > 0.5
    assert "(patients on both sides)" in (run.folder / "results.md").read_text()
