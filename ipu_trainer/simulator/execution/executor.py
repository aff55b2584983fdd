"""PoplarExecutor: one model on one simulated device.

It manages the life cycle (compiled, attached, destroyed), tracks whether the host's or the device's weights are newer, and
copies them when the other side needs them. compilation.py and engine.py do the work, optimizer_link.py the optimizer's.
"""

from __future__ import annotations

import datetime
import os
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from ipu_trainer.simulator.arguments.call_arguments import (
    ArgumentBinder,
    BoundArguments,
    micro_batch_of,
    micro_batches_per_host_step,
)
from ipu_trainer.simulator.arguments.nested_values import with_tensors
from ipu_trainer.simulator.enums import CommGroupType, ConnectionType, OutputMode, VariableRetrievalMode
from ipu_trainer.simulator.errors import Error, createPoptorchError
from ipu_trainer.simulator.execution.anchors import tensor_names
from ipu_trainer.simulator.execution.compilation import Compilation, compile_model
from ipu_trainer.simulator.execution.devices import acquire, release, torch_device
from ipu_trainer.simulator.execution.engine import Engine, enter_device, require_process_group
from ipu_trainer.simulator.execution.outputs import forbid_backward
from ipu_trainer.simulator.execution.saved_executables import (
    ExecutableFile,
    read_executable,
    without_values,
    write_executable,
)
from ipu_trainer.simulator.forward.blocks import BlockObserver
from ipu_trainer.simulator.forward.readiness import UnsupportedUse
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.ops import printing
from ipu_trainer.simulator.optim import optimizers as optim
from ipu_trainer.simulator.optim.optimizer_link import OptimizerLink
from ipu_trainer.simulator.options.options import Options
from ipu_trainer.simulator.state.device_weights import DeviceWeights, ReplicaGrouping
from ipu_trainer.simulator.state.random_state import DeviceRandom
from ipu_trainer.simulator.state.wrapped_model import unwrap_model, wrap_model

_NO_EXECUTABLE = "Model has not been compiled or has been destroyed."
# Called with every executor that has been compiled; see trace.recording().
on_compiled: List[Callable[[PoplarExecutor], None]] = []


