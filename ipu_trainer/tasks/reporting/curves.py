"""The picture of a training: its loss, and what validation says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

from ipu_trainer.atomic import atomic_path


def plot_training(
    file: Path, history: Sequence[Mapping[str, Any]], metric: str, label: str, logarithmic: bool = False
) -> None:
    """Training loss and the validation metric `metric` (a key of Trainer's log history) by epoch, as a PNG."""
    figure = new_figure(figsize=(7, 4))
    axes = figure.subplots()
    loss = [(entry["epoch"], entry["loss"]) for entry in history if "loss" in entry]
    values = [(entry["epoch"], entry[metric]) for entry in history if metric in entry]
    axes.plot([x for x, _ in loss], [y for _, y in loss], color="#4878a8", label="training loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    other = axes.twinx()
    other.plot([x for x, _ in values], [y for _, y in values], "o-", color="#b04a4a", markersize=3, label=label)
    other.set_ylabel(label)
    if logarithmic:
        other.set_yscale("log")
    handles = axes.get_legend_handles_labels()[0] + other.get_legend_handles_labels()[0]
    other.legend(handles=handles, frameon=False, loc="center right")
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight")


def new_figure(**settings: Any) -> Any:
    """A matplotlib figure to be saved: no window, no part of a notebook's cell. pyplot and the caller's backend are left alone."""
    from matplotlib.figure import Figure

    return Figure(**settings)
