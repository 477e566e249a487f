"""Pictures keep their few colours, films their frames and times, and both are the same each time."""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageSequence

from utils import pictures, plots


def figure_with_a_rare_colour():
    """Noise of many greys, and a hundredth of it vermilion."""
    with plots.canvas(2, 2) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        picture = np.random.default_rng(0).uniform(size=(100, 100, 1)).repeat(3, axis=2)
        picture[:10, :10] = to_rgb(plots.COLOURS[2])
        axes.imshow(picture, interpolation="nearest")
    return figure


def test_a_png_has_few_colours_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        pictures.save_png(figure_with_a_rare_colour(), tmp_path / name, colours=16)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    with Image.open(tmp_path / "one.png") as file:
        shown = np.asarray(file.convert("RGB"))
    assert 10 < len(np.unique(shown.reshape(-1, 3), axis=0)) <= 16


def test_a_film_keeps_rare_colours_and_a_white_page() -> None:
    frame = np.array(pictures.as_image(figure_with_a_rare_colour()))
    frame[-30:] = 255
    with Image.open(BytesIO(pictures.gif([Image.fromarray(frame)] * 2, pause=100, rest=100))) as film:
        shown = np.asarray(film.convert("RGB"), dtype=int)
    assert (shown[-30:] == 255).all()
    assert np.abs(shown[5, 5] / 255 - to_rgb(plots.COLOURS[2])).max() < 0.03
    assert np.abs(shown - frame).max() < 16


def test_a_picture_has_the_width_asked_for() -> None:
    figure = figure_with_a_rare_colour()
    assert pictures.as_image(figure).size == (300, 300)
    assert pictures.as_image(figure, 120).size == (120, 120)


def test_a_film_shows_its_frames_for_their_time(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    pictures.write_gif(tmp_path / "new" / "film.gif", pictures.gif(frames, pause=100, rest=500))
    content = (tmp_path / "new" / "film.gif").read_bytes()
    assert content == pictures.gif(frames, pause=100, rest=500)
    with Image.open(BytesIO(content)) as film:
        assert film.info["loop"] == 0  # for ever
        shown = [(frame.convert("RGB").getpixel((3, 3)), frame.info["duration"])
                 for frame in ImageSequence.Iterator(film)]  # fmt: skip
    assert shown == [((255, 0, 0), 100), ((0, 255, 0), 100), ((0, 0, 255), 500)]
