"""Metrics against hand-made tables, scikit-learn, MONAI and brute force."""

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.metrics import accuracy_score, jaccard_score, multilabel_confusion_matrix
from sklearn.metrics import precision_recall_fscore_support as sk_scores

from utils.metrics import WORST_HD95, count, mean_interval, ratios, region_scores, row, to_labels

CLASSES = ("NCR", "ED", "ET")
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
NAN = math.nan


def label_maps(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random truth, and a prediction that agrees with it on about half of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    true, noise = torch.randint(0, 4, (2, *shape), generator=generator, dtype=torch.uint8)
    keep = torch.rand(shape, generator=generator) < 0.5
    return torch.where(keep, true, noise), true


def blob(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """A smooth random boolean volume of about that share of voxels; it often touches the borders."""
    field = gaussian_filter(rng.normal(size=shape), 1.5)
    return field > np.quantile(field, 1 - share)


@pytest.mark.parametrize(
    ("logits", "code"),
    [
        ((1.0, 0.5, -2.0), 1),
        ((0.5, 1.0, 0.9), 2),
        ((-3.0, -1.0, 0.1), 3),
        ((-0.1, -0.2, -0.3), 0),  # nothing is likely
        ((0.0, 0.0, 0.0), 0),  # probability 0.5 is not more than 0.5
        ((2.0, 2.0, 1.0), 1),  # of equals the first
        ((-1.0, 2.0, 2.0), 2),
        ((NAN, 1.0, 1.0), 0),
    ],
)
def test_label_of_a_pixel(logits: tuple[float, ...], code: int) -> None:
    labels = to_labels(torch.tensor(logits).view(1, 3, 1, 1).expand(2, 3, 4, 5))
    assert labels.dtype == torch.uint8
    assert labels.shape == (2, 4, 5)
    assert (labels == code).all()


def test_counts_by_hand() -> None:
    true = torch.tensor([0, 0, 1, 1, 1, 2])
    predicted = torch.tensor([0, 1, 1, 1, 2, 2])
    assert count(predicted, true).tolist() == [[2, 1, 1, 2], [1, 1, 0, 4], [0, 0, 0, 6]]


def test_counts_and_ratios_agree_with_scikit_learn() -> None:
    predicted, true = label_maps(5, 40, 30)
    counts = count(predicted, true)
    p, t, codes = predicted.flatten().numpy(), true.flatten().numpy(), [1, 2, 3]
    (tn, fp), (fn, tp) = multilabel_confusion_matrix(t, p, labels=codes).transpose(1, 2, 0)
    np.testing.assert_array_equal(counts, np.stack([tp, fp, fn, tn], axis=1))

    scores = ratios(counts)
    precision, recall, f1, _ = sk_scores(t, p, labels=codes)
    np.testing.assert_allclose(scores["precision"], precision)
    np.testing.assert_allclose(scores["recall"], recall)
    np.testing.assert_allclose(scores["dice"], f1)
    np.testing.assert_allclose(scores["iou"], jaccard_score(t, p, labels=codes, average=None))
    np.testing.assert_allclose(scores["accuracy"], [accuracy_score(t == c, p == c) for c in codes])
    np.testing.assert_allclose(scores["fpr"], fp / (fp + tn))
    np.testing.assert_allclose(scores["fnr"], 1 - recall)


def test_dice_agrees_with_monai() -> None:
    from monai.metrics import DiceMetric

    predicted, true = label_maps(6, 32, 32)
    predicted[true == 3], true[true == 3] = 0, 0
    predicted[predicted == 3] = 0  # no ET anywhere: MONAI, too, gives 1 when asked to keep empty classes
    codes = torch.arange(1, 4).view(1, 3, 1, 1)
    metric = DiceMetric(include_background=True, reduction="none", ignore_empty=False)
    expected = metric((predicted[:, None] == codes).float(), (true[:, None] == codes).float())
    found = torch.stack([ratios(count(p, t))["dice"] for p, t in zip(predicted, true, strict=True)])
    torch.testing.assert_close(found.float(), expected)


def test_counts_do_not_depend_on_the_batch_size() -> None:
    predicted, true = label_maps(11, 16, 16)
    whole = count(predicted, true)
    assert whole.dtype == torch.int64
    for size in (1, 3, 7):
        batches = zip(predicted.split(size), true.split(size), strict=True)
        assert torch.equal(torch.stack([count(p, t) for p, t in batches]).sum(dim=0), whole)


def test_counting_never_waits_for_the_device() -> None:
    logits = torch.empty(2, 3, 8, 8, device="meta")  # has no values: whoever reads one gets an error
    labels = to_labels(logits)
    assert count(labels, labels).shape == (3, 4)


def test_count_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        count(torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize(
    ("counts", "expected"),  # dice, iou, accuracy, fpr, fnr, precision, recall
    [
        ((6, 2, 2, 10), (0.75, 0.6, 0.8, 1 / 6, 0.25, 0.75, 0.75)),
        ((5, 0, 0, 5), (1, 1, 1, 0, 0, 1, 1)),
        ((0, 3, 0, 7), (0, 0, 0.7, 0.3, NAN, 0, NAN)),  # only predicted
        ((0, 0, 3, 7), (0, 0, 0.7, 0, 1, NAN, 0)),  # only true
        ((0, 0, 0, 9), (1, 1, 1, 0, NAN, NAN, NAN)),  # neither
        ((4, 0, 0, 0), (1, 1, 1, NAN, 0, 1, 1)),  # everywhere
    ],
)
def test_ratios_by_hand(counts: tuple[int, ...], expected: tuple[float, ...]) -> None:
    found = ratios(torch.tensor([counts]))
    assert list(found) == ["dice", "iou", "accuracy", "fpr", "fnr", "precision", "recall"]
    assert [value.item() for value in found.values()] == pytest.approx(expected, nan_ok=True)


def test_row_has_flat_names_and_means_without_nan() -> None:
    found = row(torch.tensor([[6, 2, 2, 10], [0, 0, 0, 20], [10, 0, 0, 10]]), CLASSES)
    assert len(found) == 7 * 4
    assert list(found)[:4] == ["dice_NCR", "dice_ED", "dice_ET", "dice_mean"]
    assert found["dice_mean"] == pytest.approx((0.75 + 1 + 1) / 3)
    assert math.isnan(found["recall_ED"])
    assert found["recall_mean"] == pytest.approx((0.75 + 1) / 2)
    assert math.isnan(row(torch.tensor([[0, 0, 0, 5]]), ["NCR"])["recall_mean"])
    with pytest.raises(ValueError, match="zip"):
        row(torch.zeros(3, 4), ["NCR"])


def surface(volume: np.ndarray) -> np.ndarray:
    """(n, 3) voxels of a region with a face towards its outside, which begins at the border; by plain loops."""
    found = []
    for voxel in np.argwhere(volume):
        for axis in range(volume.ndim):
            for step in (-1, 1):
                other = voxel.copy()
                other[axis] += step
                inside = 0 <= other[axis] < volume.shape[axis] and volume[tuple(other)]
                if not inside:
                    found.append(voxel)
    return np.unique(found, axis=0)


def brute_hd95(p: np.ndarray, t: np.ndarray, spacing: tuple[float, ...]) -> float:
    """From all pairs of surface voxels."""
    distances = cdist(surface(p) * np.array(spacing), surface(t) * np.array(spacing))
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.5)])
@pytest.mark.parametrize("seed", range(4))
def test_hd95_agrees_with_brute_force(seed: int, spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    p, t = blob(rng, (14, 17, 12), 0.2), blob(rng, (14, 17, 12), 0.1)
    found = region_scores(p.astype(np.uint8), t.astype(np.uint8), spacing, {"NCR": (1,)})
    assert found["hd95_NCR"] == pytest.approx(brute_hd95(p, t, spacing), rel=1e-5)
    assert found["dice_NCR"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))


