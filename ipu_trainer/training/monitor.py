"""Throughput and memory of a run in Trainer's own logs, so that the console and every experiment tracker show them.

    watch(trainer)                       adds samples_per_second, data_wait_share, memory_bytes and loss_scale to each log of
                                         a training loss
    watch(trainer, tokens_per_sample=n)  tokens_per_second too

Tasks add it; IPUTrainer itself logs what Trainer logs. Throughput excludes the first step, which compiles and starts workers,
evaluation and saving. A smaller last batch of an epoch counts as a whole one.
Below it: which experiment trackers a run has (tensorboard, trackio, wandb, mlflow and the others of --report_to).
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import psutil
import torch
import transformers
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ipu_trainer.errors import UserError


def watch(trainer: Any, tokens_per_sample: int = 0) -> Monitor:
    """Add a Monitor to an IPUTrainer, before the callbacks of trackers, so that all of them get what it adds to a log."""
    monitor = Monitor(trainer, tokens_per_sample)
    trainer.callback_handler.callbacks.insert(0, monitor)
    return monitor


def samples_per_step(trainer: Any) -> int:
    """Samples of one Trainer step over all processes: a weight update on the host, a host step on a device."""
    geometry = trainer.batch_geometry
    return int(geometry.samples_per_host_step if trainer.backend.has_executors else geometry.global_batch)


def loss_scale(trainer: Any) -> Optional[float]:
    """The current loss scale; None without loss scaling, or where the device does not report it."""
    if trainer.backend.has_executors:
        given = float(getattr(trainer.args, "loss_scaling", 1.0))
        hidden = trainer.ipu_config.auto_loss_scaling
        return None if hidden or (given == 1.0 and not getattr(trainer.args, "half", False)) else given
    scaler = getattr(getattr(trainer, "accelerator", None), "scaler", None)
    return None if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())


def memory_bytes(device: Any) -> int:
    """On a GPU the peak of allocated tensors, else the resident set size of this process now."""
    if getattr(device, "type", "cpu") == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Adds throughput and memory to a trainer's logs that have a training loss."""

    def __init__(
        self, trainer: Any, tokens_per_sample: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._trainer, self._tokens, self._clock = trainer, tokens_per_sample, clock
        self._waited_before = 0.0
        self._began: Optional[float] = None  # start of the measured steps; evaluation and saving move it on
        self._first_step = 0
        self._last_event = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last_event = self._clock()
        if self._began is None:
            self._begin(self._last_event, state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last_event = self._clock()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the start of the measured steps on by the time since the last event."""
        now = self._clock()
        if self._began is not None:
            self._began += now - self._last_event
        self._last_event = now

    on_save = on_evaluate

    def on_log(self, args: Any, state: Any, control: Any, logs: Optional[Dict[str, Any]] = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        now = self._clock()
        added: Dict[str, Any] = {"memory_bytes": memory_bytes(args.device)}
        scale = loss_scale(self._trainer)
        if scale is not None:
            added["loss_scale"] = scale
        if self._began is not None:
            steps, seconds = state.global_step - self._first_step, now - self._began
            if steps > 0 and seconds > 0:
                rate = steps * samples_per_step(self._trainer) / seconds
                added["samples_per_second"] = round(rate, 3)
                if self._tokens:
                    added["tokens_per_second"] = round(rate * self._tokens, 1)
                waited = self._trainer.data_wait_seconds
                if waited is not None:
                    added["data_wait_share"] = round(min(1.0, (waited - self._waited_before) / seconds), 4)
            self._begin(now, state.global_step)
        self._last_event = now
        logs.update(added)
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1].update(added)  # a copy that Trainer made before

    def _begin(self, now: float, step: int) -> None:
        self._began, self._first_step = now, step
        self._waited_before = self._trainer.data_wait_seconds or 0.0


@contextlib.contextmanager
def messages_beside_progress(trainer: Any) -> Iterator[None]:
    """Inside the block log messages stand on lines of their own, above a progress bar; an error leaves no open bar behind."""
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    try:
        with logging_redirect_tqdm(loggers):
            yield
    finally:
        for callback in trainer.callback_handler.callbacks:
            for name in ("prediction_bar", "training_bar"):
                bar = getattr(callback, name, None)
                if bar is not None:
                    bar.close()


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
