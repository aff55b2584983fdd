"""IPUTrainer: transformers.Trainer with an IPUConfig, on the host or on a device (real or simulated IPUs).

The training loop is the stock one. What differs between host and device is delegated to an execution (execution.py has the
table), which is chosen once. The other parts of this class each live beside their noun:

    loss/                    micro-batches count by what they hold of their update; losses that are no numbers
    finetuning/              layer-wise learning rates, stochastic depth, EMA of weights, named optimizers
    hyperparameter_search/   optuna and Ray Tune
    state/                   Accelerate's state of each trainer, pickling, checkpoints
    ../compat/               names, signatures and private steps of all releases of transformers

On the host a step of the loop is one weight update; a host step of the IPUConfig is `device_iterations` of them. On a device a
step is one host step of micro-batch x accumulation x replicas x device iterations samples, and steps of the arguments (max_steps,
save_steps, ...) count host steps.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

from ipu_trainer import openmp
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.stock_trainer import StockLoop, renamed_arguments
from ipu_trainer.config.batching import BatchGeometry, EpochPlan, batch_table
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.batches import batch_geometry, ipu_config_of, num_model_copies, smaller_micro_batch
from ipu_trainer.training.choose_execution import choose_execution
from ipu_trainer.training.execution import Execution, changed, hold_learning_rates
from ipu_trainer.training.finetuning.fine_tuning import FineTuning, is_named, with_named_optimizer
from ipu_trainer.training.finetuning.weight_ema import AveragesWeights
from ipu_trainer.training.host.training_loader import TracksTrainingLoader
from ipu_trainer.training.hyperparameter_search.searching import SearchesHyperparameters
from ipu_trainer.training.loss.accumulated_loss import AccumulatedLoss
from ipu_trainer.training.loss.finite_losses import LogsFiniteLosses
from ipu_trainer.training.state.generators import unchanged_generators
from ipu_trainer.training.state.pickling import PicklesTrainer

logger = logging.get_logger(__name__)


class IPUTrainer(
    AveragesWeights,
    FineTuning,
    SearchesHyperparameters,
    LogsFiniteLosses,
    PicklesTrainer,
    TracksTrainingLoader,
    AccumulatedLoss,
):
    """Takes everything that Trainer takes, and `ipu_config`: an IPUConfig, a profile's name, or a path.

    args may be plain TrainingArguments. optimizers= is (optimizer, scheduler), or a name and settings:
    ("adamw_torch", {"lr": 1e-4}). tokenizer= is what releases before 4.46 call processing_class=.

    Raises UserError before any work where the IPUConfig and the processes that were started do not go together, or the backend
    cannot honour an argument.
    """

    execution: Execution
    loader_follows_coalescing = True
    _geometry_in_loop: Optional[BatchGeometry] = None
    observe_loss: Optional[Callable[[torch.Tensor], None]] = None  # gets the loss of each training step
    _micro_batch_found: Optional[int] = None  # by auto_find_batch_size
    _accumulation_given = 1

    def __init__(
        self,
        model: Any = None,
        args: Optional[TrainingArguments] = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Any = None,
        *,
        ipu_config: Union[IPUConfig, str, None] = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: Optional[List[Any]] = None,
        optimizers: Tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Optional[Tuple[Any, Mapping[str, Any]]] = None,
        preprocess_logits_for_metrics: Any = None,
        tokenizer: Any = None,
    ) -> None:
        args = args or IPUTrainingArguments(output_dir="tmp_trainer")
        if is_named(optimizers):
            args, self.optimizer_settings = with_named_optimizer(args, optimizers)
            optimizers = (None, None)
        self.ipu_config = ipu_config_of(ipu_config, args)
        self.args, self._loss_reductions = args, {}
        self.backend, self.execution = choose_execution(self, args)
        given = {
            "data_collator": data_collator, "train_dataset": train_dataset, "eval_dataset": eval_dataset,
            "processing_class": processing_class, "tokenizer": tokenizer, "model_init": model_init,
            "compute_loss_func": compute_loss_func, "compute_metrics": compute_metrics, "callbacks": callbacks,
            "optimizers": optimizers, "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        }  # fmt: skip
        super().__init__(model, args, **renamed_arguments({k: v for k, v in given.items() if v is not None}))
        self.keep_accelerate_state()  # of 4.29 too, which makes no accelerator
        compat.adapt_old_overrides(self, IPUTrainer)
        compat.refuse_old_overrides(self, IPUTrainer)
        self.set_up_fine_tuning()
        self.set_up_average()
        self.batch_geometry.accumulation_per_process(num_model_copies(self.args))  # refuses what cannot be spread
        logger.info("backend %s (%s)", self.backend.name, self.backend.reason)

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        compat.adapt_old_overrides(self, IPUTrainer)

    # Batches ----------------------------------------------------------------------------------------------------

    @property
    def batch_geometry(self) -> BatchGeometry:
        """How this run groups samples. One replica in the IPUConfig and several processes: each process is one, as for Trainer."""
        return self._geometry_in_loop or batch_geometry(self.ipu_config, self.args, self._micro_batch_found)

    def batch_table(self, epoch: Optional[EpochPlan] = None, checkpoint: Optional[str] = None) -> str:
        """The batch arithmetic of a training, which may resume from a checkpoint: how the loss counts, what is coalesced."""
        table = batch_table(self.batch_geometry, epoch, num_model_copies(self.args))
        reduction = self.loss_reduction_ahead()
        if self.accumulates:
            table += f"\nloss: {'found out on the first batch' if reduction is None else reduction.describe()}"
        return "\n".join(filter(None, (table, self.execution.describe_batches(checkpoint))))

    @property
    def has_stock_train_loader(self) -> bool:
        """Whether no subclass has its own get_train_dataloader."""
        return type(self).get_train_dataloader is IPUTrainer.get_train_dataloader

    def training_loop(self, loop: StockLoop) -> Any:
        self.restore_accelerate_state()
        args, self._micro_batch_found = self.args, None
        accumulation = self._accumulation_given = args.gradient_accumulation_steps
        given = self.batch_geometry
        found = self._micro_batch_found = smaller_micro_batch(args, given.gradient_accumulation, loop.batch_size)
        geometry = self.batch_geometry
        if found is not None:
            log = "out of memory: %s instead of %s; the global batch stays as it is"
            logger.warning(log, geometry.describe(), given.describe())
        logger.info("batches:\n%s", self.batch_table(self.execution.epoch_plan(), loop.resume_from_checkpoint))
        slow = openmp.why_slow(torch.get_num_threads()) if args.device.type == "cpu" else None
        if slow:
            logger.warning(slow)
        # In place rather than on a copy of args: callbacks keep their hold on the arguments that the loop reads.
        with changed(self, _geometry_in_loop=geometry), changed(args, gradient_accumulation_steps=accumulation):
            output = self.execution.run_loop(geometry, loop, super().training_loop)
        if found is not None:
            self.train_batch_size = geometry.micro_batch
        return output

    # What the execution does ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return self.execution.train_dataloader(super().get_train_dataloader)

    def get_eval_dataloader(self, *positional: Any, **named: Any) -> Any:
        with self.execution.inference_batches():
            return super().get_eval_dataloader(*positional, **named)

    def get_test_dataloader(self, *positional: Any, **named: Any) -> Any:
        with self.execution.inference_batches():
            return super().get_test_dataloader(*positional, **named)

    def wrap_model(self, model: nn.Module, training: bool = True, *positional: Any, **named: Any) -> nn.Module:
        stock = functools.partial(super().wrap_model, model, training, *positional, **named)
        wrapped: nn.Module = self.execution.wrap_model(model, training, stock)
        return wrapped

    def training_step(self, model: nn.Module, inputs: Any, *positional: Any, **named: Any) -> torch.Tensor:
        stock = super().training_step
        loss = self.execution.training_step(model, inputs, lambda chunk: stock(model, chunk, *positional, **named))
        if self.observe_loss is not None:
            self.observe_loss(loss)
        return self.note_loss(loss)

    def evaluate(self, *positional: Any, **named: Any) -> Any:
        """The metrics. During a training its random draws go on as if there were no evaluation."""
        with unchanged_generators() if self.is_in_train else contextlib.nullcontext():
            return super().evaluate(*positional, **named)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Optional[List[str]] = None
    ) -> Any:
        stock, more = super().prediction_step, (prediction_loss_only, ignore_keys)
        return self.execution.prediction_step(model, inputs, *more, lambda inner, part: stock(inner, part, *more))

    def evaluation_loop(self, *positional: Any, **named: Any) -> Any:
        with self.execution.evaluation():
            return super().evaluation_loop(*positional, **named)

    def prepare_inputs(self, inputs: Any) -> Any:
        return self.execution.prepare_inputs(inputs, functools.partial(super().prepare_inputs, inputs))

    def floating_point_ops(self, inputs: Any) -> int:
        return self.execution.floating_point_ops(inputs, functools.partial(super().floating_point_ops, inputs))

    def log(self, logs: Dict[str, float], *positional: Any, **named: Any) -> None:
        self.execution.adjust_logs(logs)
        super().log(logs, *positional, **named)

    def model_on_host(self) -> nn.Module:
        """The model with its newest weights, to call outside of the device: to generate, to look inside."""
        return self.execution.model_on_host()

    def create_scheduler(self, num_training_steps: int, *positional: Any, **named: Any) -> Any:
        is_new, updates = self.lr_scheduler is None, self.ipu_config.device_iterations
        total = num_training_steps * self.execution.updates_per_step
        scheduler = super().create_scheduler(total, *positional, **named)
        if is_new and updates > 1:
            hold_learning_rates(scheduler, updates, self.execution.updates_per_step, self.args.lr_scheduler_type)
        return scheduler

    def call_model_init(self, *positional: Any, **named: Any) -> Any:
        self._loss_reductions.clear()  # they were of another model
        self.execution.forget_model()
        return super().call_model_init(*positional, **named)

    # Checkpoints ------------------------------------------------------------------------------------------------

    def write_model(self, folder: str, state_dict: Optional[Dict[str, Any]] = None) -> None:
        in_loop = self._geometry_in_loop is not None
        accumulation = self._accumulation_given if in_loop else self.args.gradient_accumulation_steps
        with changed(self.args, gradient_accumulation_steps=accumulation):  # checkpoints hold the user's arguments
            super().write_model(folder, self.execution.state_dict() if state_dict is None else state_dict)
        if self.is_in_train:
            self.execution.write_checkpoint(folder)

    def load_best_model(self) -> None:
        self.execution.release()
        super().load_best_model()

    def load_optimizer_state(self, checkpoint: Optional[str]) -> None:
        self.execution.load_optimizer_state(checkpoint, super().load_optimizer_state)
