"""Splits by patient: all images of a patient are in one of train, validation and test. NIH's lists say which, or a hash.

In a random split of NIH's images, 83.7 % of the validation images show a patient who is also in training, so its scores say
nothing about unseen patients. The hash is of the patient and a seed: adding data never moves a patient.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Container, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.image_folder import IMAGE_SUFFIXES
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import plain_name, without_invisible
from ipu_trainer.tasks.chest_xray.data.label_table import Rejection, Row
from ipu_trainer.tasks.chest_xray.data.text_files import open_text

SPLITS = ("train", "validation", "test")
METHODS = ("official", "given", "by-patient", "by-study", "by-image", "random-images")
# Methods of data sets without patient ids: a patient may be on both sides. given-images is their form of given.
PATIENTS_UNKNOWN = ("by-study", "by-image", "given-images")


class SplitError(UserError):
    """A split with a patient on both sides, or without training images."""


def official_split(
    names: Sequence[str],
    patients: Sequence[str],
    train_val: Container[str],
    test: Container[str],
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> List[str]:
    """NIH's lists, with a part of train_val's patients as validation.

    Raises SplitError if a name is in neither or both lists, or a patient in both.
    """
    check_fraction("validation_fraction", validation_fraction)
    splits: List[str] = []
    side: Dict[str, bool] = {}
    for name, patient in zip(names, patients):
        in_test = name in test
        if in_test == (name in train_val):
            where = "both split lists" if in_test else "neither split list"
            raise SplitError(
                f"{name} is in {where}. Give the lists that belong to this CSV, or use --split by-patient."
            )
        if side.setdefault(patient, in_test) != in_test:
            raise SplitError(f"patient {patient} has images in both split lists (see {name}): use --split by-patient.")
        is_validation = patient_position(patient, seed) < validation_fraction
        splits.append("test" if in_test else "validation" if is_validation else "train")
    return splits


def split_by_patient(
    patients: Sequence[str], validation_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> List[str]:
    """Patient-disjoint train, validation and test. Fractions are of patients, and hold on average."""
    check_fraction("validation_fraction", validation_fraction)
    check_fraction("test_fraction", test_fraction)
    check_fraction("validation_fraction + test_fraction", validation_fraction + test_fraction)
    return [_place(patient_position(patient, seed), validation_fraction, test_fraction) for patient in patients]


def fill_empty_parts(splits: List[str], groups: Sequence[str], fractions: Mapping[str, float], seed: int) -> List[str]:
    """Give each empty part of a small data set, whose fraction is not 0, the group of training that is nearest to it.

    Changes splits; returns the parts that were filled. At least one group stays in training.
    """
    filled = []
    for part, nearest in (("validation", min), ("test", max)):
        training = {group for group, split in zip(groups, splits) if split == "train"}
        if part in splits or not fractions[part] or len(training) < 2:
            continue
        moved = nearest(training, key=lambda group: (patient_position(group, seed), group))
        splits[:] = [part if group == moved else split for group, split in zip(groups, splits)]
        filled.append(part)
    return filled


def split_random_images(
    names: Sequence[str], validation_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> List[str]:
    """By image, as in many tutorials; for comparison only, because patients end up on both sides."""
    check_fraction("validation_fraction + test_fraction", validation_fraction + test_fraction)
    return [_place(patient_position("image:" + name, seed), validation_fraction, test_fraction) for name in names]


def patient_position(patient: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the patient and the seed alone."""
    digest = hashlib.blake2b(f"{seed}:{patient}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2.0**64


def shared_patients(splits: Sequence[str], patients: Sequence[str]) -> Dict[str, int]:
    """For each split the number of images whose patient is also in another split."""
    where: Dict[str, set[str]] = {}
    for split, patient in zip(splits, patients):
        where.setdefault(patient, set()).add(split)
    counts: Dict[str, int] = dict.fromkeys(SPLITS, 0)
    for split, patient in zip(splits, patients):
        counts[split] += len(where[patient]) > 1
    return counts


def refuse_empty_training(splits: Sequence[str], method: str, num_patients: Optional[int] = None) -> None:
    if "train" not in splits:
        raise SplitError(
            f"--split {method} leaves no training image (of {len(splits)} images, {num_patients} patients). "
            "Lower --validation_fraction and --test_fraction, give another --seed, or add data."
        )


def _place(position: float, validation_fraction: float, test_fraction: float) -> str:
    if position < validation_fraction:
        return "validation"
    return "test" if position >= 1.0 - test_fraction else "train"


def check_fraction(name: str, value: float) -> None:
    """Raises SplitError outside of 0 to 1."""
    if not 0.0 <= value < 1.0:
        raise SplitError(f"{name} {value} must be at least 0 and below 1: something must be left for training.")


_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
# A name may contain spaces: it ends with its suffix, followed by a separator or the end of the line.
_NAME = re.compile(rf'\s*"?(?P<name>[^"]*?({_SUFFIXES}))"?(?=$|[\s,;])', re.IGNORECASE)


class SplitList:
    """The images of one list, by name or path: contains a path if either is the end of the other.

    One image a line, alone as in NIH's files, or followed by labels as in other projects.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self._names = {_plain(name) for name in names}
        self._ends = {end for name in self._names for end in _ends(name)}

    def __contains__(self, path: object) -> bool:
        return path in self._ends or any(end in self._names for end in _ends(str(path)))


def read_split_list(path: Path) -> SplitList:
    """Raises UserError if no line begins with an image file name."""
    with open_text(path, "a list of image files") as text:
        lines = [line for line in text.read().splitlines() if line.strip()]
    found = [match.group("name") for match in map(_NAME.match, map(without_invisible, lines)) if match]
    if not found:
        first = f"begins with {lines[0].strip()[:60]!r}" if lines else "is empty"
        raise UserError(
            f"no line of {path} is the name of an image file; it {first}. Give a list with a name such as 00000001_000.png at "
            "the beginning of each line, as NIH's train_val_list.txt and test_list.txt."
        )
    return SplitList(path, found)


def listed_rows(rows: Sequence[Row], train_val: SplitList, test: SplitList) -> Tuple[List[Row], List[Rejection]]:
    """(rows in exactly one list, rejections of the others). Raises UserError if no row is in any list."""
    kept: List[Row] = []
    rejections: List[Rejection] = []
    for row in rows:
        in_train_val, in_test = row.path in train_val, row.path in test
        if in_train_val == in_test:
            rejections.append(
                Rejection(row.path, row.line, f"in {'both split lists' if in_test else 'neither split list'}")
            )
        else:
            kept.append(row)
    if rows and not kept and not any("both" in item.reason for item in rejections):
        raise UserError(
            f"{train_val.path} and {test.path} name none of the {len(rows):,} images of the table, such as {rows[0].path}. Give "
            "the lists that belong to it, or use --split by-patient."
        )
    return kept, rejections


def _plain(name: str) -> str:
    parts = plain_name(name).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _ends(path: str) -> Set[str]:
    """a/b/c.png -> a/b/c.png, b/c.png, c.png."""
    parts = path.split("/")
    return {"/".join(parts[start:]) for start in range(len(parts))}
