"""The script as its users run it: a run, its results, going on, evaluation, and bad input in one sentence."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch

import models
from datasets import brats, splits
from tests.conftest import AFFINE, make_case, write_case
from training import segmentation, stages
from training.options import UNetOptions
from training.seen import seen_by
from training.unet_training import main
from utils import cli
from utils.metrics import region_scores
from utils.postprocess import believed
from utils.signals import Interrupted

SCRIPT = Path(__file__).parents[1] / "training" / "unet_training.py"


@pytest.fixture
def options(cases: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> UNetOptions:
    """One epoch of a tiny network on the six small cases."""
    return UNetOptions(
        model="improved_unet", n_filters=2, data=cases, window=(48, 64), epochs=1, batch_size=8, val=0.2, test=0.3,
        cache=tmp_path_factory.getbasetemp() / "cache", name=str(tmp_path / "run"), device="cpu",
        precision="fp32",
    )  # fmt: skip


def command_line(options: UNetOptions) -> list[str]:
    return [
        "--model", options.model, "--n-filters", str(options.n_filters), "--data", str(options.data), "--window", "48",
        "64", "--epochs", str(options.epochs), "--batch-size", "8", "--val", "0.2", "--test", "0.3", "--cache",
        str(options.cache), "--name", str(options.name), "--device", "cpu", "--precision",
        options.precision,
    ]  # fmt: skip


def script(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd="/", env=os.environ | more
    )


def test_help_needs_no_torch() -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--n-filters" in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "tyro" in imported and not imported & {"torch", "monai", "matplotlib", "numpy", "scipy"}


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_run_from_another_folder_leaves_all_its_results(options: UNetOptions) -> None:
    done = script(*command_line(options))
    assert done.returncode == 0, done.stderr
    folder = options.folder
    left = {path.name for path in folder.iterdir()}
    assert {"ImprovedUNet.safetensors", "history.csv", "patients.csv", "metrics.csv", "results.md", "curves.png",
            "overlay.png", "split.json", "last.pt", "best.pt"} <= left  # fmt: skip
    assert "| WT |" in done.stdout and "2 patients" in done.stdout
    split = json.loads((folder / "split.json").read_text())
    header = models.read_header(folder / "ImprovedUNet.safetensors")
    assert header["split"]["test"] == split["test"] and header["preprocessing"]["window"] == [48, 64]
    again = script("--name", str(options.name))  # the run remembers its options
    assert again.returncode == 0 and "is finished" in again.stdout and "| WT |" in again.stdout
    other = script(*command_line(options), "--lr", "0.5")
    assert other.returncode == 2 and "lr 0.002 (not 0.5)" in other.stderr and "Traceback" not in other.stderr


def test_usr1_saves_and_the_same_command_goes_on(options: UNetOptions) -> None:
    arguments = command_line(replace(options, epochs=8))
    process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stderr=subprocess.PIPE, text=True)
    while not (options.folder / "history.csv").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate()
    assert process.returncode == cli.INTERRUPTED, errors
    assert "SIGUSR1: saved at epoch" in errors and "Traceback" not in errors
    assert not (options.folder / "results.md").exists()
    stages.run(replace(options, epochs=8, resume=True), segmentation)
    whole = replace(options, epochs=8, name=f"{options.name}-whole")
    stages.run(whole, segmentation)
    weights = [(run.folder / "ImprovedUNet.safetensors").read_bytes() for run in (options, whole)]
    assert weights[0] == weights[1]


def test_a_gpu_without_bf16_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "best_precision", lambda device: "fp32")
    with pytest.raises(ValueError, match="--precision fp32"):
        stages.chosen_precision(UNetOptions(precision="bf16"), torch.device("cuda"))
    assert stages.chosen_precision(UNetOptions(precision="bf16"), torch.device("cpu")) == "bf16"  # slow, but there


def test_a_run_keeps_the_precision_it_began_with(options: UNetOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "best_precision", lambda device: "bf16")
    stages.run(replace(options, precision="auto"), segmentation)
    assert cli.load(UNetOptions, options.folder / cli.SAVED).precision == "bf16"
    (options.folder / "results.md").unlink()  # as if stopped before the test
    monkeypatch.setattr(stages, "best_precision", lambda device: "fp32")  # goes on where another one is faster
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--name", str(options.name)])
    cli.main(main, UNetOptions, None)
    assert (options.folder / "results.md").exists()
    with pytest.raises(ValueError, match=r"precision bf16 \(not fp32\)"):
        stages.run(replace(options, precision="fp32"), segmentation)
    stages.run(replace(options, precision="auto"), segmentation)


def test_killed_at_a_random_moment_and_started_again_is_as_if_nothing_happened(
    options: UNetOptions, tmp_path: Path
) -> None:
    long = replace(options, epochs=6, ema=0.5, val=0.0)
    whole = replace(long, name=str(tmp_path / "whole"))
    stages.run(whole, segmentation)
    arguments = [*command_line(long), "--ema", "0.5", "--val", "0", "--save-every", "0"]  # saves at every step
    process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stderr=subprocess.DEVNULL)
    while not (long.folder / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    delay = random.SystemRandom().uniform(0, 0.5)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (long.folder / "results.md").exists()
    again = script(*arguments)
    assert again.returncode == 0, again.stderr
    one, other = ((run.folder / "ImprovedUNet.safetensors").read_bytes() for run in (long, whole))
    tensors = [safetensors.torch.load(data) for data in (one, other)]
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), f"{name}, killed {delay:.3f} s after the first step"


def test_evaluate_takes_only_patients_that_were_not_trained_on(
    options: UNetOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.run(options, segmentation)
    weights = str(options.folder / "ImprovedUNet.safetensors")
    asked = UNetOptions(
        data=options.data, cache=options.cache, evaluate=weights, name=str(tmp_path / "evaluated"), precision="fp32"
    )
    stages.evaluate(asked, segmentation)
    assert "2 patients" in capsys.readouterr().out
    tables = [(run.folder / "patients.csv").read_text() for run in (options, asked)]
    assert tables[0] == tables[1]  # what was measured are the weights in the file
    split = json.loads((options.folder / "split.json").read_text())
    only_trained = tmp_path / "only_trained"
    only_trained.mkdir()
    for patient in split["train"]:
        shutil.copytree(options.data / patient, only_trained / patient)
    with pytest.raises(ValueError, match="trained on all of"):
        stages.evaluate(replace(asked, data=only_trained), segmentation)
    with pytest.raises(ValueError, match=r"was started with data .* choose another --name"):
        stages.evaluate(replace(asked, data=shutil.copytree(options.data, tmp_path / "copy")), segmentation)
    asked = replace(asked, data=tmp_path / "copy", name=str(tmp_path / "other"))
    stages.evaluate(asked, segmentation)
    shutil.rmtree(asked.data / split["test"][0])  # the same folder, other data
    with pytest.raises(ValueError, match="has the results of other data: choose another --name"):
        stages.evaluate(asked, segmentation)


def test_a_stop_while_testing_says_so_and_the_weights_name_the_versions_that_made_them(
    options: UNetOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Interrupted("stopped by SIGUSR1")

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGUSR1: trained, but not tested yet"):
        patch.setattr(stages, "commit", lambda: "v1")
        patch.setattr(segmentation, "score", stop)
        stages.run(options, segmentation)
    monkeypatch.setattr(stages, "commit", lambda: "v2")
    stages.run(options, segmentation)
    assert models.read_header(options.folder / "ImprovedUNet.safetensors")["commit"] == "v1 to v2"


def test_a_run_is_named_after_the_data_and_not_after_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = UNetOptions(data=Path(), evaluate="AttentionUNet")
    assert options.data == tmp_path and options.folder.name == f"evaluate_AttentionUNet_{tmp_path.name}"


def test_the_leaky_split_is_labelled_wherever_its_numbers_stand(options: UNetOptions) -> None:
    leaky = replace(options, split="slice")
    stages.run(leaky, segmentation)
    assert (leaky.folder / "results.md").read_text().startswith("LEAKY SPLIT")
    assert "LEAKY" in models.read_header(leaky.folder / "ImprovedUNet.safetensors")["split"]["about"]
    assert not (leaky.folder / "patients.csv").exists()
    assert "leaky" in replace(leaky, name=None).folder.name


def test_a_leaky_model_has_seen_its_slices_and_the_patients_of_the_weights_it_started_from(
    options: UNetOptions,
) -> None:
    store = segmentation.open_data(options)
    patients, z = store.index["patient"], store.index["slice"]
    theirs = patients == patients[0]
    header = {"seen": [f"{store.index['case'][0]}:{z[0]}"], "split": {"unit": "slice", "train": [], "val": []}}
    assert np.array_equal(seen_by(header, store), theirs & (z == z[0]))
    assert np.array_equal(seen_by(header | {"seen": [*header["seen"], patients[0]]}, store), theirs)


def test_a_leaky_model_tuned_from_another_can_still_be_tested_on_what_both_have_not_seen(
    options: UNetOptions, tmp_path: Path
) -> None:
    first = replace(options, split="slice")
    stages.run(first, segmentation)
    second = replace(first, init=str(first.folder / "ImprovedUNet.safetensors"), name=str(tmp_path / "second"))
    stages.run(second, segmentation)
    store = segmentation.open_data(options)
    one, two = (seen_by(models.read_header(run.folder / "ImprovedUNet.safetensors"), store)
                for run in (first, second))  # fmt: skip
    assert np.array_equal(one, two) and 0 < one.sum() < len(store)


def test_fine_tuning_starts_from_given_weights(options: UNetOptions, tmp_path: Path) -> None:
    stages.run(options, segmentation)
    weights = str(options.folder / "ImprovedUNet.safetensors")
    tuned = replace(options, init=weights, lr=0.0, weight_decay=0.0, name=str(tmp_path / "tuned"))
    stages.run(tuned, segmentation)
    one, other = (models.load(run.folder / "ImprovedUNet.safetensors") for run in (options, tuned))
    for (name, value), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert np.array_equal(value.detach(), same.detach()), name
    seen = [models.recorded(models.read_header(run.folder / "ImprovedUNet.safetensors")) for run in (options, tuned)]
    assert seen[0] and seen[0] <= seen[1]
    assert models.recorded({"split": {"train": ["p1"], "val": ["p2"]}}) == {"p1", "p2"}  # of older weights
    assert "p1" in models.recorded({"seen": ["p1:17"], "split": {"train": ["p2"], "val": []}})  # a slice of a patient
    reshuffled = [replace(tuned, seed=seed, name=str(tmp_path / f"tuned_{seed}")) for seed in range(1, 5)]
    store = segmentation.open_data(tuned)
    for other in (tuned, *reshuffled):  # whoever the weights have seen is not tested on
        assert not seen[0] & set(segmentation.make_split(other, store).test)
    with pytest.raises(ValueError, match="which this split tests on"):
        for fold in range(3):
            stages.run(replace(tuned, fold=fold, folds=3, name=str(tmp_path / f"fold_{fold}")), segmentation)
    with pytest.raises(ValueError, match=r"classic_unet|ClassicUNet"):
        stages.run(replace(options, model="classic_unet", init=weights, name=str(tmp_path / "other")), segmentation)
    header = models.read_header(tuned.folder / "ImprovedUNet.safetensors")
    (tuned.folder / "results.md").unlink()  # as if stopped before the test
    Path(weights).unlink()
    stages.run(tuned, segmentation)
    assert models.read_header(tuned.folder / "ImprovedUNet.safetensors")["seen"] == header["seen"]


def test_relative_paths_hold_from_other_folders_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing is: the file may have gone since the first start
    options = UNetOptions(data=Path("scans"), cache=Path("cache"), init="runs/a/X.safetensors")
    assert (options.data, options.cache) == (tmp_path / "scans", tmp_path / "cache")
    assert options.init == str(tmp_path / "runs" / "a" / "X.safetensors")
    assert UNetOptions(init="AttentionUNet").init == "AttentionUNet"


def bad_data(folder: Path, kind: str) -> None:
    images, labels = make_case(0)
    case = write_case(folder, "Case_1", images, labels)
    flair = case / "Case_1_flair.nii.gz"
    if kind == "empty":
        shutil.rmtree(case)
    elif kind == "modality":
        flair.unlink()
    elif kind == "truncated":
        os.truncate(flair, flair.stat().st_size // 2)
    elif kind == "nan":
        nib.save(nib.Nifti1Image(np.full(labels.shape, np.nan, np.float32), AFFINE), flair)
    elif kind == "labels":
        nib.save(nib.Nifti1Image(labels // 2 * 7, AFFINE), case / "Case_1_seg.nii.gz")


@pytest.mark.parametrize(
    ("kind", "named"),
    [("empty", "data"), ("modality", "Case_1"), ("truncated", "Case_1_flair"), ("nan", "Case_1_flair"),
     ("labels", "Case_1_seg"), ("one patient", "more patients")],
)  # fmt: skip
def test_bad_data_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, options: UNetOptions, kind: str, named: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "data"
    data.mkdir()
    bad_data(data, kind)
    bad = replace(options, data=data, cache=tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *command_line(bad)])
    with pytest.raises(SystemExit) as stop:
        cli.main(main, UNetOptions, None)
    assert stop.value.code == cli.BAD_INPUT
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named in errors[0]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] or (
        kind == "one patient"
    )
    assert not (bad.folder / "options.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("--resume",), "nothing to resume"), (("--fold", "0", "--folds", "9"), "6 patients cannot be dealt into 9 folds"),
     (("--evaluate", "nowhere.safetensors"), "nowhere"), (("--data", "/nowhere"), "/nowhere"),
     (("--init", "nowhere.safetensors"), "nowhere"), (("--batch-size", "0"), "--batch-size is 0"),
     (("--split", "slice", "--fold", "0"), "no folds"), (("--fold", "5"), "fold 5 of 5 does not exist"),
     (("--folds", "3"), "without --fold")],
)  # fmt: skip
def test_bad_options_are_one_sentence(
    options: UNetOptions, arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *command_line(options), *arguments])

    with pytest.raises(SystemExit) as stop:
        cli.main(main, UNetOptions, None)
    assert stop.value.code == cli.BAD_INPUT
    assert sentence in capsys.readouterr().err


@pytest.mark.real_data
def test_one_real_patient_from_file_to_score(real_data: Path, tmp_path: Path) -> None:
    for patient in ("BraTS20_Training_275", "BraTS20_Training_122"):  # the first has no enhancing tumour
        shutil.copytree(real_data / "brats" / patient, tmp_path / "data" / patient)
    run = UNetOptions(
        model="classic_unet", n_filters=4, data=tmp_path / "data", epochs=1, val=0.0, tumour_free=0.0,
        cache=tmp_path / "cache", name=str(tmp_path / "run"), device="cpu",
    )  # fmt: skip
    sizes = {"BraTS20_Training_275": 34700, "BraTS20_Training_122": 16585}
    tested = [fold for fold in (0, 1) if "BraTS20_Training_275" in splits.by_fold(sizes, fold, 2, 0.0).test]
    run = replace(run, fold=tested[0], folds=2)
    stages.run(run, segmentation)
    header, row = (line.split(",") for line in (run.folder / "patients.csv").read_text().splitlines())
    scores = dict(zip(header, row, strict=True))
    assert scores["case"] == "BraTS20_Training_275"
    assert all(0 <= float(scores[f"dice_{region}"]) <= 1 for region in ("WT", "TC", "ET"))
    # the rule for empty regions: right or wrong, nothing between
    assert (float(scores["dice_ET"]), float(scores["hd95_ET"])) in {(1.0, 0.0), (0.0, 373.13)}


@pytest.mark.real_data
@pytest.mark.parametrize("patient", ["272", "275", "278"])
def test_patients_without_enhancing_tumour_score_as_the_rule_says(real_data: Path, patient: str) -> None:
    folder = real_data / "brats" / f"BraTS20_Training_{patient}"
    case = brats.read_case(brats.find_cases(folder)[0])
    assert case.labels is not None and (case.labels > 0).any() and not (case.labels == 3).any()
    right = region_scores(case.labels, case.labels, case.spacing, brats.REGIONS)
    assert (right["dice_ET"], right["hd95_ET"]) == (1.0, 0.0)
    predicted = case.labels.copy()
    x, y, z = (int(axis.mean()) for axis in np.nonzero(predicted))
    predicted[x : x + 4, y : y + 4, z : z + 4] = 3  # 64 voxels of it
    wrong = region_scores(predicted, case.labels, case.spacing, brats.REGIONS)
    assert (wrong["dice_ET"], wrong["hd95_ET"]) == (0.0, 373.13)
    kept = region_scores(believed(predicted, case.spacing), case.labels, case.spacing, brats.REGIONS)
    assert (kept["dice_ET"], kept["hd95_ET"]) == (1.0, 0.0)  # too little to be believed
