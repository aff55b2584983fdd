"""IPUTrainer with the task's loss and its batch sampler."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, NamedTuple, Optional

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ipu_trainer.tasks.chest_xray.data.augmentation import augment, augment_images
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset
from ipu_trainer.tasks.chest_xray.data.sampler import FindingBatchSampler
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, collate_stored
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.tasks.chest_xray.model.predictor import Predictor, sigmoid
from ipu_trainer.tasks.chest_xray.model.shortcuts import ClassTokenLayer, GrayscaleProjection
from ipu_trainer.training.acceleration.choices import choose_compile, used_precision
from ipu_trainer.training.acceleration.input_pipeline import copy_to_device
from ipu_trainer.training.trainer import IPUTrainer


class _Shortcuts(NamedTuple):
    """Exact shortcuts on the host; None where they do not apply to the model."""

    model: Any
    projection: Optional[GrayscaleProjection]
    last_layer: Optional[ClassTokenLayer]


class ChestXrayTrainer(IPUTrainer):
    """IPUTrainer with the task's loss and its batch sampler.

    compute_loss is finding_loss of the logits. get_train_dataloader gives whole host steps from FindingBatchSampler, already
    divided among the processes. For a GPU, batches stay uint8 pixels until prepare_inputs augments and normalises them there,
    and a training step computes the patch projection of one channel. On the host, a training step computes
    the last layer for the class token alone (both: shortcuts.py). Everything else is IPUTrainer's.
    """

    data_collator: Any
    loader_follows_coalescing = True
    loss_is_scaled_for_ga = False  # means over a micro-batch: the ranking loss compares its samples

    def __init__(
        self, *positional: Any, finding_loss: FindingLoss, balance: float = 0.0, tail: str = "drop", **named: Any
    ) -> None:
        super().__init__(*positional, **named)
        self.finding_loss = finding_loss
        self.model_accepts_loss_kwargs = False  # means over samples: labels need no count, which would synchronise
        self._collator_on_gpu: Optional[ChestXrayCollator] = None
        self._augment_images: Any = augment_images
        if not self.backend.has_executors and self.args.device.type == "cuda":
            self._augment_on_gpu()
        self._balance, self._tail = balance, tail
        self.train_sampler = self._new_sampler()
        self.epoch_plan = self.batch_geometry.epoch(len(self.train_dataset), tail)
        self.add_callback(_SamplerEpoch(self))

    def _augment_on_gpu(self) -> None:
        """Move the work of ChestXrayCollator to the GPU; the data loader only gathers stored pixels."""
        if isinstance(self.data_collator, ChestXrayCollator):
            self._collator_on_gpu, self.data_collator = self.data_collator, collate_stored
            self._found_shortcuts = None
            choice = choose_compile(getattr(self.args, "compile", "off"), self.args.device.type, self.args.n_gpu)
            if choice.name != "off":
                self._augment_images = torch.compile(augment_images)

    def prepare_inputs(self, inputs: Any) -> Any:
        collator = self._collator_on_gpu
        if collator is None or "pixels" not in inputs:
            return super().prepare_inputs(inputs)
        # epoch and index stay on the CPU, which draws the random numbers: reading them back would synchronise with the GPU.
        device = self.args.device
        pixels = copy_to_device(inputs["pixels"], device)
        gray = augment(
            pixels, inputs["epoch"], inputs["index"], collator.augmentation, collator.seed, self._augment_images
        )
        labels = copy_to_device(inputs["labels"], device)
        if self.model.training and self._shortcuts().projection is not None:
            return {"gray": gray, "labels": labels}
        return {"pixel_values": collator.normalisation(gray), "labels": labels}

    def _shortcuts(self) -> _Shortcuts:
        """The shortcuts of the current model, which a search or model_init replaces."""
        if self._found_shortcuts is None or self._found_shortcuts.model is not self.model:
            collator = self._collator_on_gpu
            projection = None if collator is None else GrayscaleProjection.of(self.model, collator.normalisation)
            found = _Shortcuts(self.model, projection, ClassTokenLayer.of(self.model))
            if self.backend.has_executors or self.args.n_gpu > 1:  # DataParallel copies the model for each batch
                found = _Shortcuts(self.model, None, None)
            self._found_shortcuts = found
        return self._found_shortcuts

    _found_shortcuts: Optional[_Shortcuts] = None

    def floating_point_ops(self, inputs: Any) -> int:
        if "pixels" in inputs:  # only the shape matters
            number, height, width = inputs["pixels"].shape
            channels = self._collator_on_gpu.normalisation.num_channels if self._collator_on_gpu else 3
            inputs = {"pixel_values": torch.empty((number, channels, height, width), device="meta")}
        return super().floating_point_ops(inputs)

    def _new_sampler(self) -> FindingBatchSampler:
        """One for each training loop: a search, or a micro-batch that did not fit, changes seed and geometry."""
        return FindingBatchSampler(
            self.train_dataset.labels,
            self.execution.loader_geometry(),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            balance=self._balance,
            shuffle=getattr(self.args, "train_sampling_strategy", "random") != "sequential",
            tail=self._tail,
            process_index=self.args.process_index,
            num_processes=self.args.world_size,
        )

    def why_not_coalescable(self, *_: Any, **__: Any) -> Optional[str]:
        if self.finding_loss.masked:
            return "its loss is a mean over the known labels of a micro-batch, and micro-batches know different numbers"
        return None  # the sampler gives whole weight updates

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
        labels = inputs["labels"]
        with contextlib.ExitStack() as shortcuts:
            last_layer = self._shortcuts().last_layer
            # Evaluation is bit-identical to plain Transformers.
            if last_layer is not None and self.model.training:
                shortcuts.enter_context(last_layer.reading_class_token())
            projection = self._shortcuts().projection if "gray" in inputs else None
            if projection is not None:
                shortcuts.enter_context(projection.applied())
                outputs = model(pixel_values=projection.gray_channels(inputs["gray"]))
            else:
                outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        loss = self.finding_loss(logits, labels)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def get_train_dataloader(self) -> Any:
        args = self.args
        self.train_sampler = self._new_sampler()
        workers: Dict[str, Any] = {}
        if args.dataloader_num_workers:
            workers["persistent_workers"] = getattr(args, "dataloader_persistent_workers", False)
            workers["prefetch_factor"] = getattr(args, "dataloader_prefetch_factor", None) or 2
            workers["multiprocessing_context"] = getattr(args, "dataloader_multiprocessing_context", None)
            if not getattr(args, "dataloader_in_order", True):  # torch 2.0 has no such choice
                workers["in_order"] = False
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            **workers,
        )

    def probabilities(self, dataset: ChestXrayDataset) -> np.ndarray:
        """float64 (num_images, num_findings); on the host, in one process, exactly those of `evaluate` and `predict`."""
        if not self.backend.has_executors and self.args.world_size == 1 and self.args.n_gpu <= 1:
            collator = self._collator_on_gpu or self.data_collator
            precision = used_precision(self.args, on_device=False).name
            predictor = Predictor(self.model, collator.normalisation, precision, self.args.device)
            return predictor.of_pixels(dataset.pixels(), len(dataset.findings))
        logits = self.predict(dataset).predictions
        return sigmoid(np.asarray(logits, dtype=np.float64))


class _SamplerEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the sampler's epoch; on some versions the stock loop does so only for its own samplers."""

    def __init__(self, trainer: ChestXrayTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.train_sampler.set_epoch(int(state.epoch or 0))
