"""Figures of a run and of its patients: one function a kind of figure, one style, no display needed.

    plots.curves(history).savefig("curves.png")

Every function returns a matplotlib Figure that belongs to no window. In a notebook, `%matplotlib inline` once
makes a Figure at the end of a cell appear.

The page is white and opaque, so that a figure reads the same in a light and in a dark theme. The colours are
Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind people can tell apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.brats import CLASSES, MODALITIES, Case, regions
from utils.metrics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#D9D9D9"
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00")  # blue, green, vermilion, ...
MARKERS = ("o", "s", "^", "D", "v", "P")
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis (LPS) that they lie across
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.06,  # inches
    "figure.constrained_layout.h_pad": 0.06,
    "font.size": 10,
    "image.origin": "upper",
    "text.color": INK,
    "text.parse_math": False,  # a $ in the name of a file is a $
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.6,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator["Figure"]:
    """An empty figure (inches); what is drawn on it within the block has the project's style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.draw_without_rendering()  # ticks are made when first drawn: do it while the style holds


def curves(
    history: Sequence[Mapping[str, Any]], classes: Sequence[str] = CLASSES, metric: str = "dice", name: str = "Dice"
) -> "Figure":
    """How a training went: loss, learning rate, and a metric of validation of each class and mean, if there was any.

    Args:
        history: one row an epoch, as written to the CSV: epoch, loss, lr and, in some or all rows, val_loss,
            <metric>_<class> and <metric>_mean. Numbers may be text; missing, empty and NaN are left out.
        name: that of the metric on the axis.

    Raises:
        ValueError: no rows.
    """
    if not history:
        raise ValueError("no epochs to draw")
    validated = any(_series(history, f"{metric}_{of}")[0] for of in (*classes, "mean"))
    with canvas(width=11 if validated else 7.5, height=3.2) as figure:
        loss, rate, *watched = figure.subplots(1, 3 if validated else 2, sharex=True)
        _lines(loss, history, {"loss": "training", "val_loss": "validation"})
        loss.set_ylabel("loss")
        rate.plot(*_series(history, "lr"), color=INK)
        rate.set(ylabel="learning rate", ylim=(0, None))
        for axes in watched:
            _lines(axes, history, {f"{metric}_{of}": of for of in classes})
            axes.plot(*_series(history, f"{metric}_mean"), color=INK, linestyle="--", label="mean")
            axes.set(ylabel=f"validation {name} (0 to 1)", ylim=(0, 1))
        for axes in (loss, rate, *watched):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in (loss, *watched):
            axes.legend()
    return figure


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one column, where it has a value."""
    known = [(float(row["epoch"]), float(row[key])) for row in history if row.get(key) not in (None, "")]
    known = [(epoch, value) for epoch, value in known if not np.isnan(value)]
    return [epoch for epoch, _ in known], [value for _, value in known]


def _lines(axes: "Axes", history: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """One line for each column that has values; the marker of one repeats about every tenth of the way."""
    for (key, name), colour, marker in zip(names.items(), COLOURS, MARKERS, strict=False):
        epochs, values = _series(history, key)
        if epochs:
            every = max(1, len(epochs) // 10)
            axes.plot(epochs, values, color=colour, marker=marker, markersize=4, markevery=every, label=name)


def overlay(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Truth and prediction over the image, for a few patients, as a radiologist looks at them.

    Args:
        rows: one patient each, with the keys
            title: such as "best: BraTS20_Training_001, WT 0.93";
            flair, t1c: (X, Y) slices; exact zeros are taken for background and drawn black;
            true, predicted: (X, Y) label maps, 0 background, 1 NCR, 2 ED, 3 ET.
            X runs from the patient's right to left, Y from front to back (LPS, as BraTS stores it). They are
            shown the radiological way: front up, the patient's right on the left.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no patients to draw")
    panels = {"FLAIR": "", "T1c": "", "truth": "true", "prediction": "predicted"}
    x, y = np.shape(rows[0]["true"])
    with canvas(width=9, height=len(rows) * (2.2 * y / x + 0.3) + 0.6) as figure:
        bands = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for band, row in zip(bands, rows, strict=True):
            band.suptitle(row["title"], x=0.01, ha="left", fontsize=10, fontweight="bold")
            for axes, (name, labels) in zip(band.subplots(1, 4), panels.items(), strict=True):
                mri(axes, row["t1c"] if name == "T1c" else row["flair"])
                if labels:
                    masks(axes, row[labels])
                axes.set_title(f"{name} over FLAIR" if labels else name)
        class_keys(figure)
    return figure


def overview(case: Case, predicted: np.ndarray, title: str) -> "Figure":
    """A case and what was found in it: the axial, coronal and sagittal slices with the most tumour, outlined.

    Three rows: FLAIR and T1c with the outlines of the predicted WT, TC and ET, and FLAIR with the true ones, if
    the case has labels. Where neither marks anything, the slices with the most brain.

    Args:
        predicted: (X, Y, Z) label codes on the grid of the case.
    """
    from matplotlib.lines import Line2D

    marked = predicted > 0 if case.labels is None else (predicted > 0) | (case.labels > 0)
    chosen = predicted > 0 if predicted.any() else marked if marked.any() else case.brain
    box = tuple(slice(line.argmax(), len(line) - line[::-1].argmax()) for line in _lines_of(case.brain | marked))
    flair, t1c = (np.where(case.brain, case.images[MODALITIES.index(name)], 0)[box] for name in ("flair", "t1c"))
    rows = [("FLAIR, prediction", flair, predicted[box]), ("T1c, prediction", t1c, predicted[box])]
    if case.labels is not None:
        rows.append(("FLAIR, truth", flair, case.labels[box]))
    styles: dict[str, dict[str, Any]] = {  # the colours of ED and ET; TC's rim is often that of ET: dashes on it
        "WT": {"colors": COLOURS[1], "linestyles": "-"},
        "ET": {"colors": COLOURS[2], "linestyles": "-"},
        "TC": {"colors": COLOURS[4], "linestyles": "--"},
    }
    with canvas(width=8, height=2.9 * len(rows) + 0.7) as figure:
        figure.suptitle(title, fontsize=10, wrap=True)
        for line, (name, image, labels) in zip(figure.subplots(len(rows), 3), rows, strict=True):
            for axes, (plane, axis) in zip(line, PLANES.items(), strict=True):
                at = int(chosen[box].sum(axis=tuple({0, 1, 2} - {axis})).argmax())
                across, down = (size for other, size in enumerate(case.spacing) if other != axis)
                marks = ("R", "L") if axis else ("A", "P")
                mri(axes, _section(image, axis, at), marks, aspect=down / across)
                found = regions(_section(labels, axis, at))
                for region, style in styles.items():
                    if found[region].any() and min(found[region].shape) > 1:  # a line has no outline
                        axes.contour(found[region].T.astype(float), levels=[0.5], linewidths=1.2, **style)
                axes.set_title(f"{name}, {plane}")
        handles = [Line2D([], [], color=style["colors"], linestyle=style["linestyles"], label=region)
                   for region, style in styles.items()]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _lines_of(mask: np.ndarray) -> list[np.ndarray]:
    """Of a (X, Y, Z) mask, which planes across each axis hold something."""
    return [np.asarray(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]


def _section(volume: np.ndarray, axis: int, at: int) -> np.ndarray:
    """A plane of a (X, Y, Z) volume, whose second axis runs down a page: to the back, or from head to feet."""
    plane = volume.take(at, axis)
    return plane if axis == 2 else plane[:, ::-1]


def mri(
    axes: "Axes", image: np.ndarray, marks: tuple[str, str] = ("R", "L"), aspect: float = 1,
    limits: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """A grey (X, Y) slice; X runs from the left mark to the right one, Y down; aspect: height of a pixel relative to
    its width; limits: what is drawn black and white, by default the slice's own `grey_levels`."""
    low, high = limits or grey_levels(image)
    axes.imshow(np.where(image == 0, low, image).T, cmap="gray", vmin=low, vmax=high, aspect=aspect)
    for side, place, align in zip(marks, (0.02, 0.98), ("left", "right"), strict=True):
        axes.text(place, 0.98, side, transform=axes.transAxes, color="white", va="top", ha=align, fontsize=8)
    axes.set_axis_off()


