"""Diagrams of the classifiers: CustomCNN, AlexNet and VGG16 as a row of layers, the VisionTransformer as a pipeline.

All channels, sizes and counts are read from the models.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

from torch import nn

import models
from models.cnn import CNN
from models.vit import Block, VisionTransformer
from utils.describe import Shapes, parameters, times, traced, words
from utils.drawing import KINDS, WIDTH, Box, Sheet, text_width
from utils.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CNNS = ("custom_cnn", "alexnet", "vgg16")
LINES = ("layer", "kernel", "stride", "channels", "side (pixels)", "parameters")
LINE = 0.22  # inches from one to the next
LEFT = 1.05  # inches, where the row of layers begins


class Column(NamedTuple):
    """A layer, or several alike, and what stands below, as LINES names it."""

    kind: str
    bars: int
    width: float  # of a bar, inches
    height: float
    lines: tuple[str, ...]


def cnn(name: str, image_size: int = 128) -> "Figure":
    """The layers of one of CNNS from left to right, with their numbers below; image_size in pixels."""
    model, shapes = traced(name, (image_size, image_size), image_size=image_size)
    net = cast(CNN, model)
    title = f"{models.MODELS[name]}: {parameters(net):,} parameters"
    subtitle = "A bar is what a layer returns: the higher, the larger the map; the wider, the more channels."
    with canvas(WIDTH, 5.3) as figure:
        sheet = Sheet(figure, title, subtitle)
        _row(sheet, list(_columns(net, shapes)))
        _details(sheet, net)
        found = {words(layer)[0] for layer in net.modules() if not any(layer.children())}
        sheet.legend(0.24, [(sheet.swatch(kind), kind) for kind in KINDS if kind in found])
    return figure


def _columns(net: CNN, shapes: Shapes) -> Iterator[Column]:
    """The image, convolutions (neighbours alike share a column) and pools, flatten and the linear layers."""
    channels, size = net.options["in_channels"], net.options["image_size"]
    yield Column("data", 1, 0.08, _height(size), ("image", "", "", f"{channels}", f"{size}", ""))
    for (kernel, (_, channels, side, _)), alike in groupby(net.features, lambda layer: (_window(layer), shapes[layer])):
        layers = list(alike)
        pool = isinstance(layers[0], nn.MaxPool2d)
        what = "pool" if pool else "conv" if len(layers) == 1 else f"{len(layers)}× conv"
        lines = (what, f"{kernel[0]}×{kernel[0]}", f"{kernel[1]}", f"{channels}", f"{side}", _short(layers))
        kind = "pooling" if pool else "convolution"
        yield Column(kind, len(layers), 0.0075 * channels**0.5, _height(side), lines)
    for layer in net.classifier:
        if isinstance(layer, nn.Flatten | nn.Linear):
            kind, what = ("linear", "linear") if isinstance(layer, nn.Linear) else ("data", "flatten")
            units = shapes[layer][1]
            yield Column(kind, 1, 0.09, _height(units / 64), (what, "", "", f"{units}", "", _short([layer])))


def _window(layer: nn.Module) -> tuple[int, int]:
    """Side and stride, in pixels, of a pool or of the convolution in a block."""
    layer = next(part for part in layer.modules() if isinstance(part, nn.Conv2d | nn.MaxPool2d))
    side, stride = (size[0] if isinstance(size, tuple) else size for size in (layer.kernel_size, layer.stride))
    return side, stride


def _height(pixels: float) -> float:
    """Inches for the side of a map."""
    return max(1.6 * (pixels / 128) ** 0.5, 0.08)


def _short(layers: Sequence[nn.Module]) -> str:
    """Their parameters to three digits, such as 1.18M; nothing for none."""
    number = sum(parameters(layer) for layer in layers)
    if number >= 1e6:
        return f"{number / 1e6:.3g}M"
    return f"{number / 1e3:.3g}k" if number >= 1e3 else str(number or "")


def _row(sheet: Sheet, columns: Sequence[Column]) -> None:
    """The bars on their common axis, and the table of their numbers."""
    table, gap = sheet.height - 2.64, 0.05
    middle = table + 1
    for number, name in enumerate(LINES):
        y = table - number * LINE
        if number % 2 == 0:
            sheet.panel(0.15, y - LINE / 2 + 0.01, sheet.width - 0.3, LINE)
        sheet.text(0.24, y, name, "left")
    needed = [
        max(column.bars * (column.width + gap), *(text_width(line) for line in column.lines)) for column in columns
    ]
    spare = (sheet.width - LEFT - 0.2 - sum(needed)) / len(columns)
    x, before = LEFT, None
    for column, width in zip(columns, needed, strict=True):
        centre = x + (width + spare) / 2
        x += width + spare
        left = centre - (column.bars * (column.width + gap) - gap) / 2
        boxes = [
            sheet.box(left + column.width / 2 + bar * (column.width + gap), middle, column.width, column.height,
                      column.kind)
            for bar in range(column.bars)
        ]  # fmt: skip
        if before:
            sheet.arrow((before.right[0] + 0.02, middle), (boxes[0].left[0] - 0.02, middle))
        before = boxes[-1]
        for number, line in enumerate(column.lines):
            sheet.text(centre, table - number * LINE, line)


def _details(sheet: Sheet, net: CNN) -> None:
    """All that stands before the first pool, and all that belongs to the first linear layer."""
    bottom, height, middle = 0.5, 0.93, 4.95
    layers = [layer for layer in net.features.modules() if not any(layer.children())]
    pool = next(number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))
    sheet.panel(0.15, bottom, middle - 0.2, height, "Up to the first pool:")
    sheet.chain(0.27, bottom + 0.34, [words(layer) for layer in layers[: pool + 1]], gap=0.22)
    sheet.panel(middle + 0.05, bottom, sheet.width - middle - 0.2, height, "The first linear layer:")
    _, *hidden = net.classifier[:4]
    sheet.chain(middle + 0.17, bottom + 0.34, [words(layer) for layer in hidden], gap=0.22)


def vit(image_size: int = 128) -> "Figure":
    """The VisionTransformer from the image to the logits, and one of its blocks; image_size in pixels."""
    model, shapes = traced("vit", (image_size, image_size), image_size=image_size)
    net = cast(VisionTransformer, model)
    title = f"VisionTransformer: {parameters(net):,} parameters"
    without = net.options["patch_dropout"]
    subtitle = f"Below a name: channels, or width of a token. In training an image lacks {without:.0%} of its patches."
    with canvas(WIDTH, 5.35) as figure:
        sheet = Sheet(figure, title, subtitle)
        _pipeline(sheet, net, shapes)
        _block(sheet, cast(Block, net.blocks[0]), shapes)
        kinds = ("convolution", "normalisation", "attention", "linear", "activation")
        keys = [(sheet.swatch(kind), kind) for kind in kinds]
        sheet.legend(0.24, [*keys, (sheet.sign("+"), "addition")])
    return figure


def _pipeline(sheet: Sheet, net: VisionTransformer, shapes: Shapes) -> None:
    """Patches, tokens, blocks, head."""
    y = 3.52
    _, dim, *grid = shapes[net.patches]
    size, patch = net.options["image_size"], net.options["patch_size"]
    _, tokens, _ = shapes[net.blocks]
    image = _image(sheet, 0.86, y, grid)
    sheet.text(image.x, 2.63, f"{times((net.options['in_channels'], size, size))} pixels")
    sheet.text(image.x, 2.43, f"{grid[0] * grid[1]} patches of {patch}×{patch}")
    patches = sheet.box(2.3, y, 1.1, 0.62, "convolution", words(net.patches)[1].replace(", ", ",\n"))
    column = _tokens(sheet, 3.18, y)
    sheet.text(column.x, 2.63, f"{tokens} tokens of {dim}")
    sheet.text(column.x, 2.43, "the first: class token")
    plus = sheet.circle(3.68, y, "+")
    positions = sheet.box(plus.x, y + 1, 0.9, 0.44, "data", f"positions\n{times(net.positions.shape[1:])}")
    sheet.arrow(positions.bottom, plus.top)
    for shift in (0.12, 0.06):
        sheet.box(4.5 + shift, y + shift, 1, 0.9, "data")
    blocks = sheet.box(4.5, y, 1, 0.9, "data", f"{len(net.blocks)} blocks\n{times(shapes[net.blocks][1:])}")
    norm = sheet.box(5.73, y, 0.9, 0.44, *words(net.norm))
    chosen = sheet.box(6.79, y, 0.97, 0.44, "data", f"class token\n{dim}")
    head = sheet.chain(7.43, y, [words(layer) for layer in net.head], gap=0.15)
    end = head[-1].right
    sheet.arrow(end, (end[0] + 0.2, y))
    sheet.text(sheet.width - 0.15, y - 0.38, "logits", "right")
    sheet.join([image, patches, column, plus, blocks])
    sheet.join([norm, chosen, head[0]])
    sheet.arrow((blocks.right[0] + 0.12, y), norm.left)


def _image(sheet: Sheet, x: float, y: float, grid: Sequence[int]) -> Box:
    """A square of patches."""
    side = 1.3
    image = sheet.box(x, y, side, side, "data")
    for axis, count in enumerate(grid):
        for at in range(1, count):
            along = side * at / count - side / 2
            ends = ((x - side / 2, y + along), (x + side / 2, y + along))
            sheet.arrow(*(ends if axis == 0 else [(x + along, y + end) for end in (-side / 2, side / 2)]),
                        kind="activation", head=False)  # fmt: skip
    return image


def _tokens(sheet: Sheet, x: float, y: float) -> Box:
    """A column of tokens, the class token on top, some left out."""
    side, pitch = 0.15, 0.2
    for number in range(-3, 4):
        if number == -1:
            sheet.text(x, y + 0.01 + number * pitch, "⋮")
        else:
            sheet.box(x, y + number * pitch, side, side, "data" if number == 3 else "convolution")
    return Box(x, y, side + 0.04, 7 * pitch)


def _block(sheet: Sheet, block: Block, shapes: Shapes) -> None:
    """Attention, then two linear layers; the input goes around both."""
    bottom, height = 0.5, 1.6
    sheet.panel(0.15, bottom, sheet.width - 0.3, height, f"One of the blocks, {parameters(block):,} parameters:")
    y = bottom + 0.55
    heads, (_, tokens, dim) = block.attention.heads, shapes[block.attention]
    start = sheet.box(0.75, y, 0.8, 0.44, "data", f"tokens\n{times((tokens, dim))}")
    parts = [words(block.norm1), ("attention", f"self-attention\n{heads} heads of {dim // heads}")]
    first = sheet.chain(1.55, y, parts, gap=0.2)
    sums = [sheet.circle(first[-1].right[0] + 0.32, y, "+")]
    parts = [words(part) for part in (block.norm2, *block.mlp)]
    second = sheet.chain(sums[0].right[0] + 0.4, y, parts, gap=0.2)
    sums.append(sheet.circle(second[-1].right[0] + 0.32, y, "+"))
    sheet.join([start, first[0]])
    sheet.join([first[-1], sums[0], second[0]])
    sheet.join([second[-1], sums[1]])
    for entry, end in ((first[0], sums[0]), (second[0], sums[1])):
        branch = (entry.left[0] - 0.25, y)
        sheet.dot(branch)
        sheet.arrow(branch, (branch[0], y + 0.5), (end.x, y + 0.5), end.top)
    sheet.arrow(sums[1].right, (sums[1].right[0] + 0.3, y))