class PoplarExecutor:
    """A model on the device. Call it like the model, with a combined batch."""

    def __init__(
        self,
        model: torch.nn.Module,
        options: Optional[Options],
        training: bool,
        optimizer: Optional[torch.optim.Optimizer] = None,
        user_model: Optional[torch.nn.Module] = None,
        followed: Optional[torch.nn.Module] = None,
    ) -> None:
        """`model` runs, `user_model` is the program's, whose parameters it shares. Use trainingModel() instead.

        followed: the model that an inference executor was made from, which another executor may train.

        Raises Error for options of another class, or inference options with gradient accumulation.
        """
        if options is not None and not isinstance(options, Options):
            raise createPoptorchError(f"Invalid type: 'options' is of type {type(options)} (Expected poptorch.Options)")
        if options is not None:
            options._freeze()
        self._options: Options = Options() if options is None else options.clone()
        self._training = training
        self._model = model
        self._user_model = user_model if user_model is not None else model
        self._followed = followed
        self._pick_output_mode()
        for anchor in self._options.anchored_tensors.values():
            if anchor[1]:  # without an output mode
                anchor[2:] = [OutputMode(self._options.output_mode), self._options.output_return_period]
        self._binder = ArgumentBinder(model.forward)
        self._device = torch_device()
        seed = self._options.random_seed if self._options.exists("random_seed") else None
        self._random = DeviceRandom(seed, self._device)
        self._compilation: Optional[Compilation] = None
        self._engine: Optional[Engine] = None
        self._weights: Optional[DeviceWeights] = None
        self._compiled_arguments: Optional[BoundArguments] = None
        self._is_attached = False
        self._dirty_host_weights = False
        self._host_weights_version = 0
        self._observers: List[BlockObserver] = []
        self._groupings: Dict[str, ReplicaGrouping] = {}
        self._link: Optional[OptimizerLink] = None
        if training:
            self._link = OptimizerLink(self._options, self)
            self.setOptimizer(optim.SGD(self._user_model.parameters(), lr=0.01) if optimizer is None else optimizer)
        self._options._freeze()
        if training:
            wrap_model(self._user_model, self)

    def _pick_output_mode(self) -> None:
        if self._options.defaultOutputMode():
            self._options.outputMode(OutputMode.Final if self._training else OutputMode.All)
        if self._training or self._options.Training.gradient_accumulation == 1:
            return
        message = (
            "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default value (1) "
            "when running a poptorch.inferenceModel()."
        )
        if self._options._execution_strategy.mode == "Pipelined":
            message += (
                " Use poptorch.Options().deviceIterations to process a sufficient number of batches each run for "
                "pipelined execution instead."
            )
        raise createPoptorchError(message)

    # Properties.

    @property
    def model(self) -> torch.nn.Module:
        """The program's model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The executor's frozen copy of the options."""
        return self._options

    @property
    def readiness(self) -> Tuple[UnsupportedUse, ...]:
        """What forward did during compilation that an IPU cannot do. Empty before compilation."""
        return () if self._compilation is None else self._compilation.findings

    @property
    def compilation(self) -> Compilation:
        """Blocks, stages and IPUs of the compiled model. Raises Error before compiling."""
        if self._compilation is None:
            raise createPoptorchError(_NO_EXECUTABLE)
        return self._compilation

    @property
    def device_weights(self) -> DeviceWeights:
        """The device's copies of the weights. Raises Error before compiling."""
        if self._weights is None:
            raise createPoptorchError(_NO_EXECUTABLE)
        return self._weights

    def __repr__(self) -> str:
        return printing.module_repr(self._user_model)

    def __getattr__(self, attr: str) -> Any:  # only called where the executor itself has no such attribute
        if attr == "_user_model":
            raise AttributeError(attr)
        value = getattr(self._user_model, attr)
        if isinstance(value, torch.nn.Parameter):
            return _Groupable(self, attr, value)
        return value

    # Compiling and running.

    def isCompiled(self) -> bool:
        """Whether there is an executable."""
        return self.__dict__.get("_compilation") is not None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for these arguments, without running. Ignored, with a warning, if already compiled."""
        bound = self._binder.bind(args, kwargs, compiled=False)
        if self.isCompiled():
            logger.warning("Call to compile() ignored: the executable is already compiled")
        else:
            self._compile(bound)

    def _compile(self, bound: BoundArguments) -> None:
        tensors = bound.tensors()
        if any(tensor.requires_grad for tensor in tensors):
            logger.warning(
                "Input tensor has requires_grad=True set. This tensor will be detached because backward pass via "
                "inputs is not supported."
            )
        pieces = micro_batches_per_host_step(self._options)
        for tensor in tensors:
            micro_batch_of(tensor, 0, pieces, self._options)
        require_process_group(int(self._options.Distributed.numProcesses))
        replicas = int(self._options.replication_factor)
        self._weights = DeviceWeights(self._model, self._device, replicas, self._groupings)
        self._updatable_buffers()
        inputs = [enter_device(tensor, self._device).clone() for tensor in tensors]
        compilation = compile_model(
            self._model, inputs, bound, self._options, self._weights, self._random, self._device, self._training
        )
        device_optimizer = None if self._link is None else self._link.compile(self._weights)
        self._compiled_arguments = bound.copy()
        self._engine = Engine(
            self._model, self._options, compilation, self._weights, device_optimizer, self._random, self._device
        )
        self._engine.observers = list(self._observers)
        self._compilation = compilation
        for follow in on_compiled:
            follow(self)
        if self._options.connection_type == ConnectionType.Always:
            try:
                self._attach()
            except Error:
                if self._link is not None:
                    self._link.update = None
                self._compilation = self._engine = self._weights = self._compiled_arguments = None
                raise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one host step. Compiles and attaches first where necessary."""
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to run a model on an offline device (ConnectionType.Never): use model.compile(inputs) instead of "
            "model(inputs)"
        )
        bound = self._binder.bind(args, kwargs, self.isCompiled())
        if not self.isCompiled():
            self._compile(bound)
        if not self._is_attached:
            self.attachToDevice()
        if not self._training:
            self._follow_training()
        assert self._engine is not None and self._compilation is not None and self._compiled_arguments is not None
        self._compiled_arguments.check_same(bound)
        if self._link is not None:
            self._link.write_state()
        outputs = self._engine.run(bound, self._compiled_arguments)
        self._dirty_host_weights = self._dirty_host_weights or self._training
        if self._link is not None:
            self._link.has_run()
        for output in outputs:
            forbid_backward(output)
        return None if self._compilation.structure is None else with_tensors(self._compilation.structure, outputs)

    def _follow_training(self) -> None:
        """Fetch the weights from the executor that trains the same model, if there is one."""
        fetch = getattr(self._followed, "copyWeightsToHostIfNeeded", None)
        if self._followed is not None and callable(fetch):
            fetch()
            version = self._followed._host_weights_version
            if self._host_weights_version != version:
                logger.debug("Implicit copyWeightsToDevice()")
                self.copyWeightsToDevice()
                self._host_weights_version = version  # type: ignore[assignment]  # an int of the other executor

    @property
    def is_training(self) -> bool:
        """Whether it trains."""
        return self._training

    def bytes_per_parameter(self) -> Tuple[int, int]:
        """Bytes on the chip for each element of a parameter: optimizer state, and the sum of gradients."""
        return (0, 0) if self._link is None else self._link.bytes_per_parameter()

    def observe(self, observer: BlockObserver) -> None:
        """Call the observer for every block of every micro-batch from now on."""
        self._observers.append(observer)
        if self._engine is not None:
            self._engine.observers = list(self._observers)

    def destroy(self) -> None:
        """Fetch weights and optimizer state, drop the executable and unwrap the model, also after a failed compiling."""
        if self._link is not None:
            if self.isCompiled():
                self.copyWeightsToHostIfNeeded()
                self._link.read_state()
            self._link.destroy()
        self._compilation = self._engine = self._weights = self._compiled_arguments = None
        self._is_attached = False
        release(self)
        if self._training:
            unwrap_model(self._user_model)

    # Attaching.

    def isAttachedToDevice(self) -> bool:
        """Whether the executable is on the device."""
        return self.isCompiled() and self._is_attached

    def attachToDevice(self) -> None:
        """Attach: copy weights, optimizer state and generators to the device."""
        self._require_compiled()
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to attach to an offline device (ConnectionType.Never)"
        )
        if self._is_attached:
            raise createPoptorchError("Device is already attached")
        self._attach()

    def _attach(self) -> None:
        wanted = self._options.ipu_id if self._options.exists("ipu_id") else None
        acquire(self, self.compilation.num_ipus * int(self._options.replication_factor), wanted)
        self._is_attached = True
        if self._options.exists("random_seed"):
            logger.debug("Setting random seed to %d", self._random.seed)
        self.copyWeightsToDevice()
        if self._link is not None:
            self._link.attached()

    def detachFromDevice(self) -> None:
        """Fetch weights and optimizer state, and release the device."""
        self._require_compiled()
        if not self._is_attached:
            raise createPoptorchError("Device is not attached")
        if self._link is not None:
            self.copyWeightsToHostIfNeeded()
            self._link.read_state()
        self._is_attached = False
        release(self)

    def _require_compiled(self) -> None:
        if not self.isCompiled():
            raise createPoptorchError(_NO_EXECUTABLE)

    # Weights.

    def load_state_dict(self, state_dict: Dict[str, torch.Tensor], strict: bool = True) -> Any:
        """Load weights into the model, and onto the device if attached."""
        out = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            self.copyWeightsToDevice()
        return out

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Fetch the weights if the device has newer ones; whether it had."""
        if not self.__dict__.get("_dirty_host_weights"):
            return False
        logger.debug("Implicit copyWeightsToHost()")
        self.copyWeightsToHost()
        return True

    def copyWeightsToHost(self) -> None:
        """Fetch the weights and buffers from the device."""
        self._dirty_host_weights = False  # first, since reading the weights would fetch again
        self._require_compiled()
        logger.debug("Writing weights from IPU to host.")
        self.device_weights.download()
        self._host_weights_version += 1

    def copyWeightsToDevice(self) -> None:
        """Copy the program's weights and buffers to the device. Changes on the device that were not fetched are lost."""
        self._require_compiled()
        self._dirty_host_weights = False
        if self._link is not None:
            self._link.read_state()
        self.device_weights.upload()
        logger.debug("Writing weights from host to IPU memory.")

    def _updatable_buffers(self) -> Optional[List[str]]:
        names: Optional[List[str]] = self._options._Popart.options.get("updatableNamedBuffers")
        known = [name for variable in self.device_weights.buffers for name in variable.names]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise createPoptorchError(f"updatableNamedBuffers names {unknown}; the model's buffers are {known}")
        return names

    def copyNamedBuffersToDevice(self) -> None:
        """Send the buffers that options.updatableNamedBuffers() names to the device."""
        self._require_compiled()
        names = self._updatable_buffers()
        if names is None:
            raise createPoptorchError("No named buffers marked as updatable via updatableNamedBuffers option")
        self._dirty_host_weights = False
        self.device_weights.upload(only=names)

    # The optimizer.

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Read the optimizer's hyper-parameters now, and use them from the next run on."""
        if self._link is None:
            raise createPoptorchError("setOptimizer: an inferenceModel has no optimizer; use a trainingModel instead.")
        self._link.set(optimizer)
        if self.isAttachedToDevice():
            self._link.update_device()
            self._link.write_state()

    # Generators.

    @property
    def rng_state(self) -> List[int]:
        """The seed, then the state of the device's generators. Raises Error before compiling."""
        self._require_compiled()
        return self._random.read()

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._require_compiled()
        self._random.write(list(state))

    # Files.

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write a file for load() to `filename`, or to model.poptorch in it if it is a folder.

        export_model=False omits the model and the optimizer: loadExecutable() can read the file, load() cannot.
        """
        self._require_compiled()
        if os.path.isdir(filename):
            logger.warning(
                "save(): %s is a directory, saving model to %s", filename, os.path.join(filename, "model.poptorch")
            )
            filename = os.path.join(filename, "model.poptorch")
        assert self._compiled_arguments is not None
        optimizer = self._link.optimizer if export_model and self._link is not None else None
        write_executable(
            filename,
            ExecutableFile(
                inputs=without_values(self._compiled_arguments),
                options=self._options,
                training=self._training if export_model else None,
                model=self.model if export_model else None,
                optimizer=optimizer,
                optimizer_state=None if optimizer is None else optimizer.state_dict(),
                rng_state=self.rng_state if save_rng_state else None,
            ),
        )

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """compile() and save()."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model)

    def loadExecutable(self, filename: str) -> None:
        """Compile for the arguments that the file was written for. Raises Error for a file of another version."""
        self._compile(read_executable(filename).inputs)

    # Measurements and tensors by name.

    def cycleCount(self) -> int:
        """Refused: cycles are the hardware's. See `ipu-trainer simulate --trace` for the schedule's."""
        if not self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            raise createPoptorchError(
                "Cycle count logging is disabled. Please set option logCycleCount to True to enable."
            )
        if not self.isCompiled():
            raise createPoptorchError("Please run the model at least once before obtaining cycle count.")
        raise NotImplementedError(
            "PoplarExecutor.cycleCount: the simulator computes numbers, not cycles of real tiles."
        )

    def compilationTime(self) -> datetime.timedelta:
        """Duration of the simulator's compilation, which is unrelated to the SDK's."""
        if not self.isCompiled():
            raise createPoptorchError("Please compile the model before obtaining compilation time.")
        if not self._options._show_compilation_progress_bar:
            raise createPoptorchError("Please set showCompilationProgressBar option to obtain compilation time.")
        duration = self._options._progress_bar.compilation_time
        assert duration is not None
        return duration

    def getPerfCounters(self) -> Dict[str, List[List[float]]]:
        """Empty, as on the device before a run: there are no transfers to time."""
        return {event: [[]] for event in ("input", "input_complete", "output", "output_complete")}

    def getHostIpuLatency(self) -> Tuple[float, float, float]:
        """(0, 0, 0), as on the device without counters."""
        return (0.0, 0.0, 0.0)

    getComputeLatency = getIpuHostLatency = getLatency = getHostIpuLatency

    def getTensorNames(self) -> List[str]:
        """Names of the tensors that exist without a graph; see anchors.py."""
        assert self.isCompiled(), "Model must be compiled before calling getTensorNames"
        assert self._engine is not None and self._compiled_arguments is not None
        return tensor_names(self.device_weights, self._engine.optimizer, len(self._compiled_arguments.tensors()))

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """The value of options.anchorTensor(short_name, ...) in the last call."""
        values = {} if self._engine is None else self._engine.anchors.values
        assert short_name in values, f"No tensor with name {short_name} found."
        return values[short_name]


class _Groupable:
    """A parameter as an attribute of an executor: the parameter, and replicaGrouping()."""

    def __init__(self, executor: PoplarExecutor, name: str, parameter: torch.nn.Parameter) -> None:
        self._executor = executor
        self._name = name
        self._parameter = parameter

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Let groups of replicas have separate values: dimension 0 of the parameter runs over the groups."""
        if variable_retrieval_mode != VariableRetrievalMode.OnePerGroup:
            raise NotImplementedError(
                f"{variable_retrieval_mode}: the simulator returns one value per group (OnePerGroup); the values of "
                "the replicas of a group are equal."
            )
        self._executor._groupings[self._name] = ReplicaGrouping(comm_group_type, shards)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parameter, name)
