"""Write a training run once, prove it on a laptop, run it unchanged on an IPU Pod, a GPU or a CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ipu_trainer import moved_modules
from ipu_trainer.openmp import wait_asleep

if TYPE_CHECKING:
    from ipu_trainer.config.ipu_config import IPUConfig as IPUConfig
    from ipu_trainer.tasks.run_record import load_run as load_run
    from ipu_trainer.training.arguments import IPUTrainingArguments as IPUTrainingArguments
    from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainer as IPUSeq2SeqTrainer
    from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainingArguments as IPUSeq2SeqTrainingArguments
    from ipu_trainer.training.trainer import IPUTrainer as IPUTrainer

__version__ = "0.1.0"

moved_modules.install()
wait_asleep()  # before torch, which reads it as it is imported

# Imported on first use: `import ipu_trainer` costs nothing, and a part of it never drags in transformers by accident.
_PUBLIC = {
    "IPUConfig": "ipu_trainer.config.ipu_config",
    "IPUSeq2SeqTrainer": "ipu_trainer.training.seq2seq",
    "IPUSeq2SeqTrainingArguments": "ipu_trainer.training.seq2seq",
    "IPUTrainer": "ipu_trainer.training.trainer",
    "IPUTrainingArguments": "ipu_trainer.training.arguments",
    "load_run": "ipu_trainer.tasks.run_record",
}
__all__ = [
    "IPUConfig",
    "IPUSeq2SeqTrainer",
    "IPUSeq2SeqTrainingArguments",
    "IPUTrainer",
    "IPUTrainingArguments",
    "__version__",
    "load_run",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Public names: {', '.join(sorted(_PUBLIC))}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
