"""Compilation, at the first call: forward runs once on one micro-batch, under observation, to record what stays fixed.

The SDK compiles a graph; the simulator translates nothing, but refuses what the SDK's compiler refuses, with the same messages:
no loss or several, a pipeline deeper than its accumulation, a number of IPUs that cannot be reserved, buffers that differ
between replicas, transfers that cannot overlap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import torch

from ipu_trainer.compat.torch_operators import num_writes
from ipu_trainer.machine.placement import num_stages
from ipu_trainer.simulator.arguments.call_arguments import BoundArguments, micro_batch_of, micro_batches_per_host_step
from ipu_trainer.simulator.arguments.nested_values import tensors_of, with_tensors
from ipu_trainer.simulator.enums import OutputMode
from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.forward import context as running
from ipu_trainer.simulator.forward.blocks import BlockTracker, ExecutedBlock
from ipu_trainer.simulator.forward.observer import CompilationObserver, final_loss
from ipu_trainer.simulator.forward.placement_log import PlacementLog
from ipu_trainer.simulator.forward.readiness import UnsupportedUse
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.numerics.half_precision import FloatingPointChecks, HalfInFloat
from ipu_trainer.simulator.options.compiler_options import validate_options
from ipu_trainer.simulator.options.options import Options
from ipu_trainer.simulator.state.device_weights import DeviceWeights, InstalledWeights
from ipu_trainer.simulator.state.random_state import DeviceRandom

MAX_IPUS_PER_PROCESS = 64
_pre_compile_hooks: Dict[int, Callable[[], Any]] = OrderedDict()
_post_compile_hooks: Dict[int, Callable[[], Any]] = OrderedDict()


def registerPreCompileHook(hook: Callable[[], Any]) -> Any:
    """Call `hook` before every compilation from now on. Returns a handle with remove()."""
    return _register(_pre_compile_hooks, "Pre", hook)


def registerPostCompileHook(hook: Callable[[], Any]) -> Any:
    """Call `hook` after every compilation from now on. Returns a handle with remove()."""
    return _register(_post_compile_hooks, "Post", hook)


def _register(hooks: Dict[int, Callable[[], Any]], when: str, hook: Callable[[], Any]) -> Any:
    if not callable(hook):
        raise RuntimeError(f"{when}-compile hook must be callable")
    handle = torch.utils.hooks.RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


@dataclasses.dataclass
class Compilation:
    """A compiled model.

    structure: forward's result around empty tensors, None if it returned nothing. blocks: the executed blocks in
    order. num_stages counts pipeline stages of forward, num_ipus the IPUs of one replica. loss_index is the index of the
    final loss among num_losses (-1 in inference). written_inputs are those that forward changes in place. findings is the
    IPU-readiness report.
    """

    checks_floats: bool
    training_flags: List[Tuple[torch.nn.Module, bool]]
    has_half: bool = True  # until forward has run, which may create float16 tensors
    structure: Any = None
    blocks: Tuple[ExecutedBlock, ...] = ()
    num_stages: int = 1
    num_ipus: int = 1
    num_losses: int = 0
    loss_index: int = -1
    findings: Tuple[UnsupportedUse, ...] = ()
    written_inputs: Tuple[int, ...] = ()

    @contextlib.contextmanager
    def modes_of_modules(self, model: torch.nn.Module) -> Iterator[None]:
        """train() and eval() of all modules as at compilation, until the body ends."""
        changed = [(m, m.training) for m, compiled in self.training_flags if m.training != compiled]
        if not changed:
            yield
            return
        for module, now in changed:
            module.training = not now
        try:
            yield
        finally:
            for module, now in changed:
                module.training = now


@contextlib.contextmanager
def modes(compilation: Compilation, device: torch.device) -> Iterator[None]:
    """Compute as the device does: float16 without kernels, floating-point exceptions, new tensors on the device."""
    with contextlib.ExitStack() as stack:
        if compilation.has_half and device.type == "cpu":
            stack.enter_context(HalfInFloat())
        if compilation.checks_floats:
            stack.enter_context(FloatingPointChecks())
        if device.type != "cpu":
            stack.enter_context(device)
        yield


def compile_model(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    bound: BoundArguments,
    options: Options,
    weights: DeviceWeights,
    random: DeviceRandom,
    device: torch.device,
    training: bool,
) -> Compilation:
    """Run forward once, on the first micro-batch of `inputs`, without a change of weights, buffers or generators.

    Calls the registered hooks before and after. Raises Error or AssertionError for
    what the SDK's compiler refuses.
    """
    began = time.perf_counter()
    _check_options(options, training)
    pieces = micro_batches_per_host_step(options)
    tensors = [micro_batch_of(tensor, 0, pieces, options) for tensor in inputs]
    versions = [num_writes(tensor) for tensor in tensors]
    tracker = BlockTracker(options._execution_strategy._stages_manager)
    has_half = any(t.dtype == torch.float16 for t in [*tensors, *(v.copies[0] for v in weights.variables)])
    placement = PlacementLog(options._execution_strategy.mode) if logger.isEnabledFor(logging.DEBUG) else None
    observer = CompilationObserver(device, tensors, [variable.host() for variable in weights.variables], placement)
    compilation = Compilation(
        checks_floats=bool(options._Popart.options.get("enableFloatingPointChecks", False)),
        training_flags=[(module, module.training) for module in model.modules()],
    )
    buffers = [(variable, [copy.clone() for copy in variable.copies]) for variable in weights.buffers]
    with weights.installed() as installed, random.running(keep=False), modes(compilation, device):
        try:
            with torch.set_grad_enabled(training), running.on_ipu(observer, training, tracker):
                for hook in list(_pre_compile_hooks.values()):
                    hook()
                tracker.start()
                args, kwargs = bound.with_tensors(tensors)
                with contextlib.nullcontext() if placement is None else placement.tracking(model):
                    result = model(*args, **kwargs)
                tracker.finish()
        finally:
            for hook in list(_post_compile_hooks.values()):
                hook()
        _complete(compilation, observer, tracker, result, training, options, installed)
    compilation.has_half = has_half or observer.saw_half
    compilation.written_inputs = tuple(
        i for i, (tensor, version) in enumerate(zip(tensors, versions)) if num_writes(tensor) != version
    )
    changed = _restore(buffers)
    if changed and options.replication_factor > 1 and options.broadcast_buffers:
        raise compiler_error(
            "PopTorch does not support broadcasting buffers. If your model is able to tolerate buffers becoming out of "
            "sync between replicas, you can disable buffer broadcasting using poptorch.Options.broadcastBuffers(False)."
            f" (Buffers that forward changes: {', '.join(changed)}.)"
        )
    if changed:
        weights.split_buffers(int(options.replication_factor), changed)
    options._progress_bar.compilation_time = datetime.timedelta(seconds=time.perf_counter() - began)
    for finding in compilation.findings:
        logger.warning("IPU readiness: %s", finding)
    return compilation


def _check_options(options: Options, training: bool) -> None:
    validate_options(options.toDict())
    mode, period, iterations = options.output_mode, options.output_return_period, options.device_iterations
    if mode == OutputMode.EveryN and iterations % period:
        raise compiler_error(
            f"OutputMode.EveryN returns every {period}th of {iterations} device iterations; {period} must be a factor "
            f"of {iterations}."
        )


def _complete(
    compilation: Compilation,
    observer: CompilationObserver,
    tracker: BlockTracker,
    result: Any,
    training: bool,
    options: Options,
    installed: InstalledWeights,
) -> None:
    installed.check_reassigned()
    outputs = tensors_of(result)
    compilation.findings = tuple(observer.findings)
    if result is not None:
        compilation.structure = with_tensors(result, [torch.empty(0) for _ in outputs])
    compilation.blocks = tuple(tracker.blocks)
    compilation.num_stages = num_stages(block.ipu_id for block in compilation.blocks)
    compilation.num_ipus = len({block.ipu_id for block in compilation.blocks if block.user_id is not None}) or 1
    if training:
        compilation.num_losses = len(observer.losses)
        compilation.loss_index = final_loss(observer.losses)
    logger.debug(
        "enablePipelining set to value %d", options._execution_strategy.mode == "Pipelined" and compilation.num_ipus > 1
    )
    _check_overlap(observer, outputs, options)
    _check_num_ipus(compilation.num_ipus * int(options.replication_factor), options)
    _check_pipeline(compilation.num_stages, training, options)


def _check_pipeline(num_stages: int, training: bool, options: Options) -> None:
    if options._execution_strategy.mode != "Pipelined":
        return
    accumulation, iterations = options.Training.gradient_accumulation, options.device_iterations
    if training and num_stages > 1 and accumulation < 2 * num_stages - 1:
        raise compiler_error(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            f"stages ({2 * num_stages - 1}) when using poptorch.PipelinedExecution. Please note that a model with "
            f"{num_stages} pipeline stages in PopTorch will have an additional {num_stages - 1} stages when training. "
            f"(It is {accumulation}.)"
        )
    if not training and iterations < num_stages:
        raise compiler_error(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({num_stages}) when using poptorch.PipelinedExecution. (It is {iterations}.)"
        )


def _check_num_ipus(num_ipus: int, options: Options) -> None:
    if num_ipus > MAX_IPUS_PER_PROCESS:
        raise compiler_error(
            f"Too many IPUs requested ({num_ipus}). Experiments that need more than {MAX_IPUS_PER_PROCESS} IPUs "
            "require distributed execution."
        )
    reserved = 1 << (num_ipus - 1).bit_length()
    if reserved == num_ipus:
        return
    if not options.auto_round_num_ipus:
        raise compiler_error(
            f"The model specifies the use of {num_ipus} IPUs, however PopTorch must reserve a minimum of {reserved} in "
            "order to allow the model to run, because PopTorch must reserve a power of 2 or maximum of "
            f"{MAX_IPUS_PER_PROCESS} IPUs per process. Please reconfigure your model to use a different number of IPUs "
            "or set poptorch.Options().autoRoundNumIPUs(True)."
        )
    logger.warning("Reserving %d IPUs for a model that uses %d: %d stay idle.", reserved, num_ipus, reserved - num_ipus)


def _check_overlap(observer: CompilationObserver, outputs: Sequence[torch.Tensor], options: Options) -> None:
    if not observer.overlapped_inputs and not observer.overlapped_outputs:
        return
    positions = {id(tensor): index for index, tensor in enumerate(observer.inputs)}
    for tensor in observer.overlapped_inputs:
        if id(tensor) not in positions:
            raise compiler_error(
                "poptorch.set_overlap_for_input applied on a node which is not a tensor input to the model."
            )
        if id(tensor) in observer.used_inputs:
            raise compiler_error(
                "poptorch.set_overlap_for_input must be the only op applied to an input. This is not the case for "
                f"input {positions[id(tensor)]} to the model."
            )
    returned: Dict[int, int] = {}
    for tensor in outputs:
        returned[id(tensor)] = returned.get(id(tensor), 0) + 1
    for original, marked in observer.overlapped_outputs:
        if not returned.get(id(marked)):
            raise compiler_error(
                "poptorch.set_overlap_for_output applied on a node which is not a tensor output to the model."
            )
        if returned[id(marked)] > 1 or id(original) in returned:
            raise compiler_error(
                "poptorch.set_overlap_for_output cannot be used with a tensor that is returned twice. Please check all "
                "returned tensors including those nested in tuples/lists."
            )
    if options._execution_strategy.mode == "Pipelined":
        raise compiler_error(
            "Overlapped IO is not supported with poptorch.PipelinedExecution. If you are using only one IPU, please "
            "switch to poptorch.ShardedExecution."
        )
    if observer.overlapped_outputs and OutputMode(options.output_mode) not in (OutputMode.All, OutputMode.Sum):
        raise compiler_error(
            "Overlapped outputs are only supported with output modes All and Sum, not "
            f"{OutputMode(options.output_mode).name}."
        )
    if not options.TensorLocations.exists("numIOTiles"):
        raise compiler_error(
            "No IO tiles allocated. You must allocate at least 32 IO tiles using "
            "poptorch.Options().TensorLocations.numIOTiles."
        )


def _restore(buffers: Sequence[Tuple[Any, List[torch.Tensor]]]) -> List[str]:
    """Restore the buffers. Returns the names of those that forward had changed."""
    changed = []
    for variable, before in buffers:
        same = all(torch.equal(copy, old) or _both_nan(copy, old) for copy, old in zip(variable.copies, before))
        if not same:
            changed.append(variable.name)
            for copy, old in zip(variable.copies, before):
                copy.copy_(old)
    return changed


def _both_nan(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))
