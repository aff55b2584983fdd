"""Experiment trackers: tensorboard, trackio, wandb, mlflow and the others of --report_to."""

from __future__ import annotations

import difflib
from typing import Any, List, Sequence

import transformers
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ipu_trainer.errors import UserError

# Name of a reporter -> package to install, where they differ.
_PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-mlflow", "flyte": "flytekit"}
# transformers does not check whether these are installed.
_UNCHECKED = ("flyte",)


def default_reporters() -> List[str]:
    """tensorboard where it is installed, else none: a run never depends on it."""
    return ["tensorboard"] if "tensorboard" in get_available_reporting_integrations() else ["none"]


def check_reporters(report_to: Any) -> None:
    """Raises UserError for a reporter that transformers does not know, or whose package is not installed."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            raise UserError(
                f"--report_to {name}: transformers {transformers.__version__} reports to "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}, all or none."
                + (f" Nearest: {near[0]}." if near else "")
            )
        if name not in get_available_reporting_integrations() and name not in _UNCHECKED:
            raise UserError(
                f"--report_to {name} needs a package that is not installed: pip install {_PACKAGES.get(name, name)}. "
                "Or leave it at none: report.html has the curves at the end."
            )


def experiment_tracker_hint(report_to: Sequence[str], output_dir: str) -> str:
    """How to follow the run in its trackers, in one line."""
    if not report_to:
        return "none (--report_to tensorboard, trackio, wandb or mlflow, where its package is installed)"
    hints = [f"tensorboard --logdir {output_dir}/runs" if name == "tensorboard" else name for name in report_to]
    return ", ".join(hints)
