"""Names of TrainingArguments between transformers 4.29 and 5.x, and what the installed release calls them.

A script may use the names of any of these releases: IPUTrainingArguments takes all of them and has them as attributes. Where the
installed release has no counterpart, the default value is taken and any other is refused, with the reason.
tests/training/test_argument_names.py compares the releases' own names with these tables.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

import transformers
from transformers import TrainingArguments

from ipu_trainer.errors import UserError

INSTALLED = frozenset(item.name for item in dataclasses.fields(TrainingArguments))

# (older name, newer name) of the same value.
SAME = (
    ("evaluation_strategy", "eval_strategy"),
    ("no_cuda", "use_cpu"),
    ("gradient_checkpointing", "activation_checkpointing"),
    ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    ("per_gpu_train_batch_size", "per_device_train_batch_size"),
    ("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
    ("push_to_hub_token", "hub_token"),
    ("push_to_hub_model_id", "hub_model_id"),
    ("torchdynamo", "torch_compile_backend"),
    ("xpu_backend", "ddp_backend"),
)
OTHER_NAMES = {**dict(SAME), **{new: old for old, new in SAME}}
# 4.29 has these too, but this package reads their newer names: they are converted always.
SUPERSEDED = ("per_gpu_train_batch_size", "per_gpu_eval_batch_size", "torchdynamo")
# Attributes for scripts to read and set. No release's Trainer reads the first; TensorBoard's callback gets the second.
KEPT = {"overwrite_output_dir": False, "logging_dir": None}


class Converted(NamedTuple):
    """A setting with another name and form of value in the installed release."""

    default: Any
    today: Tuple[str, ...]
    turn: Callable[[Any], Dict[str, Any]]
    read: Callable[[Any], Any]


def _ratio(value: float) -> Dict[str, Any]:
    # 5.x reads 1 as one step, so the whole training is the largest number below 1.
    if not 0 <= float(value) <= 1:
        raise UserError(
            f"warmup_ratio {value} must be at least 0 and at most 1. Give --warmup_steps for a number of steps."
        )
    return {"warmup_steps": min(float(value), 1.0 - 2.0**-53)}


def _accelerator(name: str, default: Any) -> Converted:
    def read(args: Any) -> Any:
        return getattr(args.accelerator_config, name, default)

    return Converted(default, ("accelerator_config",), lambda value: {"accelerator_config": {name: value}}, read)


def _switch(name: str, on: Any, off: Any, is_on: Callable[[Any], bool]) -> Converted:
    """True and False, which are the values `on` and `off` of another setting."""
    return Converted(
        False, (name,), lambda value: {name: on if value else off}, lambda args: is_on(getattr(args, name))
    )


def _sampling(value: Any) -> Dict[str, Any]:
    if value not in ("random", "group_by_length"):
        raise UserError(f"train_sampling_strategy={value!r}: transformers 4.29 has random and group_by_length.")
    return {"group_by_length": value == "group_by_length"}


def _inputs_for_metrics(value: Any) -> Dict[str, Any]:
    if set([value] if isinstance(value, str) else value) - {"inputs"}:
        raise UserError(f"include_for_metrics={value!r}: transformers 4.29 can give metrics the inputs alone.")
    return {"include_inputs_for_metrics": "inputs" in value}


CONVERTED: Dict[str, Converted] = {
    "warmup_ratio": Converted(
        0.0, ("warmup_steps",), _ratio, lambda args: float(args.warmup_steps) if args.warmup_steps < 1 else 0.0
    ),
    "adafactor": Converted(
        False,
        ("optim",),
        lambda value: {"optim": "adafactor"} if value else {},
        lambda args: args.optim == "adafactor",
    ),
    "group_by_length": _switch(
        "train_sampling_strategy", "group_by_length", "random", lambda value: value == "group_by_length"
    ),
    "include_inputs_for_metrics": _switch("include_for_metrics", ["inputs"], [], lambda value: "inputs" in value),
    "include_tokens_per_second": _switch("include_num_input_tokens_seen", "all", "no", lambda value: value != "no"),
    "dispatch_batches": _accelerator("dispatch_batches", None),
    "split_batches": _accelerator("split_batches", False),
    "train_sampling_strategy": Converted(
        "random",
        ("group_by_length",),
        _sampling,
        lambda args: "group_by_length" if args.group_by_length else "random",
    ),
    "include_for_metrics": Converted(
        [],
        ("include_inputs_for_metrics",),
        _inputs_for_metrics,
        lambda args: ["inputs"] if args.include_inputs_for_metrics else [],
    ),
}


class Removed(NamedTuple):
    """The values that change nothing, the default first, and why there is no other."""

    usual: Tuple[Any, ...]
    reason: str


_APEX = Removed(
    ("auto", "cuda_amp", "cpu_amp"), "NVIDIA's apex is no longer supported; use PyTorch's autocast (bf16, fp16)"
)
_TPU = "settings of TPUs are torch_xla's own"
REMOVED: Dict[str, Removed] = {
    "fp16_backend": _APEX,
    "half_precision_backend": _APEX,
    "fp16_opt_level": Removed(("O1",), "it was a setting of NVIDIA's apex, which is no longer supported"),
    "fsdp_min_num_params": Removed((0,), "it is min_num_params of fsdp_config"),
    "fsdp_transformer_layer_cls_to_wrap": Removed((None,), "it is transformer_layer_cls_to_wrap of fsdp_config"),
    "sharded_ddp": Removed(("", [], None, False), "it was fairscale's; fsdp does its work"),
    "jit_mode_eval": Removed((False,), "TorchScript is deprecated; torch_compile=True compiles"),
    "use_ipex": Removed((False,), "Intel's extension became part of PyTorch; bf16=True and torch_compile=True are what it did"),
    "mp_parameters": Removed(("",), "SageMaker's launcher sets its own environment variables"),
    "past_index": Removed((-1,), "models keep no hidden state from batch to batch"),
    "push_to_hub_organization": Removed((None,), "it is the first part of hub_model_id='ORGANIZATION/NAME'"),
    "ray_scope": Removed(("last",), "the best trial is the best by its last value; read the others from run_summary"),
    "save_safetensors": Removed((True, None), "models are saved as safetensors; torch.save(model.state_dict(), ...) writes .bin"),
    "tp_size": Removed((0, 1, None), "it is tp_size of a ParallelismConfig, given as parallelism_config"),
    "tpu_metrics_debug": Removed((False,), _TPU),
    "tpu_num_cores": Removed((None,), _TPU),
    "use_legacy_prediction_loop": Removed((False,), "evaluation_loop is the only loop"),
    "use_mps_device": Removed((False, True), "Apple's GPU is used where there is one"),
}  # fmt: skip

# Fields that came after 4.29, with the values that mean what 4.29 does.
ADDED_LATER: Dict[str, Tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "batch_eval_metrics", "dataloader_persistent_workers", "enable_jit_checkpoint", "eval_on_start",
            "eval_use_gather_object", "hub_always_push", "restore_callback_states_from_checkpoint", "save_only_model",
            "use_cache", "use_liger_kernel",
        ),
        (False,),
    ),
    **dict.fromkeys(
        (
            "accelerator_config", "dataloader_multiprocessing_context", "ddp_broadcast_buffers", "hub_revision",
            "liger_kernel_config", "neftune_noise_alpha", "optim_target_modules", "parallelism_config",
            "torch_empty_cache_steps", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id",
        ),
        (None,),
    ),
    "average_tokens_across_devices": (True, False),  # 4.29 has one process here
    "dataloader_in_order": (True,),
    "dataloader_prefetch_factor": (None, 2),
    "ddp_static_graph": (None, False),
    "eval_do_concat_batches": (True,),
    "include_num_input_tokens_seen": (False, "no"),
    "lr_scheduler_kwargs": (None, {}),
    "project": ("huggingface",),
}  # fmt: skip
# Arguments of optimum-graphcore's IPUTrainingArguments.
OPTIMUM: Dict[str, Removed] = {
    "fp32": Removed((True,), "computing is in float32 unless half=True"),
    "lamb": Removed((False,), "give optimizers=(poptorch.optim.LAMB(...), None)"),
    "lamb_no_bias_correction": Removed(
        (False,), "give optimizers=(poptorch.optim.LAMB(..., bias_correction=False), None)"
    ),
    "n_ipu": Removed((None,), "it is replication_factor x ipus_per_replica of the IPUConfig"),
    "pod_type": Removed((None,), "the number of IPUs is replication_factor x ipus_per_replica of the IPUConfig"),
    "ipu_config_name": Removed((None,), "give the trainer ipu_config=NAME, or ipu-trainer --ipu_config NAME"),
    "auto_loss_scaling": Removed((False, None), "it is auto_loss_scaling of the IPUConfig"),
    "dataloader_mode": Removed(("sync", "async", "async_rebatched"), "dataloader_num_workers processes load"),
    "pad_on_batch_axis": Removed((False, True), "the last batch is padded with samples of weight 0"),
}
_USUAL: Dict[str, Removed] = {
    **{name: Removed(usual, "it came in a later release") for name, usual in ADDED_LATER.items()},
    "gradient_checkpointing_kwargs": Removed((None,), "it came in a later release"),
    "activation_checkpointing_kwargs": Removed((None,), "it came in a later release"),
    **REMOVED,
}


# Arguments of this package's own last release: what each means today, and what to write instead.
RENAMED_HERE: Dict[str, Tuple[Callable[[Any], Dict[str, Any]], str]] = {
    "fold": (
        lambda value: {} if value else {"host_micro_batch_size": "micro_batch"},
        "host_micro_batch_size=auto (fold=True) or micro_batch (fold=False)",
    ),
    "verify_folding": (lambda value: {"verify": value} if value else {}, "verify"),
    "fuse_projections": (lambda value: {}, "nothing: it gained no time and is gone"),
}


# Parameters of the set_...() methods that some release has, with the field that each sets.
METHOD_PARAMETERS: Dict[str, Dict[str, str]] = {
    "set_lr_scheduler": {"warmup_ratio": "warmup_ratio"},
    "set_training": {
        "activation_checkpointing": "activation_checkpointing",
        "gradient_checkpointing": "gradient_checkpointing",
    },
    "set_evaluate": {"jit_mode": "jit_mode_eval"},
    "set_testing": {"jit_mode": "jit_mode_eval"},
    "set_dataloader": {
        name: f"dataloader_{name}"
        for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context", "in_order")
    },
    "set_push_to_hub": {"always_push": "hub_always_push", "revision": "hub_revision"},
}


def answer(name: str, value: Any) -> Optional[Dict[str, Any]]:
    """{installed release's name: value} for a name of another release; {} for a value that changes nothing.

    None for a name that needs no answer, or that no release has. Raises UserError for a value without a counterpart.
    """
    if name in INSTALLED and name not in SUPERSEDED:
        return None
    if name in RENAMED_HERE:
        turn, instead = RENAMED_HERE[name]
        warnings.warn(
            f"{name} is an old name and goes with the next release. Write {instead}.", FutureWarning, stacklevel=4
        )
        return turn(value)
    other = OTHER_NAMES.get(name, "")
    if other in INSTALLED:
        return {other: value}
    turned = CONVERTED.get(name)
    if turned is not None and set(turned.today) <= INSTALLED:
        return turned.turn(value)
    usual = _USUAL.get(name, OPTIMUM.get(name))
    if usual is None and turned is not None:
        usual = Removed((turned.default,), "it came and went between two releases")
    if usual is None:
        return None
    if not any(value == item and type(value) is type(item) for item in usual.usual):
        raise UserError(
            f"{name}={value!r}: transformers {transformers.__version__} has no {name}; {usual.reason}. Leave it out."
        )
    return {}


def today(named: Mapping[str, Any], known: Any = INSTALLED) -> Dict[str, Any]:
    """Keyword arguments by the installed release's names. Names in `known`, and those that no release has, stay.

    Raises UserError for a value without a counterpart, and for two names of one setting that contradict each other.
    """
    result = {name: value for name, value in named.items() if name in known and name not in SUPERSEDED}
    for name, value in named.items():
        if name in result or (value is None and (name in OTHER_NAMES or name in CONVERTED)):
            continue
        found = None if name in KEPT else answer(name, value)
        for other, turned in {name: value}.items() if found is None else found.items():
            _put(result, other, turned, name, value)
    return _by_value(result)


def _put(result: Dict[str, Any], name: str, value: Any, given: str, given_value: Any) -> None:
    if result.get(name) is None or result[name] == value:
        result[name] = value
    elif given in CONVERTED and given_value == CONVERTED[given].default:
        pass  # the old name has its default, so the new one counts
    elif isinstance(value, dict) and isinstance(result[name], dict):
        result[name] = {**value, **result[name]}
    elif name == "warmup_steps" and result[name] >= 1:
        pass  # in every release a number of steps counts before a ratio
    elif name == "warmup_steps" and not result[name]:
        result[name] = value
    else:
        raise UserError(
            f"{given}={given_value!r} and {name}={result[name]!r} are one setting under two names. Give {name} alone."
        )


def _by_value(named: Dict[str, Any]) -> Dict[str, Any]:
    """Values that releases read differently under the same name."""
    steps = named.get("warmup_steps")
    if "warmup_ratio" in INSTALLED and isinstance(steps, float) and 0 < steps < 1:
        named["warmup_ratio"] = named.pop("warmup_steps")
    if "report_to" in named and named["report_to"] is None and "evaluation_strategy" not in INSTALLED:
        named["report_to"] = "none"
    if named.get("optim") == "adamw_hf" and "evaluation_strategy" not in INSTALLED:
        raise UserError(
            "optim='adamw_hf', an AdamW that decayed weights after the update, was removed. Use optim='adamw_torch'."
        )
    return named


class TakesRenamed(type):
    """Metaclass of training arguments: their constructors, also of subclasses, take the names of any release."""

    def __call__(cls, *positional: Any, **named: Any) -> Any:
        known = {item.name for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]  # they are dataclasses
        kept = {name: named.pop(name) for name in KEPT if name in named and name not in known}
        made = super().__call__(*positional, **today(named, known))
        for name, value in kept.items():
            setattr(made, name, value)
        return made


def show_renamed(arguments: Any) -> Any:
    """Class decorator: adds attributes under the names of other releases, to read and to set."""
    for name in {*OTHER_NAMES, *CONVERTED, *_USUAL}:
        if name not in INSTALLED and not hasattr(arguments, name):
            setattr(arguments, name, _attribute(name))
    for name, value in KEPT.items():
        if name not in INSTALLED:
            setattr(arguments, name, value)
    for name, parameters in METHOD_PARAMETERS.items():
        setattr(arguments, name, _setting(getattr(arguments, name), parameters))
    return arguments


def _setting(stock: Any, parameters: Mapping[str, str]) -> Any:
    known = inspect.signature(stock).parameters

    @functools.wraps(stock)
    def method(self: Any, *positional: Any, **named: Any) -> Any:
        elsewhere = {parameters[name]: named.pop(name) for name in parameters if name in named and name not in known}
        stock(self, *positional, **named)
        for name, value in elsewhere.items():
            setattr(self, name, value)
        return self

    return method


def takes(arguments: Any, name: str) -> bool:
    """Whether these arguments have a settable attribute of this name, of the installed or of another release."""
    is_shown = (name in OTHER_NAMES or name in CONVERTED) and isinstance(getattr(type(arguments), name, None), property)
    return name in vars(arguments) or is_shown


def _attribute(name: str) -> property:
    def read(args: Any) -> Any:
        other, turned = OTHER_NAMES.get(name, ""), CONVERTED.get(name)
        if other in INSTALLED:
            return getattr(args, other)
        if turned is not None and set(turned.today) <= INSTALLED:
            return turned.read(args)
        return _USUAL[name].usual[0] if name in _USUAL else turned and turned.default

    def write(args: Any, value: Any) -> None:
        if value == read(args) or (name == "warmup_ratio" and args.warmup_steps >= 1):
            return  # nothing changes; a number of steps counts before a ratio
        for other, found in (answer(name, value) or {}).items():
            held = getattr(args, other, None)
            if isinstance(found, dict) and dataclasses.is_dataclass(held):
                for key, item in found.items():
                    setattr(held, key, item)
            else:
                setattr(args, other, found)

    return property(read, write, doc=f"As other releases of transformers call it; see {__name__}.")
