"""The CSV of `ipu-trainer predict`, written with little memory for any number of images, and resumed after a kill.

Predictions are appended to a file beside the CSV, one JSON line an image. The CSV appears whole, when all of them are there.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Sequence, TextIO

from tqdm import tqdm

from ipu_trainer.atomic import atomic_path
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError
from ipu_trainer.tasks.chest_xray.predict import RunPredictor, above_threshold
from ipu_trainer.tasks.output_guard import check_output_file, is_prediction_table

_LINES_BETWEEN_FLUSHES = 64


def predict_to_csv(
    predictor: RunPredictor, paths: Sequence[str], output: Path, progress: bool = True
) -> Dict[str, str]:
    """Write output: file_name, findings (as "Edema|Mass"), and a probability a finding. Returns reasons by rejected file.

    The same call goes on after an interruption if run, settings and files are the same. Raises UserError if output exists and
    is no such file, or while another process writes it.
    """
    header = ["file_name", "findings", *(f"probability_{name}" for name in predictor.findings)]
    check_output_file(output, is_prediction_table)
    output.parent.mkdir(parents=True, exist_ok=True)
    rejected: Dict[str, str] = {}
    with _partial_file(output, _identity(predictor, paths)) as partial:
        done = _complete_lines(partial)
        remaining = predictor.stream(itertools.islice(paths, done, None))
        with tqdm(total=len(paths), initial=done, unit="image", desc="predicting", disable=not progress) as bar:
            for number, (path, outcome) in enumerate(remaining):
                if isinstance(outcome, ImageError):
                    row: List[Optional[str]] = [path, str(outcome)]
                else:
                    found = above_threshold(outcome.tolist(), predictor.findings, predictor.thresholds)
                    row = [path, None, "|".join(found), *(f"{value:.6f}" for value in outcome)]
                partial.write(json.dumps(row).encode() + b"\n")
                if number % _LINES_BETWEEN_FLUSHES == 0:
                    partial.flush()
                bar.update()
        partial.seek(0)
        with atomic_path(output) as temporary, _text_file(temporary) as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(header)
            for path, reason, *cells in map(json.loads, partial):
                if reason is None:
                    writer.writerow([path, *cells])
                else:
                    rejected[path] = reason
    return rejected


def _text_file(path: Path) -> TextIO:
    """For names of files in whatever encoding."""
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


@contextlib.contextmanager
def _partial_file(output: Path, identity: str) -> Iterator[BinaryIO]:
    """The file of predictions so far, which is removed once the block ends well. Those of other settings stay."""
    partial = output.with_name(f".{output.name}.{identity}.partial")
    for other in output.parent.glob(f".{output.name}.*.partial"):  # of an interrupted command, which may go on later
        if other != partial:
            with other.open("r+b") as file:
                _lock(file, output)
    with partial.open("a+b") as file:
        _lock(file, output)
        yield file
    partial.unlink()


def _lock(file: BinaryIO, output: Path) -> None:
    """For this process alone: flock's lock would outlive a kill in the decoding processes."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(f"another process is writing {output}. Wait for it, or give another --output.") from error
    except OSError:  # a file system without locks
        return


def _complete_lines(partial: BinaryIO) -> int:
    """The number of lines; one that a kill left half written is cut off."""
    partial.seek(0)
    complete, end = 0, 0
    for line in partial:
        if not line.endswith(b"\n"):
            break
        complete, end = complete + 1, end + len(line)
    partial.truncate(end)
    partial.seek(end)
    return complete


def _identity(predictor: RunPredictor, paths: Sequence[str]) -> str:
    """A hash of what decides the rows: the run, how images are read, and the files with their sizes and times."""
    digest = hashlib.blake2b(digest_size=8)
    run = predictor.run.folder
    settings: Any = [
        str(run.resolve()),
        predictor.predictor.precision,
        predictor.decoding.to_dict(),
        predictor.thresholds,
    ]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in itertools.chain(sorted(str(file) for file in run.glob("*.safetensors")), paths):
        try:
            status = Path(path).stat()
            text = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0"
        except OSError:
            text = f"{path}\0missing\0"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
