"""The film of the gates: a frame an epoch, in the right colours."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from benchmarks import attention_epochs as film
from datasets.slices import open_slices
from utils.pictures import gif

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_frame_before_training_and_one_an_epoch(cases: Path, tmp_path: Path) -> None:
    pictures = film.frames(open_slices(cases, tmp_path, window=(48, 48)), epochs=2)
    assert len(pictures) == 3 and {picture.width for picture in pictures} == {film.WIDTH}
    first, second, third = (np.asarray(picture, dtype=int) for picture in pictures)
    assert (first != second).any() and (second != third).any()
    with Image.open(io.BytesIO(gif(pictures, pause=100, rest=400))) as shown_again:
        shown = [np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(shown_again)]
    assert len(shown) == 3
    for frame, picture in zip(shown, (first, second, third), strict=True):
        assert np.abs(frame - picture).max(axis=2).mean() < 5  # 256 colours for all frames come close enough
