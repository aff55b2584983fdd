"""What the decision about coalescing (coalescing.py) needs to know of a trainer: rules, memory, and gradients of its data.

The same micro-batches are computed one by one and together before the first update. That changes nothing of the training:
weights, buffers, random generators and arguments are afterwards what they were.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from ipu_trainer.errors import UserError
from ipu_trainer.training.batches import rows_of
from ipu_trainer.training.coalescing import Comparison, Obstacle, activation_budget_bytes, relative_difference
from ipu_trainer.training.execution import changed
from ipu_trainer.training.layers import BATCH_NORMS
from ipu_trainer.training.state.generators import generator_states, restore_generators, undisturbed


def obstacles(trainer: Any, accumulation: int) -> List[Obstacle]:
    """The rules that keep micro-batches of this trainer apart, in the order in which they are named."""
    args = trainer.args
    dataset, optimizer = trainer.train_dataset, str(getattr(args.optim, "value", args.optim))
    by_length = "group_by_length" if getattr(args, "group_by_length", False) else None
    strategy = by_length or getattr(args, "train_sampling_strategy", "random")
    is_sharded = getattr(trainer, "is_deepspeed_enabled", False) or getattr(trainer, "is_fsdp_enabled", False)
    is_stream = dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")
    counts_alone = getattr(trainer, "model_accepts_loss_kwargs", False) and not getattr(
        args, "average_tokens_across_devices", True
    )
    norms = (name for name, part in trainer.model.named_modules() if isinstance(part, BATCH_NORMS))
    norm, place = next(norms, None), next(trainer.model.parameters()).device
    # Processes that share a CPU call it cpu:0, cpu:1, ...
    is_placed = place.type == args.device.type and (place.type == "cpu" or args.device.index in (None, place.index))
    return [
        Obstacle(accumulation == 1, "one micro-batch makes an update"),
        Obstacle(args.n_gpu > 1, f"{args.n_gpu} GPUs of one process share each batch; start one process a GPU (torchrun)"),
        Obstacle(is_sharded, "DeepSpeed and FSDP own the model"),
        Obstacle(is_stream, "a stream is read once, so its first micro-batches cannot be compared before"),
        Obstacle(strategy in ("group_by_length", "batch_rebalance"), f"{strategy} orders samples by the size of a pass"),
        Obstacle(
            "lomo" in optimizer or "layerwise" in optimizer, f"{optimizer} updates weights within each backward pass"
        ),
        Obstacle(
            args.world_size > 1 and counts_alone,
            "each process divides by its own number of labels (average_tokens_across_devices is off)",
        ),
        Obstacle(
            not trainer.loader_follows_coalescing, f"{type(trainer).__name__} has its own get_train_dataloader"
        ),
        Obstacle(norm is not None, f"batch statistics are those of a micro-batch ({norm})"),
        Obstacle(not is_placed, f"the model is not on {args.device}"),
    ]  # fmt: skip


def budget_bytes(trainer: Any) -> int:
    """Bytes that activations may take on the device where the trainer's model is."""
    parameters = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    is_gpu = trainer.args.device.type == "cuda"
    whole = torch.cuda.get_device_properties(trainer.args.device).total_memory if is_gpu else None
    return activation_budget_bytes(whole, int(parameters))


def compare_first_micro_batches(
    trainer: Any, compute_together: Callable[[int], None], micro_batch: int, count: int, factor: int
) -> Comparison:
    """The first `count` micro-batches of the training set, one by one and in passes of `factor`.

    compute_together(factor): lets the trainer's loader and training_step take such passes.
    """
    args = trainer.args
    quiet = {"dataloader_num_workers": 0, "gradient_accumulation_steps": count}
    if getattr(args, "dataloader_persistent_workers", False):
        quiet["dataloader_persistent_workers"] = False
    counters = ("train_batch_size", "current_gradient_accumulation_steps", "_data_wait_seconds")
    of_trainer = {name: getattr(trainer, name) for name in counters if hasattr(trainer, name)}

    def measure(count: int, factor: int) -> Measured:
        states, passes = generator_states(), count // factor
        try:
            compute_together(factor)
            trainer.train_batch_size = micro_batch * factor
            batches = iter(trainer.get_train_dataloader())
            counted: Tuple[Any, ...] = ()
            if hasattr(Trainer, "get_batch_samples"):  # from transformers 4.46 on
                samples, *counted = trainer.get_batch_samples(batches, passes, args.device)  # type: ignore[assignment]
            else:
                samples = list(itertools.islice(batches, passes))
                trainer.restart_update()
            if len(samples) < passes:
                raise UserError(f"the data holds fewer than {count} micro-batches")
            if factor > 1 and len(trainer.train_dataset) % micro_batch:
                rows_of(samples[0], 0, 1)  # an epoch's last micro-batch is smaller, so its pass will be split
            trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps = passes
            step = functools.partial(trainer.training_step, trainer.model)
            return gradients_of(trainer.model, samples, lambda inputs: step(inputs, *counted))
        finally:
            restore_generators(states)

    with changed(trainer, **of_trainer), changed(args, **quiet):
        found = compare_gradients(trainer.model, args, measure, count, factor)
    trainer.restart_update()
    if args.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return found


