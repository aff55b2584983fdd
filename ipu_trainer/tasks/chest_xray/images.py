"""One image file to one square uint8 grayscale picture, with the pixels that ViTImageProcessor makes of it.

The processor resizes with Pillow, so Pillow resizes here; only the inflating of plain 8-bit grayscale PNGs, which is
most of the time, is done by kornia_rs where it is installed. Both decoders give the same bytes (tested), so the choice
is about speed alone.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Optional, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    from kornia_rs import io as _kornia_io

    _decode_png = getattr(_kornia_io, "decode_image_png_u8", None)
except ImportError:
    try:
        import kornia_rs as _kornia

        _decode_png = getattr(_kornia, "decode_image_png_u8", None)
    except ImportError:
        _decode_png = None

DECODER = "Pillow" if _decode_png is None else "kornia_rs and Pillow"
RESAMPLES = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Chest films are at most about 4,300 pixels a side; a file that claims more than this is a decompression bomb.
MAX_PIXELS = 8192 * 8192


class ImageError(ValueError):
    """A file that is no image, is cut short, or is too large to be one of ours."""


def decode_gray(content: bytes) -> Image.Image:
    """The picture in a file's bytes as 8-bit grayscale. Raises ImageError naming what is wrong."""
    size = _plain_gray_png(content)
    if size is not None:
        _refuse_bomb(size)
        if _decode_png is not None:
            try:
                pixels = np.asarray(_decode_png(content, (size[1], size[0]), "mono"))
            except Exception as error:  # kornia_rs raises bare Exception
                raise ImageError(f"broken PNG: {error}") from error
            return Image.fromarray(pixels.reshape(size[1], size[0]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            _refuse_bomb(image.size)
            image.load()
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image" if content else "empty file") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"broken or truncated image: {error}") from error
    return _to_gray(image)


def load_gray(path: Path, size: int, resample: str = "bilinear") -> np.ndarray:
    """uint8 (size, size) of the image file at path."""
    return resize(decode_gray(path.read_bytes()), size, resample)


def resize(image: Image.Image, size: int, resample: str) -> np.ndarray:
    """uint8 (size, size). Like ViTImageProcessor it does not keep the aspect ratio."""
    if image.size != (size, size):
        image = image.resize((size, size), RESAMPLES[resample])
    return np.asarray(image)


def _to_gray(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values at 255. Take the high byte, as the processor's rescaling would.
        values = np.asarray(image).astype(np.float64)
        if image.mode != "F" or values.max(initial=0.0) > 1.0:
            values = values / 257.0 if values.max(initial=0.0) > 255.0 else values
        else:
            values = values * 255.0
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    # Alpha is dropped, as convert("RGB") does: NIH's RGBA files have R = G = B and alpha 255.
    return image.convert("L")


def _plain_gray_png(content: bytes) -> Optional[Tuple[int, int]]:
    """(width, height) if content is an 8-bit grayscale PNG without transparency or interlacing, else None."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33 or content[12:16] != b"IHDR":
        return None
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", content[16:29])
    plain = depth == 8 and color == 0 and interlace == 0 and width > 0 and height > 0
    return (width, height) if plain else None


def _refuse_bomb(size: Tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"too large: {size[0]} x {size[1]} pixels, at most {MAX_PIXELS:,} are read")
