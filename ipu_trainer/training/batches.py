"""A trainer's IPUConfig and batch geometry, and the samples of a batch: slices and counts along dimension 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Dict, Optional, Tuple, Union

import torch
from transformers.trainer_pt_utils import find_batch_size

from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.errors import UserError


def num_model_copies(args: Any) -> int:
    """Model copies that compute side by side: processes, or GPUs of one process under DataParallel."""
    return int(args.world_size) * max(1, int(args.n_gpu))


def batch_geometry(config: IPUConfig, args: Any, micro_batch: Optional[int] = None) -> BatchGeometry:
    """The geometry of a training. micro_batch: a smaller one than the arguments', accumulated more often.

    With one replica in the IPUConfig and several processes each process is a replica, as for Trainer.
    """
    given, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    accumulation = config.gradient_accumulation_steps if accumulation == 1 else accumulation
    replicas = config.replication_factor if config.replication_factor > 1 else num_model_copies(args)
    size = micro_batch or given
    return BatchGeometry(size, accumulation * given // size, replicas, config.device_iterations)


def smaller_micro_batch(args: Any, accumulation: int, batch_size: Optional[int]) -> Optional[int]:
    """The micro-batch after auto_find_batch_size asks for batches of batch_size; None while the given one fits.

    The largest that fits and divides the micro-batches of an update, so that the global batch stays.
    """
    given = args.per_device_train_batch_size
    wanted = given if batch_size is None else int(batch_size) // max(1, args.n_gpu)
    if not args.auto_find_batch_size or wanted >= given:
        return None
    return max(size for size in range(1, max(wanted, 1) + 1) if given * accumulation % size == 0)


def ipu_config_of(given: Union[IPUConfig, str, None], args: Any) -> IPUConfig:
    """The IPUConfig of a trainer, with the overrides of its arguments.

    given: ipu_config= of the trainer. Raises UserError where it and what the arguments name differ.
    """
    said, named = given, getattr(args, "ipu_config", None)
    given = load_profile(given).config if isinstance(given, str) else given
    other = None if named is None else load_profile(named).config
    if isinstance(given, IPUConfig) and other is not None and given != other:
        fields = [item.name for item in dataclasses.fields(IPUConfig)]
        differ = [name for name in fields if getattr(given, name) != getattr(other, name)]
        name = said if isinstance(said, str) else "an IPUConfig"
        raise UserError(
            f"ipu_config={name} of the trainer and ipu_config={named} of its arguments differ ({', '.join(differ)}). Give one."
        )
    given = other if given is None else given
    if given is not None and not isinstance(given, IPUConfig):
        raise UserError(
            f"ipu_config is a {type(given).__name__}. Give an IPUConfig, a profile's name such as 'vit_base_pod4', or the path "
            "of an ipu_config.json."
        )
    # No output mode was chosen: "sum" makes the logged loss the mean over all micro-batches.
    config = given or IPUConfig(output_mode="sum")
    overrides = getattr(args, "ipu_config_overrides", None)
    return config.updated_from_string(overrides) if overrides else config


def shapes_of_rows(batch: Any, rows: int) -> Optional[Tuple[Any, ...]]:
    """Names, types and shapes of one sample in a batch of so many; None if it is not made of tensors of that many rows."""
    if not isinstance(batch, Mapping):
        return None
    if not all(torch.is_tensor(value) and value.dim() and len(value) == rows for value in batch.values()):
        return None
    return tuple((name, value.dtype, value.shape[1:]) for name, value in batch.items())


def rows_of(inputs: Any, begin: int, end: int) -> Dict[str, Any]:
    """Samples begin to end of a batch. Raises UserError if something in it is not one row a sample."""
    rows = find_batch_size(inputs)
    cut: Dict[str, Any] = {}
    for name, value in inputs.items():
        has_rows = isinstance(value, (list, tuple)) or (torch.is_tensor(value) and value.dim())
        if has_rows and len(value) == rows:
            cut[name] = value[begin:end]
        elif value is None or isinstance(value, (bool, int, float, str)):
            cut[name] = value
        else:
            raise UserError(f"{name} of a batch of {rows} samples has no row for each of them.")
    return cut
