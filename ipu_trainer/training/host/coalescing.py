"""Micro-batches computed together on the host, where that changes nothing but the time.

An IPU profile such as 1 x 128 means 128 passes of one sample; a GPU or CPU does the same work in a few large passes. Equal is
what follows from single samples: losses that are means or sums of them, which accumulated_loss.py weighs. It is decided before the
first update: by rules, then by comparing the gradients of a few micro-batches of the data, computed one by one and together, with
dropout off. (Dropout draws other numbers in larger passes, as it does in another order of samples.) What is not equal is computed
literally, and the reason is said.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from ipu_trainer.training.host.coalesced_batches import rows_of
from ipu_trainer.training.state.generators import generator_states, restore_generators
from ipu_trainer.training.state.undisturbed_model import undisturbed

# Micro-batches that are compared one by one with all of them together: unequal losses show in a few already.
_COMPARED = 8
# Largest relative difference of gradients that rounding explains: float32, and where a GPU rounds its products to TF32,
# bfloat16 or float16. Losses that compare samples, or batch statistics, differ by percents.
_TOLERANCE = {"float32": 1e-4, "rounded": 2e-2}
# Share of the free memory that activations may take.
_MEMORY_SHARE = 0.6
# On a CPU larger passes gain nothing more; a bound of its own, so that what else a machine does changes no run's arithmetic.
_CPU_ACTIVATION_BYTES = 2 << 30


@dataclass(frozen=True)
class Folding:
    """factor micro-batches are one pass; 1 with the reason why not."""

    factor: int
    reason: str


def why_not(trainer: Any, accumulation: int) -> Optional[str]:
    """The rule that keeps micro-batches apart; None if there is none."""
    args, dataset, model = trainer.args, trainer.train_dataset, trainer.model
    if accumulation == 1:
        return "one micro-batch makes an update"
    if args.n_gpu > 1:
        return f"{args.n_gpu} GPUs of one process share each batch; start one process a GPU (torchrun)"
    if getattr(trainer, "is_deepspeed_enabled", False) or getattr(trainer, "is_fsdp_enabled", False):
        return "DeepSpeed and FSDP own the model"
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return "a stream is read once, so its first micro-batches cannot be compared before"
    strategy = "group_by_length" if getattr(args, "group_by_length", False) else None
    strategy = strategy or getattr(args, "train_sampling_strategy", "random")
    if strategy in ("group_by_length", "batch_rebalance"):
        return f"{strategy} orders samples by the size of a pass"
    optimizer = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optimizer or "layerwise" in optimizer:
        return f"{optimizer} updates weights within each backward pass"
    if (
        args.world_size > 1
        and getattr(trainer, "model_accepts_loss_kwargs", False)
        and not getattr(args, "average_tokens_across_devices", True)
    ):
        return "each process divides by its own number of labels (average_tokens_across_devices is off)"
    if not trainer.loader_follows_folding:
        return f"{type(trainer).__name__} has its own get_train_dataloader"
    statistics = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if statistics:
        return f"batch statistics are those of a micro-batch ({statistics[0]})"
    if not _same_device(next(model.parameters()).device, args.device):
        return f"the model is not on {args.device}"
    return None


def _same_device(one: torch.device, other: torch.device) -> bool:
    """Processes that share a CPU call it cpu:0, cpu:1, ..."""
    return one.type == other.type and (one.type == "cpu" or other.index in (None, one.index))


def why_not_by_size(num_samples: int, micro_batch: int, accumulation: int, factor: int, drop_last: bool, processes: int,
                    loop_weighs: bool) -> Optional[str]:  # fmt: skip
    """Whether passes of `factor` micro-batches make the updates that single ones make, of num_samples in an epoch.

    loop_weighs: the loop can weigh the passes of an epoch's last, smaller update (transformers 5).
    """
    whole = num_samples % (micro_batch * accumulation * processes) == 0
    if whole:
        return None
    told = f"{num_samples} samples are not whole updates of {micro_batch * accumulation * processes}"
    if processes > 1:
        return f"{told}, and processes would share out the last one differently"
    if not loop_weighs:
        return f"{told}, and this transformers carries what is left into the next epoch"
    if drop_last and num_samples % micro_batch and num_samples // micro_batch % factor:
        return (
            f"{num_samples} samples are not whole micro-batches of {micro_batch}, and drop_last would drop a whole pass"
        )
    return None


def decide(trainer: Any, micro_batch: int, accumulation: int) -> Folding:
    """How many micro-batches of one update this process computes together."""
    reason = why_not(trainer, accumulation)
    if reason:
        return Folding(1, reason)
    compared = min(accumulation, _COMPARED)
    difference, saved_bytes, failed = _compare(trainer, micro_batch, compared, compared)
    failed = failed or _too_different(difference, compared, trainer.args)
    if failed:
        return Folding(1, failed)
    largest = largest_that_fits(_free_bytes(trainer), saved_bytes)
    drop_last = bool(trainer.args.dataloader_drop_last)
    factor, told = 1, "two micro-batches do not fit into the memory"
    for size in divisors_down(accumulation, largest):
        reason = trainer.why_not_foldable(micro_batch, accumulation, size, drop_last)
        if reason is None:
            factor, told = size, "another process needs it"
            break
        told = reason
    factor = _least(factor, trainer.args)
    if factor == 1:
        return Folding(1, told)
    if getattr(trainer.args, "verify_folding", False) and accumulation > compared:
        compared = accumulation
        difference, _, failed = _compare(trainer, micro_batch, accumulation, factor)
        failed = failed or _too_different(difference, accumulation, trainer.args)
        if failed:
            return Folding(1, failed)
    return Folding(factor, f"equal: gradients of {compared} differ by {difference:.1e}")


def _compare(trainer: Any, micro_batch: int, count: int, factor: int) -> Tuple[float, int, str]:
    """`count` micro-batches one by one and in passes of `factor`, in all processes.

    Returns the relative difference of their gradients, bytes kept for the backward pass of one, and what failed ("": nothing).
    """
    apart: Dict[str, torch.Tensor] = {}
    together: Dict[str, torch.Tensor] = {}
    failed, saved_bytes = "", 0
    with _untouched(trainer):
        try:
            apart, saved_bytes = _gradients(trainer, micro_batch, count, 1)
            together, _ = _gradients(trainer, micro_batch, count, factor)
        except _Statistics as found:
            failed = f"each micro-batch changes a buffer of the model ({found})"
        except torch.cuda.OutOfMemoryError:
            failed = f"{factor} micro-batches together are out of memory"
        except (ValueError, RuntimeError, StopIteration) as error:
            failed = f"{factor} micro-batches together fail ({type(error).__name__}: {str(error)[:120]})"
    failed = _as_any_process(failed, trainer.args)
    if failed:
        return float("inf"), saved_bytes, failed
    for gradients in (apart, together):
        _mean_over_processes(gradients, trainer.args)
    return _relative_difference(apart, together), saved_bytes, ""


def _too_different(difference: float, count: int, args: Any) -> str:
    tolerance = _TOLERANCE["rounded" if _rounds(args) else "float32"]
    if difference <= tolerance:
        return ""
    return f"together they are not equal: gradients of {count} differ by {difference:.1e} (at most {tolerance:g})"


def divisors_down(number: int, largest: int) -> List[int]:
    """Divisors of number from the largest allowed down to 2."""
    return [size for size in range(min(number, largest), 1, -1) if number % size == 0]


def largest_that_fits(free_bytes: int, bytes_of_one: int) -> int:
    return max(1, int(_MEMORY_SHARE * free_bytes) // max(1, bytes_of_one))


class _Statistics(Exception):
    pass


def _as_any_process(failed: str, args: Any) -> str:
    """What failed here; or that something did in another process: none compares alone."""
    if args.world_size == 1:
        return failed
    good = torch.tensor(0 if failed else 1, device=args.device)
    torch.distributed.all_reduce(good, op=torch.distributed.ReduceOp.MIN)
    return failed or ("" if int(good) else "it failed in another process")


def _least(factor: int, args: Any) -> int:
    """Of all processes: they do as the most careful one, whose memory may be smaller."""
    if args.world_size == 1:
        return factor
    least = torch.tensor(factor, device=args.device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return int(least)


def _mean_over_processes(gradients: Dict[str, torch.Tensor], args: Any) -> None:
    """Processes share out samples by passes, so only all of them together saw the same samples both times."""
    if args.world_size > 1:
        for name in sorted(gradients):
            torch.distributed.all_reduce(gradients[name])
            gradients[name] /= args.world_size


def _gradients(trainer: Any, micro_batch: int, count: int, factor: int) -> Tuple[Dict[str, torch.Tensor], int]:
    """Gradients of `count` micro-batches in passes of `factor`; bytes kept for the backward pass of the first.

    Raises _Statistics where a micro-batch changes a buffer.
    """
    model = trainer.model
    passes = count // factor
    with _as_before(trainer):
        trainer._train_batch_size, trainer.folding = micro_batch * factor, Folding(factor, "compared")
        batches = iter(trainer.get_train_dataloader())
        num_items, counted = None, hasattr(Trainer, "get_batch_samples")  # from transformers 4.46 on
        if counted:
            samples, num_items = trainer.get_batch_samples(batches, passes, trainer.args.device)
        else:
            samples = list(itertools.islice(batches, passes))
        weigh = (num_items,) if counted else ()
        if len(samples) < passes:
            raise ValueError(f"the data holds fewer than {count} micro-batches")
        if not counted:
            trainer.start_update()
        if factor > 1 and len(trainer.train_dataset) % micro_batch:
            rows_of(samples[0], 0, 1)  # an epoch's last micro-batch is smaller, so its pass will be taken apart
        kept = 0
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.zero_grad(set_to_none=True)
        trainer.current_gradient_accumulation_steps = passes
        trainer.args.gradient_accumulation_steps = passes
        for number, inputs in enumerate(samples):
            if number:
                trainer.training_step(model, inputs, *weigh)
            else:
                with _counted_bytes(model) as counter:
                    trainer.training_step(model, inputs, *weigh)
                kept = counter[0]
    for name, buffer in model.named_buffers():
        if name in buffers and not torch.equal(buffers[name], buffer):
            raise _Statistics(name)
    gradients = {
        name: parameter.grad.detach().float().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return gradients, kept


def _relative_difference(apart: Dict[str, torch.Tensor], together: Dict[str, torch.Tensor]) -> float:
    """Of the worst parameter, by its norm; parameters whose gradient is rounding noise beside the whole one do not count."""
    if not apart or apart.keys() != together.keys():
        return float("inf")
    whole = float(torch.linalg.vector_norm(torch.stack([value.norm() for value in apart.values()])))
    worst = 0.0
    for name, value in apart.items():
        norm = max(float(value.norm()), 1e-3 * whole)
        worst = max(worst, float((together[name] - value).norm()) / norm if norm else 0.0)
    return worst if np.isfinite(whole) else float("inf")


def _rounds(args: Any) -> bool:
    return args.device.type == "cuda" or bool(args.bf16 or args.fp16)


def _free_bytes(trainer: Any) -> int:
    """Memory left for activations, gradients and optimizer states taken off."""
    parameters = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    if trainer.args.device.type != "cuda":
        return max(0, min(available_memory() - 3 * int(parameters), int(_CPU_ACTIVATION_BYTES / _MEMORY_SHARE)))
    gc.collect()
    torch.cuda.empty_cache()
    return max(0, int(torch.cuda.mem_get_info(trainer.args.device)[0]) - 3 * int(parameters))


def available_memory(file: str = "/proc/meminfo") -> int:
    """Bytes that Linux can still give; 4 GiB where it does not say."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        found: int = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        return found
    except (OSError, StopIteration, ValueError):
        return 4 << 30


