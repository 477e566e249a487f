"""Figures of a data set show each number and each image where it belongs."""

import numpy as np
import pytest

from datasets.download import CLASSIFICATION
from tests.test_plots import check_page
from utils import image_plots


def images(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).uniform(0, 255, (count, 12, 10)))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: image_plots.class_distribution(CLASSIFICATION.expected),
        lambda: image_plots.samples({"glioma": images(0, 3), "notumor": images(1, 3)}),
    ],
)
def test_a_figure_is_an_opaque_white_page_with_something_on_it(draw) -> None:
    check_page(draw)


def test_each_class_has_a_bar_a_part_with_its_number() -> None:
    counts = {"Training/glioma": 1321, "Testing/glioma": 300, "Training/notumor": 7}
    figure = image_plots.class_distribution(counts)
    (axes,) = figure.axes
    training, testing = axes.containers
    assert [bar.get_height() for bar in training] == [1321, 7]
    assert [bar.get_height() for bar in testing] == [300, 0]
    assert [text.get_text() for text in axes.texts] == ["1,321", "7", "300", "0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["glioma", "notumor"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Training (1,328)", "Testing (300)"]
    for (left, right), middle in zip(zip(training, testing, strict=True), axes.get_xticks(), strict=True):
        assert left.get_x() < left.get_x() + left.get_width() < middle < right.get_x()
    with pytest.raises(ValueError, match="no images"):
        image_plots.class_distribution({"Training/glioma": 0})


def test_each_class_has_a_line_of_its_images_even_where_it_has_fewer() -> None:
    shown = {"glioma": images(0, 3), "notumor": images(1, 1)}
    panels = np.reshape(image_plots.samples(shown).axes, (2, 3))
    assert [line[0].get_ylabel() for line in panels] == ["glioma", "notumor"]
    for line, expected in zip(panels, shown.values(), strict=True):
        drawn = [axes.images[0] for axes in line if axes.images]
        assert len(drawn) == len(expected)
        for image, pixels in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(image.get_array(), pixels)
            assert image.get_clim() == (0, 255)
    with pytest.raises(ValueError, match="no images"):
        image_plots.samples({"glioma": []})
