"""transformers.Trainer under the names and signatures of all releases, with names for the steps of its loop that are private there.

The rest of the package overrides and reads these names; the private ones behind them occur here alone. PRIVATE lists them, and
tests/test_structure.py holds each against the installed release.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

import transformers
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from ipu_trainer.atomic import share_weights
from ipu_trainer.compat.transformers_versions import load_renamed_weights
from ipu_trainer.errors import UserError

_PARAMETERS = tuple(inspect.signature(Trainer.__init__).parameters)
# Keyword arguments of __init__ with two names; and those that came later, with the release and the replacement in 4.29.
_SAME = {"tokenizer": "processing_class", "processing_class": "tokenizer"}
_ADDED_LATER = {
    "compute_loss_func": ("4.46", "override compute_loss"),
    "optimizer_cls_and_kwargs": ("4.47", "give optimizers=, or override create_optimizer"),
}

# Attributes and methods of Trainer that some releases lack, and what replaces them there.
ELSEWHERE: Dict[str, str] = {
    **dict.fromkeys(
        ("use_apex", "use_cpu_amp", "use_cuda_amp", "amp_dtype", "do_grad_scaling"), "args.bf16 and args.fp16"
    ),
    "scaler": "accelerator.scaler",
    "accelerator": "transformers 4.29 works without Accelerate; args.device and args.world_size",
    "sharded_ddp": "fairscale is no longer supported; is_fsdp_enabled",
    **dict.fromkeys(("backward_prefetch", "forward_prefetch", "limit_all_gathers"), "args.fsdp_config"),
    "jit_compilation_time": "nothing is traced for evaluation any more",
    "repo": "hub_model_id; nothing is cloned any more",
    "use_tune_checkpoints": "Ray's checkpoints are those of output_dir",
    "ipex_optimize_model": "Intel's extension became part of PyTorch",
    "torch_jit_model_eval": "TorchScript is deprecated; args.torch_compile",
    "compare_trainer_and_checkpoint_args": "state.json of the checkpoint, read by yourself",
    "get_learning_rates": "[group['lr'] for group in optimizer.param_groups]",
    "get_num_trainable_parameters": "sum(p.numel() for p in model.parameters() if p.requires_grad)",
    "get_optimizer_group": "optimizer.param_groups",
    "num_tokens": "args.include_num_input_tokens_seen and state.num_input_tokens_seen",
    "propagate_args_to_deepspeed": "the arguments do it when they are created",
    "initial_num_input_tokens_seen_for_session": "state.num_input_tokens_seen",
    "is_tp_enabled": "args.parallelism_config",
    "compute_loss_func": "override compute_loss",
    "optimizer_cls_and_kwargs": "override create_optimizer",
    "current_gradient_accumulation_steps": "args.gradient_accumulation_steps",
    "gather_function": "_nested_gather",
    "hub_model_id": "args.hub_model_id",
    "is_deepspeed_enabled": "args.deepspeed",
    **dict.fromkeys(
        ("is_fsdp_enabled", "is_fsdp_xla_enabled", "is_fsdp_xla_v1_enabled", "is_fsdp_xla_v2_enabled"), "args.fsdp"
    ),
    "fsdp": "is_fsdp_enabled",
    "is_distributed_loading_by_transformers": "4.29 loads no model so",
    "model_accepts_loss_kwargs": "no loss counts labels in 4.29",
    "loss_is_scaled_for_ga": "no loss counts labels in 4.29",
    "model_preparation_time": "time.perf_counter() around it",
    **dict.fromkeys(("neftune_hook_handle", "neftune_noise_alpha"), "a forward hook on model.get_input_embeddings()"),
    "create_accelerator_and_postprocess": "transformers 4.29 works without Accelerate",
    "end": "a training leaves nothing open",
    "get_batch_samples": "get_train_dataloader; 4.29 takes one batch at a time",
    **dict.fromkeys(("get_cp_size", "get_sp_size", "get_tp_size"), "1: there is only data parallelism"),
    "get_decay_parameter_names": "transformers.trainer_pt_utils.get_parameter_names",
    "get_total_train_batch_size": "args.train_batch_size * args.gradient_accumulation_steps * args.world_size",
    "set_initial_training_values": "state.max_steps, once training has begun",
}  # fmt: skip
# Renamed methods with the same arguments.
RENAMED_METHODS = {
    "prediction_loop": "evaluation_loop",
    "init_git_repo": "init_hf_repo",
    "init_hf_repo": "init_git_repo",
}


def renamed_arguments(named: Mapping[str, Any]) -> Dict[str, Any]:
    """Trainer's keyword arguments by the installed release's names. Raises UserError for what it does not have."""
    renamed = dict(named)
    for name, value in named.items():
        if name in _PARAMETERS:
            continue
        other = _SAME.get(name, "")
        if other in _PARAMETERS:
            if renamed.get(other) is not None and renamed[other] is not value:
                raise UserError(f"{name}= and {other}= are one argument under two names. Give one of them.")
            renamed[other] = renamed.pop(name)
        elif name in _ADDED_LATER:
            version, instead = _ADDED_LATER[name]
            if value is not None:
                raise UserError(
                    f"{name}= came with transformers {version}, and this is {transformers.__version__}. Instead: {instead}."
                )
            del renamed[name]
    return renamed


class AnyReleaseCallbackHandler(CallbackHandler):  # type: ignore[misc]  # transformers is not typed
    """Gives callbacks the tokenizer (processing_class) under both names."""

    def call_event(self, event: str, args: Any, state: Any, control: Any, **named: Any) -> Any:
        own = "processing_class" if "processing_class" in _PARAMETERS else "tokenizer"
        named.setdefault(_SAME[own], getattr(self, own, None))
        return super().call_event(event, args, state, control, **named)


# Private name -> why a subclass needs it; all are there from 4.29.2 to 5.24.
PRIVATE = {
    "_inner_training_loop": "one training; train() and auto_find_batch_size call it",
    "_train_batch_size": "samples of a training batch, an attribute that the data loader and the loop read",
    "_wrap_model": "what the loop trains and evaluates",
    "_prepare_inputs": "a batch on its way to the model",
    "_save": "the files of a model, in checkpoints and at the end",
    "_load_from_checkpoint": "weights of a checkpoint, at the start of a resumed training",
    "_load_best_model": "weights of the best checkpoint, at the end",
    "_load_optimizer_and_scheduler": "their state, at the start of a resumed training",
    "_hp_search_setup": "a trial's values, before its training",
    "_report_to_hp_search": "an evaluation's metrics, on their way to the study",
    "_remove_unused_columns": "columns of a data set that the model does not take",
    "_get_collator_with_removed_columns": "the same for data that is no datasets.Dataset",
}


@dataclass(frozen=True)
class StockLoop:
    """Arguments of one training, as Trainer.train gives them. batch_size: of auto_find_batch_size, or None."""

    batch_size: Optional[int]
    positional: Tuple[Any, ...]
    named: Dict[str, Any]

    @property
    def resume_from_checkpoint(self) -> Optional[str]:
        found = self.named.get("resume_from_checkpoint")
        return found or (self.positional[1] if len(self.positional) > 1 else None)


class StockTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trainer with the attributes and methods of other releases; its private steps have names without the underscore."""

    def __init__(self, model: Any = None, args: Any = None, *positional: Any, **named: Any) -> None:
        with warnings.catch_warnings():
            if type(args) is not TrainingArguments:  # _check_smoothing() raises
                warnings.filterwarnings("ignore", "Label smoothing is not compatible")
            super().__init__(model, args, *positional, **named)
        self._check_smoothing()
        self.callback_handler.__class__ = AnyReleaseCallbackHandler
        folder = getattr(self.args, "logging_dir", None)  # in 5.x no argument, but TensorBoard's callback has it
        for callback in self.callback_handler.callbacks if folder else ():
            if hasattr(callback, "logging_dir"):
                callback.logging_dir = folder

    def _check_smoothing(self) -> None:
        """Trainer smooths one class a sample; for several 5.x ignores label_smoothing_factor and warns, and 4.29 fails later."""
        several = getattr(getattr(self.model, "config", None), "problem_type", None) == "multi_label_classification"
        own_loss = not type(self).compute_loss.__module__.startswith(
            ("transformers.", "ipu_trainer.training.", "ipu_trainer.compat.")
        )
        stock_arguments = type(self.args) is TrainingArguments  # whose warning is shown
        if self.args.label_smoothing_factor and several and not own_loss and not stock_arguments:
            raise UserError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} is for one class a sample, and the model's "
                "problem_type is multi_label_classification. Override compute_loss to smooth the targets, or leave it at 0."
            )

    def _report_to_hp_search(self, trial: Any, step: int, metrics: Dict[str, float]) -> None:
        """4.29 reports one objective to an optuna study that has several, and fails."""
        if len(getattr(getattr(trial, "study", None), "directions", ())) > 1:
            self.objective = self.compute_objective(dict(metrics))
        else:
            super()._report_to_hp_search(trial, step, metrics)

    def __getattr__(self, name: str) -> Any:  # called for missing attributes
        other = _SAME.get(name) or RENAMED_METHODS.get(name)
        if other and (other in vars(self) or hasattr(type(self), other)):
            return getattr(self, other)
        if name in ELSEWHERE:
            raise AttributeError(
                f"{type(self).__name__} has no {name} with transformers {transformers.__version__}. Instead: {ELSEWHERE[name]}."
            )
        return object.__getattribute__(self, name)  # raises AttributeError, or what a property raised

    def __setattr__(self, name: str, value: Any) -> None:
        other = _SAME.get(name)
        super().__setattr__(other if other in _PARAMETERS else name, value)

    def _inner_training_loop(self, batch_size: Any = None, *positional: Any, **named: Any) -> Any:
        return self.training_loop(StockLoop(batch_size, positional, named))

    def training_loop(self, loop: StockLoop) -> Any:
        """One training with batches of train_batch_size samples; returns a TrainOutput."""
        return super()._inner_training_loop(self.train_batch_size, *loop.positional, **loop.named)

    @property
    def train_batch_size(self) -> int:
        """Samples of a batch of the training loader, in each process."""
        return int(vars(self)["_train_batch_size"])

    @train_batch_size.setter
    def train_batch_size(self, samples: int) -> None:
        self.__dict__["_train_batch_size"] = samples

    def _wrap_model(self, model: nn.Module, training: bool = True, *positional: Any, **named: Any) -> nn.Module:
        return self.wrap_model(model, training, *positional, **named)

    def wrap_model(self, model: nn.Module, training: bool = True, *positional: Any, **named: Any) -> nn.Module:
        """What the loop calls in place of the model, to train or to evaluate it."""
        wrapped: nn.Module = super()._wrap_model(model, training, *positional, **named)
        return wrapped

    def _prepare_inputs(self, inputs: Any) -> Any:
        return self.prepare_inputs(inputs)

    def prepare_inputs(self, inputs: Any) -> Any:
        """A batch on its way to the model: moved to the device that computes."""
        return super()._prepare_inputs(inputs)

    def prepared_inputs(self, inputs: Any) -> Any:
        """prepare_inputs(), or what a subclass overrides in its place."""
        return self._prepare_inputs(inputs)

    def _save(self, output_dir: Optional[str] = None, state_dict: Optional[Dict[str, Any]] = None) -> None:
        self.write_model(output_dir or self.args.output_dir, state_dict)

    def write_model(self, folder: str, state_dict: Optional[Dict[str, Any]] = None) -> None:
        """Write weights, configuration, tokenizer and arguments into a folder, of a checkpoint or of the run."""
        super()._save(folder, state_dict=state_dict)
        share_weights(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Optional[nn.Module] = None) -> None:
        self.load_checkpoint(resume_from_checkpoint, model)

    def load_checkpoint(self, checkpoint: str, model: Optional[nn.Module] = None) -> None:
        """Give the model the weights of a checkpoint. Raises UserError for a checkpoint of another model, or of NaN."""
        loaded = self.model if model is None else model
        if not load_renamed_weights(loaded, checkpoint):
            super()._load_from_checkpoint(checkpoint, model)
        broken = next((name for name, value in loaded.named_parameters() if not bool(value.isfinite().all())), None)
        if broken is not None:
            raise UserError(
                f"{checkpoint}: its weights hold NaN or infinity, such as {broken}. Resume from an earlier checkpoint."
            )

    def _load_optimizer_and_scheduler(self, checkpoint: Optional[str]) -> None:
        self.load_optimizer_state(checkpoint)

    def load_optimizer_state(self, checkpoint: Optional[str]) -> None:
        """Give optimizer and scheduler the state of a checkpoint; None: there is none."""
        super()._load_optimizer_and_scheduler(checkpoint)

    def _hp_search_setup(self, trial: Any) -> None:
        self.set_up_trial(trial)

    def set_up_trial(self, trial: Any) -> None:
        """Set the arguments to the values of a trial."""
        super()._hp_search_setup(trial)

    def _load_best_model(self) -> None:
        self.load_best_model()

    def load_best_model(self) -> None:
        """Give the model the weights of state.best_model_checkpoint."""
        if not load_renamed_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def count_items(self, batches: List[Dict[str, Any]]) -> Any:
        """num_items_in_batch of some batches as Trainer counts it; None before 4.46, which does not count."""
        count = getattr(self, "_get_num_items_in_batch", None)
        return None if count is None else count(batches, self.args.device)

    def drop_unused_columns(self, dataset: Any, collator: Any, is_table: bool) -> Tuple[Any, Any]:
        """(data set, collator) as the training loader has them. is_table: a datasets.Dataset, whose columns are removed."""
        if is_table:
            return self._remove_unused_columns(dataset, description="training"), collator
        return dataset, self._get_collator_with_removed_columns(collator, description="training")


def _taking_more(name: str, argument: str) -> Any:
    """A method that drops `argument`, which this release does not take: a subclass written for a later one passes it on."""
    num_positional = len(inspect.signature(getattr(Trainer, name)).parameters) - 1

    def method(self: Any, *positional: Any, **named: Any) -> Any:
        named.pop(argument, None)
        return getattr(super(StockTrainer, self), name)(*positional[:num_positional], **named)

    method.__name__ = name
    return method


# Arguments that came after 4.29 and that 4.29 does not need: the number of labels, the start time.
for _name, _argument in (
    ("compute_loss", "num_items_in_batch"), ("training_step", "num_items_in_batch"), ("log", "start_time"),
    ("create_optimizer", "model"),
):  # fmt: skip
    if _argument not in inspect.signature(getattr(Trainer, _name)).parameters:
        setattr(StockTrainer, _name, _taking_more(_name, _argument))
