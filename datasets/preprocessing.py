"""Crop the margins around the head, and bring every image to 256 x 256.

    python datasets/preprocessing.py                    # datasets/classification, into its folder preprocessed
    python datasets/preprocessing.py FOLDER TARGET

The largest outline of what is not background gives the crop, as in https://pyimagesearch.com/2016/04/11/ (extreme
points of a contour). The originals stay as they are. Training does the same on the fly and does not need the files.
"""

import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.images import PREPROCESSED, UNREADABLE, Image, find_images, read_gray, root
from datasets.parallel import ahead
from utils.files import replacing

SIDE = 256  # pixels
CROP = 2  # raise it when another crop is taken: stores and files are then made anew
BLUR = 5  # pixels, width of the smoothing before the outline is taken
DARK = 0.12  # share of the brightest (their 99th percentile) up to which a pixel is background
STRONG = 0.4  # share of the area below which a crop is reported: look at it
HERE = Path(__file__).resolve().parent


def crop_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Where the head is in a gray image (H, W) uint8: top, bottom, left, right; all of it where nothing stands out.

    A frame of one colour is background too, and so is the black margin that it may enclose: hence two passes.
    """
    top, left = 0, 0
    bottom, right = image.shape
    for _ in range(2):
        up, down, near, far = _outline(image[top:bottom, left:right])
        top, bottom, left, right = top + up, top + down, left + near, left + far
    return top, bottom, left, right


def _background(image: np.ndarray) -> int:
    """The gray level of the frame where there is one, else black: what reaches the edge may be the head."""
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    level = int(np.median(frame))
    uniform = np.mean(np.abs(frame.astype(int) - level) <= 4) > 0.95  # JPEG moves a level by so much
    if uniform and 0 < level < 255 * (1 - DARK):
        return level if level > DARK * np.percentile(image, 99) else 0
    return 255 if level > 200 else 0


def _outline(image: np.ndarray) -> tuple[int, int, int, int]:
    """The extreme points of the largest outline, as `crop_box` returns them."""
    import cv2
    import imutils

    height, width = image.shape
    ground = _background(image)
    smooth = cv2.GaussianBlur(cv2.absdiff(image, np.full_like(image, ground)), (BLUR, BLUR), 0)
    threshold = DARK * np.percentile(smooth, 99)
    found = (smooth > threshold).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))  # erode, dilate: specks go
    outlines = imutils.grab_contours(cv2.findContours(found, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE))
    if not outlines:
        return 0, height, 0, width
    x, y, w, h = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    rim = BLUR // 2 if ground else 0  # where the frame was blurred into the image
    if min(w, h) <= 2 * rim:
        return 0, height, 0, width
    return y + rim, y + h - rim, x + rim, x + w - rim


def crop_to_head(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Crop a gray image (H, W) uint8 to the head and resize it to (side, side). Raises ValueError for other arrays."""
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"expected gray levels (H, W) of uint8, not {image.shape} of {image.dtype}: take read_gray")
    top, bottom, left, right = crop_box(image)
    return resize(image[top:bottom, left:right], side)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W) uint8 at (side, side): areas averaged where both sides shrink, else bilinear."""
    import cv2

    shrinks = min(image.shape) > side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _is_current(out: Path, original: Path) -> bool:
    """Whether a file was made from this original, by the crop of this version."""
    try:
        with Pillow.open(out) as image:
            made_by = image.info.get("crop")
        return made_by == str(CROP) and out.stat().st_mtime_ns >= original.stat().st_mtime_ns
    except OSError:  # none there, or a damaged one
        return False


def _is_ours(out: Path) -> bool:
    """Whether a file is a crop, of any version, and no image of somebody else's."""
    with suppress(*UNREADABLE), Pillow.open(out) as image:
        return "crop" in image.info
    return True  # damaged


def preprocess_folder(source: Path, target: Path) -> list[str]:
    """Write the images of a data set, cropped and resized, as PNG files in the same tree below `target`.

    Files of this version's crop are kept, so that a second call goes on where the first was stopped; others are
    replaced. A damaged image is left out; an image whose crop is strong is written and reported.

    Returns:
        A sentence for each image that somebody should look at; printed, too.

    Raises:
        FileNotFoundError, ValueError: see `datasets.images.find_images`.
        OSError: no space left; no file is half-written.
    """
    from filelock import FileLock
    from tqdm import tqdm

    def work(image: Image) -> str:
        out = target / image.name
        out = out.with_suffix(".png") if twins[image.path.with_suffix("")] == 1 else out.with_name(out.name + ".png")
        if _is_current(out, image.path):
            return ""
        if out.exists() and not _is_ours(out):
            return f"{out} was not made here and stays: choose another folder for the cropped images"
        try:
            pixels = read_gray(image.path)
        except ValueError as error:
            return str(error)
        top, bottom, left, right = crop_box(pixels)
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            head = resize(pixels[top:bottom, left:right], SIDE)
            Pillow.fromarray(head).save(temporary, "png", pnginfo=made)
        share = (bottom - top) * (right - left) / pixels.size
        return f"{image.path} was cropped to {share:.0%} of its area: look at {out}" if share < STRONG else ""

    images, target, made = find_images(source), target.resolve(), PngInfo()
    made.add_text("crop", str(CROP))
    if target == root(source).resolve():
        raise ValueError(f"{target} holds the originals, which stay: choose another folder for the cropped images")
    twins = Counter(image.path.with_suffix("") for image in images)  # a.jpg and a.png must not become one
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):  # two at once would write the same temporary files
        done = tqdm(ahead(work, images), total=len(images), desc="cropping", unit="image", dynamic_ncols=True)
        sentences = []
        for sentence in filter(None, done):
            tqdm.write(sentence)  # now: a second start would not say it again
            sentences.append(sentence)
        return sentences


def main(source: Path = HERE / "classification", target: Path | None = None, /) -> None:
    """Crop and resize all images below SOURCE; the default TARGET is SOURCE/preprocessed."""
    target = target or source / PREPROCESSED
    sentences = preprocess_folder(source, target)
    print(f"{target} is ready; {len(sentences)} new images to look at")


if __name__ == "__main__":
    from utils import cli

    cli.run(main, __doc__, resumes=True)
