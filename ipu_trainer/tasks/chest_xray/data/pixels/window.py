"""Windows: how values of more than 8 bits become the 256 gray levels of the pixel store.

All steps of DICOM's grayscale pipeline depend on one value alone. So they are computed once for each value that the bits of a
file can hold, at most 65,536, and the pixels look their gray level up. Functions of a window return the brightness of values: 0
is black, 1 is white.

pydicom has these functions too (tests compare them), but in 3.0.2 a table of 8-bit entries wraps inputs above 255, and a window
behind a negative rescale slope comes out inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError

WINDOWS = {
    "auto": "the window of the file; without one, percentile for DICOM, full for other files",
    "voi": "the window of the file (VOI LUT, or center and width), and no file without",
    "percentile": "each image by itself, from its 0.5 % to its 99.5 % darkest pixel",
    "full": "all that the bits can hold: of the file (DICOM), or of the whole data set (16-bit PNG and TIFF)",
}
# nnU-Net clips images at the same percentiles (Isensee et al., Nature Methods 2021, doi 10.1038/s41592-020-01008-z): markers and
# collimator edges no longer set the scale, and lungs and bones, far more than 1 % of a film, keep theirs.
PERCENTILES = (0.5, 99.5)


def percentile_range(values: np.ndarray, counts: np.ndarray) -> Tuple[float, float]:
    """The values at PERCENTILES among pixels of which counts[i] have values[i]; values in any order. (0, 0) without pixels.

    Each is the value of a pixel: that of np.percentile(..., method="inverted_cdf").
    """
    order = np.argsort(values, kind="stable")
    below = np.cumsum(counts[order])
    if not below.size or not below[-1]:
        return 0.0, 0.0
    ranks = np.searchsorted(below, below[-1] * np.array(PERCENTILES) / 100.0)
    low, high = values[order][ranks].tolist()
    return low, high


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Brightness: 0 up to low, 1 from high, a straight line between. 0 everywhere for an empty range."""
    if high <= low:
        return np.zeros(np.shape(values))
    return np.clip((values.astype(np.float64) - low) / (high - low), 0.0, 1.0)


def centered(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> Optional[np.ndarray]:
    """Brightness by DICOM's window center and width; None for a width or a function that DICOM does not define.

    Source: PS3.3 C.11.2.1.2 (LINEAR: width at least 1, and half a value off) and C.11.2.1.3 (LINEAR_EXACT, SIGMOID: above 0).
    """
    if not np.isfinite([center, width]).all() or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0))))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        return None
    center, width = (center - 0.5, width - 1.0) if function == "LINEAR" else (center, width)
    if width == 0:
        return np.where(values > center, 1.0, 0.0)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def looked_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """Entries of a DICOM lookup table whose first entry belongs to the value first; its ends serve all values beyond them.

    Source: PS3.3 C.11.1.1 and C.11.2.1.1. Values that are no whole numbers are rounded down.
    """
    positions = np.clip(np.floor(values) - first, 0, len(table) - 1)
    return np.asarray(table[positions.astype(np.int64)])


@dataclass(frozen=True)
class CodedImage:
    """A grayscale image as codes (bit patterns), and what each code means.

    codes: uint8 or uint16 (height, width), below 2**bits. values: float64 (2**bits,), the value of each code after the modality
    LUT. brightness: the same shape, by the window of the file, or None. padding: bool, the same shape: codes that are no part of
    the film. inverted: the smallest value is white (MONOCHROME1).
    """

    codes: np.ndarray
    values: np.ndarray
    brightness: Optional[np.ndarray]
    padding: np.ndarray
    inverted: bool

    def windowed(self, window: str) -> np.ndarray:
        """uint8 (height, width), black is 0 and padding is black. Raises ImageError for "voi" without a window in the file."""
        brightness = self._brightness(window)
        if self.inverted:
            brightness = 1.0 - brightness
        levels = np.rint(brightness * 255.0).astype(np.uint8)
        levels[self.padding] = 0
        return np.asarray(levels[self.codes])

    def _brightness(self, window: str) -> np.ndarray:
        if window in ("auto", "voi") and self.brightness is not None:
            return self.brightness
        if window == "voi":
            raise ImageError("no usable VOI LUT or window in the file: --window auto or percentile reads it")
        # 8 bits without a window are ready for display, as they are in a PNG.
        if window == "full" or (window == "auto" and len(self.values) <= 256):
            return between(self.values, self.values.min(), self.values.max())
        counts = np.bincount(self.codes.ravel(), minlength=len(self.values))
        return between(self.values, *percentile_range(self.values, np.where(self.padding, 0, counts)))
