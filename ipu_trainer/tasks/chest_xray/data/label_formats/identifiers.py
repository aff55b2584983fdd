"""Ids of patients and names of files as tables write them: one id is one, whatever a program added to it."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = "'\"`´‘’‚“”„"
_MISSING = frozenset({"nan", "none", "null", "<na>", "n/a"})
_WHOLE = re.compile(r"([0-9]+)(?:\.0*)?")
_SCIENTIFIC = re.compile(r"([0-9])(?:\.([0-9]+))?E\+([0-9]{1,2})")  # Excel's, for numbers of more than 11 digits


def without_invisible(text: str) -> str:
    """Text without characters that nobody sees: zero-width ones, byte order marks, control characters. Spaces and tabs stay."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(one for one in text if one.isspace() or unicodedata.category(one) not in ("Cf", "Cc"))


def plain_name(text: str) -> str:
    """The name of a file, without spaces and quotes around it and without invisible characters."""
    return without_invisible(text).strip().strip(_QUOTES).strip()


def patient_of(text: str) -> str:
    """The patient that a cell names; "" where it names none.

    "00000013", "13", "13.0" (pandas), "'13" (Excel) and "１３" (full width) are one patient. Other ids, such as "A-1", keep every
    character: "A-1", "A-01" and "a-1" are three.
    """
    text = unicodedata.normalize("NFKC", plain_name(text))
    if text.lower() in _MISSING:
        return ""
    number = _WHOLE.fullmatch(text)
    if number is not None:
        return number.group(1).lstrip("0") or "0"
    number = _SCIENTIFIC.fullmatch(text)
    if number is not None and len(number.group(2) or "") <= int(number.group(3)):
        first, digits, power = number.group(1), number.group(2) or "", int(number.group(3))
        return first + digits.ljust(power, "0")
    return text


def study_of(text: str) -> str:
    """The study that a cell names, as patient_of; zeros in front stay, because ids of studies are stored with them."""
    patient = patient_of(text)
    number = _WHOLE.fullmatch(unicodedata.normalize("NFKC", plain_name(text)))
    return patient if number is None else number.group(1)
