#!/usr/bin/env bash
# A rescale slope below zero turns a film round, and pydicom's window turns it back.
#
# Versions: pydicom 3.0.2 with numpy 2.4.6 on Python 3.11; pydicom 2.4.4 is the same.
#
# Expected: a window is a function of the values after the modality LUT (PS3.3 C.11.2.1.2: the smaller values get the smaller
# output). Two files whose rescaled values are the same, with the same window, look the same, whatever slope led there. PS3.4
# N.2.1.4 speaks of negative slopes of the modality LUT.
#
# Instead: apply_windowing rescales the ends of its output range by the slope too. With a negative one the smallest output is
# the largest number, and the film comes out inverted. Without a window it is right.
#
# Output seen:
#   rescaled values            0  1000  4095
#   window, slope  1           0  1000  4095
#   window, slope -1        4095  3095     0
#
# Why it matters: the same film is upright or a negative, depending on a window that spans all of its values.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6

cat > "$work/show.py" <<'PY'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

wanted = np.array([0, 1000, 4095], dtype=np.uint16)


def line(name, values):
    print(f"{name:22}" + "".join(f"{value:6.0f}" for value in values))


def shown(slope, intercept):
    data = Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 12, 0
    data.RescaleSlope, data.RescaleIntercept = slope, intercept
    stored = wanted if slope > 0 else 4095 - wanted
    values = apply_modality_lut(stored, data)
    assert values.tolist() == apply_voi_lut(values, data).tolist() == wanted.tolist()  # without a window
    data.WindowCenter, data.WindowWidth = 2048, 4096  # all values from 0 to 4095
    out = np.rint(apply_voi_lut(values, data)).tolist()
    line(f"window, slope {slope:2}", out)
    return out


line("rescaled values", wanted)
assert shown(1, 0) == [0, 1000, 4095]
assert shown(-1, 4095) == [4095, 3095, 0]
PY
"$work/venv/bin/python" "$work/show.py"
