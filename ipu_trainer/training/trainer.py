"""IPUTrainer: transformers.Trainer with an IPUConfig.

The training loop is the stock one. What this class changes, and why:

    __init__               takes `ipu_config`, chooses the backend, adds stochastic depth
    create_optimizer       learning rates by depth, if asked for
    create_scheduler       one learning rate for all updates of a host step, as a device has it
    get_batch_samples      means over float labels stay means under accumulation (compat.counts_labels)
    _inner_training_loop   accumulation x replicas of the IPUConfig become this process's accumulation
    call_model_init        stochastic depth for the model of every trial
    _load_from_checkpoint, _load_best_model    checkpoints with renamed tensors (compat.load_renamed_weights)
    evaluation_loop, _save the weight average, if asked for

On the host a Trainer step is one weight update; a host step of the IPUConfig is `device_iterations` of them.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, Optional, Union

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ipu_trainer.backends import choose_backend
from ipu_trainer.config.batching import BatchGeometry, EpochPlan, batch_table
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.training import compat
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.optimizer import add_drop_path, groups_by_depth
from ipu_trainer.training.weight_average import WeightAverage

logger = logging.get_logger(__name__)


class IPUTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Takes everything that Trainer takes, and `ipu_config`: an IPUConfig, a profile's name, or a path.

    args may be plain TrainingArguments. Raises ValueError before any work where the IPUConfig and the processes that were
    started do not go together.
    """

    def __init__(
        self,
        model: Any = None,
        args: Optional[TrainingArguments] = None,
        *positional: Any,
        ipu_config: Union[IPUConfig, str, None] = None,
        **named: Any,
    ) -> None:
        if args is None:
            args = IPUTrainingArguments(output_dir="tmp_trainer")
        if isinstance(ipu_config, str):
            ipu_config = load_profile(ipu_config).config
        elif ipu_config is not None and not isinstance(ipu_config, IPUConfig):
            raise ValueError(
                f"ipu_config is a {type(ipu_config).__name__}. Give an IPUConfig, a profile's name such as "
                "'vit_base_pod4', or the path of an ipu_config.json."
            )
        config = ipu_config or IPUConfig()
        overrides = getattr(args, "ipu_config_overrides", None)
        self.ipu_config: IPUConfig = config.updated_from_string(overrides) if overrides else config
        self.backend = choose_backend(getattr(args, "backend", "auto"))
        self.weight_average: Optional[WeightAverage] = None
        if getattr(args, "ema_decay", 0.0):
            self.weight_average = WeightAverage(args.ema_decay)
        self._batch_geometry_in_loop: Optional[BatchGeometry] = None
        super().__init__(model, args, *positional, **named)
        if self.model_init is None:
            add_drop_path(self.model, getattr(args, "drop_path", 0.0))
        if self.optimizer is not None and self._scales_by_depth():
            raise ValueError(
                "layer_decay and head_learning_rate_factor divide the parameter groups that this trainer makes, but "
                "optimizers= brings its own. Leave them at 1, or give optimizer_cls_and_kwargs= instead."
            )
        if self.weight_average is not None:
            self.add_callback(_AverageAfterUpdate(self.weight_average))
        self.batch_geometry.accumulation_per_process(self._num_workers())  # refuses what cannot be spread
        logger.info("backend %s (%s)", self.backend.name, self.backend.reason)

    # Batches ----------------------------------------------------------------------------------------------------

    @property
    def batch_geometry(self) -> BatchGeometry:
        """How this run groups samples. One replica in the IPUConfig and several processes: each process is one, as for Trainer."""
        if self._batch_geometry_in_loop is not None:
            return self._batch_geometry_in_loop
        config, args = self.ipu_config, self.args
        accumulation = args.gradient_accumulation_steps
        if accumulation == 1:
            accumulation = config.gradient_accumulation_steps
        replicas = config.replication_factor if config.replication_factor > 1 else self._num_workers()
        return BatchGeometry(args.per_device_train_batch_size, accumulation, replicas, config.device_iterations)

    def batch_table(self, epoch: Optional[EpochPlan] = None) -> str:
        return batch_table(self.batch_geometry, epoch, self._num_workers())

    def _num_workers(self) -> int:
        """Model copies that compute side by side: processes, or GPUs of one process under DataParallel."""
        return int(self.args.world_size) * max(1, int(self.args.n_gpu))

    def _inner_training_loop(self, *positional: Any, **named: Any) -> Any:
        args = self.args
        self._accumulation_given = args.gradient_accumulation_steps
        self._batch_geometry_in_loop = geometry = self.batch_geometry
        logger.info("batches:\n%s", batch_table(geometry, None, self._num_workers()))
        resume = named.get("resume_from_checkpoint") or (positional[2] if len(positional) > 2 else None)
        if self.weight_average is not None:
            self.weight_average.start(self.model, resume)
        # In place rather than on a copy of args: callbacks keep their hold on the arguments that the loop reads.
        args.gradient_accumulation_steps = geometry.accumulation_per_process(self._num_workers())
        try:
            result = super()._inner_training_loop(*positional, **named)
        finally:
            args.gradient_accumulation_steps = self._accumulation_given
            self._batch_geometry_in_loop = None
        best_was_loaded = args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if self.weight_average is not None and not best_was_loaded:
            self.weight_average.copy_to(self.model)
        return result

    @contextlib.contextmanager
    def _arguments_as_given(self) -> Iterator[None]:
        """Inside the block the arguments are the user's, as checkpoints should hold them."""
        in_loop = self.args.gradient_accumulation_steps
        if self._batch_geometry_in_loop is not None:
            self.args.gradient_accumulation_steps = self._accumulation_given
        try:
            yield
        finally:
            self.args.gradient_accumulation_steps = in_loop

    def get_batch_samples(self, *positional: Any, **named: Any) -> Any:
        samples, num_items = super().get_batch_samples(*positional, **named)
        if num_items is not None and not all(compat.counts_labels(inputs) for inputs in samples):
            num_items = None
        return samples, num_items

    # Optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, *positional: Any, **named: Any) -> Any:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*positional, **named)
        if fresh and self._scales_by_depth():
            optimizer.param_groups = groups_by_depth(
                self.model, optimizer.param_groups, self.args.layer_decay, self.args.head_learning_rate_factor
            )
        return optimizer

    def _scales_by_depth(self) -> bool:
        names = ("layer_decay", "head_learning_rate_factor")
        return any(getattr(self.args, name, 1.0) != 1.0 for name in names)

    def create_scheduler(self, num_training_steps: int, *positional: Any, **named: Any) -> Any:
        fresh = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, *positional, **named)
        updates = self.ipu_config.device_iterations
        if fresh and updates > 1:
            if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                raise ValueError(
                    f"lr_scheduler_type {self.args.lr_scheduler_type} changes the learning rate between the {updates} "
                    "updates of a host step, which a device cannot. Use device_iterations=1, or linear or cosine."
                )
            scheduler.lr_lambdas = [_held(function, updates) for function in scheduler.lr_lambdas]
        return scheduler

    def call_model_init(self, *positional: Any, **named: Any) -> Any:
        model = super().call_model_init(*positional, **named)
        add_drop_path(model, getattr(self.args, "drop_path", 0.0))
        return model

    # Checkpoints and the weight average -------------------------------------------------------------------------

    def evaluation_loop(self, *positional: Any, **named: Any) -> Any:
        averaging = self.weight_average is not None and self.is_in_train
        with self.weight_average.applied(self.model) if averaging else contextlib.nullcontext():  # type: ignore[union-attr]
            return super().evaluation_loop(*positional, **named)

    def _save(self, output_dir: Optional[str] = None, state_dict: Optional[Dict[str, Any]] = None) -> None:
        with self._arguments_as_given():
            super()._save(output_dir, state_dict=state_dict)
        if self.weight_average is not None and self.is_in_train:
            self.weight_average.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not compat.load_renamed_weights(self.model if model is None else model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not compat.load_renamed_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()
        if self.weight_average is not None:
            self.weight_average.load(self.state.best_model_checkpoint, self.model)


class _AverageAfterUpdate(TrainerCallback):  # type: ignore[misc]
    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.average.update(model)


def _held(function: Any, updates: int) -> Any:
    return lambda update: function(update // updates * updates)
