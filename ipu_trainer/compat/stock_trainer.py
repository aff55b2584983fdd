"""transformers.Trainer with names for the steps of its loop that are private there.

The rest of the package overrides and reads these names; the private ones behind them occur here alone. PRIVATE lists them, and
tests/compat/test_stock_trainer.py holds each against the installed release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from torch import nn

from ipu_trainer.compat.trainer_signatures import AnyRelease
from ipu_trainer.compat.transformers_versions import load_renamed_weights

# Private name -> why a subclass needs it; all are there from 4.29.2 to 5.24.
PRIVATE = {
    "_inner_training_loop": "one training; train() and auto_find_batch_size call it",
    "_train_batch_size": "samples of a training batch, an attribute that the data loader and the loop read",
    "_wrap_model": "what the loop trains and evaluates",
    "_prepare_inputs": "a batch on its way to the model",
    "_save": "the files of a model, in checkpoints and at the end",
    "_load_from_checkpoint": "weights of a checkpoint, at the start of a resumed training",
    "_load_best_model": "weights of the best checkpoint, at the end",
    "_load_optimizer_and_scheduler": "their state, at the start of a resumed training",
    "_hp_search_setup": "a trial's values, before its training",
    "_remove_unused_columns": "columns of a data set that the model does not take",
    "_get_collator_with_removed_columns": "the same for data that is no datasets.Dataset",
}


@dataclass(frozen=True)
class StockLoop:
    """Arguments of one training, as Trainer.train gives them. batch_size: of auto_find_batch_size, or None."""

    batch_size: Optional[int]
    positional: Tuple[Any, ...]
    named: Dict[str, Any]

    @property
    def resume_from_checkpoint(self) -> Optional[str]:
        found = self.named.get("resume_from_checkpoint")
        return found or (self.positional[1] if len(self.positional) > 1 else None)


class StockTrainer(AnyRelease):
    """Trainer; its private steps are methods and attributes without the underscore."""

    def _inner_training_loop(self, batch_size: Any = None, *positional: Any, **named: Any) -> Any:
        return self.training_loop(StockLoop(batch_size, positional, named))

    def training_loop(self, loop: StockLoop) -> Any:
        """One training with batches of train_batch_size samples; returns a TrainOutput."""
        return super()._inner_training_loop(self.train_batch_size, *loop.positional, **loop.named)

    @property
    def train_batch_size(self) -> int:
        """Samples of a batch of the training loader, in each process."""
        return int(vars(self)["_train_batch_size"])

    @train_batch_size.setter
    def train_batch_size(self, samples: int) -> None:
        self.__dict__["_train_batch_size"] = samples

    def _wrap_model(self, model: nn.Module, training: bool = True, *positional: Any, **named: Any) -> nn.Module:
        return self.wrap_model(model, training, *positional, **named)

    def wrap_model(self, model: nn.Module, training: bool = True, *positional: Any, **named: Any) -> nn.Module:
        """What the loop calls in place of the model, to train or to evaluate it."""
        wrapped: nn.Module = super()._wrap_model(model, training, *positional, **named)
        return wrapped

    def _prepare_inputs(self, inputs: Any) -> Any:
        return self.prepare_inputs(inputs)

    def prepare_inputs(self, inputs: Any) -> Any:
        """A batch on its way to the model: moved to the device that computes."""
        return super()._prepare_inputs(inputs)

    def prepared_inputs(self, inputs: Any) -> Any:
        """prepare_inputs(), or what a subclass overrides in its place."""
        return self._prepare_inputs(inputs)

    def _save(self, output_dir: Optional[str] = None, state_dict: Optional[Dict[str, Any]] = None) -> None:
        self.write_model(output_dir or self.args.output_dir, state_dict)

    def write_model(self, folder: str, state_dict: Optional[Dict[str, Any]] = None) -> None:
        """Write weights, configuration, tokenizer and arguments into a folder, of a checkpoint or of the run."""
        super()._save(folder, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Optional[nn.Module] = None) -> None:
        self.load_checkpoint(resume_from_checkpoint, model)

    def load_checkpoint(self, checkpoint: str, model: Optional[nn.Module] = None) -> None:
        """Give the model the weights of a checkpoint."""
        if not load_renamed_weights(self.model if model is None else model, checkpoint):
            super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: Optional[str]) -> None:
        self.load_optimizer_state(checkpoint)

    def load_optimizer_state(self, checkpoint: Optional[str]) -> None:
        """Give optimizer and scheduler the state of a checkpoint; None: there is none."""
        super()._load_optimizer_and_scheduler(checkpoint)

    def _hp_search_setup(self, trial: Any) -> None:
        self.set_up_trial(trial)

    def set_up_trial(self, trial: Any) -> None:
        """Set the arguments to the values of a trial."""
        super()._hp_search_setup(trial)

    def _load_best_model(self) -> None:
        self.load_best_model()

    def load_best_model(self) -> None:
        """Give the model the weights of state.best_model_checkpoint."""
        if not load_renamed_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def count_items(self, batches: List[Dict[str, Any]]) -> Any:
        """num_items_in_batch of some batches as Trainer counts it; None before 4.46, which does not count."""
        count = getattr(self, "_get_num_items_in_batch", None)
        return None if count is None else count(batches, self.args.device)

    def drop_unused_columns(self, dataset: Any, collator: Any, is_table: bool) -> Tuple[Any, Any]:
        """(data set, collator) as the training loader has them. is_table: a datasets.Dataset, whose columns are removed."""
        if is_table:
            return self._remove_unused_columns(dataset, description="training"), collator
        return dataset, self._get_collator_with_removed_columns(collator, description="training")
