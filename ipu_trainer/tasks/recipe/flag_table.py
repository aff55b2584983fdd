"""What becomes of each flag of `ipu-trainer train` and `search`: effective, refused before work, or harmless, and why.

A field of TrainingArguments without a row fails tests/tasks/test_flag_table.py, as does a row that does not do what it says;
docs/flags.md is made of these tables by scripts/flag_table.py. Flags that the tasks add themselves are checked beside their
definitions; those that are read in some circumstances alone have a row in NEEDS.
"""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Collection, Dict, Mapping, NamedTuple, Optional, Tuple

import torch

from ipu_trainer.compat.argument_names import SUPERSEDED

CHEST, TEXT, PAIRS = "chest-xray", "language-modeling", "seq2seq"
TASKS = (CHEST, TEXT, PAIRS)


class Refused(NamedTuple):
    """A flag that has its default, or the run does not begin. example: another value."""

    example: str
    why: str
    tasks: Tuple[str, ...] = TASKS
    unless: Callable[[Mapping[str, Any]], bool] = lambda values: False


class Need(NamedTuple):
    """A flag that is read where `met`; given elsewhere, it is refused. example: a value and the flags that it needs."""

    met: Callable[[Mapping[str, Any]], bool]
    rule: str
    example: str
    with_flags: str = ""


