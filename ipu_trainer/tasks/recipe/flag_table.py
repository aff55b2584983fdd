"""Flags of `ipu-trainer train` and `search` that are refused before work, always or in some circumstances, and why.

scripts/flag_table.py has those that are read or harmless, and makes docs/flags.md of all. A field of TrainingArguments
without a row fails tests/tasks/test_flag_table.py, as does a row that does not do what it says. Flags that the tasks add
themselves are checked beside their definitions.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, Callable, Collection, Dict, Mapping, NamedTuple, Tuple

import torch

from ipu_trainer.errors import UserError

CHEST, TEXT, PAIRS = "chest-xray", "language-modeling", "seq2seq"
TASKS = (CHEST, TEXT, PAIRS)


class Refused(NamedTuple):
    """A flag that must have its default. example: another value, which is refused."""

    example: str
    why: str
    tasks: Tuple[str, ...] = TASKS
    unless: Callable[[Mapping[str, Any]], bool] = lambda values: False


class Need(NamedTuple):
    """A flag that has an effect where `met`; given elsewhere, it is refused. example: a value, and the flags that it needs."""

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


def _strategy(name: str) -> Need:
    strategy = f"{name}_strategy"

    def met(values: Mapping[str, Any]) -> bool:
        return "steps" in (_named(values, strategy), _named(values, strategy.replace("eval_", "evaluation_")))

    return Need(met, f"it is read with --{strategy} steps", "7", f"--{strategy} steps")


def _needs(
    met: Callable[[Mapping[str, Any]], bool], rule: str, with_flags: str = "", **examples: str
) -> Dict[str, Need]:
    """Rows of flags that need the same."""
    return {name: Need(met, rule, example, with_flags) for name, example in examples.items()}


def _with(name: str, rule: str, with_flags: str, **examples: str) -> Dict[str, Need]:
    return _needs(lambda values: bool(values.get(name)), rule, with_flags, **examples)


def _evaluates(values: Mapping[str, Any]) -> bool:
    return "no" not in (_named(values, "eval_strategy"), _named(values, "evaluation_strategy"))


def _recomputes(values: Mapping[str, Any]) -> bool:
    return bool(values.get("activation_checkpointing") or values.get("gradient_checkpointing"))


def _optimizer_is_not(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda values: not _named(values, "optim").startswith(names)


NEEDS: Dict[str, Need] = {
    **{f"{name}_steps": _strategy(name) for name in ("eval", "save", "logging")},
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
    **_needs(
        _optimizer_is_not(*_WITHOUT_BETAS), "it is read with an optimizer that has Adam's betas",
        adam_beta1="0.8", adam_beta2="0.9",
    ),
    **_needs(
        _optimizer_is_not(*_WITHOUT_BETAS, "lion"), "it is read with an optimizer that has Adam's epsilon", adam_epsilon="1e-6"
    ),
    **_needs(
        _recomputes, "it is read with --activation_checkpointing", "--activation_checkpointing True",
        activation_checkpointing_kwargs='{"use_reentrant":false}', gradient_checkpointing_kwargs='{"use_reentrant":false}',
    ),
    **_with("use_liger_kernel", "it is read with --use_liger_kernel", "--use_liger_kernel True", liger_kernel_config="{}"),
    **_needs(
        lambda values: "trackio" in (values.get("report_to") or ()), "it is read with --report_to trackio",
        project="x", trackio_space_id="x", trackio_bucket_id="x", trackio_static_space_id="x",
    ),
    **_with(
        "push_to_hub", "it is read with --push_to_hub", "--push_to_hub True",
        hub_model_id="a/b", hub_strategy="end", hub_private_repo="True", hub_always_push="True", hub_revision="x",
        push_to_hub_model_id="b", push_to_hub_organization="a",
    ),
    **_with(
        "dataloader_num_workers", "it is for --dataloader_num_workers above 0", "--dataloader_num_workers 1",
        dataloader_persistent_workers="True", dataloader_prefetch_factor="3", dataloader_multiprocessing_context="spawn",
        dataloader_in_order="False",
    ),
    **_needs(
        _several_processes, "it is for several processes, which torchrun starts",
        ddp_backend="gloo", xpu_backend="gloo", ddp_bucket_cap_mb="1", ddp_find_unused_parameters="True",
        ddp_broadcast_buffers="True", ddp_static_graph="True", ddp_timeout="10", fsdp="full_shard", fsdp_config="x.json",
    ),
    "simulator_device": Need(
        lambda values: values["backend"] == "simulated", "it is read with --backend simulated", "cpu", "--backend simulated"
    ),
    **_with(
        "predict_with_generate", "it is read with --predict_with_generate", "",
        generation_max_length="7", generation_num_beams="2",
    ),
}  # fmt: skip

# What the recipe always does: False is refused.
ALWAYS = {
    "do_train": "the recipe trains; `ipu-trainer evaluate` evaluates a run",
    "do_eval": "the recipe evaluates at the end",
    "do_predict": "the recipe evaluates at the end, and keeps what it finds",
}

# Smallest and largest value of numbers that would end a run late, or mean nothing.
_INFINITE = float("inf")
_BELOW_1 = 1 - 2**-53
RANGES: Dict[str, Tuple[float, float]] = {
    **dict.fromkeys(("learning_rate", "weight_decay"), (0, 10**6)),
    **dict.fromkeys(("adam_epsilon", "max_grad_norm", "eval_delay"), (0, _INFINITE)),
    "neftune_noise_alpha": (0, _INFINITE),
    "dataloader_num_workers": (0, 1024),
    "dataloader_prefetch_factor": (1, 10**4),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), (0, _BELOW_1)),
    "num_train_epochs": (2**-53, 10**9),
    **dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), (2**-53, _INFINITE)),
    **dict.fromkeys(("per_device_eval_batch_size", "gradient_accumulation_steps"), (1, 2**20)),
    **dict.fromkeys(("save_total_limit", "eval_accumulation_steps"), (1, _INFINITE)),
    **dict.fromkeys(("generation_num_beams", "generation_max_length"), (1, _INFINITE)),
    **dict.fromkeys(("data_seed", "seed"), (0, 2**32 - 1)),
}


def check_flags(task: str, values: Mapping[str, Any], defaults: Mapping[str, Any], given: Collection[str]) -> None:
    """Raise UserError for a flag that the task does not read as it is, or a number outside of its range.

    values: all flags; defaults: the task's; given: the names of those that were written.
    """
    _check_json(values, given)
    if "per_device_train_batch_size" in given and values["per_device_train_batch_size"] < 1:
        raise UserError(
            f"--per_device_train_batch_size {values['per_device_train_batch_size']} must be at least 1, or left out: the task then "
            "takes its own."
        )
    for name in sorted({name[3:] if name.startswith("no_") and name[3:] in values else name for name in given}):
        row, need = REFUSED.get(name), NEEDS.get(name)
        changed = name in values and not _same(values[name], defaults.get(name))
        if row is not None and changed and task in row.tasks and not row.unless(values):
            raise UserError(f"--{name} {_text(values[name])}: {row.why}. Leave it out.")
        if need is not None and name in values and not need.met(values):
            raise UserError(
                f"--{name} {_text(values[name])} would have no effect: {need.rule}. Give that, or leave it out."
            )
        if name in ALWAYS and values.get(name) is False:
            raise UserError(f"--{name} False: {ALWAYS[name]}. Leave it out.")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} {value} must be a finite number.")
    for name, (low, high) in RANGES.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:
            most = "" if high == _INFINITE else f" and at most {high}" if high >= 1 else " and below 1"
            least = f"at least {low}" if low in (0, 1) else "above 0"
            raise UserError(f"--{name} {value} must be {least}{most}.")
    if values.get("max_steps") is not None and values["max_steps"] != -1 and values["max_steps"] < 1:
        raise UserError(
            f"--max_steps {values['max_steps']} must be at least 1, or -1: as many as --num_train_epochs make."
        )


# Flags whose text is a JSON object.
_OBJECTS = (
    "lr_scheduler_kwargs",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs",
    "liger_kernel_config",
)


def _check_json(values: Mapping[str, Any], given: Collection[str]) -> None:
    for name in given:
        value = values.get(name)
        if not isinstance(value, str) or not value:
            continue
        if value.startswith("{"):
            try:
                json.loads(value)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"--{name} {value[:200]} is not JSON ({error}).") from None
        elif name in _OBJECTS:
            raise UserError(f'--{name} {value[:200]} must be a JSON object: {{"name": value}}.')


def _same(value: Any, default: Any) -> bool:
    return bool(value == default) or (value is False and default == "no")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(getattr(value, "value", value))
