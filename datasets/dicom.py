"""One slice of a DICOM file, as a viewer would show it."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow

if TYPE_CHECKING:
    from pydicom import Dataset


def is_dicom(path: Path) -> bool:
    """Whether the file says so itself: scanners give any ending, or none. False where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_slice(path: Path) -> Pillow.Image:
    """The pixels of a DICOM file, rescaled and windowed as its header asks, bright where the signal is, padding black.

    Returns:
        an image of mode F, or of mode L where the file holds colours.

    Raises:
        ValueError: damaged, without pixels, of several frames, or compressed in a way that needs another package.
    """
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    unreadable = (InvalidDicomError, BytesLengthException, AttributeError, EOFError, KeyError, OSError, RuntimeError,
                  TypeError, ValueError, struct.error)  # fmt: skip
    try:
        data = pydicom.dcmread(path)
        if int(data.get("NumberOfFrames", 1)) == 1:
            stored = data.pixel_array
            if data.get("PhotometricInterpretation") == "PALETTE COLOR":  # of 8 bits, also within 16, or of 16
                stored = apply_color_lut(stored, data)
                stored = (stored >> 8 if stored.max() > 255 else stored).astype(np.uint8)
            if stored.ndim == 3:
                return Pillow.fromarray(stored).convert("L")
            shown = np.array(apply_voi_lut(apply_modality_lut(stored, data), data), np.float32)
            if not np.isfinite(shown).all():
                raise ValueError("NaN or infinite pixels")
            inverted, padding = data.get("PhotometricInterpretation") == "MONOCHROME1", _padding(stored, data)
            if padding.any() and not padding.all():
                shown[padding] = shown[~padding].max() if inverted else shown[~padding].min()
            return Pillow.fromarray(shown.max() - shown if inverted else shown)
    except unreadable as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read as DICOM: export it uncompressed, or as PNG ({reason})") from error
    raise ValueError(f"{path} holds {data.NumberOfFrames} frames: export each slice as a file of its own")


def _padding(stored: np.ndarray, data: "Dataset") -> np.ndarray:
    """(H, W) bool: pixels beyond the image, which a scanner filled with a value, or values, far from all others."""
    first = data.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    ends = np.array([first, data.get("PixelPaddingRangeLimit", first)]).astype(stored.dtype)  # -1 may be written 65535
    return (stored >= ends.min()) & (stored <= ends.max())
