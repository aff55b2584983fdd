"""Training on a device, real or simulated IPUs: a step of Trainer's loop is one host step, one call of the training executor."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import nn
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ipu_trainer.backends import Backend
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.stock_trainer import StockLoop
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.training.arguments import refuse_on_device
from ipu_trainer.training.batches import num_model_copies
from ipu_trainer.training.device.executors import DeviceModel, DeviceRun
from ipu_trainer.training.device.host_step import HostStep, host_step
from ipu_trainer.training.device.host_step_loading import WholeHostStepLoading
from ipu_trainer.training.device.inference import predict_in_micro_batches
from ipu_trainer.training.execution import Stock, changed
from ipu_trainer.training.loss.loss_reduction import PER_ITEM, LossReduction

logger = logging.get_logger(__name__)


class DeviceExecution(WholeHostStepLoading):
    """Whole host steps of fixed shape on the executors of a DeviceRun. max_steps, save_steps, ... count host steps."""

    def __init__(self, trainer: Any, backend: Backend) -> None:
        super().__init__(trainer)
        refuse_on_device(trainer.args)
        self.backend = backend
        self.current_run: Optional[DeviceRun] = None
        self.eval_micro_batch: Optional[int] = None  # inside of inference_batches()
        self._num_parameters = 0

    @property
    def updates_per_step(self) -> int:  # type: ignore[override]  # read only
        return int(self.trainer.ipu_config.device_iterations)

    @property
    def run(self) -> DeviceRun:
        """The model's executors, rebuilt for another model (model_init) or another micro-batch."""
        trainer, geometry, run = self.trainer, self.geometry_of_process(), self.current_run
        if run is None or self._has_other_model or (trainer.is_in_train and run.geometry != geometry):
            self.release()
            args, config = trainer.args, trainer.ipu_config
            recompute = compat.wants_gradient_checkpointing(args)
            config = config.updated(gradient_accumulation_steps=geometry.gradient_accumulation)
            if recompute:
                config = config.updated(recompute_checkpoint_every_layer=True)
            run = self.current_run = DeviceRun(
                trainer.model,
                self.backend,
                config,
                geometry,
                trainer.loss_of_micro_batch,
                seed=args.seed,
                inference_replicas=max(1, config.inference_replication_factor // num_model_copies(args)),
                recompute=recompute,
                process=(int(args.process_index), int(args.world_size)),
                pipelining=getattr(args, "pipelining", "generic"),  # plain TrainingArguments have none of these
                half=getattr(args, "half", False),
                compile_only=getattr(args, "compile_only", False),
            )
        return run

    # One training -----------------------------------------------------------------------------------------------

    def run_loop(self, geometry: BatchGeometry, loop: StockLoop, stock: Stock) -> Any:
        trainer, args, samples = self.trainer, self.trainer.args, self.samples_per_batch()
        self.warn_of_incomplete_host_steps(geometry)
        try:
            with changed(trainer, train_batch_size=samples), changed(args, gradient_accumulation_steps=1):
                if getattr(args, "compile_only", False):
                    return self._compile_only()
                result = stock(loop)
            if self.current_run is not None:
                result.metrics["train_compile_seconds"] = self.current_run.compile_seconds
                self.current_run.compile_seconds = 0.0
            return result
        finally:
            self.release()

    def _compile_only(self) -> TrainOutput:
        """Compile for the first batch and stop: what a Pod does without IPUs, into the executable cache."""
        trainer = self.trainer
        loader = trainer.get_train_dataloader()
        trainer.create_optimizer()
        trainer.wrap_model(trainer.model)
        self.run.compile_training(self._host_step_of(next(iter(loader))).inputs)
        seconds = self.run.compile_seconds
        logger.warning("compiled in %.1f s; nothing was trained (compile_only)", seconds)
        return TrainOutput(0, 0.0, {"train_compile_seconds": seconds})

    def wrap_model(self, model: nn.Module, training: bool, stock: Stock) -> nn.Module:
        """DeviceModel in place of the model; in training DeviceOptimizer in place of the optimizer."""
        trainer, run = self.trainer, self.run
        if not training:
            return run.inference_model
        if hasattr(trainer.state, "train_batch_size"):  # what resuming compares with the arguments
            trainer.state.train_batch_size = trainer.batch_geometry.micro_batch
        if compat.wants_gradient_checkpointing(trainer.args):  # the device recomputes instead
            trainer.model.gradient_checkpointing_disable()
        if hasattr(trainer.model, "num_parameters"):  # counted now: later it would copy the weights from the device
            self._num_parameters = int(trainer.model.num_parameters(exclude_embeddings=True))
        scaling = float(getattr(trainer.args, "loss_scaling", 1.0))
        trainer.optimizer = run.optimizer_for(trainer.optimizer, float(trainer.args.max_grad_norm or 0.0), scaling)
        return run.training_model

    def training_step(self, model: nn.Module, inputs: Any, stock: Stock) -> torch.Tensor:
        return self.run.train_step(self._host_step_of(inputs)).to(self.trainer.args.device)

    def _host_step_of(self, inputs: Any) -> HostStep:
        """What the training executor takes: the batch, a last one filled up, and the weights of its losses."""
        trainer = self.trainer
        given = dict(trainer.prepared_inputs(inputs))
        reduction = trainer.loss_reduction(given) if trainer.accumulates else LossReduction(PER_ITEM)
        return host_step(
            given,
            self.run.geometry,
            reduction,
            trainer.count_items,
            trainer.sum_over_processes,
            num_processes=int(trainer.args.world_size),
            fills_up=self.fills_up,
        )

    def prepare_inputs(self, inputs: Any, stock: Stock) -> Any:
        """Inside of the device nothing is moved."""
        return inputs if self.current_run is not None and self.current_run.in_graph else stock()

    # Evaluation ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def inference_batches(self) -> Iterator[None]:
        args, given = self.trainer.args, self.trainer.args.per_device_eval_batch_size
        if self.eval_micro_batch is not None:
            yield
            return
        samples = given * self.run.inference_samples_per_call[0]
        with changed(self, eval_micro_batch=given), changed(args, per_device_eval_batch_size=samples):
            yield

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        self.run.begin_inference()
        try:
            with self.inference_batches():
                yield
        finally:
            self.run.end_inference()

    def prediction_step(
        self, model: nn.Module, inputs: Any, loss_only: bool, ignore_keys: Optional[List[str]], stock: Stock
    ) -> Any:
        """Whole micro-batches on the device, what is left of the last one on the host: each sample counts once."""
        if not isinstance(model, DeviceModel):
            return stock(model, inputs)
        trainer = self.trainer
        given = dict(trainer.prepared_inputs(inputs))

        def predict_micro_batch(inner: nn.Module, part: Dict[str, Any]) -> Tuple[Any, Any]:
            loss, logits, _ = stock(inner, part)
            return loss, logits

        names = trainer.label_names
        has_loss = all(given.get(name) is not None for name in names)
        has_loss = has_loss if names else bool(given.get("return_loss", trainer.can_return_loss))
        micro_batch = self.eval_micro_batch or trainer.args.per_device_eval_batch_size
        key = ("prediction_step", loss_only, tuple(ignore_keys or ()), ignore_keys is None)
        loss, logits = predict_in_micro_batches(
            self.run, predict_micro_batch, given, micro_batch, key, has_loss, not loss_only
        )
        if loss_only:
            return loss, None, None
        labels = tuple(given.get(name) for name in names) if has_loss else (None,)
        return loss, logits, labels[0] if len(labels) == 1 else labels

    def generates(self, model: nn.Module) -> bool:
        return isinstance(model, DeviceModel)

    # State --------------------------------------------------------------------------------------------------------

    def model_on_host(self) -> nn.Module:
        return super().model_on_host() if self._has_other_model else self.run.on_host()

    def state_dict(self) -> Optional[Dict[str, torch.Tensor]]:
        return None if self._has_other_model else self.run.state_dict()

    @property
    def _has_other_model(self) -> bool:
        return self.current_run is None or self.current_run.model is not self.trainer.model

    def release(self) -> None:
        if self.current_run is not None:
            self.current_run.release()

    def forget_training(self) -> None:
        self.release()
        self.current_run = None

    def floating_point_ops(self, inputs: Any, stock: Stock) -> int:
        """Without reading weights, which would copy them."""
        main_input = inputs.get(getattr(self.trainer.model, "main_input_name", "input_ids"))
        return 0 if main_input is None else 6 * main_input.numel() * self._num_parameters

    def adjust_logs(self, logs: Dict[str, float]) -> None:
        """No gradient norm, which stays on the device; weight updates; throughput without the time of compilation."""
        logs.pop("grad_norm", None)
        if self.updates_per_step > 1 and "loss" in logs:
            logs["weight_updates"] = self.trainer.state.global_step * self.updates_per_step
        seconds = 0.0 if self.current_run is None else self.current_run.compile_seconds
        for name in ("train_samples_per_second", "train_steps_per_second"):
            if seconds and name in logs:
                runtime = logs["train_runtime"]
                logs[name] = round(logs[name] * runtime / max(runtime - seconds, 1e-9), 3)
