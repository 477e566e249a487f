"""Metrics of classification against scikit-learn and hand-made tables; calibration; figures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.lines import Line2D
from sklearn import metrics as sklearn_metrics
from torch import nn

from datasets.store import Store
from training import classification as task
from utils import classification as c
from utils import classification_plots, classification_results

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def made_up(n: int = 400, seed: int = 0, sharpness: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4))
    logits[np.arange(n), labels] += sharpness
    return logits, labels


def test_scores_agree_with_scikit_learn() -> None:
    logits, labels = made_up()
    scores, predicted = c.scores(logits, labels, CLASSES), logits.argmax(axis=1)
    assert scores["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    expected = sklearn_metrics.precision_recall_fscore_support(labels, predicted)
    for metric, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert [scores[f"{metric}_{name}"] for name in CLASSES] == pytest.approx(list(values))
        assert scores[f"{metric}_mean"] == pytest.approx(np.mean(values))
    auroc = sklearn_metrics.roc_auc_score(labels, c.softmax(logits), multi_class="ovr", average="macro")
    assert scores["auroc"] == pytest.approx(auroc)
    table = sklearn_metrics.confusion_matrix(labels, predicted)
    np.testing.assert_array_equal(c.confusion(labels, predicted, 4), table)


def test_scores_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]))
    scores = c.scores(logits, np.array([0, 1, 3]), CLASSES)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["confidence"] == pytest.approx(2 / 3)
    assert scores["margin"] == pytest.approx(np.mean([np.log(7), np.log(3), np.log(7)]))
    assert np.isnan(scores["recall_notumor"]) and scores["recall_mean"] == pytest.approx(2 / 3)
    # 0.7 and 0.7 lie in one bin, all right; 0.6 in another, wrong
    assert scores["ece"] == pytest.approx((2 * 0.3 + 0.6) / 3)


def test_a_temperature_calibrates_an_overconfident_model_and_leaves_its_decisions() -> None:
    logits, labels = made_up(4000, sharpness=2.0)
    honest = c.fit_temperature(logits, labels)
    overconfident = 5 * logits
    temperature = c.fit_temperature(overconfident, labels)
    assert temperature == pytest.approx(5 * honest, rel=1e-3)
    before = c.calibration_error(c.softmax(overconfident), labels)
    after = c.calibration_error(c.softmax(overconfident, temperature), labels)
    assert before > 0.1 and after < 0.03
    assert (c.softmax(overconfident, temperature).argmax(axis=1) == overconfident.argmax(axis=1)).all()
    right = logits[logits.argmax(axis=1) == labels]
    assert c.fit_temperature(right, right.argmax(axis=1)) == 1, "nothing speaks against ever more confidence"


def test_an_interval_over_groups_is_wider_than_one_over_images() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    right = np.repeat(rng.random(40) < 0.8, 10)  # a patient is right or wrong as a whole
    accuracy, low, high = c.accuracy_interval(right, groups)
    _, near, far = c.accuracy_interval(right, np.arange(400))
    assert np.isnan(c.accuracy_interval(right, np.zeros(400))[1:]).all(), "one group says nothing of others"
    assert accuracy == right.mean() and low < near < accuracy < far < high
    share = right.mean()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 40), rel=0.15)
    assert far - near == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.15)


class Brightness(nn.Module):
    """Logits that depend on the left half of the image alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left = images[..., : images.shape[-1] // 2].mean(dim=(1, 2, 3))
        return torch.stack([left, -left], dim=1)


def test_a_group_answers_with_one_voice() -> None:
    logits, labels = made_up(n=60)
    groups = np.array([f"p{number % 7}" for number in range(60)])
    found = c.together(c.softmax(logits), groups)
    for name in set(groups):
        mean = c.softmax(logits)[groups == name].mean(axis=0)
        assert np.allclose(found[groups == name], mean)
    assert np.allclose(c.together(found, np.arange(60)), found)  # each on its own
    assert found.shape == (len(labels), logits.shape[1])


def test_mirroring_takes_both_sides_and_batches_do_not_matter() -> None:
    images, labels = torch.rand(10, 1, 8, 8), torch.arange(10) % 2
    mirrored, truth = c.logits_of(Brightness(), [(images, labels)], mirror=True)
    both = images.double().mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(mirrored[:, 0], both, rtol=1e-5)
    plain, _ = c.logits_of(Brightness(), [(images, labels)])
    assert not np.allclose(plain, mirrored)
    parts, _ = c.logits_of(Brightness(), zip(images.split(3), labels.split(3), strict=True), mirror=True)
    np.testing.assert_allclose(parts, mirrored, rtol=1e-6)
    np.testing.assert_array_equal(truth, labels.numpy())


def test_figures_show_what_they_are_given() -> None:
    logits, labels = made_up()
    table = c.confusion(labels, logits.argmax(axis=1), 4)
    figure = classification_plots.confusion_matrix(table, CLASSES)
    assert [text.get_text() for text in figure.axes[0].texts] == [str(count) for count in table.ravel()]
    left, right = classification_plots.calibration(logits, labels, 2.0).axes
    assert len(left.lines) == 3 and left.get_legend() is not None
    assert "right" in right.get_legend().get_texts()[0].get_text()
    ticks = {label.get_text() for which in ("major", "minor") for label in right.get_yticklabels(which=which)}
    assert "100" in ticks and all(tick == "" or float(tick) > 0 for tick in ticks), "formulas are not drawn as such"
    rows = [{"image": np.zeros((8, 8)), "title": f"{number}.jpg\n{'long ' * 9}"} for number in range(30)]
    page = classification_plots.mistakes(rows)
    assert page.axes[0].get_title() == "0.jpg\nlong long long long long long long\nlong long"
    assert sum(bool(axes.images) for axes in page.axes) == 24
    with pytest.raises(ValueError, match="no mistakes"):
        classification_plots.mistakes([])


def test_what_a_run_wrote_is_read_again(tmp_path: Path) -> None:
    logits, labels = made_up(200)
    names, groups = [f"{number}.jpg" for number in range(200)], np.array([f"P{number // 5}" for number in range(200)])
    classification_results.write(tmp_path, "a run", logits, labels, names, groups, CLASSES, 0.6)
    for table in ("metrics", "predictions"):
        (tmp_path / f"{table}.csv").rename(tmp_path / f"AlexNet_{table}.csv")
    found = classification_results.saved(tmp_path, "AlexNet")
    assert found is not None
    scores, answers = found
    np.testing.assert_array_equal(answers.labels, labels)
    np.testing.assert_array_equal(answers.groups, groups)
    assert answers.classes == list(CLASSES)
    np.testing.assert_allclose(c.softmax(answers.logits), c.softmax(logits), rtol=1e-4)
    expected = c.scores(logits, labels, CLASSES, 0.6)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert scores["confidence_scaled"] == pytest.approx(c.softmax(logits, 0.6).max(axis=1).mean(), rel=1e-5)
    (tmp_path / "AlexNet_predictions.csv").unlink()
    assert classification_results.saved(tmp_path, "AlexNet") is None
    assert classification_results.saved(tmp_path, "VGG16") is None


def test_a_comparison_has_a_line_a_model_also_without_results() -> None:
    row = {"accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94, "confidence": 0.8, "confidence_scaled": 0.91,
           "ece": 0.1, "ece_scaled": 0.02}  # fmt: skip
    left, right = classification_plots.comparison({"VGG16": None, "AlexNet": row}).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["VGG16", "AlexNet"]
    assert left.get_ylim()[0] > 1 and left.get_ylim()[1] < 0  # the first model on top
    assert [(text.get_text(), text.get_position()[1]) for text in left.texts] == [("no predictions", 0)]
    (interval,) = [bars for bars in left.collections if bars.get_segments()]
    np.testing.assert_allclose(interval.get_segments()[0], [[0.85, 1], [0.94, 1]])

    def diamonds(lines: list[Line2D]) -> dict[str, float]:
        return {str(line.get_fillstyle()): line.get_xdata()[0] for line in lines if line.get_marker() == "D"}

    assert diamonds(left.lines) == {"none": 0.8, "full": 0.91}
    assert diamonds(right.lines) == {"none": 0.1, "full": 0.02}
    with pytest.raises(ValueError, match="no models"):
        classification_plots.comparison({})


def test_mistakes_are_the_wrong_images_the_most_confident_first() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8), np.uint8)
    index = {"case": np.array([f"Testing/glioma/{number}.jpg" for number in range(6)])}
    store = Store(Path(), images, np.zeros(6, int), index, [], {})
    logits = np.log([[0.7, 0.2, 0.1, 1e-9], [0.1, 0.6, 0.3, 1e-9], [1e-9, 0.1, 0.1, 0.8]])
    first, second = task.mistakes(store, np.array([1, 3, 5]), logits, np.array([0, 0, 2]), 1.0)
    assert (first["title"], second["title"]) == (
        "5: notumor\ncalled pituitary (80%)", "3: glioma\ncalled meningioma (60%)"
    )  # fmt: skip
    assert (first["image"] == 5).all() and (second["image"] == 3).all()
    figure = classification_plots.mistakes([first | {"title": "a_$5_$6.png"}])  # no formula
    figure.canvas.draw()