# Gradients by parameter, and bytes that autograd keeps for the backward pass of the first batch.
Measured = Tuple[Dict[str, torch.Tensor], int]


def compare_gradients(
    model: nn.Module, args: Any, measure: Callable[[int, int], Measured], count: int, factor: int
) -> Comparison:
    """`count` micro-batches one by one and in passes of `factor`, in all processes.

    measure(count, factor): gradients of the first `count` micro-batches in such passes.
    """
    apart: Dict[str, torch.Tensor] = {}
    together: Dict[str, torch.Tensor] = {}
    failed, bytes_of_one = "", 0
    with _without_dropout(model), undisturbed(model):
        try:
            apart, bytes_of_one = measure(count, 1)
            together, _ = measure(count, factor)
        except BufferChanged as found:
            failed = f"each micro-batch changes a buffer of the model ({found})"
        except torch.cuda.OutOfMemoryError:
            failed = f"{factor} micro-batches together are out of memory"
        except (ValueError, RuntimeError, StopIteration) as error:
            failed = f"{factor} micro-batches together fail ({type(error).__name__}: {str(error)[:120]})"
    model.zero_grad(set_to_none=True)
    if not least_of_processes(0 if failed else 1, args):  # all processes decide alike
        return Comparison(float("inf"), bytes_of_one, failed or "it failed in another process")
    # Processes share out samples by passes, so only all of them together saw the same samples both times.
    for gradients in (apart, together) if args.world_size > 1 else ():
        for name in sorted(gradients):
            torch.distributed.all_reduce(gradients[name])
            gradients[name] /= args.world_size
    return Comparison(relative_difference(apart, together), bytes_of_one)


class BufferChanged(Exception):
    """A forward pass changed a buffer of the model, so that micro-batches are not independent of each other."""


def gradients_of(model: nn.Module, batches: List[Any], step: Callable[[Any], Any]) -> Measured:
    """Accumulated gradients of step(batch) over some batches, in float32. Raises BufferChanged."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad(set_to_none=True)
    with _saved_bytes(model) as counter:
        step(batches[0])
    for inputs in batches[1:]:
        step(inputs)
    for name, buffer in model.named_buffers():
        if name in buffers and not torch.equal(buffers[name], buffer):
            raise BufferChanged(name)
    gradients = {
        name: parameter.grad.detach().float().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return gradients, counter[0]


def least_of_processes(factor: int, args: Any) -> int:
    """The smallest factor that a process found: GPUs may differ in memory."""
    if args.world_size == 1:
        return factor
    least = torch.tensor(factor, device=args.device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return int(least)


@contextlib.contextmanager
def _saved_bytes(model: nn.Module) -> Iterator[List[int]]:
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
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside the block all dropout rates of the model's modules and configuration are 0."""
    rates: List[Tuple[Any, str, float]] = [
        (owner, name, value)
        for owner in (*model.modules(), getattr(model, "config", None))
        for name, value in (vars(owner).items() if owner is not None else ())
        if isinstance(value, float)
        and value
        and ("drop" in name or (name == "p" and "Dropout" in type(owner).__name__))
    ]
    try:
        for owner, name, _ in rates:
            setattr(owner, name, 0.0)
        yield
    finally:
        for owner, name, value in rates:
            setattr(owner, name, value)
