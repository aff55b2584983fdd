"""A Hugging Face data set, on disk (save_to_disk) or by name: a column of images, and the columns that an imagefolder may have.

    image: Image, labels: Sequence(ClassLabel), Sequence(string) or Sequence(float) (N-hot), patient_id: string, ...

Its splits are kept. The image files are written out as they are stored in it, one split a folder, because preparation reads files.
"""

from __future__ import annotations

import inspect
import io
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError, user_input
from ipu_trainer.tasks.chest_xray.data.label_formats.imagefolder import column_of, records_of_rows
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, Labels
from ipu_trainer.tasks.chest_xray.data.text_files import base_name

FILE_NAME = "file_name"


class ImageDataset:
    """The splits of a data set whose images are named by split, position and, where they have one, their own name."""

    def __init__(self, name: str) -> None:
        self.name = name
        # A saved data set may name files; those outside of its folder are not read.
        self._root = Path(name).resolve() if _is_saved(Path(name)) else None
        self._parts = _load(name)
        first = next(iter(self._parts.values()))
        self._image = _image_column(first, name)
        self._label = column_of("labels", first.column_names)
        self._names: Dict[str, List[str]] = {}  # of the files of a split, once they are written

    def __iter__(self) -> Iterator[Tuple[int, Dict[str, Any]]]:
        for part, rows in self._parts.items():
            kept = rows.remove_columns([name for name in rows.column_names if name in (self._image, FILE_NAME)])
            for position, row in enumerate(kept if kept.column_names else [{}] * len(rows)):
                if self._label is not None:
                    row[self._label] = self._names_of(rows, row[self._label])
                yield position, {FILE_NAME: self._names[part][position], "split": part, **row}

    def identity(self) -> List[Any]:
        """What tells this data set from another one of its name."""
        return [
            [part, len(rows), str(rows.features), [_size_and_time(item["filename"]) for item in rows.cache_files]]
            for part, rows in self._parts.items()
        ]

    def write_images(self, folder: Path) -> None:
        """Write the stored files below folder. Those that an interrupted preparation wrote are not written again."""
        import datasets

        for part, rows in self._parts.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            names = self._names[part] = []
            stored = rows.cast_column(self._image, datasets.Image(decode=False)).select_columns([self._image])
            for position, row in enumerate(stored):
                content = _content(row[self._image], f"--dataset {self.name}, {part} {position}", self._root)
                name = f"{part}/{position:07d}-{_file_name(row[self._image], content)}"
                names.append(name)
                target = folder / name
                if not target.is_file() or target.stat().st_size != len(content):
                    target.write_bytes(content)

    def _names_of(self, rows: Any, value: Any) -> Any:
        """Class numbers become the names of the classes."""
        feature = rows.features[self._label]
        inner = getattr(feature, "feature", feature)
        if isinstance(feature, list) and len(feature) == 1:
            inner = feature[0]
        if value is None or not hasattr(inner, "int2str"):
            return value
        if value == -1:  # a row without a label
            return None
        with user_input():
            return [inner.int2str(int(number)) for number in (value if isinstance(value, (list, tuple)) else [value])]


def read_dataset(dataset: ImageDataset, choices: LabelChoices, table: Path) -> Labels:
    """Labels of a data set whose images are written."""
    labels = Labels(f"Hugging Face data set {dataset.name}", table, iter(()), last_part_is_unique=False)
    labels.records = records_of_rows(dataset, choices, labels)
    return labels


def _load(name: str) -> Dict[str, Any]:
    import datasets

    folder = Path(name)
    with user_input():
        if _is_saved(folder):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, **_without_scripts(name))
    parts = dict(found.items()) if isinstance(found, dict) else {str(found.split or "train"): found}
    unsafe = [part for part in parts if re.fullmatch(r"[\w.-]+", part) is None or part.startswith(".")]
    if unsafe or not any(map(len, parts.values())):
        raise UserError(f"--dataset {name} has {'the splits ' + ', '.join(unsafe) if unsafe else 'no rows'}.")
    return {part: rows for part, rows in parts.items() if len(rows)}


def _without_scripts(name: str) -> Dict[str, Any]:
    """Options of load_dataset that run no code of the data set. Raises UserError where this release of datasets has none.

    datasets 4 has no scripts; before 2.16 it runs that of a repository or folder without a question.
    """
    import datasets

    if int(datasets.__version__.split(".")[0]) >= 4:
        return {}
    if Path(name).is_dir() and not list(Path(name).glob("*.py")):
        return {}
    if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters and not Path(name).is_dir():
        return {"trust_remote_code": False}
    raise UserError(
        f"--dataset {name}: datasets {datasets.__version__} runs the program of a data set that has one, and this command runs "
        "no code from data. Save it with datasets 4 or later (save_to_disk), and give that folder."
    )


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _image_column(rows: Any, name: str) -> str:
    import datasets

    found = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        raise UserError(
            f"--dataset {name} has {len(found)} columns of images, and one is read. Its columns: {', '.join(rows.column_names)}."
        )
    return str(found[0])


def _content(image: Optional[Dict[str, Any]], place: str, root: Optional[Path]) -> bytes:
    if image is not None and image.get("bytes"):
        return bytes(image["bytes"])
    if image is None or not image.get("path"):
        return b""  # an empty file, which decoding rejects by name
    path = Path(image["path"])
    if root is not None and root not in path.resolve().parents:
        raise UserError(f"{place}: its image {path} lies outside of the data set. Save the data set with its images.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{place}: its image {image['path']} cannot be read ({error.strerror}).") from error


def _file_name(image: Optional[Dict[str, Any]], content: bytes) -> str:
    """The name that the data set keeps, without folders; else one with the suffix of the format."""
    from PIL import Image

    name = base_name(str((image or {}).get("path") or ""))
    name = re.sub(r"[^\w. -]", "_", name)[-100:]
    if os.path.splitext(name)[1]:
        return name
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return f"image.{(opened.format or 'png').lower()}"
    except (OSError, ValueError):
        return "image.png"


def _size_and_time(path: str) -> Sequence[Any]:
    found = Path(path).stat()
    return Path(path).name, found.st_size, found.st_mtime_ns
