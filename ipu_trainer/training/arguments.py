"""IPUTrainingArguments: everything of TrainingArguments, and what a run on several backends needs besides."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from dataclasses import dataclass, field
from typing import Any, Optional, Sequence

import torch
from transformers import HfArgumentParser, TrainingArguments

from ipu_trainer.backends import check_name, choose_backend
from ipu_trainer.command_line import snake_case
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.argument_names import TakesRenamed, show_renamed, today
from ipu_trainer.errors import UserError
from ipu_trainer.pipelining.pipeline import PIPELININGS
from ipu_trainer.training.acceleration.choices import COMPILES, choose_fused_kernels, settle_precision
from ipu_trainer.training.coalescing import AUTO, ONE_BY_ONE, check_requested


@show_renamed
@dataclass
class IPUTrainingArguments(TrainingArguments, metaclass=TakesRenamed):
    """TrainingArguments with a backend and fine-tuning options, under the names of any release of transformers.

    `per_device_train_batch_size` is the micro-batch. `gradient_accumulation_steps` above 1 takes the place of the
    IPUConfig's, as in optimum-graphcore; left at 1, the IPUConfig's counts.
    """

    backend: str = field(default="auto", metadata={"help": "Where to compute: auto, sdk (IPUs), simulated or host."})
    pipelining: str = field(
        default="generic", metadata={"help": "How a model is cut: generic, optimum (its own classes) or none."}
    )
    precision: str = field(
        default="",
        metadata={
            "help": "auto, fp32, bf16 or fp16: autocast on the host, weights and arithmetic of a device. auto: bf16 on a GPU that "
            "has it, else fp32. Empty: as bf16, fp16 and half say."
        },
    )
    half: bool = field(default=False, metadata={"help": "On a device, the same as precision=fp16."})
    loss_scaling: float = field(default=1.0, metadata={"help": "Factor of the loss in backward, on a device."})
    compile_only: bool = field(
        default=False, metadata={"help": "Compile into the executable cache and stop; needs poptorch, but no IPU."}
    )
    simulator_device: str = field(
        default="", metadata={"help": "Where the simulator computes: cpu (also if empty) or cuda."}
    )
    ipu_config: Optional[str] = field(
        default=None,
        metadata={"help": "The IPUConfig: a profile's name, an ipu_config.json, or the folder that holds it."},
    )
    ipu_config_overrides: Optional[str] = field(
        default=None, metadata={"help": "IPUConfig fields to change: replication_factor=2,layers_per_ipu=[1 3 -1 3]."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate factor from each layer to the one before it; 1 is off."}
    )
    head_learning_rate_factor: float = field(
        default=1.0, metadata={"help": "Learning rate of the task's head, relative to learning_rate."}
    )
    drop_path: float = field(
        default=0.0, metadata={"help": "Stochastic depth: how often the last layer is skipped while training."}
    )
    host_micro_batch_size: str = field(
        default="auto",
        metadata={
            "help": "On the host: samples of one forward pass, a multiple of the micro-batch; micro_batch computes them one by "
            "one. auto: as many as memory holds, where the result is equal (checked before the first update)."
        },
    )
    verify: bool = field(
        default=False,
        metadata={
            "help": "Compare gradients of all micro-batches of the first update, one by one and together, instead of up to eight."
        },
    )
    compile: str = field(
        default="auto",
        metadata={
            "help": "layers (each repeated layer compiled: fastest for Transformers models), model (torch_compile), off, or "
            "auto: layers on a GPU."
        },
    )
    gpu_kernels: str = field(
        default="auto",
        metadata={
            "help": "With compile=layers and bf16 on an H100: fused kernels for residual add + LayerNorm, attention and gelu of "
            "ViT's layers. on, off, or auto: where they fit the GPU and the model."
        },
    )
    bf16_residual: bool = field(
        default=False,
        metadata={
            "help": "With bf16 on a GPU: the residual stream is bfloat16 too, which autocast keeps in float32. Faster, and "
            "rounded after each layer (docs/performance.md)."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Log finite losses alone: of a window without any, the last one before it. Waits for a GPU each step."
        },
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of the weight average that is evaluated and saved; 0 is off."}
    )

    def __post_init__(self) -> None:
        check_name(self.backend)
        if self.pipelining not in PIPELININGS:
            raise UserError(f"pipelining {self.pipelining!r} is not one of {', '.join(PIPELININGS)}.")
        if self.loss_scaling <= 0:
            raise UserError(f"loss_scaling {self.loss_scaling} must be above 0. Use 1 for float32.")
        on_device = choose_backend(self.backend, self.simulator_device, self.compile_only).has_executors
        settle_precision(self, on_device)
        # On a device batches wait in the host's memory, whatever else this machine has. In bfloat16 Trainer asks for it.
        if on_device or ((self.bf16 or self.bf16_full_eval) and compat.has_only_cpus()):
            setattr(self, compat.field_name("use_cpu"), True)
        for name, value in (("half", self.half), ("compile_only", self.compile_only)):
            if value and not on_device:
                raise UserError(
                    f"{name} is for a device, and --backend {self.backend} computes on the host here. Use --precision bf16 or "
                    "fp16 on a GPU, or --backend sdk or simulated."
                )
        self.host_micro_batch_size = str(self.host_micro_batch_size)
        check_requested(self.host_micro_batch_size)
        if on_device and self.host_micro_batch_size not in (AUTO, ONE_BY_ONE):
            raise UserError(
                f"host_micro_batch_size {self.host_micro_batch_size} is for the host, and --backend {self.backend} computes on a "
                "device. Leave it at auto."
            )
        if self.verify and (on_device or self.host_micro_batch_size == ONE_BY_ONE):
            raise UserError(
                f"verify compares micro-batches that the host computes together, and this run has backend {self.backend}, "
                f"host_micro_batch_size {self.host_micro_batch_size}. Leave it off."
            )
        self._settle_compile(on_device)
        for name, package in _PACKAGES.items():
            if getattr(self, name, None) and importlib.util.find_spec(package.replace("-", "_")) is None:
                raise UserError(
                    f"{name}={getattr(self, name)} needs a package that is not installed: pip install {package}."
                )
        chosen = _says_how_to_copy(getattr(self, "accelerator_config", None))
        super().__post_init__()
        if self.fp16 and not on_device and self.device.type == "cpu":  # 5.x would compute in float32 and say nothing
            raise UserError("fp16=True is for a GPU, and this run is on a CPU. Use bf16=True, or leave it off.")
        config: Any = getattr(self, "accelerator_config", None)
        on_gpu = self.device.type == "cuda" and self.dataloader_pin_memory
        if on_gpu and not chosen and hasattr(config, "non_blocking"):
            config.non_blocking = True  # batches are then copied when the GPU gets there, and nobody waits
        if self.bf16_residual and (on_device or not self.bf16 or self.device.type != "cuda"):
            raise UserError(
                f"bf16_residual is for bf16 on a GPU, and this run has backend {self.backend}, bf16={self.bf16}, device "
                f"{self.device}. Leave it off."
            )
        choose_fused_kernels(self.gpu_kernels, self)
        for name, high in (("layer_decay", 1.0), ("head_learning_rate_factor", math.inf)):
            value = getattr(self, name)
            if not 0.0 < value <= high:
                raise UserError(f"{name} {value} must be above 0{f' and at most {high:g}' if high < 9 else ''}.")
        for name in ("drop_path", "ema_decay"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise UserError(f"{name} {value} must be at least 0 (off) and below 1.")

    @classmethod
    def from_flags(cls, flags: Optional[Sequence[str]] = None, **defaults: Any) -> IPUTrainingArguments:
        """Arguments from the command line (or these flags), of which --kebab-case is --snake_case; exits at one that is unknown.

        defaults: what a script has in place of Trainer's own, by the names of any release of transformers.
        """
        parser = HfArgumentParser(cls)
        parser.set_defaults(**today(defaults, {item.name for item in dataclasses.fields(cls)}))
        given = snake_case(sys.argv[1:] if flags is None else flags)
        args: IPUTrainingArguments = parser.parse_args_into_dataclasses(given)[0]
        return args

    def get_warmup_steps(self, num_training_steps: int) -> int:
        share = 0 < self.warmup_steps < 1  # as 5.x reads it
        steps: int = (
            math.ceil(num_training_steps * self.warmup_steps) if share else super().get_warmup_steps(num_training_steps)
        )
        return steps

    def _settle_compile(self, on_device: bool) -> None:
        """Hold `compile` against torch_compile and the backend, and switch TF32 on where a GPU has it and nobody spoke."""
        if self.compile not in COMPILES:
            raise UserError(f"compile {self.compile!r} is not one of {', '.join(COMPILES)}.")
        named = any(getattr(self, f"torch_compile{part}") for part in ("", "_backend", "_mode"))
        if named and self.compile in ("layers", "off"):
            raise UserError(f"torch_compile compiles the model, and compile={self.compile} contradicts it. Give one.")
        if on_device and self.compile not in ("auto", "off"):
            raise UserError(f"compile={self.compile} is for the host: on a device poptorch compiles. Leave it at auto.")
        if named and self.torch_compile_mode is not None:
            try:
                torch.compile(torch.nn.Identity(), mode=self.torch_compile_mode)
            except RuntimeError as error:
                raise UserError(f"torch_compile_mode={self.torch_compile_mode}: {error}") from None
        if named:
            self.compile = "model"
        elif self.compile == "model":
            self.torch_compile = True
        on_gpu = not on_device and not getattr(self, compat.field_name("use_cpu")) and torch.cuda.is_available()
        if on_gpu and self.__dict__["tf32"] is None and torch.cuda.get_device_capability()[0] >= 8:
            self.tf32 = True


_PACKAGES = {"use_liger_kernel": "liger-kernel", "deepspeed": "deepspeed"}


def _says_how_to_copy(config: Any) -> bool:
    """Whether accelerator_config, as given, sets non_blocking. A file or an AcceleratorConfig always does."""
    if isinstance(config, str) and config.lstrip().startswith("{"):
        config = json.loads(config)
    return "non_blocking" in config if isinstance(config, dict) else config is not None


# Settings that change how the host computes, and what does their work on a device.
_HOST_ONLY = {
    "fp16": "--precision fp16 (with --loss_scaling, or auto_loss_scaling in the IPUConfig)",
    "bf16": "--precision fp16: IPUs have no bfloat16",
    "bf16_full_eval": "--precision fp16: IPUs have no bfloat16",
    "deepspeed": "replicated_tensor_sharding and optimizer_state_offchip in the IPUConfig",
    "fsdp": "replicated_tensor_sharding in the IPUConfig",
    "ema_decay": "ema_decay=0: a weight average would copy all weights from the device at every step",
    "use_liger_kernel": "nothing: its kernels are for GPUs",
    "use_ipex": "nothing: it is for CPUs",
    "torch_compile": "nothing: poptorch compiles",
    "jit_mode_eval": "nothing: poptorch compiles",
    "debug": "a callback that reads the losses: hooks of layers see no numbers on a device",
    "activation_checkpointing_kwargs": "activation_checkpointing=True alone: the device recomputes",
    "gradient_checkpointing_kwargs": "gradient_checkpointing=True alone: the device recomputes",
    "parallelism_config": "replication_factor and layers_per_ipu in the IPUConfig",
    "sharded_ddp": "replicated_tensor_sharding in the IPUConfig",
}


def refuse_on_device(args: Any) -> None:
    """Raise UserError for arguments that a device cannot honour, with what does their work there."""
    for name, instead in _HOST_ONLY.items():
        value = getattr(args, name, None)
        if value:
            raise UserError(f"{name}={value} is for the host, and this run is on a device. Instead: {instead}.")
    if getattr(args, "past_index", -1) >= 0:
        raise UserError(f"past_index={args.past_index}: a device keeps no hidden state from batch to batch. Use -1.")
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} GPUs of one process cannot share a device run. Set CUDA_VISIBLE_DEVICES to one of them, or "
            "use --backend host."
        )