@contextlib.contextmanager
def _counted_bytes(model: nn.Module) -> Iterator[List[int]]:
    """Counts bytes of tensors that autograd keeps, each storage once, parameters apart."""
    counter = [0]
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counter[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counter


@contextlib.contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """Inside the block dropout is off; afterwards generators, buffers, modes and the trainer's numbers are what they were."""
    model = trainer.model
    rates: List[Tuple[Any, str, float]] = []
    for owner in [*model.modules(), getattr(model, "config", None)]:
        for name, value in list(vars(owner).items()) if owner is not None else []:
            if (
                isinstance(value, float)
                and value
                and ("drop" in name or (name == "p" and "Dropout" in type(owner).__name__))
            ):
                rates.append((owner, name, value))
    names = (
        "_train_batch_size",
        "current_gradient_accumulation_steps",
        "_data_wait_seconds",
        "folding",
        "largest_part",
    )
    kept = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
    args = trainer.args
    of_args = {name: getattr(args, name) for name in ("gradient_accumulation_steps", "dataloader_num_workers")}
    persistent = getattr(args, "dataloader_persistent_workers", None)
    args.dataloader_num_workers = 0
    if persistent:
        args.dataloader_persistent_workers = False
    try:
        for owner, name, _ in rates:
            setattr(owner, name, 0.0)
        with undisturbed(model):
            yield
    finally:
        for owner, name, value in rates:
            setattr(owner, name, value)
        model.zero_grad(set_to_none=True)
        trainer.start_update()
        for name, value in kept.items():
            setattr(trainer, name, value)
        for name, value in of_args.items():
            setattr(args, name, value)
        if persistent:
            args.dataloader_persistent_workers = persistent


@contextlib.contextmanager
def _as_before(trainer: Any) -> Iterator[None]:
    """The same random numbers inside of each such block."""
    states = generator_states()
    try:
        yield
    finally:
        restore_generators(states)
