"""What differs between pydicom 2.4 and 3: where its decoders are, and who converts colors."""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np


def has_decoder(transfer_syntax: Any) -> bool:
    """Whether an installed package decodes the transfer syntax (a pydicom UID), as far as pydicom knows before it tries."""
    try:
        from pydicom.pixels import get_decoder
    except ImportError:
        from pydicom import config

        handlers = (handler for handler in config.pixel_data_handlers if handler is not None)
        return any(handler.supports_transfer_syntax(transfer_syntax) and handler.is_available() for handler in handlers)
    try:
        return bool(get_decoder(transfer_syntax).is_available)
    except NotImplementedError:
        return False


def decoded_pixels(dataset: Any) -> np.ndarray:
    """(rows, columns) or (rows, columns, 3) of a data set of one frame: stored values, or RGB for all color spaces but palettes."""
    try:
        from pydicom.pixels import pixel_array
    except ImportError:
        from pydicom.pixel_data_handlers import convert_color_space

        pixels = dataset.pixel_array  # the handler corrects the photometric interpretation where it converts by itself
        space = dataset.PhotometricInterpretation
        return np.asarray(convert_color_space(pixels, space, "RGB") if space.startswith("YBR_FULL") else pixels)
    return np.asarray(pixel_array(dataset))


def palette_colors(dataset: Any, pixels: np.ndarray) -> np.ndarray:
    """RGB (rows, columns, 3), of 8 or 16 bits, of the indices of a palette."""
    try:
        from pydicom.pixels import apply_color_lut
    except ImportError:
        from pydicom.pixel_data_handlers import apply_color_lut
    return np.asarray(apply_color_lut(pixels, dataset))[..., :3]


def read_encoding(dataset: Any) -> Tuple[bool, bool]:
    """(implicit VR, little endian) with which a data set was read."""
    if hasattr(dataset, "original_encoding"):
        return bool(dataset.original_encoding[0]), bool(dataset.original_encoding[1])
    return bool(dataset.is_implicit_VR), bool(dataset.is_little_endian)
