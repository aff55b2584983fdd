"""IPUTrainingArguments: everything of TrainingArguments, and what a run on several backends needs besides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from transformers import TrainingArguments

from ipu_trainer.backends import choose_backend


@dataclass
class IPUTrainingArguments(TrainingArguments):
    """TrainingArguments with a backend and fine-tuning options.

    `per_device_train_batch_size` is the micro-batch. `gradient_accumulation_steps` above 1 takes the place of the
    IPUConfig's, as in optimum-graphcore; left at 1, the IPUConfig's counts.
    """

    backend: str = field(default="auto", metadata={"help": "Where to compute: auto or host."})
    ipu_config_overrides: Optional[str] = field(
        default=None, metadata={"help": "IPUConfig fields to change: replication_factor=2,layers_per_ipu=[1 3 -1 3]."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate factor from each layer to the one before it; 1 is off."}
    )
    head_learning_rate_factor: float = field(
        default=1.0, metadata={"help": "Learning rate of the task's head, relative to learning_rate."}
    )
    drop_path: float = field(
        default=0.0, metadata={"help": "Stochastic depth: how often the last layer is skipped while training."}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of the weight average that is evaluated and saved; 0 is off."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choose_backend(self.backend)
        for name, low, high in (
            ("layer_decay", 0.0, 1.0),
            ("head_learning_rate_factor", 0.0, float("inf")),
        ):
            value = getattr(self, name)
            if not low < value <= high:
                raise ValueError(f"{name} {value} must be above {low:g}{f' and at most {high:g}' if high < 9 else ''}.")
        for name in ("drop_path", "ema_decay"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} {value} must be at least 0 (off) and below 1.")