@pytest.mark.parametrize("at", [slice(0, 5), slice(3, 9), slice(5, 10), slice(None)])
def test_a_region_has_a_surface_at_the_border(at: slice) -> None:
    p, t = np.zeros((2, 10, 10, 10), dtype=bool)
    p[at, :, :], t[2:8, 2:8, 2:8] = True, True
    expected = brute_hd95(p, t, (1, 1, 2))
    found = region_scores(p.astype(np.uint8), t.astype(np.uint8), (1, 1, 2), {"NCR": (1,)})
    assert found["hd95_NCR"] == pytest.approx(expected, rel=1e-5)


def test_regions_unite_classes() -> None:
    true = np.zeros((8, 8, 8), dtype=np.uint8)
    true[1:7, 1:7, 1:7], true[2:5, 2:5, 2:5], true[3, 3, 3] = 2, 3, 1
    predicted = true.copy()
    predicted[3, 3, 3] = 3  # NCR taken for ET: the core and the whole are still right
    spacing = [1, 1.0, np.float32(1)]  # as headers have it
    found = region_scores(torch.from_numpy(predicted), torch.from_numpy(true), spacing, REGIONS)
    assert list(found) == ["dice_WT", "hd95_WT", "dice_TC", "hd95_TC", "dice_ET", "hd95_ET"]
    assert (found["dice_WT"], found["hd95_WT"], found["dice_TC"], found["hd95_TC"]) == (1, 0, 1, 0)
    assert found["dice_ET"] == pytest.approx(2 * 26 / (26 + 27))
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(
    ("predicted", "true", "dice", "hd95"),
    [(0, 0, 1, 0), (0, 3, 0, WORST_HD95), (3, 0, 0, WORST_HD95), (3, 3, 1, 0)],
)
def test_empty_regions(predicted: int, true: int, dice: float, hd95: float) -> None:
    p, t = np.zeros((2, 6, 6, 6), dtype=np.uint8)
    p[2:4, 2:4, 2:4], t[2:4, 2:4, 2:4] = predicted, true
    found = region_scores(p, t, (1, 1, 1), REGIONS)
    assert found == {f"dice_{name}": dice for name in REGIONS} | {f"hd95_{name}": hd95 for name in REGIONS}


