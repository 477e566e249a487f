"""Diagrams of the U-Nets and of the attention gate, and what the number of filters costs.

All channels, sizes and counts are read from the models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

import models
from datasets.slices import WINDOW
from models.attention_unet import AttentionGate
from models.layers import Concatenate, InvertedBottleneck, upsample
from models.unet import LEVELS, UNet
from utils.describe import Shapes, cost, parameters, times, traced, words
from utils.drawing import WIDTH, Box, Sheet
from utils.plots import COLOURS, MARKERS, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNETS = ("classic_unet", "improved_unet", "attention_unet")
HEIGHTS = [0.9 * 0.72**level for level in range(LEVELS + 1)]  # of the bars of a level, inches
ABOVE, BELOW = 0.27, 0.15  # room over and under them
GAP = 0.15  # between the bars of a block
STEP = 0.23  # from the bar that is pooled to the next level
LEFT = 0.97  # where the image stands


def unet(name: str, n_filters: int = 32) -> "Figure":
    """The U of one of UNETS for slices as the training sees them, and a block of it in detail."""
    model, shapes = traced(name, WINDOW, n_filters=n_filters)
    net = cast(UNet, model)
    title = f"{models.MODELS[name]}: {parameters(net):,} parameters"
    subtitle = (
        f"n_filters = {n_filters}. Above a bar: its channels. At the left: height × width of the level in pixels."
    )
    with canvas(WIDTH, 6.79) as figure:
        sheet = Sheet(figure, title, subtitle)
        rows = _bands(sheet, [shapes[net.head], *(shapes[part] for part in (*net.encoders[1:], net.bottleneck))])
        _u(sheet, net, shapes, rows)
        _detail(sheet, net)
        _legend(sheet, net)
    return figure


def _bands(sheet: Sheet, shapes: Sequence[tuple[int, ...]]) -> list[float]:
    """A pale band with its size for each level; the heights at which they stand."""
    rows = []
    top = sheet.height - 0.62
    for height, shape in zip(HEIGHTS, shapes, strict=True):
        sheet.panel(0.15, top - height - ABOVE - BELOW, sheet.width - 0.3, height + ABOVE + BELOW - 0.04)
        top -= ABOVE + height + BELOW
        rows.append(top + BELOW + height / 2)
        sheet.text(0.24, rows[-1], times(shape[2:]), "left")
    return rows


def _u(sheet: Sheet, net: UNet, shapes: Shapes, rows: Sequence[float]) -> None:
    """Down, along the bottom and up again, from left to right."""
    unit = 0.09 / net.options["n_filters"] ** 0.5  # a bar is as wide as the root of its channels
    bars = [_bar(sheet, LEFT, rows[0], 0, net.options["in_channels"], unit, "data")]
    sheet.text(LEFT + 0.02, rows[0] - HEIGHTS[0] / 2 - 0.09, "image")
    left = bars[0].right[0] + GAP
    skips = []
    for level, block in enumerate((*net.encoders, net.bottleneck)):
        if level:
            corner = (bars[-1].x, rows[level])
            left = corner[0] + STEP
            sheet.arrow(bars[-1].bottom, corner, (left, rows[level]), kind="pooling")
            bars = []
        bars = _block(sheet, left, rows[level], level, block, shapes, unit, bars)
        skips.append(bars[-1])

    lower = skips.pop()
    for level, join, block in zip(reversed(range(LEVELS)), net.joins, net.decoders, strict=True):
        junction = _junction(sheet, join, lower, skips.pop(), rows[level])
        bars = _block(sheet, junction.right[0] + GAP, rows[level], level, block, shapes, unit, [junction])
        lower = bars[-1]

    sheet.text(sheet.width / 2, rows[0] + 0.12, "skip connections")
    head = _bar(sheet, lower.right[0] + GAP, rows[0], 0, shapes[net.head][1], unit)
    sheet.arrow(lower.right, head.left)
    sheet.text(head.x, rows[0] - HEIGHTS[0] / 2 - 0.09, "logits")


def _block(
    sheet: Sheet, left: float, y: float, level: int, block: nn.Module, shapes: Shapes, unit: float,
    before: Sequence[Box],
) -> list[Box]:  # fmt: skip
    """A bar for each convolution with its ReLU, or each inverted bottleneck; the last of `before` leads there."""
    bars = list(before[-1:])
    for part in block.children():
        if not isinstance(part, nn.ReLU):
            bars.append(_bar(sheet, left, y, level, shapes[part][1], unit))
            left = bars[-1].right[0] + GAP
    sheet.join(bars)
    return bars


def _bar(sheet: Sheet, left: float, y: float, level: int, channels: int, unit: float, kind: str = "convolution") -> Box:
    width = max(unit * channels**0.5, 0.08)
    bar = sheet.box(left + width / 2, y, width, HEIGHTS[level], kind)
    sheet.text(bar.x, bar.top[1] + 0.1, str(channels))
    return bar


def _junction(sheet: Sheet, join: nn.Module, lower: Box, skip: Box, y: float) -> Box:
    """Where a skip meets the upsampled feature from below."""
    gated = isinstance(join, AttentionGate)
    x = lower.right[0] + (0.47 if gated else 0.42)
    junction = sheet.circle(x, y, "C" if isinstance(join, Concatenate) else "+")
    sheet.arrow(lower.right, (x, lower.y), junction.bottom, kind="upsampling")
    if gated:
        gate = sheet.circle(lower.right[0] + 0.13, y, "G", "attention")
        sheet.dot((gate.x, lower.y))
        sheet.arrow((gate.x, lower.y), gate.bottom)
        sheet.arrow(skip.right, gate.left)
        skip = gate
    sheet.arrow(skip.right, junction.left)
    return junction


def _detail(sheet: Sheet, net: UNet) -> None:
    """The layers of a block, one by one."""
    block = cast(nn.Sequential, net.encoders[1])
    if inverted := isinstance(block[0], InvertedBottleneck):
        block = block[0]
    what = "A bar is an inverted bottleneck, here the first" if inverted else "A bar is a convolution with its ReLU"
    bottom, height, right = 0.5, 0.93, 7.1
    sheet.panel(0.15, bottom, right - 0.2, height, f"{what}{'' if inverted else ', here the two'} of level 2:")
    layers = [("data", f"in\n{cast(nn.Conv2d, block[0]).in_channels}"), *(words(layer) for layer in block)]
    sheet.chain(0.27, bottom + 0.34, layers)
    sheet.panel(right, bottom, sheet.width - right - 0.15, height, "The last bar:")
    sheet.chain(right + 0.12, bottom + 0.34, [words(net.head), ("data", f"logits\n{net.options['out_channels']}")])


def _legend(sheet: Sheet, net: UNet) -> None:
    concatenated = isinstance(net.joins[0], Concatenate)
    keys = [
        (sheet.swatch("convolution"), "convolution"),
        (sheet.line("pooling"), "max-pool 2×2"),
        (sheet.line("upsampling"), "bilinear upsampling ×2"),
        (sheet.sign("C"), "concatenation") if concatenated else (sheet.sign("+"), "addition"),
    ]
    if isinstance(net.joins[0], AttentionGate):
        keys.append((sheet.sign("G", "attention"), "attention gate"))
    sheet.legend(0.24, keys)


def attention_gate() -> "Figure":
    """The gate at the skip of the first level of AttentionUNet."""
    model, shapes = traced("attention_unet", WINDOW)
    net = cast(UNet, model)
    gate = cast(AttentionGate, net.joins[-1])
    skip, lower = shapes[net.encoders[0]], shapes[net.decoders[-2]]
    raised = tuple(upsample(torch.empty(shape, device="meta")).shape for shape in (shapes[gate.sigmoid], lower))
    title = f"AttentionGate (level 1, n_filters = {net.options['n_filters']}): {parameters(gate):,} parameters"
    subtitle = "Where decoder and encoder agree, the encoder's feature passes. Sizes: channels × height × width."
    high, key_row, middle, query_row, low = 3.15, 2.5, 1.92, 1.34, 0.75
    with canvas(WIDTH, 4) as figure:
        sheet = Sheet(figure, title, subtitle)

        def box(x: float, y: float, kind: str, what: str, shape: tuple[int, ...], width: float = 1.05) -> Box:
            text = f"{what}\n{times(shape[1:])}"
            return sheet.box(x, y, width, 0.3 + 0.16 * text.count("\n"), kind, text)

        encoder = box(0.78, high, "data", "encoder (skip)", skip, 1.2)
        decoder = box(0.78, low, "data", "decoder (lower)", lower, 1.2)
        product, total = sheet.circle(7.45, high, "×"), sheet.circle(8.18, high, "+")
        sheet.arrow(encoder.right, product.left)
        agreement = sheet.circle(3.66, middle, "+")
        for start, shape, y, name, end in (
            (encoder, skip, key_row, "key", agreement.top),
            (decoder, lower, query_row, "query", agreement.bottom),
        ):
            conv = getattr(gate, name)
            stride = shape[-1] // shapes[conv][-1]  # the gate takes every second pixel itself
            what = f"{name}: {_name(conv)}" + (f", stride {stride}" if stride > 1 else "")
            layer = box(2.58, y, "convolution", what, shapes[conv], 1.72)
            sheet.dot((1.53, start.y))
            sheet.arrow((1.53, start.y), (1.53, y), layer.left)
            sheet.arrow(layer.right, (agreement.x, y), end)
        row = [
            box(4.36, middle, *words(gate.relu), shapes[gate.relu], 0.9),
            box(5.37, middle, "convolution", _name(gate.score), shapes[gate.score], 0.82),
            box(6.33, middle, *words(gate.sigmoid), shapes[gate.sigmoid], 0.8),
        ]
        up, below = (box(7.45, y, "upsampling", "upsampling ×2", shape, 1.15)
                     for y, shape in zip((middle, low), raised, strict=True))  # fmt: skip
        sheet.join([agreement, *row, up])
        sheet.arrow(up.top, product.bottom)
        sheet.arrow(product.right, total.left)
        sheet.arrow(decoder.right, below.left)
        sheet.arrow(below.right, (total.x, low), total.bottom)
        sheet.arrow(total.right, box(8.95, high, "data", "out", raised[1]).left)
        sheet.legend(0.24, [
            (sheet.swatch("convolution"), "convolution"), (sheet.swatch("activation"), "activation"),
            (sheet.swatch("upsampling"), "bilinear upsampling"), (sheet.sign("+"), "addition"),
            (sheet.sign("×"), "product"),
        ])  # fmt: skip
    return figure


def _name(layer: nn.Module) -> str:
    return words(layer)[1].split("\n")[0]


def costs(n_filters: Sequence[int] = (8, 16, 32, 64)) -> "Figure":
    """Parameters, and multiply-adds for one slice as the training sees it, against n_filters."""
    from matplotlib.ticker import LogLocator, NullLocator

    with canvas(WIDTH, 3.5) as figure:
        weights, work = figure.subplots(1, 2)
        for name, colour, marker in zip(UNETS, COLOURS, MARKERS, strict=False):
            learned, products = zip(*(cost(name, WINDOW, n_filters=n) for n in n_filters), strict=True)
            style = {"color": colour, "marker": marker, "label": models.MODELS[name]}
            weights.plot(n_filters, np.divide(learned, 1e6), **style)
            work.plot(n_filters, np.divide(products, 1e9), **style)
        weights.set(ylabel="parameters (millions)")
        work.set(ylabel=f"multiply-adds (10⁹), image of {times(WINDOW)}")
        weights.legend()
        for axes in (weights, work):
            axes.set(xscale="log", yscale="log", xlabel="n_filters")
            axes.set_xticks(n_filters, [str(n) for n in n_filters])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
    return figure
