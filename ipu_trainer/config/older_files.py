"""`ipu_config.json` of optimum-graphcore 0.1 to 0.6: converted to the present fields, or refused with the key.

Source: optimum/graphcore/ipu_configuration.py of the tags v0.1.0 to v0.6.1 in
https://github.com/huggingface/optimum-graphcore.
"""

from __future__ import annotations

import logging
from typing import Any, Dict, Mapping, Optional, Tuple

from ipu_trainer.errors import UserError

logger = logging.getLogger(__name__)

# Keys of published files that no release's IPUConfig read, and where such a setting belongs.
_MODEL, _TRAINING = "the model's config.json", "the training"
_NEVER_READ = {
    "dataloader_workers": f"{_TRAINING} (dataloader_num_workers)",
    "dataloader_num_workers": _TRAINING,
    "async_dataloader": f"{_TRAINING} (dataloader_num_workers above 0)",
    "dataloader_mode": f"{_TRAINING} (dataloader_num_workers above 0)",
    "dataloader_drop_last": _TRAINING,
    "optimizer": f"{_TRAINING} (optim)",
    "weight_decay": _TRAINING,
    "learning_rate": _TRAINING,
    "lr_schedule": f"{_TRAINING} (lr_scheduler_type)",
    "lr_warmup": f"{_TRAINING} (warmup_ratio)",
    "loss_scaling": _TRAINING,
    **dict.fromkeys(("dataset", "batch_size", "sequence_length", "num_epochs"), _TRAINING),
    "mask_tokens": _MODEL,
    "layer_norm_eps": _MODEL,
    "attention_probs_dropout_prob": _MODEL,
}
# Removed keys: values that can be dropped without effect, and the remedy for others.
_REMOVED: Dict[str, Tuple[Tuple[Any, ...], str]] = {
    "use_popdist": ((False, True, None), ""),  # processes of poprun are detected
    "compile_only": ((False, None), "It is an argument of the training now: compile_only=True, --compile_only."),
    "profile_dir": (
        ("", None),
        "Profile with POPLAR_ENGINE_OPTIONS='{\"autoReport.all\": \"true\", \"autoReport.directory\": \"FOLDER\"}'.",
    ),
    "synthetic_data": ((False, None), "Give the trainer a data set of random samples, or plan with `ipu-trainer plan`."),
    "decompose_grad_sum": ((False, None), "It is no option of optimum-graphcore since 0.4; remove it."),
}  # fmt: skip
_MATMUL = ("matmul_proportion", "inference_matmul_proportion")


def is_pod_table(value: Any) -> bool:
    """Whether a value has one entry for each size of Pod: {"pod4": 1, "pod16": 4, "default": 1}."""
    return (
        isinstance(value, dict) and bool(value) and all(str(k) == "default" or str(k).startswith("pod") for k in value)
    )


def current_fields(values: Mapping[str, Any], pod: Optional[str] = None) -> Dict[str, Any]:
    """A file's values by present fields. pod selects from counts that differ by the size of the Pod.

    Keys that are no field of any release stay, for the caller to refuse. Raises UserError for a removed key, with a remedy.
    """
    read = {name: _of_pod(name, value, pod, values) for name, value in values.items() if name not in _NEVER_READ}
    unread = [f"{name}={values[name]} ({_NEVER_READ[name]})" for name in values if name in _NEVER_READ]
    if unread:
        logger.warning("ipu_config.json: no release read %s. Give them there, if they are meant.", ", ".join(unread))
    if "random_seed" in read:
        seed = read.pop("random_seed")
        if seed is not None and read.get("seed") is not None and read["seed"] != seed:
            raise UserError(f"random_seed {seed} and seed {read['seed']} are one setting: keep seed.")
        read["seed"] = read.get("seed") if seed is None else seed
    for name, (without_effect, instead) in _REMOVED.items():
        if name in read and read.pop(name) not in without_effect:
            raise UserError(f"{name} {values[name]!r} is no field of an IPUConfig any more. {instead}")
    ipus = read.get("ipus_per_replica")
    for name in _MATMUL:  # a list of one number was the number for all IPUs
        if isinstance(read.get(name), list) and len(read[name]) == 1 and (ipus or 1) > 1:
            read[name] = read[name][0]
    if read.get("embedding_serialization_factor") == 0:  # not serialised
        read["embedding_serialization_factor"] = 1
    if "executable_cache_dir" in read and read["executable_cache_dir"] is None:
        read["executable_cache_dir"] = ""
    layers = read.get("layers_per_ipu")
    if isinstance(layers, int) and not isinstance(layers, bool) and ipus in (None, 1):
        read["layers_per_ipu"] = [layers]
    return read


def _of_pod(name: str, value: Any, pod: Optional[str], values: Mapping[str, Any]) -> Any:
    if not is_pod_table(value):
        return value
    sizes = ", ".join(f"{size}: {count}" for size, count in value.items())
    if pod is None:
        tables = [key for key, other in values.items() if is_pod_table(other)]
        raise UserError(
            f"{' and '.join(tables)}: one value for each Pod size ({name}: {sizes}), of which you choose one: "
            f"IPUConfig.from_pretrained(FOLDER, pod={next(iter(value))!r}).save_pretrained(FOLDER) writes a file of that size, "
            "which every command reads."
        )
    if pod not in value:
        raise UserError(f"pod={pod!r}: {name} has values for {sizes}. Choose one of these.")
    return value[pod]