def test_an_empty_region_beside_a_present_one() -> None:
    t = np.zeros((6, 6, 6), dtype=np.uint8)
    t[2:4, 2:4, 2:4] = 2
    p = t.copy()
    p[2, 2, 2] = 3
    found = region_scores(p, t, (1, 1, 1), REGIONS)
    assert (found["dice_WT"], found["dice_TC"], found["hd95_ET"]) == (1, 0, WORST_HD95)


@pytest.mark.parametrize(
    ("predicted", "true", "spacing", "says"),
    [
        (np.zeros((4, 4, 4)), np.zeros((4, 4, 5)), (1, 1, 1), r"\(4, 4, 5\)"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), (1, 1), r"\(1, 1\)"),
        (np.zeros((4, 4, 4)), np.full((4, 4, 4), 4), (1, 1, 1), "raw BraTS"),
    ],
)
def test_region_scores_refuse(predicted: np.ndarray, true: np.ndarray, spacing: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        region_scores(predicted, true, spacing, REGIONS)


@pytest.mark.real_data
def test_real_predictions_agree_with_distance_maps(real_data: Path) -> None:
    spacing = (1.875, 1.875, 1.211)

    def towards(p: np.ndarray, t: np.ndarray) -> float:
        """95th percentile of the distances from the surface of p to that of t, by a distance map."""
        edge_p, edge_t = (v & ~binary_erosion(v) for v in (p, t))
        return np.percentile(distance_transform_edt(~edge_t, sampling=spacing)[edge_p], 95)

    def scores(p: np.ndarray, t: np.ndarray) -> tuple[float, float]:
        if not (p.any() and t.any()):
            return (0, WORST_HD95) if p.any() or t.any() else (1, 0)
        return 2 * (p & t).sum() / (p.sum() + t.sum()), max(towards(p, t), towards(t, p))

    with h5py.File(real_data / "meta" / "brats2020_masks_128.h5") as file:
        names = list(file["prediction"])[::8]  # 10 of 73
        pairs = [(file["prediction"][name][:], file["truth"][name][:]) for name in names]
    for name, (predicted, true) in zip(names, pairs, strict=True):
        true[true == 4] = 3
        found = region_scores(predicted, true, spacing, REGIONS)
        first, last = (end(np.argwhere(predicted | true), axis=0) for end in (np.min, np.max))
        box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        for region, codes in REGIONS.items():
            expected = scores(np.isin(predicted[box], codes), np.isin(true[box], codes))
            assert (found[f"dice_{region}"], found[f"hd95_{region}"]) == pytest.approx(expected, rel=1e-5), name
    same = region_scores(true, true, spacing, REGIONS)
    assert set(same.values()) == {0.0, 1.0}
    assert same["hd95_WT"] == 0


def test_interval_is_the_normal_one_for_a_large_sample() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 3000)
    mean, low, high = mean_interval(values)
    reach = 1.96 * values.std() / math.sqrt(values.size)
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((reach, reach), rel=0.05)


def test_interval_covers_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(2)
    intervals = [mean_interval(rng.beta(8, 2, 40)) for _ in range(100)]
    assert 88 <= sum(low <= 0.8 <= high for _, low, high in intervals) <= 100


def test_interval_is_the_same_every_time() -> None:
    values = np.random.default_rng(3).beta(8, 2, 20)
    assert mean_interval(values) == mean_interval(values)
    mean, low, high = mean_interval([-0.1, -0.2, -0.15])  # paired differences
    assert low < mean < high < 0


def test_interval_of_few_values() -> None:
    mean, low, high = mean_interval([0.7])
    assert mean == 0.7
    assert math.isnan(low) and math.isnan(high)
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    for wrong in ([], [0.5, NAN], [math.inf], [[0.5, 0.6]]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(wrong)
