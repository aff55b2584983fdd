"""What no image file may be: the error with the reason, and the number of pixels above which a file is a decompression bomb."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Tuple

from ipu_trainer.errors import UserError

# Chest films are at most about 4,300 pixels a side; a file that claims more than this is a decompression bomb.
MAX_PIXELS = 8192 * 8192


class ImageError(UserError):
    """A file that is no image, is truncated, or is larger than any chest X-ray."""


def refuse_bomb(size: Tuple[int, int]) -> None:
    """Raises ImageError for a (width, height) that a file declares and no chest X-ray has."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"too large: {size[0]} x {size[1]} pixels, at most {MAX_PIXELS:,} are read")


def read_image_file(path: Path) -> bytes:
    """The bytes of a file. Raises ImageError for a pipe or a device, which would be waited for or never end; OSError as usual."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError("no regular file, but a pipe, a socket or a device")
    return path.read_bytes()
