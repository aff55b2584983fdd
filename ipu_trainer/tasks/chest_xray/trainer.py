"""IPUTrainer with the task's loss and its batch sampler."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.tasks.chest_xray.dataset import ChestXrayDataset
from ipu_trainer.tasks.chest_xray.losses import FindingLoss
from ipu_trainer.tasks.chest_xray.sampler import FindingBatchSampler
from ipu_trainer.tasks.chest_xray.transforms import ChestXrayCollator
from ipu_trainer.training.trainer import IPUTrainer


class ChestXrayTrainer(IPUTrainer):
    """IPUTrainer with the task's loss and its batch sampler.

    compute_loss: finding_loss of the logits. get_train_dataloader: whole host steps from FindingBatchSampler, already
    shared out over the processes. Everything else is IPUTrainer's.
    """

    def __init__(
        self, *positional: Any, finding_loss: FindingLoss, balance: float = 0.0, tail: str = "drop", **named: Any
    ) -> None:
        super().__init__(*positional, **named)
        self.finding_loss = finding_loss
        self._balance, self._tail = balance, tail
        self.train_sampler = self._new_sampler()
        self.epoch_plan = self.batch_geometry.epoch(len(self.train_dataset), tail)
        self.add_callback(_SamplerEpoch(self))

    def _new_sampler(self) -> FindingBatchSampler:
        """Anew for each loop: a search, or a micro-batch that did not fit, changes seed and geometry."""
        return FindingBatchSampler(
            self.train_dataset.labels,
            self._loader_geometry(),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            balance=self._balance,
            tail=self._tail,
            process_index=self.args.process_index,
            num_processes=self.args.world_size,
        )

    def _loader_geometry(self) -> BatchGeometry:
        """What the data loader groups: micro-batches, or on a device whole host steps of each process."""
        geometry = self.batch_geometry
        if self.backend.has_executors:
            processes = self.args.world_size
            return BatchGeometry(geometry.samples_per_host_step // processes, replicas=processes)
        # Several GPUs of one process (DataParallel) share out one batch: the micro-batches of all of them.
        copies = max(1, self.args.n_gpu)
        return dataclasses.replace(
            geometry, micro_batch=geometry.micro_batch * copies, replicas=geometry.replicas // copies
        )

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
        labels = inputs["labels"]
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
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            **workers,
        )

    def probabilities(self, dataset: ChestXrayDataset) -> np.ndarray:
        """float64 (num_images, num_findings): sigmoid of the logits."""
        logits = self.predict(dataset).predictions
        return sigmoid(np.asarray(logits, dtype=np.float64))


class PicturesOnly:
    """Leaves the labels out: those of another data set may be of other findings than the model's outputs."""

    def __init__(self, collator: ChestXrayCollator) -> None:
        self.collator = collator

    def __call__(self, samples: Any) -> Dict[str, torch.Tensor]:
        return {"pixel_values": self.collator(samples)["pixel_values"]}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


class _SamplerEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler which epoch begins; the stock loop reaches only samplers of its own making, on some versions."""

    def __init__(self, trainer: ChestXrayTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.train_sampler.set_epoch(int(state.epoch or 0))
