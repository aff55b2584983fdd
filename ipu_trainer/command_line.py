"""How flags are spelled: --snake_case as Trainer has it, --kebab-case the same flag; and hints for flags with a new name."""

from __future__ import annotations

import sys
from typing import Dict, List, Sequence

_hinted: Dict[str, str] = {}


def snake_case(words: Sequence[str]) -> List[str]:
    """Words of a command line, each flag --one-name[=VALUE] as --one_name[=VALUE]."""
    return [_snake_case(word) if word.startswith("--") else word for word in words]


def hint(old: str, new: str) -> None:
    """Say on stderr, once, what replaces a flag that still works."""
    if old not in _hinted:
        _hinted[old] = new
        print(f"hint: {old} is {new} now", file=sys.stderr)


def _snake_case(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}"
