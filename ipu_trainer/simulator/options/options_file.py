"""Options from a file: one call per line, without the leading `options.`.

poptorch executes the lines. Here they are parsed, and may hold literals, names of `poptorch`, types of `torch`, and calls of
setters. A file cannot run anything else.
"""

from __future__ import annotations

import ast
import pathlib
from typing import Any, Dict

import torch


class ConfigFileError(Exception):
    """A line of an options file that cannot be understood."""


def apply_file(options: Any, filepath: str) -> None:
    """Apply every line of the file to `options`. Blank lines and comments are skipped.

    Raises ConfigFileError with the number of the call among the calls, the file's name and the line; then nothing
    has been applied.
    """
    path = pathlib.Path(filepath)
    lines = [line.strip() for line in path.read_text().splitlines()]
    calls = ["options." + line for line in lines if line and not line.startswith("#")]
    statements = []
    for number, call in enumerate(calls, start=1):
        try:
            statements.append(ast.parse(call, mode="eval").body)
        except SyntaxError as error:
            # Python 3.9 and later name the bracket; the text that programs match is that of 3.8.
            unfinished = "never closed" in str(error.msg) or "unexpected EOF" in str(error.msg)
            detail = "unexpected EOF while parsing" if unfinished else error.msg
            raise ConfigFileError(f"SyntaxError at line {number} of {path.name}: {detail}\n> {call}\n") from error
        if not isinstance(statements[-1], ast.Call):
            raise ConfigFileError(
                f"SyntaxError at line {number} of {path.name}: expected a call of a setter, such as "
                f"deviceIterations(4)\n> {call}\n"
            )
    roots = {"options": options, "poptorch": _Namespace(), "torch": torch}
    for number, (statement, call) in enumerate(zip(statements, calls), start=1):
        _evaluate(statement, roots, f"line {number} of {path.name}: {call}")


class _Namespace:
    """`poptorch` in an options file: enumerations and classes of options."""

    def __getattr__(self, name: str) -> Any:
        from ipu_trainer.simulator import enums, options

        if name == "enums":
            return enums
        for module in (enums, options):
            if name in getattr(module, "__all__", vars(module)):
                return getattr(module, name)
        raise AttributeError(f"poptorch has no option value {name!r}")


def _evaluate(node: ast.AST, roots: Dict[str, Any], where: str) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_evaluate(item, roots, where) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_evaluate(key, roots, where) for key in node.keys if key is not None]
        return dict(zip(keys, [_evaluate(value, roots, where) for value in node.values]))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, roots, where)
    if isinstance(node, ast.Name) and node.id in roots:
        return roots[node.id]
    if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
        owner = _evaluate(node.value, roots, where)
        value = getattr(owner, node.attr)
        if owner is torch and not isinstance(value, torch.dtype):
            raise ConfigFileError(f"{where}: of torch, only types such as torch.half can be named in an options file")
        return value
    if isinstance(node, ast.Call) and not any(keyword.arg is None for keyword in node.keywords):
        function = _evaluate(node.func, roots, where)
        arguments = [_evaluate(argument, roots, where) for argument in node.args]
        return function(*arguments, **{k.arg: _evaluate(k.value, roots, where) for k in node.keywords if k.arg})
    raise ConfigFileError(f"{where}: an options file holds literals, poptorch's names and calls of setters only")
