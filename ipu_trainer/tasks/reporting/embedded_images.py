"""Small images for report.html, as JPEG data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 200  # pixels on the longer side
Rectangle = Tuple[float, float, float, float]  # left, top, width, height in fractions of the image's sides


def grayscale_uri(pixels: np.ndarray, boxes: Sequence[Rectangle] = ()) -> str:
    """Data URI of uint8 (height, width)."""
    return _jpeg(_resized(pixels), boxes)


def overlay_uri(pixels: np.ndarray, saliency_map: np.ndarray, boxes: Sequence[Rectangle] = ()) -> str:
    """Data URI of uint8 (height, width) under a saliency map (rows, columns), which is scaled to its own range.

    High values are opaque and low values transparent, so that the image stays visible where the saliency is low.
    """
    import matplotlib

    base = _resized(pixels)
    values = np.nan_to_num(np.asarray(saliency_map, dtype=np.float32))
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    wide = np.asarray(Image.fromarray(scaled).resize(base.size, Image.Resampling.BILINEAR))
    colour = matplotlib.colormaps["inferno"](wide)[..., :3] * 255.0
    opacity = 0.75 * wide[..., None]
    blended = (1.0 - opacity) * np.asarray(base, dtype=np.float32) + opacity * colour
    return _jpeg(Image.fromarray(blended.round().clip(0, 255).astype(np.uint8)), boxes)


def _resized(pixels: np.ndarray) -> Image.Image:
    """RGB with a longer side of SIDE."""
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    factor = SIDE / max(image.size)
    resample = Image.Resampling.BICUBIC if factor >= 1.0 else Image.Resampling.LANCZOS
    return image.resize((round(image.width * factor), round(image.height * factor)), resample).convert("RGB")


def _jpeg(image: Any, boxes: Sequence[Rectangle]) -> str:
    draw = ImageDraw.Draw(image)
    for left, top, width, height in boxes:
        corners = [left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height]
        draw.rectangle(corners, outline=(64, 224, 255), width=2)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
