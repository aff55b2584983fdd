"""Pictures small enough for a page, as data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 200  # pixels on the longer side
Rectangle = Tuple[float, float, float, float]  # left, top, width, height as shares of the picture's sides


def gray_picture(pixels: np.ndarray, boxes: Sequence[Rectangle] = ()) -> str:
    """data URI of uint8 (height, width)."""
    return _jpeg(_shrunk(Image.fromarray(np.asarray(pixels, dtype=np.uint8))).convert("RGB"), boxes)


def heat_picture(pixels: np.ndarray, heat: np.ndarray, boxes: Sequence[Rectangle] = ()) -> str:
    """data URI of uint8 (height, width) under heat (rows, columns), which is scaled to its own range.

    The warmer, the more opaque, so that the picture stays visible where the model did not look.
    """
    import matplotlib

    base = _shrunk(Image.fromarray(np.asarray(pixels, dtype=np.uint8))).convert("RGB")
    values = np.nan_to_num(np.asarray(heat, dtype=np.float32))
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    wide = np.asarray(Image.fromarray(scaled).resize(base.size, Image.Resampling.BILINEAR))
    colour = matplotlib.colormaps["inferno"](wide)[..., :3] * 255.0
    share = 0.75 * wide[..., None]
    mixed = (1.0 - share) * np.asarray(base, dtype=np.float32) + share * colour
    return _jpeg(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), boxes)


def _shrunk(image: Image.Image) -> Image.Image:
    factor = SIDE / max(image.size)
    if factor >= 1.0:
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def _jpeg(image: Any, boxes: Sequence[Rectangle]) -> str:
    draw = ImageDraw.Draw(image)
    for left, top, width, height in boxes:
        corners = [left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height]
        draw.rectangle(corners, outline=(64, 224, 255), width=2)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
