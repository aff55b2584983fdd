"""On a device each training argument is read, refused before work, or harmless: all of the installed release have a row."""

import dataclasses

import pytest
import torch
from tiny_models import bert

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import argument_names as renamed
from ipu_trainer.training.arguments import _HOST_ONLY

G = torch.Generator().manual_seed(0)
ROWS = [{"input_ids": torch.randint(0, 50, (8,), generator=G), "labels": index % 2} for index in range(24)]
NEW = "eval_strategy" in renamed.INSTALLED

# name -> a value; with the others that make it one for a device. The device learns something else with it.
LEARNT = {
    "adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 0.1, "data_seed": 3, "drop_path": 0.3, "gradient_accumulation_steps": 3,
    "half": True, "head_learning_rate_factor": 2.0, "ipu_config_overrides": "gradient_accumulation_steps=3",
    "label_smoothing_factor": 0.4, "layer_decay": 0.5, "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.01,
    "max_steps": 1, "neftune_noise_alpha": 5.0, "optim": "sgd", "per_device_train_batch_size": 1, "seed": 3,
    "train_sampling_strategy": "sequential", "warmup_steps": 1, "weight_decay": 0.5, "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_ratio": 0.5,
}  # fmt: skip
# An evaluation is another one with it.
EVALUATED = {
    "prediction_loss_only": True,
    "dataloader_drop_last": True,
    "eval_do_concat_batches": False,
    "fp16_full_eval": True,
}
REFUSED = {
    "fp16": True, "bf16": True, "bf16_full_eval": True, "ema_decay": 0.5, "torch_compile": True, "torch_compile_backend": "eager",
    "torch_compile_mode": "default", "torchdynamo": "eager", "compile": "layers", "gpu_kernels": "on",
    "bf16_residual": True, "verify": True, "host_micro_batch_size": "8", "jit_mode_eval": True, "past_index": 1, "debug": "underflow_overflow",
    "activation_checkpointing_kwargs": {"use_reentrant": False}, "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "use_ipex": True, "use_liger_kernel": True, "deepspeed": "x.json", "fsdp": "full_shard", "sharded_ddp": "simple",
    "parallelism_config": object(), "compile_only": True,
}  # fmt: skip
HARMLESS = {
    **dict.fromkeys(("loss_scaling",), "float32 has the same gradients with any factor; with half it is read"),
    **dict.fromkeys(("ipu_config", "precision"), "what they choose is tested by itself: the IPUConfig, and half"),
    **dict.fromkeys(("pipelining", "simulator_device", "backend"), "how and where a model is cut and computed, not what it learns"),
    **dict.fromkeys(("activation_checkpointing", "gradient_checkpointing"), "what is recomputed is the same"),
    **dict.fromkeys(("tf32", "torch_empty_cache_steps", "use_cache", "use_cpu", "no_cuda", "use_mps_device"), "of GPUs, or of generation"),
    **dict.fromkeys(("average_tokens_across_devices", "eval_use_gather_object"), "of several processes"),
    **dict.fromkeys(("eval_accumulation_steps", "dataloader_pin_memory"), "predictions are on the host already, batches come from it"),
    **dict.fromkeys(("optim_args", "optim_target_modules", "adafactor"), "of optimizers that have no counterpart on a device: refused with them"),
}  # fmt: skip
# Read by Trainer's loop, which runs on the host: when to log, evaluate, save, push and stop; how data are loaded.
LOOP_STARTS = (
    "ddp_", "hub_", "push_to_hub", "logging_", "log_", "save_", "dataloader_", "trackio_", "eval_", "include_", "fsdp_", "tpu_",
    "per_device_eval", "per_gpu_", "do_", "torchdynamo",
)  # fmt: skip
LOOP = {
    "output_dir", "overwrite_output_dir", "num_train_epochs", "evaluation_strategy", "report_to", "run_name", "project",
    "disable_tqdm", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ignore_data_skip", "full_determinism",
    "restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "resume_from_checkpoint", "local_rank", "label_names",
    "remove_unused_columns", "length_column_name", "accelerator_config", "group_by_length", "auto_find_batch_size", "batch_eval_metrics",
    "skip_memory_metrics", "liger_kernel_config", "use_legacy_prediction_loop", "xpu_backend", "mp_parameters", "ray_scope",
    "fp16_backend", "fp16_opt_level", "half_precision_backend",
}  # fmt: skip
FIELDS = {item.name for item in dataclasses.fields(IPUTrainingArguments) if item.init}


def trained(**values):
    """(the weights, metrics) after two steps on two simulated IPUs."""
    given = {
        "output_dir": "out", "backend": "simulated", "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no",
        "per_device_eval_batch_size": 2, "report_to": [], "disable_tqdm": True, "learning_rate": 0.05, "optim": "adamw_torch",
        **values,
    }  # fmt: skip
    if "lr_scheduler_kwargs" in values:
        given["lr_scheduler_type"] = "cosine"
    trainer = IPUTrainer(
        model=bert(), args=IPUTrainingArguments(**given), train_dataset=ROWS, eval_dataset=ROWS[:5],
        ipu_config=IPUConfig(layers_per_ipu=(1, 1), gradient_accumulation_steps=4),
        compute_metrics=lambda prediction: {"rows": len(prediction.predictions)},
    )  # fmt: skip
    trainer.train()
    metrics = {name: value for name, value in trainer.evaluate().items() if name in ("eval_loss", "eval_rows")}
    return {name: value.clone() for name, value in trainer.model_on_host().state_dict().items()}, metrics


@pytest.fixture(scope="module")
def plain():
    return trained()


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


def test_every_argument_of_the_installed_release_has_a_row_for_devices():
    known = {*LEARNT, *EVALUATED, *REFUSED, *HARMLESS, *LOOP}
    without = [name for name in FIELDS - known if not name.startswith(LOOP_STARTS)]
    assert not without, (
        "find out what a device does with it, and add it to a table here, or to _HOST_ONLY of arguments.py"
    )
    assert set(_HOST_ONLY) <= set(REFUSED)


@pytest.mark.parametrize("name", sorted(LEARNT))
def test_a_device_learns_as_the_argument_says(plain, name):
    if name not in FIELDS:
        pytest.skip("not of this release of transformers")
    other = trained(lr_scheduler_type="cosine")[0] if name == "lr_scheduler_kwargs" else plain[0]
    assert differ(other, trained(**{name: LEARNT[name]})[0])


@pytest.mark.parametrize("name", sorted(EVALUATED))
def test_a_device_evaluates_as_the_argument_says(plain, name):
    if name not in FIELDS or (name == "fp16_full_eval" and not NEW):
        pytest.skip("not of this release of transformers, or on a GPU alone")
    assert trained(**{name: EVALUATED[name]})[1] != plain[1]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_a_device_does_not_do_is_refused_before_work(name):
    if name not in FIELDS or name == "parallelism_config" or (name == "compile_only"):
        pytest.skip("not of this release of transformers, or tested elsewhere")
    more = {"activation_checkpointing": True} if name == "activation_checkpointing_kwargs" else {}
    with pytest.raises(
        (ValueError, ImportError), match="|".join((name, "torch_compile", "activation_checkpointing", "ipex"))
    ) as error:
        trained(**{name: REFUSED[name]}, **more)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_scaling", 8.0),
        ("pipelining", "none"),
        ("eval_accumulation_steps", 1),
        ("gradient_checkpointing", True),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_harmless_changes_nothing(plain, name, value):
    weights, metrics = trained(**{name: value})
    assert not differ(plain[0], weights) and metrics == plain[1]
