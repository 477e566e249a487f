"""Figures of data show the right slice under the right name, and volumes that the label files have."""

from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pytest

from datasets.brats import CLASSES, MODALITIES
from datasets.slices import open_slices
from datasets.store import Store
from tests.test_plots import check_page
from utils import data_plots
from utils.plots import COLOURS

VALUES = {"NCR": 1, "ED": 2, "ET": 4}  # in the files of the cases


@pytest.fixture(scope="module")
def store(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_slices(cases, tmp_path_factory.mktemp("cache"), window=(48, 48))


@pytest.fixture(scope="module")
def truth(cases: Path) -> dict[str, np.ndarray]:
    """Case -> the volume of its label file."""
    files = sorted(cases.glob("*/*_seg.nii.gz"))
    return {file.parent.name: np.asarray(nib.load(file).dataobj) for file in files}


def largest(store: Store) -> int:
    return int((store.targets > 0).sum(axis=(1, 2)).argmax())


def test_a_figure_is_an_opaque_white_page_with_something_on_it(store: Store) -> None:
    at = largest(store)
    for draw in (
        lambda: data_plots.modalities(store.images[at], store.targets[at]),
        lambda: data_plots.class_balance(store),
        lambda: data_plots.volumes(store),
    ):
        check_page(draw, smallest=300)


def test_modalities_and_masks_stand_under_their_names(store: Store) -> None:
    at = largest(store)
    image, labels = store.images[at], store.targets[at]
    figure = data_plots.modalities(image, labels, "a patient")
    assert figure.get_suptitle() == "a patient"
    shown = {axes.get_title(): axes.images for axes in figure.axes}
    assert list(shown) == ["T1", "T1c", "T2", "FLAIR", *(f"mask of {name}" for name in CLASSES), "masks over FLAIR"]
    tissue = (image != 0).all(axis=0).T
    for name, modality in zip(("T1", "T1c", "T2", "FLAIR"), ("t1", "t1c", "t2", "flair"), strict=True):
        expected = image[MODALITIES.index(modality)].T
        np.testing.assert_allclose(shown[name][0].get_array()[tissue], expected[tissue], rtol=1e-3)
    for code, name in enumerate(CLASSES, 1):
        np.testing.assert_array_equal(shown[f"mask of {name}"][0].get_array(), (labels == code).T)
    np.testing.assert_array_equal(shown["masks over FLAIR"][1].get_array()[..., 3] > 0, labels.T > 0)


def test_a_walk_has_a_frame_a_slice_and_colours_where_there_is_tumour(store: Store) -> None:
    rows = np.flatnonzero(store.index["case"] == "Case_000")
    frames = data_plots.walk(store.images[rows], store.targets[rows], store.index["slice"][rows], "Case_000")
    assert len(frames) == len(rows) and {frame.width for frame in frames} == {data_plots.FILM}
    assert len({frame.size for frame in frames}) == 1

    def coloured(frame) -> int:
        """Pixels of some colour: the keys, and the masks."""
        pixels = np.asarray(frame, dtype=int)
        return int((np.ptp(pixels, axis=2) > 40).sum())

    tumour = (store.targets[rows] > 0).sum(axis=(1, 2))
    more = np.array([coloured(frame) for frame in frames])
    assert tumour.min() == 0 < tumour.max()
    assert (more[tumour > 0] > more[tumour == 0].max()).all() and more.argmax() == tumour.argmax()


def test_volumes_are_those_of_the_label_files(store: Store, truth: dict[str, np.ndarray]) -> None:
    expected = {case: {name: (labels == value).sum() / 1000 for name, value in VALUES.items()}
                for case, labels in truth.items()}  # fmt: skip
    found = data_plots.case_volumes(store)
    assert list(found) == list(expected)
    for case, parts in expected.items():
        assert found[case] == pytest.approx(parts)
    (axes,) = data_plots.volumes(store).axes
    assert axes.get_ylabel() == "volume (ml)"
    named = [text.get_text() for text in axes.get_xticklabels()]
    assert named == sorted(expected, key=lambda case: sum(expected[case].values()))
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    np.testing.assert_allclose(tops, [sum(expected[case].values()) for case in named])


def test_many_cases_stay_unnamed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_plots, "NAMED", 5)
    (axes,) = data_plots.volumes(store).axes
    assert not axes.get_xticklabels() and axes.get_xlabel() == "6 cases, by size"


def test_class_balance_is_counted_over_what_the_network_sees(store: Store, truth: dict[str, np.ndarray]) -> None:
    voxels, slices = data_plots.class_balance(store).axes
    for at, name in enumerate(CLASSES):
        masks = [labels == VALUES[name] for labels in truth.values()]
        share = 100 * sum(mask.sum() for mask in masks) / (len(store) * 48 * 48)
        assert voxels.patches[at].get_width() == pytest.approx(share)
        shown = sum(mask.any(axis=(0, 1)).sum() for mask in masks)
        assert slices.patches[at].get_width() == pytest.approx(100 * shown / len(store))
        assert voxels.patches[at].get_facecolor() == matplotlib.colors.to_rgba(COLOURS[at])
