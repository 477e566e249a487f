"""Every figure shows what it says, needs no display, and leaves matplotlib's settings alone."""

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from utils import plots

ROOT = Path(__file__).parents[1]
HISTORY = [
    {"epoch": 1, "loss": 1.0, "lr": 1e-3, "seconds": 9.0},
    {"epoch": 2, "loss": 0.7, "lr": 5e-4, "seconds": 9.0, "val_loss": 0.8}
    | {"dice_NCR": 0.4, "dice_ED": 0.6, "dice_ET": 0.5, "dice_mean": 0.5},
    {"epoch": 3, "loss": 0.6, "lr": 1e-4, "seconds": 9.0, "val_loss": 0.7}
    | {"dice_NCR": 0.5, "dice_ED": 0.7, "dice_ET": float("nan"), "dice_mean": 0.6},
]


def case(title: str) -> dict:
    """A made-up slice whose only tumour is in the right front: at small X and small Y."""
    flair, t1c = np.random.default_rng(0).normal(size=(2, 32, 40))
    true = np.zeros((32, 40), dtype=np.uint8)
    true[2:8, 3:12], true[4:6, 5:8] = 2, 3
    return {"title": title, "flair": flair, "t1c": t1c, "true": true, "predicted": np.roll(true, 1)}


def table(*models: str, n: int = 20) -> dict[str, dict[str, list[float]]]:
    rng = np.random.default_rng(0)
    return {model: {region: rng.beta(8, 2, n).tolist() for region in ("WT", "TC", "ET")} for model in models}


def saved(figure: Figure) -> np.ndarray:
    """(H, W, 4) pixels of its PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return imread(buffer)


def check_page(draw: Callable[[], Figure], smallest: int = 200) -> None:
    """An opaque white page with something on it, more than so many pixels a side; the style of others is untouched."""
    before = dict(matplotlib.rcParams)
    figure = draw()
    assert isinstance(figure, Figure) and dict(matplotlib.rcParams) == before
    pixels = saved(figure)
    assert min(pixels.shape[:2]) > smallest and (pixels[..., 3] == 1).all() and (pixels[0, 0] == 1).all()
    assert pixels[..., :3].std() > 0.05


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.curves(HISTORY),
        lambda: plots.overlay([case("best: A, WT 0.93")]),
        lambda: plots.patients(table("ClassicUNet", "AttentionUNet")),
        lambda: plots.score_by_size({"A": (3_000_000, (0.9, 0.8, 0.95))}, "accuracy (0 to 1)"),
    ],
)
def test_a_figure_is_an_opaque_white_page_with_something_on_it(draw) -> None:
    check_page(draw, smallest=300)


def test_curves_show_each_column_over_its_epochs() -> None:
    loss, rate, dice = plots.curves(HISTORY).axes
    names = [axes.get_ylabel() for axes in (loss, rate, dice)]
    assert names == ["loss", "learning rate", "validation Dice (0 to 1)"]
    assert {axes.get_xlabel() for axes in (loss, rate, dice)} == {"epoch"}
    drawn = {line.get_label(): line.get_xydata().tolist() for line in (*loss.lines, *dice.lines)}
    assert list(drawn) == ["training", "validation", "NCR", "ED", "ET", "mean"]
    assert drawn["training"] == [[1, 1.0], [2, 0.7], [3, 0.6]]
    assert drawn["validation"] == [[2, 0.8], [3, 0.7]]
    assert drawn["ET"] == [[2, 0.5]]  # NaN is left out


def test_curves_read_the_text_of_a_csv_and_need_no_validation() -> None:
    rows = [{"epoch": str(e), "loss": "0.5", "lr": "1e-3", "val_loss": "", "dice_mean": ""} for e in (1, 2)]
    figure = plots.curves(rows)
    assert len(figure.axes) == 2
    assert [line.get_label() for line in figure.axes[0].lines] == ["training"]
    assert len(plots.curves(HISTORY[:1]).axes) == 2
    with pytest.raises(ValueError, match="no epochs"):
        plots.curves([])


def test_overlay_has_four_panels_a_patient_and_a_legend() -> None:
    figure = plots.overlay([case("best: A, WT 0.93"), case("worst: B, WT 0.41")])
    assert len(figure.axes) == 8
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["FLAIR", "T1c", "truth over FLAIR", "prediction over FLAIR"]
    assert [band.get_suptitle() for band in figure.subfigs] == ["best: A, WT 0.93", "worst: B, WT 0.41"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["NCR", "ED", "ET"]
    with pytest.raises(ValueError, match="no patients"):
        plots.overlay([])


def test_overlay_puts_the_front_up_and_the_right_side_on_the_left() -> None:
    row = case("A")
    _, t1c, truth, _ = plots.overlay([row]).axes
    image, labels = truth.images
    assert image.origin == labels.origin == "upper"  # row 0 at the top, column 0 on the left
    np.testing.assert_allclose(image.get_array(), row["flair"].T)
    np.testing.assert_allclose(t1c.images[0].get_array(), row["t1c"].T)
    alpha = labels.get_array()[..., 3]
    np.testing.assert_array_equal(alpha > 0, row["true"].T > 0)
    assert [text.get_text() for text in truth.texts] == ["R", "L"]
    assert truth.texts[0].get_position()[0] < truth.texts[1].get_position()[0]


def test_overlay_draws_the_background_black() -> None:
    row = case("A")
    row["flair"][:5] = 0  # a z-scored slice is negative in half of the brain
    image = plots.overlay([row]).axes[0].images[0]
    assert image.norm(image.get_array())[:, :5].max() == 0
    row["flair"][:] = 0
    plots.overlay([row])


def test_patients_show_every_value_and_the_mean() -> None:
    data = table("ClassicUNet", "AttentionUNet")
    figure = plots.patients(data)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "Dice (0 to 1)"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["WT", "TC", "ET"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(data)
    drawn = [line.get_ydata().tolist() for line in axes.lines]
    for scores in data.values():
        for values in scores.values():
            assert values in drawn
            assert [pytest.approx(np.mean(values))] in drawn


def test_patients_may_be_one_or_equal() -> None:
    plots.patients({"A": {"WT": [0.4], "ET": [0.3] * 7}})
    for nothing in ({}, {"A": {}}):
        with pytest.raises(ValueError, match="no patients"):
            plots.patients(nothing)


def test_scores_stand_over_their_parameters_with_their_intervals() -> None:
    table = {"A": (800_000, (0.6, 0.5, 0.8)), "B": (65_000_000, (0.7, 0.6, 0.75))}
    figure = plots.score_by_size(table, "Dice (0 to 1)")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "Dice (0 to 1)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]
    for drawn, (parameters, (score, low, high)) in zip(axes.containers, table.values(), strict=True):
        point, _, (bar,) = drawn
        assert point.get_xydata().tolist() == [[parameters / 1e6, score]]
        np.testing.assert_allclose(bar.get_segments()[0][:, 1], [low, high])


def test_grey_levels_are_those_of_the_tissue() -> None:
    image = np.concatenate([np.zeros(10_000), np.linspace(-1, 1, 1001)])
    np.testing.assert_allclose(plots.grey_levels(image), (-0.98, 0.99), atol=1e-3)
    assert plots.grey_levels(np.zeros((4, 4))) == (0, 1)


def test_importing_is_light() -> None:
    code = """
import sys
import utils.metrics
print(*{"matplotlib", "monai", "scipy"} & set(sys.modules))
import utils.plots
print(*{"matplotlib", "monai"} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
