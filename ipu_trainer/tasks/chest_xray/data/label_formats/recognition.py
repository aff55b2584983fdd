"""Which format a data set has, from its files and columns, and the reader of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from ipu_trainer.errors import MissingFileError, UserError
from ipu_trainer.tasks.chest_xray.data.label_formats import chexpert, imagefolder, mimic, nih, padchest, rsna, vindr
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import TableFile, is_table
from ipu_trainer.tasks.chest_xray.data.text_files import open_text


@dataclass(frozen=True)
class TableFormat:
    """A format whose labels are a table. recognises it by its columns; reads it with the folder of the images and the choices."""

    recognises: Callable[[TableFile], bool]
    reads: Callable[[TableFile, Path, LabelChoices], Labels]


# By the name that --format gives. The first that recognises a table reads it.
TABLES: Dict[str, TableFormat] = {
    "chexpert": TableFormat(chexpert.is_chexpert, chexpert.read_chexpert),
    "chexpert-plus": TableFormat(chexpert.is_chexpert_plus, chexpert.read_chexpert_plus),
    "mimic": TableFormat(mimic.is_mimic, lambda table, _, choices: mimic.read_mimic(table, choices)),
    "padchest": TableFormat(padchest.is_padchest, lambda table, _, choices: padchest.read_padchest(table, choices)),
    "vindr": TableFormat(vindr.is_vindr, vindr.read_vindr),
    "rsna": TableFormat(rsna.is_rsna, lambda table, _, choices: rsna.read_rsna(table, choices)),
    "nih": TableFormat(nih.is_nih, lambda table, _, choices: nih.read_nih(table, choices)),
}
IMAGEFOLDER, COLUMNS = "imagefolder", "columns"
FORMATS = ("auto", IMAGEFOLDER, COLUMNS, *TABLES)


def read_labels(
    csv_path: Optional[Path], images: Path, choices: LabelChoices, wanted: str = "auto", tables: Sequence[Path] = ()
) -> Labels:
    """Labels of csv_path, or of the label files in the folder of the images (tables, as label_files finds them).

    Raises UserError if wanted is another format than the columns show, or if there are no labels.
    """
    if csv_path is None:
        found = tuple(tables) or label_files(images, wanted)
        if found[0].name in imagefolder.METADATA_NAMES:
            return imagefolder.read_imagefolder(found, images, choices)
        csv_path = found[0]
    if wanted == IMAGEFOLDER or (wanted == "auto" and csv_path.name.endswith((".jsonl", ".json"))):
        return imagefolder.read_imagefolder([csv_path], images, choices)
    table = TableFile(csv_path)
    key = format_of(table)
    if wanted not in ("auto", key, COLUMNS):
        raise UserError(
            f"--format {wanted}: {csv_path} has not its columns{f', but those of {key}' if key else ''}. Its columns: "
            f"{', '.join(table.header)}. Leave --format out, or give the table of that data set."
        )
    reader = None if wanted == COLUMNS or key is None else TABLES[key]
    if reader is not None:
        labels = reader.reads(table, images, choices)
        labels.header = table.header
        return labels
    if csv_path.name in imagefolder.METADATA_NAMES and wanted == "auto":
        return imagefolder.read_imagefolder([csv_path], images, choices)
    labels = nih.read_nih(table, choices)
    labels.header = table.header
    return labels


def check_format(name: str) -> None:
    """Raises UserError for a name that is none of FORMATS."""
    if name not in FORMATS:
        raise UserError(f"--format {name!r} is not one of {', '.join(FORMATS)}.")


def format_of(table: TableFile) -> Optional[str]:
    return next((key for key, known in TABLES.items() if known.recognises(table)), None)


def label_files(images: Path, wanted: str = "auto") -> Tuple[Path, ...]:
    """The files in (or below) a folder of images that hold its labels: metadata files, or the table of one known format.

    A table counts before the metadata that `prepare --in_place` made of it, which do not name their findings.

    Raises MissingFileError if there is none, UserError if there are tables of several formats.
    """
    check_format(wanted)
    metadata = imagefolder.find_metadata(images) if wanted in ("auto", IMAGEFOLDER) else []
    found: Dict[str, List[Path]] = {}
    for path in sorted(images.iterdir()):
        if is_table(path):
            key = _format_of_file(path)
            if key is not None and wanted in ("auto", key):
                found.setdefault(key, []).append(path)
    if metadata and not (found and all(map(imagefolder.is_written_in_place, metadata))):
        return tuple(metadata)
    if not found:
        raise MissingFileError(
            f"{images} has neither metadata.jsonl or metadata.csv nor a label table that is known. Give the table: --csv FILE."
        )
    if len(found) > 1:
        raise UserError(
            f"{images} has tables of several formats ({', '.join(sorted(found))}). Say which: --csv FILE, or --format NAME."
        )
    ((key, paths),) = found.items()
    return (_first_of(key, paths),)


def _first_of(key: str, paths: Sequence[Path]) -> Path:
    """The table that is read where a data set has several: that of the training part, and of CheXpert's labeller."""
    named_so = [path for path in paths if path.name.split(".")[0] == "train"]
    preferred = [path for path in paths if "train" in path.name or "chexpert" in path.name]
    chosen = named_so or preferred or list(paths)
    if len(chosen) > 1:
        raise UserError(
            f"several tables of the format {key}: {', '.join(str(path) for path in chosen)}. Say which: --csv FILE."
        )
    return chosen[0]


def _format_of_file(path: Path) -> Optional[str]:
    try:
        with open_text(path) as text:
            if not text.readline().strip():
                return None
        return format_of(TableFile(path))
    except UserError:
        return None
