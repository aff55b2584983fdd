#!/usr/bin/env bash
# kornia_rs decodes an image with Python's global lock held: threads that decode with it wait for one another.
#
# Versions: kornia_rs 0.2.0, Pillow 13.0.0, numpy 2.4.6, Python 3.11.
#
# Expected: a decoder in Rust that takes bytes and returns an array releases the lock while it works, as Pillow's does. A pool of
# threads then decodes on all cores.
#
# Instead: no other thread runs Python while kornia_rs decodes. A thread that only counts stands still for the whole of a PNG of
# 4096 x 4096 pixels; beside Pillow's decoder it goes on.
#
# Output seen (counts of a thread that sleeps half a millisecond each time, while one image is decoded):
#   Pillow     287 counts in 196 ms
#   kornia_rs    4 counts in  68 ms
#
# Why it matters: kornia_rs is the faster decoder of the two in one thread, and the slower one in a pool of many threads: on 16 cores,
# PNGs of 1024 x 1024 pixels, at most 228 images/s against 779 (8 to 32 threads). Decode with it in processes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet kornia_rs==0.2.0 pillow==13.0.0 numpy==2.4.6

cat > "$work/show.py" <<'PY'
import io
import threading
import time

import numpy as np
from kornia_rs.io import decode_image_png_u8
from PIL import Image

side = 4096
noise = np.random.default_rng(0).integers(0, 40, (side, side), dtype=np.uint8)
file = io.BytesIO()
Image.fromarray(noise).save(file, "PNG", compress_level=1)
content = file.getvalue()


def with_pillow():
    image = Image.open(io.BytesIO(content))
    image.load()
    return np.asarray(image)


def with_kornia():
    return np.asarray(decode_image_png_u8(content, (side, side), "mono")).reshape(side, side)


def counted(name, decode):
    """Counts of another thread a second, while decode works."""
    counts, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            time.sleep(0.0005)
            counts[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    time.sleep(0.05)
    before, begin = counts[0], time.perf_counter()
    pixels = decode()
    seconds, found = time.perf_counter() - begin, counts[0] - before
    stop.set()
    thread.join()
    assert (pixels == noise).all()
    print(f"{name:9} {found:4} counts in {1000 * seconds:3.0f} ms")
    return found / seconds


pillow, kornia = counted("Pillow", with_pillow), counted("kornia_rs", with_kornia)
assert pillow > 10 * kornia
PY
"$work/venv/bin/python" "$work/show.py"
