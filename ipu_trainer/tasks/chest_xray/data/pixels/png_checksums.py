"""The checksums of a PNG's chunks: Pillow reads the pixels without comparing them, so one flipped bit would be another image."""

from __future__ import annotations

import zlib

from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_png(content: bytes) -> None:
    """Raises ImageError for a chunk that is cut or whose CRC-32 differs. What follows IEND is ignored; no PNG is left alone."""
    if not content.startswith(SIGNATURE):
        return
    view, begin = memoryview(content), len(SIGNATURE)
    while begin < len(content):
        length, kind = int.from_bytes(view[begin : begin + 4], "big"), content[begin + 4 : begin + 8]
        end = begin + 8 + length
        if end + 4 > len(content):
            raise ImageError("broken or truncated image: a chunk of the PNG is cut")
        if zlib.crc32(view[begin + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ImageError(f"broken PNG: the checksum of its chunk {kind!r} differs, so at least one bit does")
        if kind == b"IEND":
            return
        begin = end + 4
