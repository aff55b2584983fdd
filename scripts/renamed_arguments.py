"""What Trainer, Seq2SeqTrainer and their arguments were called in each release of transformers: read from its sources, compared.

    python scripts/renamed_arguments.py read [FOLDER] > NAMES.json      a folder `transformers` (default: the installed one)
    python scripts/renamed_arguments.py compare OLD.json NEW.json       what one has and the other has not

Nothing is imported from the folder, so a wheel that was unpacked will do: pip download transformers==4.57.6 --no-deps.
tests/training/transformers_names holds what this wrote for the releases at both ends and some between; a test says that
ipu_trainer/compat/argument_names.py has an answer for every difference.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

CLASSES = {
    "trainer.py": "Trainer",
    "trainer_seq2seq.py": "Seq2SeqTrainer",
    "training_args.py": "TrainingArguments",
    "training_args_seq2seq.py": "Seq2SeqTrainingArguments",
}


def read(folder: Path) -> Dict[str, Any]:
    """{class: {"fields": {name: default}, "methods": {name: parameters}, "attributes": names}}, private ones left out."""
    return {name: _names(_class(folder / file, name)) for file, name in CLASSES.items()}


def compare(old: Dict[str, Any], new: Dict[str, Any]) -> Iterator[str]:
    for name in CLASSES.values():
        for kind in ("fields", "attributes", "methods"):
            then, now = old[name][kind], new[name][kind]
            yield from (f"- {name} {kind} {item}" for item in sorted(set(then) - set(now)))
            yield from (f"+ {name} {kind} {item}" for item in sorted(set(now) - set(then)))
        for method in sorted(set(old[name]["methods"]) & set(new[name]["methods"])):
            then, now = old[name]["methods"][method], new[name]["methods"][method]
            yield from (f"- {name}.{method} {item}" for item in then if item not in now)
            yield from (f"+ {name}.{method} {item}" for item in now if item not in then)


def _class(file: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _names(node: ast.ClassDef) -> Dict[str, Any]:
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    annotated = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    properties = {item.name for item in functions if any("property" in ast.dump(way) for way in item.decorator_list)}
    methods = {item.name: _parameters(item) for item in functions if item.name not in properties}
    return {
        "fields": sorted(item.target.id for item in annotated),
        "methods": {name: methods[name] for name in sorted(methods) if not name.startswith("_") or name == "__init__"},
        "attributes": sorted({name for name in properties | _assigned(node) if not name.startswith("_")}),
    }


def _parameters(function: ast.FunctionDef) -> List[str]:
    named = function.args
    return [item.arg for item in [*getattr(named, "posonlyargs", []), *named.args, *named.kwonlyargs]][1:]


def _assigned(node: ast.ClassDef) -> Set[str]:
    """Names of self.NAME = ... anywhere in the class."""
    return {
        target.attr
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store) and ast.dump(target.value) == _SELF
    }


_SELF = ast.dump(ast.parse("self", mode="eval").body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("read")
    reading.add_argument("folder", nargs="?", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    given = parser.parse_args()
    if given.command == "read":
        found = importlib.util.find_spec("transformers")
        assert found is not None and found.origin is not None
        names = read(given.folder or Path(found.origin).parent)
        print("{" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in names.items()) + "}")
    else:
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (given.old, given.new))
        print("\n".join(compare(old, new)))


if __name__ == "__main__":
    main()
