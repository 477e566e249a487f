"""Figures as files of few colours, which take a third of the room: a PNG, or a GIF of many."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def as_image(figure: "Figure", width: int | None = None) -> "Image":
    """A figure as an RGB picture, `width` pixels wide (by default as its dpi says)."""
    from PIL import Image

    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=width / figure.get_figwidth() if width else "figure")
        return Image.open(file).convert("RGB")


def save_png(figure: "Figure", path: Path, colours: int = 128) -> None:
    """Write a figure, whole or not at all."""
    from PIL import Image

    with replacing(path) as temporary:
        as_image(figure).quantize(colours, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)


def gif(pictures: Sequence["Image"], pause: int, rest: int) -> bytes:
    """A film on a white page that repeats itself, in 256 colours that suit all its pictures together.

    Colours are chosen so that rare ones survive, such as those of a small tumour in a grey brain.

    Args:
        pictures: RGB, of one size.
        pause, rest: how long a picture stays, and the last one, in milliseconds.
    """
    from PIL import Image

    together = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))
    palette = together.quantize(256, Image.Quantize.MAXCOVERAGE)
    values = np.array(palette.getpalette()).reshape(-1, 3)
    values[(values >= 250).all(axis=1)] = 255  # the page would come out as nearly white
    palette.putpalette(values.flatten().tolist())
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    pauses = [pause] * len(others) + [rest]
    with io.BytesIO() as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=pauses, loop=0, optimize=True)
        return file.getvalue()


def write_gif(path: Path, content: bytes) -> None:
    """Write a film that `gif` made, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