def grey_levels(image: np.ndarray) -> tuple[float, float]:
    """The 1st and the 99.5th percentile of the tissue (exact zeros are background)."""
    tissue = image[image != 0].astype(float)
    return tuple(np.percentile(tissue, (1, 99.5)).tolist()) if tissue.size else (0.0, 1.0)


def class_keys(figure: "Figure") -> None:
    """The colours of NCR, ED and ET, below all else."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in zip(CLASSES, COLOURS, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def masks(axes: "Axes", labels: np.ndarray) -> None:
    """NCR, ED and ET of a (X, Y) label map over a slice that `mri` has drawn; background is transparent."""
    from matplotlib.colors import to_rgba

    palette = [(0.0, 0.0, 0.0, 0.0), *(to_rgba(colour, 0.65) for colour in COLOURS[: len(CLASSES)])]
    axes.imshow(np.array(palette)[labels].transpose(1, 0, 2), interpolation="nearest")


def patients(table: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """The Dice of each patient as a point, beside them the mean with its 95 % interval, for each region and model.

    Args:
        table: model -> region -> one value a patient; the regions are those of the first model.

    Raises:
        ValueError: nothing to draw, or a value that is not finite.
    """
    if not table or not (regions := list(next(iter(table.values())))):
        raise ValueError("no patients to draw")
    step = 0.8 / max(len(table), 2)
    with canvas(width=1.5 + len(regions) * max(1.5, 0.9 * len(table)), height=4) as figure:
        axes = figure.subplots()
        for i, (model, scores) in enumerate(table.items()):
            style: dict[str, Any] = {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "linestyle": ""}
            for j, region in enumerate(regions):
                centre = j + (i - (len(table) - 1) / 2) * step
                _strip(axes, centre, step, scores[region], style)
            axes.plot([], [], label=model, **style)
        axes.set_xticks(range(len(regions)), regions)
        axes.set(ylabel="Dice (0 to 1)", xlabel="region", xlim=(-0.5, len(regions) - 0.5))
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 1)
        note = "small: one patient; large: mean with 95 % interval"
        figure.legend(loc="outside upper center", ncols=3, title=note)
    return figure


def _strip(axes: "Axes", centre: float, width: float, values: Sequence[float], style: Mapping[str, Any]) -> None:
    """Points scattered to the left of the centre (the same each time), mean and interval to its right."""
    mean, low, high = mean_interval(values)
    reach = error_bar(mean, low, high)  # NaN for one patient: no bar
    scatter = centre + width * np.random.default_rng(0).uniform(-0.4, 0.1, len(values))
    axes.plot(scatter, values, markersize=4, alpha=0.5, markeredgewidth=0, clip_on=False, **style)
    beside = centre + 0.28 * width
    axes.errorbar(beside, mean, reach, markersize=6, capsize=4, markeredgecolor=INK, ecolor=INK, clip_on=False, **style)


def error_bar(value: float, low: float, high: float) -> np.ndarray:
    """An interval as matplotlib's errorbar takes it: (2, 1), never negative, as rounding could make it."""
    return np.maximum([[value - low], [high - value]], 0)


def score_by_size(table: Mapping[str, tuple[int, tuple[float, float, float]]], measure: str) -> "Figure":
    """Does a larger model do better? Its score against its parameters.

    Args:
        table: model -> parameters, and score with the ends of its 95 % interval, as `metrics.mean_interval` gives them.
        measure: the name of the score, such as "accuracy (0 to 1)".
    """
    from matplotlib.ticker import LogLocator, NullLocator

    with canvas(width=6, height=3.6) as figure:
        axes = figure.subplots()
        for i, (model, (parameters, (score, low, high))) in enumerate(table.items()):
            style: dict[str, Any] = {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "linestyle": "", "label": model}
            axes.errorbar(parameters / 1e6, score, error_bar(score, low, high), markersize=7, capsize=4, **style)
        sizes = [parameters / 1e6 for parameters, _ in table.values()]
        axes.set(xscale="log", xlabel="parameters (millions)", ylabel=measure, xlim=(min(sizes) / 2, max(sizes) * 2))
        ticks = LogLocator(subs=(1, 2, 3, 5))
        axes.xaxis.set(major_locator=ticks, major_formatter="{x:g}", minor_locator=NullLocator())
        figure.legend(loc="outside right upper", title="bars: 95 % interval")
    return figure
