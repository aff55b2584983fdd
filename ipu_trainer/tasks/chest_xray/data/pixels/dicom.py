"""DICOM: the bytes of a file to the values of its film and what the file says about them, or the reason why it is no film.

Only attributes that describe pixels are read, and no text of a file gets into a message, so that names and dates of patients stay
where they are. docs/dicom.md lists the steps with their places in the standard.
"""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import Any, Iterable, Union

from PIL import Image

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.pixels.dicom_checks import (
    MONOCHROME,
    REQUIRED,
    known_name,
    refuse_deflated_bomb,
    refuse_other_lengths,
    refuse_other_objects,
    refuse_other_pixels,
)
from ipu_trainer.tasks.chest_xray.data.pixels.dicom_values import coded, colored
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError
from ipu_trainer.tasks.chest_xray.data.pixels.pydicom_releases import decoded_pixels, has_decoder, read_encoding
from ipu_trainer.tasks.chest_xray.data.pixels.quiet_warnings import quiet
from ipu_trainer.tasks.chest_xray.data.pixels.window import CodedImage

SUFFIXES = frozenset({".dcm", ".dicom"})
EXTRA = "pip install 'ipu-trainer[dicom]'"
_MAGIC_AT = 128


def check_paths(paths: Iterable[str], in_place: bool) -> None:
    """Raises UserError if a file is DICOM by its name and pydicom is not installed, or in_place is asked for."""
    first = next((path for path in paths if os.path.splitext(path)[1].lower() in SUFFIXES), None)
    if first is not None and importlib.util.find_spec("pydicom") is None:
        raise UserError(f"{first} is a DICOM file, and pydicom, which reads it, is not installed: {EXTRA}")
    if first is not None and in_place:
        raise UserError(
            f"--in_place writes metadata for imagefolder, which reads no DICOM files such as {first}. Leave it out."
        )


def is_dicom(content: bytes) -> bool:
    """Whether a file begins as PS3.10 7.1 says."""
    return content[_MAGIC_AT : _MAGIC_AT + 4] == b"DICM"


def may_be_dicom(content: bytes) -> bool:
    """Whether a file begins with a data element of group 2 or 8, as DICOM files without preamble do."""
    return content[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08") and len(content) > _MAGIC_AT


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM by its content and no directory of others (DICOMDIR); for names that do not say."""
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return is_dicom(file.read(_MAGIC_AT + 4))
    except PermissionError:
        return True  # decoding names it, where leaving it out would say nothing
    except OSError:
        return False


def open_dicom(content: bytes) -> Union[CodedImage, Image.Image]:
    """The film in a DICOM file: a CodedImage, or an image of mode "RGB" if the file has colors.

    Raises ImageError with the reason.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise ImageError(f"a DICOM file, and pydicom, which reads it, is not installed: {EXTRA}")
    # pydicom and its plugins raise any type for a broken file; their messages repeat text of the file, so they are dropped.
    with quiet():
        try:
            dataset = _read(content)
            refuse_other_objects(dataset)
            refuse_other_pixels(dataset)
            refuse_other_lengths(dataset)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise ImageError(f"broken or truncated DICOM file ({type(error).__name__})") from None
        syntax = dataset.file_meta.TransferSyntaxUID
        if not has_decoder(syntax):
            raise ImageError(f"no decoder for the transfer syntax {known_name(syntax)} is installed: {EXTRA}")
        try:
            pixels = decoded_pixels(dataset)
        except (MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of pylibjpeg-rle, which is written in Rust, is no Exception
            hint = f", or no decoder for this kind of it: {EXTRA}" if syntax.is_compressed else ""
            raise ImageError(
                f"broken or truncated pixel data ({known_name(syntax)}, {type(error).__name__}){hint}"
            ) from None
        try:
            kind = dataset.PhotometricInterpretation
            if kind in MONOCHROME and pixels.ndim != 2:
                raise ImageError(f"{pixels.shape[0]} frames: one film is read")
            return coded(dataset, pixels) if kind in MONOCHROME else colored(dataset, pixels)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise ImageError(f"broken lookup table or window in a DICOM file ({type(error).__name__})") from None


def _read(content: bytes) -> Any:
    """The data set, with a transfer syntax. Raises ImageError for bytes that only begin like one."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if is_dicom(content):
        refuse_deflated_bomb(content)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if not is_dicom(content) and not all(name in dataset for name in (*REQUIRED, "PixelData")):
        raise ImageError("not an image")
    if "TransferSyntaxUID" not in (getattr(dataset, "file_meta", None) or ()):
        implicit, little = read_encoding(dataset)
        syntaxes = {True: ImplicitVRLittleEndian, False: ExplicitVRLittleEndian}
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntaxes[implicit] if little else ExplicitVRBigEndian
    return dataset
