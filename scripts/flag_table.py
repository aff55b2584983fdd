"""docs/flags.md from ipu_trainer/tasks/recipe/flag_table.py and the tables below; a test holds each row against what happens.

python scripts/flag_table.py > docs/flags.md
"""

from __future__ import annotations

from typing import Dict, Iterator, Optional, Sequence, Tuple

from ipu_trainer.compat.argument_names import SUPERSEDED
from ipu_trainer.tasks.recipe.flag_table import ALWAYS, NEEDS, RANGES, REFUSED, TASKS

TOP = """# Flags of the tasks

`ipu-trainer train TASK` and `ipu-trainer search TASK` take every field of transformers' `TrainingArguments`
(`Seq2SeqTrainingArguments` for seq2seq), those of `IPUTrainingArguments`, and flags of their own. None is taken and ignored,
and none ends a run after its training: what a task does not read is refused before work. Names of other releases of
transformers are taken too: [migration.md](migration.md).

This page is made by `scripts/flag_table.py`.
"""


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
    "host_micro_batch_size": ("micro_batch", "the host reads it; a device computes micro-batches one by one"),
    "verify": ("True", "the host reads it; micro-batches that are computed one by one have nothing to compare"),
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
    "precision": "bf16",
    "compile_only": "True",
    "ipu_config": "one_ipu",
    "ipu_config_overrides": "replication_factor=2",
    "layer_decay": "0.5",
    "head_learning_rate_factor": "2",
    "drop_path": "0.3",
    "compile": "off",
    "fuse_projections": "True",
    "gpu_kernels": "off",
    "bf16_residual": "True",
    "ema_decay": "0.5",
}


def kind_of(name: str, task: str) -> Optional[str]:
    """effective, refused, harmless or conditional, or None for a flag without a row."""
    if name in REFUSED and task in REFUSED[name].tasks:
        return "refused"
    if name in NEEDS:
        return "conditional"
    if name in ALWAYS or name in HARMLESS:
        return "harmless"
    return "effective" if name in EFFECTIVE or name in SUPERSEDED else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def page() -> Iterator[str]:
    yield TOP
    yield "## Refused unless left at their defaults"
    yield from table(
        ("flag", "task", "why"),
        [
            (f"`--{name}`", "all" if row.tasks == TASKS else ", ".join(row.tasks), row.why)
            for name, row in sorted(REFUSED.items())
        ],
    )
    yield "`train_sampling_strategy sequential` is read by all tasks, `prediction_loss_only` by seq2seq without generation, and"
    yield "`non_blocking` of `accelerator_config` by chest-xray.\n"
    yield "## Read in some circumstances, and refused in others"
    yield from table(("flag", "rule"), [(f"`--{name}`", need.rule) for name, need in sorted(NEEDS.items())])
    yield "## Harmless"
    yield from table(
        ("flag", "why"),
        [
            *((f"`--{name}`", why) for name, (_, why) in sorted(HARMLESS.items())),
            *((f"`--{name} True`", f"{why}; False is refused") for name, why in ALWAYS.items()),
        ],
    )
    yield "## Read"
    yield ""
    yield "As transformers documents them, or [performance.md](performance.md), [ipu.md](ipu.md) and `--help` do:"
    yield ", ".join(f"`{name}`" for name in sorted(EFFECTIVE)) + "."
    yield ""
    yield (
        "Out of range, these are refused before work: "
        + ", ".join(f"`{name}`" for name in sorted(RANGES))
        + ", `max_steps`."
    )
    yield "So are a `metric_for_best_model` (or a search's `--objective`) that the task does not compute, an `optim` whose package"
    yield "is not installed, and `lr_scheduler_kwargs` that the schedule does not take."


if __name__ == "__main__":
    print("\n".join(page()))
