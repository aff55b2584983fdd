"""JSON that a user may have changed or a disk may have damaged: whole, of the expected types, or refused with file, place and rule.

A shape says what a value must be:

    str, bool, int, float    of this type; float takes whole numbers too, and no number is a bool
    None                     null; anything: object
    (str, None)              one of several
    [str]                    a list of these
    {"size": int, "note?": str}    an object with these names and any others; ? is a name that may be missing
    {str: float}             an object whose values are these, whatever their names
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from ipu_trainer.errors import MissingFileError, UserError

PathLike = Union[str, "os.PathLike[str]"]
_SURROGATE = re.compile(r"\\u[dD][89abABc-fC-F]")
_MOST_DIGITS = 40  # of a whole number: 128 bits have 39
_WORDS = {
    str: "a text", bool: "true or false", int: "a whole number", float: "a number", None: "null", object: "anything",
}  # fmt: skip


def read_json(path: PathLike, shape: Any = object, next_move: str = "", not_finite: bool = False) -> Any:
    """What a JSON file holds. not_finite: NaN and Infinity, which are no JSON, are read too.

    Raises UserError, with the path, the line or the key, and next_move, for a file that is no JSON in UTF-8, has a key twice
    or numbers beyond any use, or another shape; MissingFileError where there is none.
    """
    return parse_json(read_bytes(path, next_move), path, shape, next_move, not_finite)


def read_bytes(path: PathLike, next_move: str = "") -> bytes:
    """The content of a regular file: a pipe would be waited for, and a device never ends."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise MissingFileError(_sentence(f"{path} does not exist", next_move)) from None
    if not stat.S_ISREG(mode):
        raise UserError(_sentence(f"{path} is not a file", next_move))
    return Path(path).read_bytes()


def parse_json(
    content: Union[str, bytes], source: Any, shape: Any = object, next_move: str = "", not_finite: bool = False
) -> Any:
    """read_json of a text that came out of source."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=float if not_finite else _finite,
            parse_constant=float if not_finite else _constant,
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a character cannot be written anywhere
    except UnicodeDecodeError as error:
        raise UserError(_sentence(f"{source} is not JSON: byte {error.start} is not UTF-8", next_move)) from None
    except RecursionError:
        raise UserError(_sentence(f"{source} is not JSON that can be read: too deeply nested", next_move)) from None
    except ValueError as error:
        raise UserError(_sentence(f"{source} is not JSON: {error}", next_move)) from None
    check_shape(value, shape, source, next_move)
    return value


def check_shape(value: Any, shape: Any, source: Any, next_move: str = "") -> None:
    """Raise UserError, with the first key whose value has another shape."""
    wrong = _first_wrong(value, shape, "")
    if wrong is not None:
        raise UserError(_sentence(f"{source}: {wrong}", next_move))


def _first_wrong(value: Any, shape: Any, key: str) -> Optional[str]:
    if isinstance(shape, tuple):
        return None if any(_first_wrong(value, one, key) is None for one in shape) else _not(value, shape, key)
    if isinstance(shape, (list, dict)):
        if not isinstance(value, type(shape)):
            return _not(value, shape, key)
        return next((wrong for wrong in _wrong_parts(value, shape, key) if wrong is not None), None)
    return None if _is(value, shape) else _not(value, shape, key)


def _wrong_parts(value: Any, shape: Any, key: str) -> Iterator[Optional[str]]:
    start = f"{key}." if key else ""
    if isinstance(shape, list):
        yield from (_first_wrong(item, shape[0], f"{key}[{place}]") for place, item in enumerate(value))
    elif list(shape) == [str]:
        yield from (_first_wrong(item, shape[str], f"{start}{name}") for name, item in value.items())
    else:
        for given, part in shape.items():
            name = given.rstrip("?")
            if name in value:
                yield _first_wrong(value[name], part, f"{start}{name}")
            elif name == given:
                yield f"{start}{name} is missing"


def _is(value: Any, kind: Any) -> bool:
    if kind is object:
        return True
    if kind is None or isinstance(value, bool):
        return value is None if kind is None else kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _not(value: Any, shape: Any, key: str) -> str:
    found = json.dumps(value, default=str)
    shown = found if len(found) <= 40 else f"{found[:37]}..."
    return f"{key or 'its content'} is {shown}, not {_described(shape)}"


def _described(shape: Any) -> str:
    if isinstance(shape, tuple):
        return " or ".join(_described(one) for one in shape)
    if isinstance(shape, list):
        return f"a list of {_described(shape[0])}" if shape[0] is not object else "a list"
    return "an object" if isinstance(shape, dict) else _WORDS[shape]


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)[:60]!r} twice")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits ({digits[:10]}...)")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"it has {name}, which is no JSON")


def _sentence(text: str, next_move: str) -> str:
    return f"{text.rstrip('.')}." + (f" {next_move}" if next_move else "")
