"""IPUTrainer: transformers.Trainer with an IPUConfig, on the host or on a device (real or simulated IPUs).

The training loop is the stock one. What this class changes, and why:

    __init__               takes `ipu_config`, chooses the backend, adds stochastic depth, adapts old subclasses
    create_optimizer       learning rates by depth, if asked for
    create_scheduler       one learning rate for all updates of a host step, as a device has it
    get_batch_samples, training_step   micro-batches count by what they hold of their update (accumulated_loss.py); on the
                           host also host_loop.py
    _inner_training_loop   accumulation x replicas of the IPUConfig become this process's accumulation, or a host step;
                           on the host micro-batches are folded (folding.py), on a GPU layers compiled (compile.py)
    create_accelerator_and_postprocess, evaluate, predict   each trainer keeps its own device and precision, in training
                           too (accelerate_state.py)
    call_model_init        stochastic depth for the model of every trial
    __getstate__, __setstate__   pickled after a training too (pickling.py)
    _load_from_checkpoint, _load_best_model    checkpoints with renamed tensors (compat.load_renamed_weights)
    evaluation_loop, _save the weight average, if asked for; weights that are on the device

On the host a Trainer step is one weight update; a host step of the IPUConfig is `device_iterations` of them. On a
device a Trainer step is one host step: it trains on a whole batch of micro-batch x accumulation x replicas x device
iterations samples, and steps of the arguments (max_steps, save_steps, ...) count host steps. There it also changes

    get_train_dataloader   batches are whole host steps (on the host: of folded micro-batches, each collated by itself)
    get_eval_dataloader, get_test_dataloader   batches are what one inference call takes
    _wrap_model            the loop gets DeviceModel and DeviceOptimizer (device.py says why)
    training_step          one call of the training executor; compute_loss runs inside of it
    prediction_step        whole micro-batches on the device, what is left of the last one on the host: exact
    _prepare_inputs        inside of the device nothing is moved
    floating_point_ops     without reading weights, which would copy them (on the host: once for each shape of batch)
    log                    no gradient norm, which stays on the device; weight updates; compile time kept out of rates
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ipu_trainer import openmp
from ipu_trainer.backends import Backend, choose_backend
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.trainer_signatures import renamed_arguments
from ipu_trainer.config.batching import BatchGeometry, EpochPlan, batch_table
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.training.arguments import IPUTrainingArguments, agreed_ipu_config, refuse_on_device
from ipu_trainer.training.device.executors import DeviceModel, DeviceRun
from ipu_trainer.training.device.host_step import HostStep, host_step, usable_samples
from ipu_trainer.training.device.prediction import predict_in_pieces
from ipu_trainer.training.device.streams import WholeHostSteps
from ipu_trainer.training.finetuning.layerwise_learning_rates import groups_by_depth
from ipu_trainer.training.finetuning.named_optimizer import apply_settings, is_named, with_named_optimizer
from ipu_trainer.training.finetuning.stochastic_depth import add_drop_path
from ipu_trainer.training.finetuning.weight_ema import WeightAverage
from ipu_trainer.training.host.coalescing import Folding
from ipu_trainer.training.host.host_loop import HostLoop
from ipu_trainer.training.hyperparameter_search.optuna_search import (
    check_search,
    search_backend,
    search_with_optuna,
    the_loss,
)
from ipu_trainer.training.hyperparameter_search.ray_search import (
    arguments_of_trial,
    check_directions_of_stock,
    prepared_for_ray,
)
from ipu_trainer.training.loss.finite_losses import FiniteLosses
from ipu_trainer.training.loss.loss_reduction import PER_ITEM, LossReduction
from ipu_trainer.training.state.accelerate_state import OwnAccelerateState
from ipu_trainer.training.state.pickling import rebuild, state_to_pickle

logger = logging.get_logger(__name__)


class IPUTrainer(HostLoop):
    """Takes everything that Trainer takes, and `ipu_config`: an IPUConfig, a profile's name, or a path.

    optimizers= is (optimizer, scheduler), or a name and settings: ("adamw_torch", {"lr": 1e-4}).

    args may be plain TrainingArguments. Raises ValueError before any work where the IPUConfig and the processes that were
    started do not go together, or the backend cannot honour an argument.
    """

    optimizer: Any
    loader_follows_folding = True

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
        self._optimizer_settings: Dict[str, Any] = {}
        if is_named(named.get("optimizers")):
            args, self._optimizer_settings = with_named_optimizer(args, named.pop("optimizers"))
        ipu_config = agreed_ipu_config(ipu_config, args)
        if isinstance(ipu_config, str):
            ipu_config = load_profile(ipu_config).config
        elif ipu_config is not None and not isinstance(ipu_config, IPUConfig):
            raise ValueError(
                f"ipu_config is a {type(ipu_config).__name__}. Give an IPUConfig, a profile's name such as "
                "'vit_base_pod4', or the path of an ipu_config.json."
            )
        # Nobody chose an output mode: "sum" makes the logged loss the mean over all micro-batches.
        config = ipu_config or IPUConfig(output_mode="sum")
        overrides = getattr(args, "ipu_config_overrides", None)
        self.ipu_config: IPUConfig = config.updated_from_string(overrides) if overrides else config
        self.backend: Backend = choose_backend(
            getattr(args, "backend", "auto"),
            getattr(args, "simulator_device", ""),
            getattr(args, "compile_only", False),
        )
        if self.backend.has_executors:
            refuse_on_device(args)
        self._device_run: Optional[DeviceRun] = None
        self._micro_batch_found: Optional[int] = None
        self._num_parameters = 0
        # Of a training step on the host, by its model and the shapes of its batch.
        self._operations: WeakKeyDictionary[nn.Module, Dict[Any, int]] = WeakKeyDictionary()
        self._foldings: Dict[Any, Folding] = {}
        self._loss_reductions: Dict[Any, LossReduction] = {}
        self._finite_losses = FiniteLosses()
        self.weight_average: Optional[WeightAverage] = None
        if getattr(args, "ema_decay", 0.0):
            self.weight_average = WeightAverage(args.ema_decay)
        self._batch_geometry_in_loop: Optional[BatchGeometry] = None
        super().__init__(model, args, *positional, **renamed_arguments((model, args, *positional), named))
        self._accelerate_state = OwnAccelerateState()  # of 4.29 too, which makes no accelerator
        compat.adapt_old_overrides(self, IPUTrainer)
        compat.refuse_old_overrides(self, IPUTrainer)
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

    def __getstate__(self) -> Dict[str, Any]:
        return state_to_pickle(self)

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self._operations, self._foldings, self._loss_reductions = WeakKeyDictionary(), {}, {}
        rebuild(self, state)
        compat.adapt_old_overrides(self, IPUTrainer)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self._accelerate_state = OwnAccelerateState()

    def evaluate(self, *positional: Any, **named: Any) -> Any:
        self._accelerate_state.restore()
        return super().evaluate(*positional, **named)

    def predict(self, *positional: Any, **named: Any) -> Any:
        self._accelerate_state.restore()
        return super().predict(*positional, **named)

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
        micro_batch = args.per_device_train_batch_size
        if self._micro_batch_found is not None:
            accumulation = accumulation * micro_batch // self._micro_batch_found
            micro_batch = self._micro_batch_found
        return BatchGeometry(micro_batch, accumulation, replicas, config.device_iterations)

    def batch_table(self, epoch: Optional[EpochPlan] = None) -> str:
        """The batch arithmetic as text; on the host with how it is computed, which the first call finds out."""
        table = batch_table(self.batch_geometry, epoch, self._num_workers())
        reduction = self.loss_reduction_ahead()
        if self._accumulates():
            table += f"\nloss: {'found out on the first batch' if reduction is None else reduction.describe()}"
        nothing_to_fold = self.batch_geometry.accumulation_per_process(self._num_workers()) == 1
        if self.backend.has_executors or nothing_to_fold or not getattr(self.args, "fold", False):
            return table
        folding = self.decide_folding()
        return f"{table}\nfolded: {folding.factor} micro-batches are one pass ({folding.reason})"

    def _inner_training_loop(self, batch_size: Any = None, *positional: Any, **named: Any) -> Any:
        self._accelerate_state.restore()
        args = self.args
        self._accumulation_given = args.gradient_accumulation_steps
        self._shrink_micro_batch(batch_size)
        self._batch_geometry_in_loop = geometry = self.batch_geometry
        logger.info("batches:\n%s", self.batch_table(self._epoch_plan()))
        slow = openmp.why_slow(torch.get_num_threads()) if args.device.type == "cpu" else None
        if slow:
            logger.warning(slow)
        resume = named.get("resume_from_checkpoint") or (positional[1] if len(positional) > 1 else None)
        if self.weight_average is not None:
            self.weight_average.start(self.model, resume)
        batch_given: int = self._train_batch_size
        # In place rather than on a copy of args: callbacks keep their hold on the arguments that the loop reads.
        if self.backend.has_executors:
            self._check_epoch(geometry)
            args.gradient_accumulation_steps = 1
            self._train_batch_size = self._samples_per_batch(geometry)
        else:
            self._fold(geometry)
        try:
            if getattr(args, "compile_only", False):
                return self._compile_only()
            with self._waiting_told():
                result = self._stock_loop(geometry, positional, named)
            if self._device_run is not None:
                result.metrics["train_compile_seconds"] = self._device_run.compile_seconds
                self._device_run.compile_seconds = 0.0
        finally:
            if self._device_run is not None:
                self._device_run.release()
            args.gradient_accumulation_steps = self._accumulation_given
            self.folding, self.micro_batches_in_update = None, 0
            self._train_batch_size = batch_given if self._micro_batch_found is None else geometry.micro_batch
            self._batch_geometry_in_loop = None
        best_was_loaded = args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if self.weight_average is not None and not best_was_loaded:
            self.weight_average.copy_to(self.model)
        return result

    def _shrink_micro_batch(self, batch_size: Any) -> None:
        """auto_find_batch_size asks for a smaller batch: a smaller micro-batch, accumulated more often, it shall be."""
        self._micro_batch_found = None
        given, copies = self.args.per_device_train_batch_size, max(1, self.args.n_gpu)
        wanted = given if batch_size is None else int(batch_size) // copies
        if not self.args.auto_find_batch_size or wanted >= given:
            return
        per_replica = given * self.batch_geometry.gradient_accumulation
        self._micro_batch_found = max(size for size in range(1, max(wanted, 1) + 1) if per_replica % size == 0)
        logger.warning(
            "out of memory: micro-batch %d x accumulation %d instead of %d x %d; the global batch stays %d",
            self._micro_batch_found,
            per_replica // self._micro_batch_found,
            given,
            per_replica // given,
            self.batch_geometry.global_batch,
        )

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

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Any = None,
        n_trials: int = 20,
        direction: Any = None,
        backend: Any = None,
        hp_name: Any = None,
        is_feasible: Any = None,
        **options: Any,
    ) -> Any:
        """As Trainer's; hyperparameter_search.py has what optuna studies do more. n_trials is the total of a named study.

        direction: where it is left out the objective must be the evaluation's loss, which is minimized.

        is_feasible(ipu_config, micro_batch) may return why a trial cannot run, which skips it.
        """
        chosen = search_backend(backend)
        directions = check_search(self, n_trials, direction, compute_objective)
        if direction is None:
            compute_objective = functools.partial(the_loss, compute_objective)
        if chosen == "optuna":
            return search_with_optuna(
                self, n_trials, directions, hp_space, compute_objective, hp_name, is_feasible, **options
            )
        if is_feasible is not None:
            raise ValueError(f"is_feasible= is for backend='optuna': {chosen} runs its trials itself.")
        check_directions_of_stock(directions, chosen)
        with prepared_for_ray(self, hp_space, options) if chosen == "ray" else contextlib.nullcontext():
            return super().hyperparameter_search(
                hp_space, compute_objective, n_trials, directions[0], chosen, hp_name, **options
            )

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(arguments_of_trial(self, trial) if isinstance(trial, dict) else trial)
        self._trial = trial

    # On a device ------------------------------------------------------------------------------------------------

    @property
    def _run(self) -> DeviceRun:
        """The model's executors, made anew for another model (model_init) or another micro-batch."""
        local = self._local_geometry()
        run = self._device_run
        if run is None or run.model is not self.model or (self.is_in_train and run.geometry != local):
            if run is not None:
                run.release()
            config = self.ipu_config.updated(gradient_accumulation_steps=local.gradient_accumulation)
            recompute = compat.wants_gradient_checkpointing(self.args)
            if recompute:
                config = config.updated(recompute_checkpoint_every_layer=True)
            inference_replicas = config.inference_replication_factor
            run = self._device_run = DeviceRun(
                self.model,
                self.backend,
                config,
                local,
                self._loss_of_micro_batch,
                pipelining=getattr(self.args, "pipelining", "generic"),
                seed=self.args.seed,
                half=getattr(self.args, "half", False),
                compile_only=getattr(self.args, "compile_only", False),
                inference_replicas=max(1, inference_replicas // self._num_workers()),
                recompute=recompute,
                process=(int(self.args.process_index), int(self.args.world_size)),
            )
        return run

    def model_on_host(self) -> nn.Module:
        """The model with its newest weights, to call outside of the device: to generate, to look inside."""
        run = self._device_run
        if run is None or run.model is not self.model:
            model: nn.Module = self.model
            return model
        return run.on_host()

    def _local_geometry(self) -> BatchGeometry:
        """The batch geometry with the replicas of this process alone."""
        geometry = self.batch_geometry
        replicas = geometry.replicas // self._num_workers()
        return BatchGeometry(geometry.micro_batch, geometry.gradient_accumulation, replicas, geometry.device_iterations)

    def _samples_per_batch(self, geometry: BatchGeometry) -> int:
        return geometry.samples_per_host_step // self._num_workers()

    def _epoch_plan(self) -> Optional[EpochPlan]:
        """What one epoch does on a device, where the data set says how long it is."""
        dataset = self.train_dataset
        if not self.backend.has_executors or dataset is None or not hasattr(dataset, "__len__"):
            return None
        samples, step = len(dataset), self.batch_geometry.samples_per_host_step
        if self._fills_up:
            return self.batch_geometry.epoch(samples, "pad")
        return self.batch_geometry.epoch(samples, "drop") if samples >= step else None

    def _check_epoch(self, geometry: BatchGeometry) -> None:
        """Refuse a data set that makes no host step. A subclass with its own data loader checks itself."""
        dataset = self.train_dataset
        stock = type(self).get_train_dataloader is IPUTrainer.get_train_dataloader
        if stock and dataset is not None and hasattr(dataset, "__len__"):
            plan = geometry.epoch(len(dataset), "pad" if self._fills_up else "drop")
            left_out = plan.samples_dropped
            if self._fills_up:
                rest = plan.num_samples % geometry.samples_per_host_step
                left_out = rest - usable_samples(rest, geometry)
            if plan.num_samples < geometry.samples_per_host_step:
                logger.warning(
                    "%d samples are fewer than the %d of one host step (%s): every epoch is one weight update of these",
                    plan.num_samples,
                    geometry.samples_per_host_step,
                    geometry.describe(),
                )
            if left_out:
                logger.warning(
                    "%d samples are not whole host steps of %d (%s): %d are left out of each epoch, other ones each "
                    "time when shuffled",
                    plan.num_samples,
                    geometry.samples_per_host_step,
                    geometry.describe(),
                    left_out,
                )

    def get_train_dataloader(self) -> Any:
        if not self.backend.has_executors:
            return self._folded_dataloader()
        given, batch, dataset = self.args.dataloader_drop_last, self._train_batch_size, self.train_dataset
        self.args.dataloader_drop_last = not self._fills_up  # shapes are fixed
        self._train_batch_size = self._samples_per_batch(self.batch_geometry)
        if isinstance(dataset, IterableDataset):
            self.train_dataset = WholeHostSteps(dataset, self.batch_geometry.samples_per_host_step)
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last, self._train_batch_size, self.train_dataset = given, batch, dataset

    _eval_micro_batch: Optional[int] = None

    def get_eval_dataloader(self, *positional: Any, **named: Any) -> Any:
        with self._inference_batches():
            return super().get_eval_dataloader(*positional, **named)

    def get_test_dataloader(self, *positional: Any, **named: Any) -> Any:
        with self._inference_batches():
            return super().get_test_dataloader(*positional, **named)

    @contextlib.contextmanager
    def _inference_batches(self) -> Iterator[None]:
        """Inside the block the batch size of evaluation is what one inference call takes."""
        given = self.args.per_device_eval_batch_size
        if self.backend.has_executors and self._eval_micro_batch is None:
            self._eval_micro_batch = given
            self.args.per_device_eval_batch_size = given * self._run.inference_samples_per_call[0]
            try:
                yield
            finally:
                self.args.per_device_eval_batch_size, self._eval_micro_batch = given, None
        else:
            yield

    def _wrap_model(self, model: nn.Module, training: bool = True, *positional: Any, **named: Any) -> nn.Module:
        if not self.backend.has_executors:
            folded = training and self.folding is not None and self.folding.factor > 1
            if folded and hasattr(self.state, "train_batch_size"):  # what resuming compares with the arguments
                self.state.train_batch_size = self.batch_geometry.micro_batch
            wrapped: nn.Module = super()._wrap_model(model, training, *positional, **named)
            return wrapped
        run = self._run
        if not training:
            return run.inference_model
        if hasattr(self.state, "train_batch_size"):  # what resuming compares with the arguments
            self.state.train_batch_size = self.batch_geometry.micro_batch
        if compat.wants_gradient_checkpointing(self.args):  # the device recomputes instead
            self.model.gradient_checkpointing_disable()
        if hasattr(self.model, "num_parameters"):  # counted now: later it would copy the weights from the device
            self._num_parameters = int(self.model.num_parameters(exclude_embeddings=True))
        scaling = float(getattr(self.args, "loss_scaling", 1.0))
        self.optimizer = run.optimizer_for(self.optimizer, float(self.args.max_grad_norm or 0.0), scaling)
        return run.training_model

    def training_step(self, model: nn.Module, inputs: Any, *positional: Any, **named: Any) -> torch.Tensor:
        if isinstance(model, DeviceModel):
            loss = self._run.train_step(self._host_step_of(inputs)).to(self.args.device)
        else:
            loss = super().training_step(model, inputs, *positional, **named)
        if self.args.logging_nan_inf_filter:
            self._finite_losses.add(loss)
        return loss

    def _host_step_of(self, inputs: Any) -> HostStep:
        """What the training executor takes: the batch, a last one filled up, with what losses are weighted by."""
        given = dict(self._prepare_inputs(inputs))
        reduction = self.loss_reduction(given) if self._accumulates() else LossReduction(PER_ITEM)
        assert reduction is not None
        return host_step(
            given,
            self._run.geometry,
            reduction,
            self._count_labels,
            self._sum_over_processes,
            num_processes=int(self.args.world_size),
            fills_up=self._fills_up,
        )

    def _plain_model(self) -> Any:
        return self.model_on_host()

    @property
    def _fills_up(self) -> bool:
        """Whether the last batch of an epoch is filled up, rather than left out: where that is exact and was not refused."""
        dataset = self.train_dataset
        if self.args.dataloader_drop_last or self.args.world_size > 1 or self.ipu_config.device_iterations > 1:
            return False
        if not hasattr(dataset, "__len__") or type(self).get_train_dataloader is not IPUTrainer.get_train_dataloader:
            return False
        return len(dataset) % self.batch_geometry.samples_per_host_step != 0

    def _count_labels(self, batches: List[Dict[str, Any]]) -> Any:
        count = getattr(self, "_get_num_items_in_batch", None)
        return None if count is None else count(batches, self.args.device)

    def _loss_of_micro_batch(self, model: nn.Module, inputs: Dict[str, Any], num_items: Any) -> torch.Tensor:
        extra = {} if num_items is None else {"num_items_in_batch": num_items}
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, inputs, **extra)
        return loss

    def _compile_only(self) -> TrainOutput:
        """Compile for the first batch and stop: what a Pod does without IPUs, into the executable cache."""
        loader = self.get_train_dataloader()
        self.create_optimizer()
        self._wrap_model(self.model)
        given = self._host_step_of(next(iter(loader)))
        self._run.compile_training(given.inputs)
        seconds = self._run.compile_seconds
        logger.warning("compiled in %.1f s; nothing was trained (compile_only)", seconds)
        return TrainOutput(0, 0.0, {"train_compile_seconds": seconds})

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Optional[List[str]] = None
    ) -> Any:
        if not isinstance(model, DeviceModel):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        given = dict(self._prepare_inputs(inputs))
        stock = super().prediction_step

        def of_micro_batch(inner: nn.Module, part: Dict[str, Any]) -> Tuple[Any, Any]:
            loss, logits, _ = stock(inner, part, prediction_loss_only, ignore_keys=ignore_keys)
            return loss, logits

        micro_batch = self._eval_micro_batch or self.args.per_device_eval_batch_size
        key = ("prediction_step", prediction_loss_only, tuple(ignore_keys or ()), ignore_keys is None)
        loss, logits = predict_in_pieces(
            self._run, of_micro_batch, given, micro_batch, key, self._has_loss(given), not prediction_loss_only
        )
        labels: Any = None
        if self._has_loss(given):
            labels = tuple(given.get(name) for name in self.label_names)
            labels = labels[0] if len(labels) == 1 else labels
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def _has_loss(self, inputs: Dict[str, Any]) -> bool:
        if len(self.label_names) == 0:
            return bool(inputs.get("return_loss", self.can_return_loss))
        return all(inputs.get(name) is not None for name in self.label_names)

    def _prepare_inputs(self, inputs: Any) -> Any:
        if self._device_run is not None and self._device_run.in_graph:
            return inputs
        return super()._prepare_inputs(inputs)

    def floating_point_ops(self, inputs: Any) -> int:
        if not self.backend.has_executors:  # counting parameters takes milliseconds
            known = self._operations.setdefault(self.model, {})
            shapes = tuple((name, getattr(value, "shape", None)) for name, value in inputs.items())
            if shapes not in known:
                known[shapes] = int(super().floating_point_ops(inputs))
            return known[shapes]
        main_input = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        return 0 if main_input is None else 6 * main_input.numel() * self._num_parameters

    def log(self, logs: Dict[str, float], *positional: Any, **named: Any) -> None:
        self._finite_losses.correct(logs)
        run = self._device_run
        if self.backend.has_executors:
            logs.pop("grad_norm", None)
            updates = self.ipu_config.device_iterations
            if updates > 1 and "loss" in logs:
                logs["weight_updates"] = self.state.global_step * updates
            if run is not None and run.compile_seconds and "train_runtime" in logs:
                _keep_compile_time_out(logs, run.compile_seconds)
        super().log(logs, *positional, **named)

    # Optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, *positional: Any, **named: Any) -> Any:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*positional, **named)
        if fresh and self._optimizer_settings:
            apply_settings(optimizer, self._optimizer_settings)
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
        updates = self.ipu_config.device_iterations
        on_device = self.backend.has_executors
        total = num_training_steps * updates if on_device else num_training_steps
        scheduler = super().create_scheduler(total, *positional, **named)
        if fresh and updates > 1:
            if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                raise ValueError(
                    f"lr_scheduler_type {self.args.lr_scheduler_type} changes the learning rate between the {updates} "
                    "updates of a host step, which a device cannot. Use device_iterations=1, or linear or cosine."
                )
            held = _of_host_step if on_device else _held
            scheduler.lr_lambdas = [functools.partial(held, function, updates) for function in scheduler.lr_lambdas]
        return scheduler

    def call_model_init(self, *positional: Any, **named: Any) -> Any:
        model = super().call_model_init(*positional, **named)
        self._foldings.clear()  # they were of another model
        self._loss_reductions.clear()
        add_drop_path(model, getattr(self.args, "drop_path", 0.0))
        return model

    def _load_optimizer_and_scheduler(self, checkpoint: Optional[str]) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except KeyError as error:
            if self.backend.has_executors or str(error) not in ("'state'", "'params'"):
                raise
            raise ValueError(
                f"the optimizer state in {checkpoint} was written on a device, and the host keeps it in another form. "
                "Resume with the backend that it was trained on, or start from its weights: --model CHECKPOINT."
            ) from error

    # Checkpoints and the weight average -------------------------------------------------------------------------

    def evaluation_loop(self, *positional: Any, **named: Any) -> Any:
        averaging = self.weight_average is not None and self.is_in_train
        with self.weight_average.applied(self.model) if averaging else contextlib.nullcontext():  # type: ignore[union-attr]
            if not self.backend.has_executors:
                return super().evaluation_loop(*positional, **named)
            self._run.begin_inference()
            try:
                with self._inference_batches():
                    return super().evaluation_loop(*positional, **named)
            finally:
                self._run.end_inference()

    def _save(self, output_dir: Optional[str] = None, state_dict: Optional[Dict[str, Any]] = None) -> None:
        if state_dict is None and self._device_run is not None and self._device_run.model is self.model:
            state_dict = self._device_run.state_dict()
        with self._arguments_as_given():
            super()._save(output_dir, state_dict=state_dict)
        if self.weight_average is not None and self.is_in_train:
            self.weight_average.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not compat.load_renamed_weights(self.model if model is None else model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._device_run is not None:
            self._device_run.release()
        if not compat.load_renamed_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()
        if self.weight_average is not None:
            self.weight_average.load(self.state.best_model_checkpoint, self.model)


class _AverageAfterUpdate(TrainerCallback):  # type: ignore[misc]
    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.average.update(model)


def _held(function: Any, updates: int, update: int) -> Any:
    return function(update // updates * updates)


def _of_host_step(function: Any, updates: int, host_step: int) -> Any:
    return function(host_step * updates)


def _keep_compile_time_out(logs: Dict[str, float], compile_seconds: float) -> None:
    """Throughput of the work alone."""
    runtime = logs["train_runtime"]
    left = max(runtime - compile_seconds, 1e-9)
    for name in ("train_samples_per_second", "train_steps_per_second"):
        if name in logs:
            logs[name] = round(logs[name] * runtime / left, 3)
