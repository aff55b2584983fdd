"""What can happen to a file: cut, one bit flipped, a block of zeros, removed, another file's content, emptied, null, other types."""

import json

KINDS = ("cut", "flipped bit", "zeroed block", "removed", "another file", "emptied", "null", "other types")
# Values that no reader expects in their place.
_ODD = (None, True, -1, 0, 1e308, 10**40, "", "x", [], [None], {}, {"x": None}, "NaN", float("nan"))
_BLOCK = 64


def damaged(kind, content, other, generator):
    """The content after a damage of this kind; None for a removed file. other: what another file of the case holds."""
    place = generator.randrange(len(content)) if content else 0
    if kind == "cut":
        return content[:place]
    if kind == "flipped bit" and content:
        return content[:place] + bytes([content[place] ^ 1 << generator.randrange(8)]) + content[place + 1 :]
    if kind == "zeroed block":
        return content[:place] + bytes(len(content[place : place + _BLOCK])) + content[place + _BLOCK :]
    if kind == "removed":
        return None
    if kind == "another file":
        return other
    if kind == "null":
        return b"null"
    if kind == "other types":
        return _with_other_type(content, generator)
    return b""


def _with_other_type(content, generator):
    """JSON with one value of another type; a table with one odd cell; random bytes of the same length for anything else."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return generator.randbytes(len(content)) if hasattr(generator, "randbytes") else bytes(len(content))
    try:
        value = json.loads(text)
    except ValueError:
        lines = text.split("\n")
        row = generator.randrange(len(lines))
        cells = lines[row].split(",")
        cells[generator.randrange(len(cells))] = str(generator.choice(_ODD))
        lines[row] = ",".join(cells)
        return "\n".join(lines).encode("utf-8")
    places = list(_places(value, ()))
    where = generator.choice(places)
    odd = generator.choice(_ODD)
    if not where:
        return json.dumps(odd).encode()
    inside = value
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = odd
    return json.dumps(value).encode()


def _places(value, path):
    """Paths of all values, the deep ones among many: the first twenty of a list stand for it."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:20]):
            yield from _places(item, (*path, number))
