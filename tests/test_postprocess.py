"""What is believed of a predicted tumour, on volumes small enough to count by hand."""

import numpy as np

from utils.postprocess import believed, keep_large


def test_keep_large_removes_small_pieces_of_the_whole_tumour() -> None:
    labels = np.zeros((9, 9, 9), dtype=np.uint8)
    labels[0, 0, 0], labels[1, 0, 0], labels[2, 1, 1] = 1, 2, 3  # one piece: by a face, by a corner
    labels[6:8, 6, 6] = 2  # two voxels
    before = labels.copy()
    found = keep_large(labels, 3)
    assert found.dtype == labels.dtype
    assert (found[:4] == before[:4]).all()
    assert not found[4:].any()
    assert not keep_large(labels, 4).any()
    for all_of_it in (0, 1, 2):
        np.testing.assert_array_equal(keep_large(labels, all_of_it), before)
    np.testing.assert_array_equal(labels, before)  # the input is left alone
    assert not keep_large(np.zeros_like(labels), 5).any()


def test_little_enhancing_tumour_becomes_necrosis_and_much_of_it_stays() -> None:
    labels = np.zeros((12, 12, 4), np.uint8)
    labels[2:10, 2:10, :] = 2  # 256 voxels of edema
    labels[4, 4:8, 1] = 1
    labels[5, 4:8, 1] = 3
    labels[8, 8, 3] = 3  # 5 voxels of ET in all, in two places: 40 mm^3 at 2 x 2 x 2 mm
    little = believed(labels, (2, 2, 2), 41)
    assert not (little == 3).any()
    np.testing.assert_array_equal(little > 0, labels > 0)
    np.testing.assert_array_equal(little == 1, np.isin(labels, (1, 3)))
    np.testing.assert_array_equal(believed(labels, (2, 2, 2), 40), labels)


def test_pieces_go_before_the_enhancing_tumour_is_measured() -> None:
    labels = np.zeros((20, 10, 2), np.uint8)
    labels[1:7, 1:7, :] = 2
    labels[2, 2:5, 0] = 3  # 3 voxels inside a large tumour
    labels[15, 2:5, :] = 3  # 6 voxels alone: a vessel
    found = believed(labels, (1, 1, 1), 7)
    assert not found[10:].any() and not (found == 3).any()
    assert (found[2, 2:5, 0] == 1).all()


def test_nothing_changes_where_all_is_believed() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (8, 8, 8)).astype(np.uint8)
    np.testing.assert_array_equal(believed(labels, (1, 1, 1), 0), labels)
