#!/usr/bin/env bash
# A VOI LUT with entries of 8 bits turns 12-bit films into noise in pydicom: inputs wrap at 256, silently.
#
# Versions: pydicom 3.0.2 with numpy 2.4.6 on Python 3.11; pydicom 2.4.4 is the same.
#
# Expected: a table of 4096 entries of 8 bits (LUT Descriptor 4096\0\8) maps 12-bit values to gray levels. PS3.3 C.11.2.1.1:
# the first value is the number of entries, up to 65536; the third is the bits of an entry, 8 or 16 in an image. An input above
# the last one mapped gets the last entry.
#
# Instead: the positions in the table are kept in an array of the entries' type, so position 256 becomes 0, and 2048 too. With a
# table of 256 entries, inputs above 255 wrap too, instead of getting the last entry. There is no error and no warning. With 16
# bits for each entry both tables are right.
#
# Output seen:
#   input                      0   255   256  1024  2048  4095
#   4096 entries of 16 bits    0    15    16    64   128   255
#   4096 entries of 8 bits     0    15     0     0     0    15
#   256 entries of 16 bits     0   255   255   255   255   255
#   256 entries of 8 bits      0   255     0     0     0   255
#
# Why it matters: white becomes black in bands of 256 values, in the one step between stored values and gray levels. Whoever
# prepares such films has to look the entries up with indices of their own.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6

cat > "$work/show.py" <<'PY'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut

film = np.array([0, 255, 256, 1024, 2048, 4095], dtype=np.uint16)
print(f"{'input':22}" + "".join(f"{value:6}" for value in film))


def shown(entries, bits):
    data, item = Dataset(), Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 12, 0
    item.LUTDescriptor = [len(entries), 0, bits]
    item.add_new("LUTData", "US", entries)
    data.VOILUTSequence = [item]
    out = apply_voi_lut(film, data).tolist()
    print(f"{f'{len(entries)} entries of {bits} bits':22}" + "".join(f"{value:6}" for value in out))
    return out


long, short = [value // 16 for value in range(4096)], list(range(256))
assert shown(long, 16) == [0, 15, 16, 64, 128, 255]
assert shown(long, 8) == [0, 15, 0, 0, 0, 15]
assert shown(short, 16) == [0, 255, 255, 255, 255, 255]
assert shown(short, 8) == [0, 255, 0, 0, 0, 255]
PY
"$work/venv/bin/python" "$work/show.py"