def _named(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return str(getattr(value, "value", value))


def _several_processes(values: Mapping[str, Any]) -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _without_generation(values: Mapping[str, Any]) -> bool:
    return "predict_with_generate" in values and not values["predict_with_generate"]


def _copies_alone(values: Mapping[str, Any]) -> bool:
    given = values["accelerator_config"]
    config = json.loads(given) if isinstance(given, str) and given.startswith("{") else given
    return isinstance(config, dict) and set(config) <= {"non_blocking"}


_METRICS = "the recipe's metrics read the predictions of all batches as one"
_GONE = "it is a setting of transformers 4.29 alone"
REFUSED: Dict[str, Refused] = {
    "remove_unused_columns": Refused("True", "rows have columns that the collator reads, and forward() does not take"),
    "prediction_loss_only": Refused("True", "the recipe's metrics are made of predictions", unless=_without_generation),
    "label_names": Refused("zzz", "the labels of this task are called labels"),
    "eval_do_concat_batches": Refused("False", _METRICS),
    "batch_eval_metrics": Refused("True", _METRICS),
    "include_for_metrics": Refused("inputs", "the recipe's metrics read predictions and labels alone"),
    "include_inputs_for_metrics": Refused("True", "the recipe's metrics read predictions and labels alone"),
    "dataloader_drop_last": Refused("True", "an evaluation would leave out samples; the batch table says what training does"),
    "length_column_name": Refused("zzz", "rows have no such column: group_by_length measures input_ids"),
    "debug": Refused("underflow_overflow", "its hooks read numbers alone, and T5's masks are boolean", (PAIRS,)),
    "overwrite_output_dir": Refused("True", "remove the folder, or give another --output"),
    "sortish_sampler": Refused("True", "no Trainer reads it"),
    "generation_config": Refused("zzz", "give --generation_num_beams and --generation_max_length"),
    "train_sampling_strategy": Refused(
        "group_by_length", "images have no lengths; random and sequential are what there is", (CHEST,),
        lambda values: values["train_sampling_strategy"] == "sequential",
    ),
    "group_by_length": Refused("True", "images have no lengths", (CHEST,)),
    "include_num_input_tokens_seen": Refused("True", "images have no tokens", (CHEST,)),
    "accelerator_config": Refused(
        '{"split_batches":true}', "the task's own loader reads non_blocking alone of it", (CHEST,), _copies_alone
    ),
    "parallelism_config": Refused("x", "it cannot be written on a command line; use IPUTrainer in a script"),
    "jit_mode_eval": Refused("True", f"{_GONE}; --torch_compile compiles"),
    "use_ipex": Refused("True", f"{_GONE}, for a package that became part of PyTorch"),
    "fp16_opt_level": Refused("O2", f"{_GONE}, for apex"),
    "half_precision_backend": Refused("apex", f"{_GONE}, for apex"),
    "fp16_backend": Refused("apex", f"{_GONE}, for apex"),
    "mp_parameters": Refused("x", f"{_GONE}, for SageMaker"),
    "past_index": Refused("1", f"{_GONE}; no model of this task keeps a state from batch to batch"),
    "ray_scope": Refused("all", f"{_GONE}; `ipu-trainer search` searches with optuna"),
    "sharded_ddp": Refused("simple", f"{_GONE}, for fairscale"),
    "fsdp_min_num_params": Refused("5", "it is min_num_params of fsdp_config"),
    "fsdp_transformer_layer_cls_to_wrap": Refused("x", "it is transformer_layer_cls_to_wrap of fsdp_config"),
    "tpu_metrics_debug": Refused("True", "there is no backend for TPUs"),
    "tpu_num_cores": Refused("8", "there is no backend for TPUs"),
    "use_mps_device": Refused("True", "this machine has no Apple GPU", unless=lambda values: torch.backends.mps.is_available()),
    "use_legacy_prediction_loop": Refused("True", f"{_GONE}, and a device has the other loop alone"),
}  # fmt: skip

_WITHOUT_ARGS = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_torch_xla", "adafactor")
_WITHOUT_BETAS = (
    "sgd", "adagrad", "rmsprop", "adafactor", "lomo", "adalomo", "galore_adafactor", "schedule_free_sgd",
)  # fmt: skip
_WITHOUT_EPSILON = (*_WITHOUT_BETAS, "lion")

_BETAS = "it is read with an optimizer that has Adam's betas"


def _strategy(name: str) -> Need:
    steps, strategy = f"{name}_steps", {"eval": "eval_strategy"}.get(name, f"{name}_strategy")

    def met(values: Mapping[str, Any]) -> bool:
        return "steps" in (_named(values, strategy), _named(values, strategy.replace("eval_", "evaluation_")))

    return Need(met, f"it is read with --{strategy} steps", "7", f"--{strategy} steps" if steps else "")


def _with(name: str, rule: str, example: str, flags: str) -> Need:
    return Need(lambda values: bool(values.get(name)), rule, example, flags)


def _evaluates(values: Mapping[str, Any]) -> bool:
    return "no" not in (_named(values, "eval_strategy"), _named(values, "evaluation_strategy"))


def _to_hub(example: str) -> Need:
    return _with("push_to_hub", "it is read with --push_to_hub", example, "--push_to_hub True")


def _to_trackio(example: str) -> Need:
    return Need(
        lambda values: "trackio" in (values.get("report_to") or ()), "it is read with --report_to trackio", example
    )


def _of_workers(example: str) -> Need:
    return _with(
        "dataloader_num_workers", "it is for --dataloader_num_workers above 0", example, "--dataloader_num_workers 1"
    )


def _of_processes(example: str) -> Need:
    return Need(_several_processes, "it is for several processes, which torchrun starts", example)


NEEDS: Dict[str, Need] = {
    "eval_steps": _strategy("eval"),
    "save_steps": _strategy("save"),
    "logging_steps": _strategy("logging"),
    "eval_delay": Need(_evaluates, "it is read with an --eval_strategy", "1", "--eval_strategy epoch"),
    "greater_is_better": Need(
        lambda values: bool(values.get("metric_for_best_model") or values.get("load_best_model_at_end")),
        "it is read with --metric_for_best_model or --load_best_model_at_end", "False", "--metric_for_best_model loss",
    ),
    "optim_args": Need(
        lambda values: _named(values, "optim") not in _WITHOUT_ARGS,
        f"it is read with other optimizers than {', '.join(_WITHOUT_ARGS)}", "momentum=0.9", "--optim sgd",
    ),
    "optim_target_modules": Need(
        lambda values: any(name in _named(values, "optim") for name in ("galore", "apollo")),
        "GaLore and APOLLO read it", "all-linear", "--optim galore_adamw",
    ),
    "adam_beta1": Need(lambda values: not _named(values, "optim").startswith(_WITHOUT_BETAS), _BETAS, "0.8"),
    "adam_beta2": Need(lambda values: not _named(values, "optim").startswith(_WITHOUT_BETAS), _BETAS, "0.9"),
    "adam_epsilon": Need(
        lambda values: not _named(values, "optim").startswith(_WITHOUT_EPSILON),
        "it is read with an optimizer that has Adam's epsilon", "1e-6",
    ),
    "activation_checkpointing_kwargs": Need(
        lambda values: bool(values.get("activation_checkpointing") or values.get("gradient_checkpointing")),
        "it is read with --activation_checkpointing", '{"use_reentrant":false}', "--activation_checkpointing True",
    ),
    "gradient_checkpointing_kwargs": Need(
        lambda values: bool(values.get("activation_checkpointing") or values.get("gradient_checkpointing")),
        "it is read with --activation_checkpointing", '{"use_reentrant":false}', "--activation_checkpointing True",
    ),
    "liger_kernel_config": _with("use_liger_kernel", "it is read with --use_liger_kernel", "{}", "--use_liger_kernel True"),
    "project": _to_trackio("x"),
    "trackio_space_id": _to_trackio("x"),
    "trackio_bucket_id": _to_trackio("x"),
    "trackio_static_space_id": _to_trackio("x"),
    "hub_model_id": _to_hub("a/b"),
    "hub_strategy": _to_hub("end"),
    "hub_private_repo": _to_hub("True"),
    "hub_always_push": _to_hub("True"),
    "hub_revision": _to_hub("x"),
    "push_to_hub_model_id": _to_hub("b"),
    "push_to_hub_organization": _to_hub("a"),
    "dataloader_persistent_workers": _of_workers("True"),
    "dataloader_prefetch_factor": _of_workers("3"),
    "dataloader_multiprocessing_context": _of_workers("spawn"),
    "dataloader_in_order": _of_workers("False"),
    "ddp_backend": _of_processes("gloo"),
    "xpu_backend": _of_processes("gloo"),
    "ddp_bucket_cap_mb": _of_processes("1"),
    "ddp_find_unused_parameters": _of_processes("True"),
    "ddp_broadcast_buffers": _of_processes("True"),
    "ddp_static_graph": _of_processes("True"),
    "ddp_timeout": _of_processes("10"),
    "fsdp": _of_processes("full_shard"),
    "fsdp_config": _of_processes("x.json"),
    "simulator_device": Need(
        lambda values: values["backend"] == "simulated", "it is read with --backend simulated", "cpu", "--backend simulated"
    ),
    "generation_max_length": _with("predict_with_generate", "it is read with --predict_with_generate", "7", ""),
    "generation_num_beams": _with("predict_with_generate", "it is read with --predict_with_generate", "2", ""),
}  # fmt: skip

# What the recipe always does, whatever the flag's default is: False is refused.
ALWAYS = {
    "do_train": "the recipe trains; `ipu-trainer evaluate` evaluates a run",
    "do_eval": "the recipe evaluates at the end",
    "do_predict": "the recipe evaluates at the end, and keeps what it finds",
}

# example, and why nothing is lost by reading it nowhere.
HARMLESS: Dict[str, Tuple[str, str]] = {
    "average_tokens_across_devices": ("False", "one process has nothing to average over"),
    "torch_empty_cache_steps": ("3", "a CPU has no cache; on a GPU it is read"),
    "log_on_each_node": ("False", "there is one node"),
    "save_on_each_node": ("True", "there is one node"),
    "log_level_replica": ("error", "there is one process"),
    "local_rank": ("0", "launchers set it"),
    "eval_use_gather_object": ("True", "one process gathers nothing"),
    "use_cache": ("True", "generation has its own; a training step reads no cache"),
    "hub_token": ("x", "where nothing is pushed it may load the model"),
    "pipelining": ("none", "a device reads it; the same command runs on the host"),
    "loss_scaling": ("8", "a device reads it; float32 on the host has the same gradients with any factor"),
    "fold": ("False", "the host reads it; a device has nothing to fold"),
    "verify_folding": ("True", "where nothing is folded there is nothing to check"),
    "run_name": ("x", "trackers show it; without one run.json keeps it"),
}

# Flags that reach what Trainer makes of them: name -> a value that is not the default. What each does is in transformers'
# documentation; a test holds each against the arguments that come out, and tests/ has a run of those that recipes read.
EFFECTIVE: Dict[str, str] = {
    "output_dir": "elsewhere",
    "per_device_train_batch_size": "4",
    "per_device_eval_batch_size": "4",
    "gradient_accumulation_steps": "2",
    "num_train_epochs": "2",
    "max_steps": "3",
    "learning_rate": "0.1",
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": '{"num_cycles":2}',
    "warmup_steps": "2",
    "warmup_ratio": "0.2",
    "optim": "sgd",
    "adafactor": "True",
    "weight_decay": "0.3",
    "max_grad_norm": "0.5",
    "label_smoothing_factor": "0.4",
    "bf16": "True",
    "fp16": "True",
    "bf16_full_eval": "True",
    "fp16_full_eval": "True",
    "tf32": "False",
    "activation_checkpointing": "True",
    "gradient_checkpointing": "True",
    "torch_compile": "True",
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "use_liger_kernel": "True",
    "neftune_noise_alpha": "5",
    "auto_find_batch_size": "True",
    "logging_strategy": "epoch",
    "logging_dir": "logs",
    "logging_first_step": "True",
    "logging_nan_inf_filter": "True",
    "include_num_input_tokens_seen": "True",
    "log_level": "error",
    "disable_tqdm": "True",
    "report_to": "none",
    "eval_strategy": "no",
    "evaluation_strategy": "no",
    "eval_on_start": "True",
    "eval_accumulation_steps": "2",
    "save_only_model": "True",
    "save_strategy": "no",
    "save_safetensors": "False",
    "save_total_limit": "1",
    "enable_jit_checkpoint": "True",
    "push_to_hub": "True",
    "push_to_hub_token": "x",
    "load_best_model_at_end": "True",
    "metric_for_best_model": "loss",
    "ignore_data_skip": "True",
    "restore_callback_states_from_checkpoint": "True",
    "full_determinism": "True",
    "seed": "7",
    "data_seed": "7",
    "use_cpu": "True",
    "no_cuda": "True",
    "accelerator_config": '{"even_batches":false}',
    "dataloader_num_workers": "1",
    "dataloader_pin_memory": "True",
    "train_sampling_strategy": "sequential",
    "group_by_length": "True",
    "deepspeed": "x.json",
    "debug": "underflow_overflow",
    "skip_memory_metrics": "False",
    "resume_from_checkpoint": "x",
    "predict_with_generate": "False",
    # IPUTrainingArguments
    "backend": "host",
    "half": "True",
    "compile_only": "True",
    "ipu_config_overrides": "replication_factor=2",
    "layer_decay": "0.5",
    "head_learning_rate_factor": "2",
    "drop_path": "0.3",
    "compile": "off",
    "gpu_kernels": "off",
    "bf16_residual": "True",
    "ema_decay": "0.5",
}

# Smallest and largest value of numbers that would end a run late, or mean nothing.
RANGES: Dict[str, Tuple[float, float]] = {
    "learning_rate": (0, float("inf")),
    "weight_decay": (0, float("inf")),
    "adam_beta1": (0, 1 - 2**-53),
    "adam_beta2": (0, 1 - 2**-53),
    "adam_epsilon": (0, float("inf")),
    "max_grad_norm": (0, float("inf")),
    "label_smoothing_factor": (0, 1 - 2**-53),
    "num_train_epochs": (2**-53, float("inf")),
    "per_device_eval_batch_size": (1, float("inf")),
    "gradient_accumulation_steps": (1, float("inf")),
    "save_total_limit": (1, float("inf")),
    "eval_accumulation_steps": (1, float("inf")),
    "eval_delay": (0, float("inf")),
    "eval_steps": (2**-53, float("inf")),
    "save_steps": (2**-53, float("inf")),
    "logging_steps": (2**-53, float("inf")),
    "dataloader_num_workers": (0, float("inf")),
    "neftune_noise_alpha": (0, float("inf")),
    "generation_num_beams": (1, float("inf")),
    "generation_max_length": (1, float("inf")),
    "data_seed": (0, 2**32 - 1),
    "seed": (0, 2**32 - 1),
}


def check_flags(task: str, values: Mapping[str, Any], defaults: Mapping[str, Any], given: Collection[str]) -> None:
    """Raise ValueError for a flag that the task does not read as it is, or a number outside of its range.

    values: all flags; defaults: the task's; given: the names of those that were written.
    """
    _check_json(values, given)
    if "per_device_train_batch_size" in given and values["per_device_train_batch_size"] < 1:
        raise ValueError(
            f"--per_device_train_batch_size {values['per_device_train_batch_size']} must be at least 1, or left out: the task then "
            "takes its own."
        )
    for name in sorted({name[3:] if name.startswith("no_") and name[3:] in values else name for name in given}):
        row, need = REFUSED.get(name), NEEDS.get(name)
        changed = name in values and not _same(values[name], defaults.get(name))
        if row is not None and changed and task in row.tasks and not row.unless(values):
            raise ValueError(f"--{name} {_text(values[name])}: {row.why}. Leave it out.")
        if need is not None and name in values and not need.met(values):
            raise ValueError(
                f"--{name} {_text(values[name])} would not be read: {need.rule}. Give that, or leave it out."
            )
        if name in ALWAYS and values.get(name) is False:
            raise ValueError(f"--{name} False: {ALWAYS[name]}. Leave it out.")
    for name, (low, high) in RANGES.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:
            most = "" if high == float("inf") else f" and at most {high}" if high >= 1 else " and below 1"
            least = f"at least {low}" if low in (0, 1) else "above 0"
            raise ValueError(f"--{name} {value} must be {least}{most}.")
    if values.get("max_steps") is not None and values["max_steps"] != -1 and values["max_steps"] < 1:
        raise ValueError(
            f"--max_steps {values['max_steps']} must be at least 1, or -1: as many as --num_train_epochs make."
        )


def _check_json(values: Mapping[str, Any], given: Collection[str]) -> None:
    for name in given:
        value = values.get(name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"--{name} {value} is not JSON ({error}).") from None


def _same(value: Any, default: Any) -> bool:
    return bool(value == default) or (value is False and default == "no")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(getattr(value, "value", value))


def kind_of(name: str, task: str) -> Optional[str]:
    """effective, refused, harmless or conditional, or None for a flag without a row."""
    if name in REFUSED and task in REFUSED[name].tasks:
        return "refused"
    if name in NEEDS:
        return "conditional"
    if name in ALWAYS or name in HARMLESS:
        return "harmless"
    return "effective" if name in EFFECTIVE or name in SUPERSEDED else None
