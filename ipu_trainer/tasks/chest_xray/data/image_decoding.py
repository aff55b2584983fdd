"""Decoding: an image file to a square uint8 grayscale image, with the same pixels as ViTImageProcessor.

    bytes -> open_image: an image the right side up -> to_grayscale: 8 bits, by a window -> resize

DICOM files and files of more than 8 bits go through a window (window.py); all others hold gray levels already.
Pillow resizes, as in the processor. kornia_rs, where installed, decompresses plain 8-bit grayscale PNGs, which takes most of
the time. Both decoders give the same bytes (tested), so the choice affects speed alone.

Other files of more than 8 bits do not record how many of their bits are used: most hold the 10 to 14 bits of a detector in 16.
So their scale, unless a window is asked for, comes from the whole data set: white is the largest value of the smallest of 8, 10,
12, 14 and 16 bits that holds every pixel. No value is clipped, and a dark image stays darker than others, which a scale for each
image would not keep.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ipu_trainer.tasks.chest_xray.data.pixels import dicom
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError, refuse_bomb
from ipu_trainer.tasks.chest_xray.data.pixels.png_checksums import check_png
from ipu_trainer.tasks.chest_xray.data.pixels.quiet_warnings import quiet
from ipu_trainer.tasks.chest_xray.data.pixels.window import CodedImage, between, percentile_range

_decode_png: Any = None
for _module in ("kornia_rs.io", "kornia_rs"):  # newer releases have it in kornia_rs.io
    with contextlib.suppress(ImportError):
        _decode_png = _decode_png or getattr(importlib.import_module(_module), "decode_image_png_u8", None)
DECODER = "Pillow" if _decode_png is None else "kornia_rs and Pillow"
RESAMPLES = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_BITS = (8, 10, 12, 14, 16)
# Pillow knows dozens of formats by their content; EPS starts a program. MPO is a camera's JPEG.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF")
_READ_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
OpenedImage = Union[Image.Image, CodedImage]


@dataclass(frozen=True)
class ValueRange:
    """The largest values: of integer images of more than 8 bits (whole) and of floating-point images (floating)."""

    whole: float = 0.0
    floating: float = 0.0

    @property
    def whites(self) -> Tuple[int, int]:
        """The integer and the floating-point value that become 255: the largest of a number of bits, or 1.0."""
        return _white(self.whole), 1 if self.floating <= 1.0 else _white(self.floating)

    def gives_scale_of(self, image: ValueRange) -> bool:
        """Whether an image of that range, scaled by itself, gets the scale of this data set."""
        largest = (image.whole, image.floating)
        return all(not value or alone == white for value, alone, white in zip(largest, image.whites, self.whites))

    def scaled(self, values: np.ndarray, floating: bool) -> np.ndarray:
        white = self.whites[floating]
        return values * 255.0 if white == 1 else values / (white / 255.0)


def value_range(image: OpenedImage) -> Optional[ValueRange]:
    """The range of an image of more than 8 bits that is not DICOM; None for all others.

    Raises ImageError for values that no 16 bits hold.
    """
    if isinstance(image, CodedImage) or not _is_wide(image):
        return None
    largest = float(_wide_values(image).max(initial=0.0))
    if largest >= 2**16:
        raise ImageError(f"values up to {largest:,.0f}: at most 16 bits are read")
    return ValueRange(floating=largest) if image.mode == "F" else ValueRange(whole=largest)


def decode_grayscale(content: bytes) -> Image.Image:
    """The image in a file's bytes as 8-bit grayscale, scaled as a data set of this image alone."""
    image = open_image(content)
    return to_grayscale(image, value_range(image))


def open_image(content: bytes) -> OpenedImage:
    """The image in a file's bytes, decoded and rotated by its orientation tag. Raises ImageError with the reason.

    DICOM is known by its content, whatever the file is called.
    """
    if dicom.is_dicom(content):
        return dicom.open_dicom(content)
    size = _plain_gray_png(content)
    if size is not None:
        refuse_bomb(size)
        if _decode_png is not None:
            try:
                pixels = np.asarray(_decode_png(content, (size[1], size[0]), "mono"))
            except Exception as error:  # kornia_rs raises bare Exception
                raise ImageError(f"broken PNG: {error}") from error
            return Image.fromarray(pixels.reshape(size[1], size[0]))
    try:
        with quiet():
            image = Image.open(io.BytesIO(content), formats=_formats())
            refuse_bomb(image.size)
            check_png(content)
            image.load()
            image = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except UnidentifiedImageError as error:
        if dicom.may_be_dicom(content):
            return dicom.open_dicom(content)
        read = "PNG, JPEG, WebP, BMP, TIFF and DICOM"
        raise ImageError(f"not an image of a format that is read ({read})" if content else "empty file") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"broken or truncated image: {error}") from error
    return image


