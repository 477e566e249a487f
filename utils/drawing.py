"""A sheet to draw networks on: boxes, arrows and words, placed in inches, in the style of `utils.plots`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from utils.plots import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 9.6  # inches; a README shows 94 pixels an inch
FONT = 9.5  # points
PALE = "#F3F4F6"
KINDS = {  # the colour of a kind of layer
    "convolution": COLOURS[0],
    "normalisation": COLOURS[1],
    "pooling": COLOURS[2],
    "attention": COLOURS[3],
    "upsampling": COLOURS[4],
    "linear": COLOURS[5],
    "activation": "#8A8A8A",
    "dropout": "#8A8A8A",
    "data": INK,
}
EMPTY = ("dropout", "data")  # kinds that are drawn white
RADIUS = 0.12  # of a circle, inches
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """Its centre, width and height in inches."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> Point:
        return self.x, self.y - self.height / 2


class Sheet:
    """The whole of a figure as one drawing: (0, 0) is the lower left corner, units are inches."""

    def __init__(self, figure: "Figure", title: str, subtitle: str) -> None:
        figure.set_layout_engine("none")  # places are given here
        self.width, self.height = figure.get_size_inches()
        self.axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(0, self.height))
        self.axes.set_axis_off()
        self.text(0.15, self.height - 0.2, title, "left", size=12, weight="bold")
        self.text(0.15, self.height - 0.43, subtitle, "left")

    def text(
        self, x: float, y: float, text: str, align: str = "center", size: float = FONT, weight: str = "normal"
    ) -> None:
        """Lines of words around height y, on baselines of our own so that neighbours agree; align: their side at x."""
        lines = text.split("\n")
        for number, line in enumerate(lines):
            base = y + ((len(lines) - 1) / 2 - number) * 0.0185 * size - 0.005 * size  # half the height of a capital
            self.axes.text(x, base, line, ha=align, va="baseline", fontsize=size, fontweight=weight, zorder=3)

    def box(self, x: float, y: float, width: float, height: float, kind: str, text: str = "") -> Box:
        """A layer or, of the kind data, what lies between layers."""
        from matplotlib.patches import FancyBboxPatch

        corner = min(0.05, width / 4)
        self.axes.add_patch(FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle=f"round,pad=0,rounding_size={corner}",
            facecolor="white" if kind in EMPTY else _tint(KINDS[kind]), edgecolor=KINDS[kind], linewidth=1.1,
        ))  # fmt: skip
        if text:
            self.text(x, y, text)
        return Box(x, y, width, height)

    def panel(self, x: float, y: float, width: float, height: float, title: str = "") -> None:
        """A pale field behind what is drawn later; here x, y is its lower left corner."""
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=PALE, edgecolor="none", zorder=0))
        if title:
            self.text(x + 0.12, y + height - 0.17, title, "left")

    def arrow(self, *points: Point, kind: str = "data", head: bool = True) -> None:
        """A line through the points, with its head at the last one."""
        from matplotlib.patches import FancyArrowPatch, PathPatch
        from matplotlib.path import Path

        path = Path(points)
        if head:
            self.axes.add_patch(FancyArrowPatch(
                path=path, arrowstyle="-|>,head_length=4,head_width=2.2", mutation_scale=1, color=KINDS[kind],
                linewidth=1.2, joinstyle="miter", capstyle="butt", zorder=1.5,
            ))  # fmt: skip
        else:
            self.axes.add_patch(PathPatch(path, edgecolor=KINDS[kind], facecolor="none", linewidth=1.2, zorder=1.5))

    def dot(self, point: Point) -> None:
        """Where a line branches."""
        self.axes.plot(*point, "o", color=INK, markersize=3.5)

    def circle(self, x: float, y: float, sign: str, kind: str = "data") -> Box:
        """A junction: + adds, × multiplies, a letter is itself."""
        from matplotlib.patches import Circle

        face = "white" if kind in EMPTY else _tint(KINDS[kind])
        self.axes.add_patch(Circle((x, y), RADIUS, facecolor=face, edgecolor=KINDS[kind], linewidth=1.1, zorder=2))
        reach = 0.065
        if sign == "+":
            strokes = [((x - reach, y), (x + reach, y)), ((x, y - reach), (x, y + reach))]
        elif sign == "×":
            reach *= 0.75
            strokes = [((x - reach, y + turn * reach), (x + reach, y - turn * reach)) for turn in (1, -1)]
        else:
            strokes = []
            self.text(x, y, sign)
        for (x0, y0), (x1, y1) in strokes:
            self.axes.plot((x0, x1), (y0, y1), color=INK, linewidth=1.2, zorder=3)
        return Box(x, y, 2 * RADIUS, 2 * RADIUS)

    def chain(self, x: float, y: float, layers: Sequence[tuple[str, str]], gap: float = 0.24) -> list[Box]:
        """A row of layers (kind, text) joined by arrows; the first begins at x."""
        boxes: list[Box] = []
        for kind, text in layers:
            width = text_width(text) + 0.2
            boxes.append(self.box(x + width / 2, y, width, 0.44, kind, text))
            x += width + gap
        self.join(boxes)
        return boxes

    def join(self, boxes: Sequence[Box]) -> None:
        """An arrow from each to the next."""
        for box, following in pairwise(boxes):
            self.arrow(box.right, following.left)

    def legend(self, y: float, keys: Sequence[tuple[Callable[[float, float], object], str]]) -> None:
        """A centred row of keys: what draws one around a point, 0.3 inches wide at most, and its meaning."""
        gap, mark = 0.28, 0.38
        widths = [mark + text_width(text) for _, text in keys]
        x = (self.width - sum(widths) - gap * (len(keys) - 1)) / 2
        for (draw, text), width in zip(keys, widths, strict=True):
            draw(x + 0.15, y)
            self.text(x + mark, y, text, "left")
            x += width + gap

    def swatch(self, kind: str) -> Callable[[float, float], object]:
        """The key of a kind of layer."""
        return lambda x, y: self.box(x, y, 0.26, 0.16, kind)

    def line(self, kind: str) -> Callable[[float, float], object]:
        """The key of an arrow."""
        return lambda x, y: self.arrow((x - 0.16, y), (x + 0.16, y), kind=kind)

    def sign(self, sign: str, kind: str = "data") -> Callable[[float, float], object]:
        """The key of a circle."""
        return lambda x, y: self.circle(x, y, sign, kind)


def text_width(text: str) -> float:
    """Inches that the longest line takes."""
    from matplotlib.textpath import TextPath

    return max(TextPath((0, 0), line, size=FONT).get_extents().x1 if line else 0 for line in text.split("\n")) / 72


def _tint(colour: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(1 - 0.32 * (1 - part) for part in to_rgb(colour))
