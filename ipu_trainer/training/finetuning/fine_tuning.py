"""The options of fine-tuning as a part of the trainer: parameter groups and model of a training."""

from __future__ import annotations

from typing import Any, Mapping

from ipu_trainer.compat.stock_trainer import StockTrainer
from ipu_trainer.errors import UserError
from ipu_trainer.training.finetuning.layerwise_learning_rates import groups_by_depth
from ipu_trainer.training.finetuning.named_optimizer import apply_settings
from ipu_trainer.training.finetuning.stochastic_depth import add_drop_path


class FineTuning(StockTrainer):
    """Trainer with layer-wise learning rates, stochastic depth, and settings of an optimizer that was given by its name."""

    optimizer_settings: Mapping[str, Any] = {}

    def set_up_fine_tuning(self) -> None:
        """After Trainer's own __init__. Raises UserError for an optimizer= whose groups are not this trainer's."""
        if self.model_init is None:
            add_drop_path(self.model, getattr(self.args, "drop_path", 0.0))
        if self.optimizer is not None and self._scales_by_depth():
            raise UserError(
                "layer_decay and head_learning_rate_factor divide the parameter groups that this trainer makes, but "
                "optimizers= brings its own. Leave them at 1, or give optimizer_cls_and_kwargs= instead."
            )

    def _scales_by_depth(self) -> bool:
        names = ("layer_decay", "head_learning_rate_factor")
        return any(getattr(self.args, name, 1.0) != 1.0 for name in names)

    def create_optimizer(self, *positional: Any, **named: Any) -> Any:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*positional, **named)
        if is_new and self.optimizer_settings:
            apply_settings(optimizer, self.optimizer_settings)
        if is_new and self._scales_by_depth():
            optimizer.param_groups = groups_by_depth(
                self.model, optimizer.param_groups, self.args.layer_decay, self.args.head_learning_rate_factor
            )
        return optimizer

    def call_model_init(self, *positional: Any, **named: Any) -> Any:
        model = super().call_model_init(*positional, **named)
        add_drop_path(model, getattr(self.args, "drop_path", 0.0))
        return model
