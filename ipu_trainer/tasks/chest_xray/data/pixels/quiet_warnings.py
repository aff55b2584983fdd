"""No warnings of image libraries while files are decoded, from any number of threads.

`warnings.catch_warnings` alone restores the filters of another thread. Here the first thread that decodes silences, and the last
one restores.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from typing import Iterator

from PIL import Image

_lock = threading.Lock()
_decoding = 0
_restore = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore Pillow's warning of large images, because these are refused, and all that pydicom and its plugins say of odd files."""
    global _decoding
    with _lock:
        if not _decoding:
            _restore.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"(pydicom|pylibjpeg|libjpeg|openjpeg|rle)(\.|$)")
            log = logging.getLogger("pydicom")
            _restore.callback(setattr, log, "disabled", log.disabled)
            log.disabled = True
        _decoding += 1
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if not _decoding:
                _restore.close()
