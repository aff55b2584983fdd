#!/usr/bin/env bash
# pydicom's display functions leave a MONOCHROME1 film negative, unless it also has a Presentation LUT Shape.
#
# Versions: pydicom 3.0.2, numpy 2.4.6, Python 3.11. pydicom 2.4.4 has no presentation function at all.
#
# Expected: two files of the same film, one MONOCHROME2 and one MONOCHROME1 (the same array, subtracted from white), look
# the same after apply_modality_lut, apply_voi_lut and apply_presentation_lut, pydicom's three steps to P-values. PS3.3
# C.7.6.3.1.2: in MONOCHROME1 "the minimum sample value is intended to be displayed as white after any VOI gray scale
# transformations have been performed". The attribute is of type 1: every image has it.
#
# Instead: Photometric Interpretation is never read. Only Presentation LUT Shape INVERSE inverts. It is absent from most
# CR and secondary capture objects, and these come out as negatives: dark bones on white air.
#
# Output seen:
#   MONOCHROME2, shape absent     0 ... 4095
#   MONOCHROME2, shape IDENTITY   0 ... 4095
#   MONOCHROME1, shape absent     4095 ... 0
#   MONOCHROME1, shape INVERSE    0 ... 4095
#   MONOCHROME1, shape IDENTITY   4095 ... 0
#
# Why it matters: nothing fails. A model trained on a folder of both kinds sees a part of its films inverted. A script that
# inverts MONOCHROME1 by hand after these functions turns those with the shape back into negatives. Devices also write the
# wrong shape (https://github.com/dcm4che/dcm4chee-arc-light/issues/3155), so Photometric Interpretation alone has to decide.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6

cat > "$work/show.py" <<'PY'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut

film = np.array([[0, 1000, 4095]], dtype=np.uint16)


def shown(kind, shape):
    data = Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = kind, 12, 0
    data.WindowCenter, data.WindowWidth = 2048, 4096
    if shape is not None:
        data.PresentationLUTShape = shape
    stored = 4095 - film if kind == "MONOCHROME1" else film
    out = np.rint(apply_presentation_lut(apply_voi_lut(apply_modality_lut(stored, data), data), data))
    print(f"{kind}, shape {shape or 'absent':9}  {out[0, 0]:.0f} ... {out[0, -1]:.0f}")
    return out.tolist()


right = shown("MONOCHROME2", None)
assert right == [[0, 1000, 4095]]
assert shown("MONOCHROME2", "IDENTITY") == right
assert shown("MONOCHROME1", None) == [[4095, 3095, 0]]
assert shown("MONOCHROME1", "INVERSE") == right
assert shown("MONOCHROME1", "IDENTITY") == [[4095, 3095, 0]]
PY
"$work/venv/bin/python" "$work/show.py"
