"""What is refused of a DICOM file before its pixels are decoded: other objects, other pixels, other lengths and sizes."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Iterator, Optional, Tuple

from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import MAX_PIXELS, ImageError, refuse_bomb

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
PALETTE = "PALETTE COLOR"
REQUIRED = ("SOPClassUID", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_AT = 132  # behind preamble and magic, PS3.10 7.1
_MAX_BYTES = 16 * MAX_PIXELS  # of a deflated data set once it is inflated


def refuse_deflated_bomb(content: bytes) -> None:
    """Inflate a deflated data set (PS3.5 A.5) up to the size of the largest film, before pydicom inflates all of it."""
    start = _META_AT
    if (
        content[start : start + 8] != b"\x02\x00\x00\x00UL\x04\x00"
    ):  # the length of the file meta information, PS3.10 7.1
        return
    end = start + 12 + struct.unpack("<I", content[start + 8 : start + 12])[0]
    if _DEFLATED not in content[start:end]:
        return
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    size, rest = 0, content[end:]
    while rest and size <= _MAX_BYTES:
        size += len(inflating.decompress(rest, 1 << 20))
        rest = inflating.unconsumed_tail
    if size > _MAX_BYTES:
        raise ImageError(f"too large: the deflated data set has more than {_MAX_BYTES:,} bytes")


def refuse_other_objects(dataset: Any) -> None:
    """Raises ImageError for what is no single image."""
    if any(name in dataset for name in ("FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError("floating-point pixel data are not read")
    if "PixelData" not in dataset:
        kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        if "Rows" in dataset:
            raise ImageError(f"truncated: an image ({known_name(kind)}) without pixel data")
        raise ImageError(f"no image: a DICOM object without pixel data ({known_name(kind)})")
    missing = [name for name in REQUIRED[1:] if dataset.get(name) is None]
    if missing:
        raise ImageError(f"broken DICOM file: no {missing[0]}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"multi-frame: {frames:,} images in one file, where one is read")
    if "SharedFunctionalGroupsSequence" in dataset:
        raise ImageError(f"an enhanced multi-frame object ({known_name(dataset.SOPClassUID)}) is not read")


def refuse_other_pixels(dataset: Any) -> None:
    """Raises ImageError for sizes, colors and bits that no film has."""
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), samples_of(dataset)
    if rows < 1 or columns < 1:
        raise ImageError(f"broken DICOM file: {columns} x {rows} pixels")
    refuse_bomb((columns, rows))
    kind = dataset.PhotometricInterpretation
    if kind not in (*MONOCHROME, *COLORS, PALETTE):
        raise ImageError(f"a photometric interpretation other than {', '.join((*MONOCHROME, *COLORS, PALETTE))}")
    if samples != (3 if kind in COLORS else 1):
        raise ImageError(f"broken DICOM file: {samples} samples per pixel with {kind}")
    allocated, stored, high = bits_of(dataset)
    if allocated not in (1, 8, 16):
        raise ImageError(f"{allocated} bits per pixel: 1, 8 and 16 are read")
    if not 1 <= stored <= allocated or high != stored - 1:
        raise ImageError(f"{stored} bits stored of {allocated} with high bit {high}: PS3.5 8.1.1 has bits stored - 1")


def refuse_other_lengths(dataset: Any) -> None:
    """Raises ImageError for pixel data of another length than the file declares, and frames of another size."""
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), samples_of(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        bits = rows * columns * samples * bits_of(dataset)[0]
        needed = -(-bits // 8) * 2 // 3 if dataset.PhotometricInterpretation == "YBR_FULL_422" else -(-bits // 8)
        if len(dataset.PixelData) < needed:
            raise ImageError(f"truncated: {len(dataset.PixelData):,} bytes of pixel data, {needed:,} are declared")
        if len(dataset.PixelData) >= 2 * max(needed, 2):
            raise ImageError(f"{len(dataset.PixelData):,} bytes of pixel data, {needed:,} a frame: one film is read")
        return
    frame = b"".join(list(_fragments(dataset.PixelData))[1:])  # the first item is the offset table
    found = _jpeg_size(frame) or _jpeg2000_size(frame)
    if found is not None and found != (columns, rows, samples):
        raise ImageError(
            f"the compressed image has {found[0]} x {found[1]} pixels of {found[2]} samples, the file declares {columns} x {rows} "
            f"of {samples}"
        )


def _fragments(pixel_data: bytes) -> Iterator[bytes]:
    """The items of encapsulated pixel data (PS3.5 A.4)."""
    position = 0
    while pixel_data[position : position + 4] == b"\xfe\xff\x00\xe0":
        length = struct.unpack("<I", pixel_data[position + 4 : position + 8])[0]
        if position + 8 + length > len(pixel_data):
            raise ImageError("truncated: a fragment of the pixel data ends early")
        yield pixel_data[position + 8 : position + 8 + length]
        position += 8 + length


def _jpeg_size(frame: bytes) -> Optional[Tuple[int, int, int]]:
    """(width, height, samples) in the first frame header of a JPEG or JPEG-LS stream; None for other streams."""
    position = 2
    while frame[:2] == b"\xff\xd8" and position + 9 < len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width, samples = struct.unpack(">HHB", frame[position + 5 : position + 10])
            return width, height, samples
        position += 2 + struct.unpack(">H", frame[position + 2 : position + 4])[0]
    return None


def _jpeg2000_size(frame: bytes) -> Optional[Tuple[int, int, int]]:
    """(width, height, samples) in the SIZ segment of a JPEG 2000 codestream; None for other streams."""
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 42 > len(frame):
        return None
    right, bottom, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
    return right - left, bottom - top, struct.unpack(">H", frame[start + 40 : start + 42])[0]


def samples_of(dataset: Any) -> int:
    return int(dataset.get("SamplesPerPixel") or 1)


def bits_of(dataset: Any) -> Tuple[int, int, int]:
    """Bits allocated and stored, and the high bit; the last two follow from the others where they are missing."""
    allocated = int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored") or allocated)
    high = dataset.get("HighBit")
    return allocated, stored, stored - 1 if high is None else int(high)


def known_name(uid: Any) -> str:
    """The name of a UID in the standard; other UIDs are not printed."""
    name = str(getattr(uid, "name", "") or "")
    return name if name and name != str(uid) else "unknown kind"
