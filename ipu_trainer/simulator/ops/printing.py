"""Text of modules with their blocks, and of tensors as the device prints them."""

from __future__ import annotations

import builtins
from typing import Any, List

import torch

from ipu_trainer.compat.torch_modules import forward_pre_hooks, own_children
from ipu_trainer.errors import UserError


def module_repr(m: torch.nn.Module) -> str:
    """The module's repr, with every BeginBlock in front of the module that carries it."""
    lines: List[str] = m.extra_repr().split("\n") if m.extra_repr() else []
    num_extra = len(lines)
    for name, child in own_children(m).items():
        text = "None" if child is None else module_repr(child)
        lines.append(f"({name}): " + "\n  ".join(text.split("\n")))
    hooks = "".join(f"{hook!r} " for hook in forward_pre_hooks(m).values())
    body = ""
    if lines:
        body = lines[0] if len(lines) == num_extra == 1 else "\n  " + "\n  ".join(lines) + "\n"
    return f"{hooks}{type(m).__name__}({body})"


def print(m: Any) -> None:
    """Print a module with its blocks, or anything else as usual."""
    builtins.print(module_repr(m) if isinstance(m, torch.nn.Module) else m)


def format_tensor(
    tensor: torch.Tensor,
    summarise_threshold: int,
    edge_items: int,
    max_line_width: int,
    digits: int,
    float_format: str,
    separator: str,
    open_bracket: str,
    close_bracket: str,
) -> str:
    """The tensor as the device prints it: nested brackets, one row per line, long rows broken after a separator.

    digits counts significant digits, of which one is before the point. Raises ValueError for an unknown float_format.
    """
    if float_format not in ("auto", "fixed", "scientific", "none"):
        raise UserError(f"float_format is {float_format!r}; choose auto, fixed, scientific or none")
    style = {"auto": "g", "none": "g", "fixed": "f", "scientific": "e"}[float_format]
    places = digits if style == "g" else digits - 1

    def text(item: Any, depth: int) -> str:
        if isinstance(item, list):
            return row(item, depth)
        return f"{item:.{places}{style}}" if isinstance(item, float) else str(item)

    def row(items: List[Any], depth: int) -> str:
        summarised = tensor.numel() > summarise_threshold and len(items) > 2 * edge_items
        shown = [*items[:edge_items], "...", *items[-edge_items:]] if summarised else items
        parts = [text(item, depth + 1) for item in shown]
        if items and isinstance(items[0], list):
            indent = "\n" + " " * (depth + 1)
            return open_bracket + indent + indent.join(parts) + "\n" + " " * depth + close_bracket
        return _wrapped(parts, separator, open_bracket, close_bracket, max_line_width, depth)

    values = tensor.tolist()
    return text(values, 0) if isinstance(values, list) else open_bracket + text(values, 0) + close_bracket


def _wrapped(parts: List[str], separator: str, opening: str, closing: str, width: int, depth: int) -> str:
    lines, line = [], " " * depth + opening
    for position, part in enumerate(parts):
        piece = part + (separator if position + 1 < len(parts) else closing)
        if line.strip() != opening and len(line) + len(piece) > width:
            lines.append(line)
            line = " " * (depth + 2)
        line += piece
    if not parts:
        line += closing
    return "\n".join([*lines, line]).lstrip(" ")