@contextlib.contextmanager
def reading_file() -> Iterator[None]:
    """What a library raises for one odd file, whatever its type, becomes an ImageError."""
    try:
        yield
    except (ImageError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"broken or unknown kind of image ({type(error).__name__})") from error


@dataclass(frozen=True)
class Decoding:
    """How image files become the model's pixels: what `prepare` does, and `predict` repeats for a new image.

    size: side in pixels. resample: a name in RESAMPLES. scale: the range of the data set, for images of more than 8 bits; None
    scales each image by its own range. window: a name in window.WINDOWS, for DICOM and for images of more than 8 bits.
    """

    size: int
    resample: str = "bilinear"
    scale: Optional[ValueRange] = None
    window: str = "auto"

    def __call__(self, content: bytes) -> np.ndarray:
        """uint8 (size, size) from the bytes of an image file. Raises ImageError with the reason."""
        return self.pixels_of(open_image(content))

    def pixels_of(self, image: OpenedImage) -> np.ndarray:
        """Raises ImageError for values outside of the scale, which would all become white."""
        own = None if self.scale is None or self.window != "auto" else value_range(image)
        if self.scale is not None and own is not None:
            for largest, known, white in zip(
                (own.whole, own.floating), (self.scale.whole, self.scale.floating), self.scale.whites
            ):
                if largest > (white if known else 0):
                    found = (
                        f"values up to {largest:,g}, where {white:,} is white" if known else "another kind of numbers"
                    )
                    raise ImageError(
                        f"{found}: the scale of the data set does not fit. Prepare and train with --window percentile"
                    )
        return resize(to_grayscale(image, self.scale or value_range(image), self.window), self.size, self.resample)

    def range_for_scale(self, image: OpenedImage) -> Optional[ValueRange]:
        """What an image adds to the range of its data set; None if its window does not depend on others."""
        return value_range(image) if self.window in ("auto", "full") else None

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decoding:
        """From `to_dict`, or from the manifest of an earlier release, which has no such entry (size and resample alone)."""
        scale = values.get("scale")
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        return cls(**{**known, "scale": None if scale is None else ValueRange(**scale)})


def load_grayscale(path: Path, size: int, resample: str = "bilinear") -> np.ndarray:
    """uint8 (size, size) of the image file at path."""
    return resize(decode_grayscale(path.read_bytes()), size, resample)


def resize(image: Image.Image, size: int, resample: str) -> np.ndarray:
    """uint8 (size, size). Like ViTImageProcessor it does not keep the aspect ratio."""
    if image.size != (size, size):
        image = image.resize((size, size), RESAMPLES[resample])
    return np.asarray(image)


def to_grayscale(image: OpenedImage, scale: Optional[ValueRange], window: str = "auto") -> Image.Image:
    """8-bit grayscale. scale: the range of the data set, for an image of more than 8 bits.

    Raises ImageError for window "voi" and an image of more than 8 bits that is not DICOM.
    """
    if isinstance(image, CodedImage):
        return Image.fromarray(image.windowed(window))
    if image.mode == "L":
        return image
    if _is_wide(image) and window == "voi":
        raise ImageError("no DICOM file, so it has no window: --window auto, percentile or full reads it")
    if _is_wide(image) and window == "percentile":
        wide = _wide_values(image)
        brightness = between(wide, *percentile_range(*np.unique(wide, return_counts=True)))
        return Image.fromarray(np.rint(brightness * 255.0).astype(np.uint8))
    if scale is not None and _is_wide(image):  # Pillow's own conversion clips at 255
        values = scale.scaled(_wide_values(image).astype(np.float64), image.mode == "F")
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if image.mode not in _READ_MODES and not _is_wide(image):
        raise ImageError(f"colours of the kind {image.mode}: save the image in gray or RGB")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    # Alpha is dropped, as by convert("RGB") does: NIH's RGBA files have R = G = B and alpha 255.
    return image.convert("L")


def _is_wide(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _wide_values(image: Image.Image) -> np.ndarray:
    """The values of an image of more than 8 bits. Raises ImageError for values that are no numbers."""
    values = np.asarray(image)
    if image.mode == "F" and not np.isfinite(values).all():
        raise ImageError("some pixels are NaN or infinite, which is no brightness. Correct the file")
    return values


@functools.lru_cache(maxsize=1)
def _formats() -> Tuple[str, ...]:
    """Those of _FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _white(largest: float) -> int:
    return next((1 << bits) - 1 for bits in _BITS if largest < 1 << bits)


def _plain_gray_png(content: bytes) -> Optional[Tuple[int, int]]:
    """(width, height) if content is an 8-bit grayscale PNG without transparency, interlacing or orientation, else None."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33 or content[12:16] != b"IHDR":
        return None
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", content[16:29])
    plain = depth == 8 and color == 0 and interlace == 0 and width > 0 and height > 0
    plain = plain and not any(mark in content for mark in (b"eXIf", b"Raw profile type"))
    return (width, height) if plain else None
