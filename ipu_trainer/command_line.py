"""The syntax of flags: --snake_case as Trainer has it (--kebab-case is the same flag), values, and hints for renamed ones."""

from __future__ import annotations

import re
import sys
from typing import Any, List, Sequence, Set

_hinted: Set[str] = set()


def snake_case(words: Sequence[str]) -> List[str]:
    """Words of a command line, each flag --one-name[=VALUE] as --one_name[=VALUE]."""
    return [re.sub("^--[^=]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in words]


def plain_value(text: str) -> Any:
    """A word of a command line as true, false, a whole number or a number; else the text."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def hint(old: str, new: str) -> None:
    """Say on stderr, once, what replaces a flag that still works."""
    if old not in _hinted:
        _hinted.add(old)
        print(f"hint: {old} is {new} now", file=sys.stderr)
