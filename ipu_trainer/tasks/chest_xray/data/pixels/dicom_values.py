"""Stored values of a DICOM file to a CodedImage or a colored image: modality LUT, window, padding, polarity.

docs/dicom.md lists the steps with their places in the standard.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np
from PIL import Image

from ipu_trainer.tasks.chest_xray.data.pixels.dicom_checks import PALETTE, bits_of
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError
from ipu_trainer.tasks.chest_xray.data.pixels.pydicom_releases import palette_colors, read_encoding
from ipu_trainer.tasks.chest_xray.data.pixels.window import CodedImage, centered, looked_up

_RLE = "1.2.840.10008.1.2.5"
_LUT_BITS = (8, 10, 12, 14, 16)


def colored(dataset: Any, pixels: np.ndarray) -> Image.Image:
    """Mode "RGB" of a colored image (a secondary capture): ready for display, so it has no window."""
    colors = palette_colors(dataset, pixels) if dataset.PhotometricInterpretation == PALETTE else pixels
    if colors.dtype != np.uint8:
        palette = dataset.PhotometricInterpretation == PALETTE
        white = 2 ** (16 if palette else bits_of(dataset)[1]) - 1
        colors = np.clip(np.rint(colors / (white / 255.0)), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(colors))


def coded(dataset: Any, pixels: np.ndarray) -> CodedImage:
    allocated, bits, _ = bits_of(dataset)
    signed = bool(dataset.get("PixelRepresentation", 0))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax != _RLE and (pixels.min() < low or pixels.max() > high):
        bits = allocated  # JPEG streams have no unused bits: the file declares too few
    # Unused high bits of a native pixel may hold an overlay or anything (PS3.5 8.1.1): only the bits stored count.
    codes = np.bitwise_and(pixels.astype(np.uint8 if bits <= 8 else np.uint16), (1 << bits) - 1)
    stored = np.arange(2**bits)
    if signed:
        stored[2 ** (bits - 1) :] -= 2**bits
    values = _modality(dataset, stored)
    return CodedImage(
        codes,
        values,
        _voi(dataset, values),
        _padding(dataset, stored),
        dataset.PhotometricInterpretation == "MONOCHROME1",
    )


def _modality(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """float64: the output of the modality LUT for stored values (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        table, first, _ = _lookup_table(dataset, dataset.ModalityLUTSequence[0], stored)
        return looked_up(stored, table, first)
    slope, intercept = (_number(dataset.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    slope = 1.0 if slope is None else slope
    intercept = 0.0 if intercept is None else intercept
    if not slope or not np.isfinite([slope, intercept]).all():
        raise ImageError("broken DICOM file: RescaleSlope is 0, or it or RescaleIntercept is no number")
    return stored * slope + intercept


def _voi(dataset: Any, values: np.ndarray) -> Optional[np.ndarray]:
    """Brightness of values by the first VOI LUT of the file, else by its first window (PS3.3 C.11.2); None without a usable one."""
    if dataset.get("VOILUTSequence"):
        table, first, white = _lookup_table(dataset, dataset.VOILUTSequence[0], values)
        return looked_up(values, table, first) / white
    center, width = (_number(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    return centered(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper())


def _lookup_table(dataset: Any, item: Any, inputs: np.ndarray) -> Tuple[np.ndarray, int, int]:
    """(entries as float64, first input, white) of a LUT sequence's item.

    white: the largest number of the fewest bits that hold all entries, because devices write 16 bits per entry for entries of 12.
    """
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries % 2**16 or 2**16
    if first >= 2**15 and inputs.min() < 0:  # a negative number that was written or read as unsigned
        first -= 2**16
    data, little = item.LUTData, read_encoding(dataset)[1]
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype("<u2" if little else ">u2").tobytes()
    wide = bits > 8 or len(data) >= 2 * entries
    table = np.frombuffer(data[: entries * (1 + wide)], dtype="u1" if not wide else "<u2" if little else ">u2")
    if len(table) < entries:
        raise ImageError(f"truncated: a lookup table has {len(table):,} entries, {entries:,} are declared")
    most = next(width for width in sorted({*_LUT_BITS, min(max(bits, 8), 16)}) if int(table.max()) < 1 << width)
    return table.astype(np.float64), first, (1 << most) - 1


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """bool: stored values from the padding value to its range limit (PS3.3 C.7.5.1.1.2)."""
    ends = [dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    ends = [stored[int(end) & (len(stored) - 1)] for end in ends if isinstance(end, int)]
    if dataset.get("PixelPaddingValue") is None or not ends:
        return np.zeros(len(stored), dtype=bool)
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _number(value: Any) -> Optional[float]:
    """The first of one or several numbers; None for an empty value."""
    if value is None or value == "":
        return None
    if not isinstance(value, (int, float)) and not hasattr(value, "as_tuple"):  # not one number or decimal
        value = value[0] if len(value) else None
    return None if value is None else float(value)
