"""DICOM files made up for tests: bytes of a film with any attributes, and what pydicom's own functions make of it."""

import io

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

try:
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, convert_color_space
except ImportError:  # pydicom 2
    from pydicom.pixel_data_handlers import apply_modality_lut, apply_voi, apply_windowing, convert_color_space

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
}
DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"
SECRETS = {
    "PatientName": "Quixote^Alonso",
    "PatientID": "MRN-77310",
    "PatientBirthDate": "19310307",
    "PatientAddress": "Lugar de la Mancha",
    "StudyDate": "20190823",
    "AccessionNumber": "ACC-55821",
    "InstitutionName": "Hospital Toboso",
    "ReferringPhysicianName": "Panza^Sancho",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.7771",
    "WindowCenterWidthExplanation": "for Quixote",
}


def film(pixels, bits=None, syntax="explicit", kind="MONOCHROME2", meta=True, **attributes):
    """The bytes of a file. pixels: (rows, columns) or (rows, columns, 3); attributes of None are left out of it."""
    pixels = np.asarray(pixels)
    uid = SYNTAXES.get(syntax, syntax)
    data = FileDataset(None, {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    data.file_meta.MediaStorageSOPClassUID = DIGITAL_XRAY
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = uid
    data.SOPClassUID, data.SOPInstanceUID = DIGITAL_XRAY, generate_uid()
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = kind
    data.Rows, data.Columns = pixels.shape[:2]
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if uid == ExplicitVRBigEndian else "<"
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB" if data.BitsAllocated == 8 else "OW"
    for name, value in attributes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return written(data, meta)


def written(data, meta=True):
    uid = data.file_meta.TransferSyntaxUID
    out = io.BytesIO()
    if pydicom.__version__[0] == "2":
        data.is_little_endian, data.is_implicit_VR = uid != ExplicitVRBigEndian, uid == ImplicitVRLittleEndian
        pydicom.dcmwrite(out, data, write_like_original=False)
    else:
        pydicom.dcmwrite(out, data, enforce_file_format=True)
    content = out.getvalue()
    if meta:
        return content
    return content[132 + 12 + int.from_bytes(content[140:144], "little") :]


def read(content):
    return pydicom.dcmread(io.BytesIO(content), force=True)


def table(entries, first, bits, data=None):
    """A LUT sequence of one item."""
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 2**16, first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    if data is None:
        item.add_new("LUTData", "US", [int(value) for value in entries])
    else:
        item.add_new("LUTData", "OW", data)
    item.ModalityLUTType = "US"
    return [item]


def pydicom_brightness(data, values):
    """What pydicom's windows make of values, from 0 to 1: its output range follows from the bits and the rescale slope."""
    out = apply_windowing(values, data)
    low, high = (-(2 ** (data.BitsStored - 1)), 2 ** (data.BitsStored - 1) - 1) if data.PixelRepresentation else (0, 2**data.BitsStored - 1)  # fmt: skip
    if "RescaleSlope" in data:
        low, high = (end * float(data.RescaleSlope) + float(data.RescaleIntercept) for end in (low, high))
    return (out - low) / (high - low)


__all__ = ["SECRETS", "SYNTAXES", "apply_modality_lut", "apply_voi", "convert_color_space", "film", "pydicom_brightness", "read", "table", "written"]  # fmt: skip
