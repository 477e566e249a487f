"""Figures of explanations show the right map over the right image, the right way round."""

import numpy as np
import pytest
import torch

from tests.test_plots import check_page
from utils import explain_plots


def heat_row(title: str = "glioma", side: int = 16) -> dict:
    rng = np.random.default_rng(0)
    return {"title": title, "image": rng.uniform(0, 255, (side, side)), "map": rng.uniform(0, 1, (side, side))}


def gate_maps(height: int = 48, width: int = 32) -> list[torch.Tensor]:
    return [torch.rand(1, 1, height // cell, width // cell) for cell in (16, 8, 4, 2)]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: explain_plots.heat([heat_row()]),
        lambda: explain_plots.heat([heat_row(f"image {n}") for n in range(4)]),
        lambda: explain_plots.kernels(torch.randn(10, 3, 5, 5)),
        lambda: explain_plots.feature_maps([torch.rand(1, 20, 9, 9), torch.rand(1, 6, 4, 4)]),
        lambda: explain_plots.gates(np.random.default_rng(0).normal(size=(48, 32)), gate_maps(), np.zeros((48, 32))),
    ],
)
def test_a_figure_is_an_opaque_white_page_with_something_on_it(draw) -> None:
    check_page(draw)


def test_heat_shows_the_image_beside_the_image_with_its_map() -> None:
    rows = [heat_row("right"), heat_row("wrong")]
    rows[1]["map"] = np.zeros((16, 16))
    rows[1]["map"][2:6, 8:12] = 0.3  # weak, but the strongest there is
    figure = explain_plots.heat(rows)
    plain, covered = figure.axes[2:4]
    assert plain.get_title(loc="left") == "wrong"
    np.testing.assert_array_equal(plain.images[0].get_array(), rows[1]["image"])
    np.testing.assert_array_equal(covered.images[0].get_array(), rows[1]["image"])
    np.testing.assert_allclose(covered.images[1].get_alpha(), 0.8 * (rows[1]["map"] > 0))
    with pytest.raises(ValueError, match="no images"):
        explain_plots.heat([])


def test_heat_tells_for_from_against() -> None:
    row = heat_row()
    row["map"] = np.where(np.arange(16) < 8, -1.0, 1.0) * np.ones((16, 1))
    against, speaks_for = explain_plots.heat([row]).axes[1].images[1].get_array()[0, [0, -1]]
    assert against[2] > against[0] and speaks_for[0] > speaks_for[2]  # blue, red


def test_one_stray_pixel_does_not_darken_a_map() -> None:
    strength = np.full((100, 100), 0.5)
    strength[0, 0] = 100
    assert (explain_plots.relative(strength) == 1).all()
    assert not explain_plots.relative(np.zeros((4, 4))).any()
    assert explain_plots.relative(strength * -1).min() == -1


def test_kernels_are_summed_over_equal_channels() -> None:
    weights = torch.arange(2 * 3 * 4, dtype=torch.float).reshape(2, 3, 2, 2)
    picture = explain_plots.kernels(weights).axes[0].images[0].get_array()
    expected = np.concatenate([weights.sum(1)[0], np.full((2, 1), np.nan), weights.sum(1)[1]], axis=1)
    np.testing.assert_allclose(picture.filled(np.nan), expected)


def test_a_mosaic_reads_line_by_line() -> None:
    tiles = np.arange(5)[:, None, None] * np.ones((5, 2, 3))
    picture = explain_plots.mosaic(tiles, across=2)
    assert picture.shape == (3 * 2 + 2, 2 * 3 + 1)
    np.testing.assert_array_equal(picture[::3, ::4], [[0, 1], [2, 3], [4, np.nan]])
    assert np.isnan(picture[2]).all() and np.isnan(picture[:, 3]).all()


def test_feature_maps_are_the_liveliest() -> None:
    found = torch.zeros(1, 30, 4, 4)
    found[0, 7, 0, 0], found[0, 21, 0, 0] = 1, 2
    (axes,) = explain_plots.feature_maps([found]).axes
    assert axes.get_title() == "convolution 1: 16 of 30 maps, 4 x 4 pixels"
    assert {1.0, 2.0} <= set(axes.images[0].get_array().compressed().tolist())
    with pytest.raises(ValueError, match="no feature maps"):
        explain_plots.feature_maps([])


def test_gates_lie_on_the_image_and_the_tumour_is_outlined() -> None:
    truth = np.zeros((40, 30), dtype=np.uint8)  # the model pads it to 48 x 32
    truth[16:24, 8:16] = 2
    maps = gate_maps()
    figure = explain_plots.gates(truth + 0.1, maps, truth, "a patient")
    image, *panels = figure.axes[:5]
    assert figure.get_suptitle() == "a patient" and image.images[0].get_array().shape == (30, 40)
    for axes, found, cell in zip(panels, maps, (16, 8, 4, 2), strict=True):
        assert axes.get_title() == f"gate at 1/{cell}"
        np.testing.assert_allclose(axes.images[0].get_array(), found[0, 0].T)
        assert axes.images[0].get_extent() == [-0.5, 47.5, 31.5, -0.5]
        assert axes.images[0].get_clim() == (0, 1)
        assert axes.get_xlim() == (-0.5, 39.5) and axes.get_ylim() == (29.5, -0.5)
        outline = axes.collections[0].get_paths()[0].vertices
        assert outline.min(axis=0).tolist() == [15.5, 7.5] and outline.max(axis=0).tolist() == [23.5, 15.5]
