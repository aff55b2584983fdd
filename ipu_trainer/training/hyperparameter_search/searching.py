"""Hyper-parameter search as a part of the trainer."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from ipu_trainer.compat.stock_trainer import StockTrainer
from ipu_trainer.errors import UserError
from ipu_trainer.training.hyperparameter_search.optuna_search import (
    check_search,
    search_backend,
    search_with_optuna,
    the_loss,
)
from ipu_trainer.training.hyperparameter_search.ray_search import (
    arguments_of_trial,
    check_directions_of_stock,
    prepared_for_ray,
)


class SearchesHyperparameters(StockTrainer):
    """Trainer whose searches run on any backend, in studies that survive a kill."""

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Any = None,
        n_trials: int = 20,
        direction: Any = None,
        backend: Any = None,
        hp_name: Any = None,
        is_feasible: Any = None,
        **options: Any,
    ) -> Any:
        """As Trainer's; optuna_search.py has what optuna studies do more. n_trials is the total of a named study.

        direction: where it is left out the objective must be the evaluation's loss, which is minimized.

        is_feasible(ipu_config, micro_batch) may return why a trial cannot run, which skips it.
        """
        chosen = search_backend(backend)
        directions = check_search(self, n_trials, direction, compute_objective)
        if direction is None:
            compute_objective = functools.partial(the_loss, compute_objective)
        if chosen == "optuna":
            return search_with_optuna(
                self, n_trials, directions, hp_space, compute_objective, hp_name, is_feasible, **options
            )
        if is_feasible is not None:
            raise UserError(f"is_feasible= is for backend='optuna': {chosen} runs its trials itself.")
        check_directions_of_stock(directions, chosen)
        with prepared_for_ray(self, hp_space, options) if chosen == "ray" else contextlib.nullcontext():
            return super().hyperparameter_search(
                hp_space, compute_objective, n_trials, directions[0], chosen, hp_name, **options
            )

    def set_up_trial(self, trial: Any) -> None:
        super().set_up_trial(arguments_of_trial(self, trial) if isinstance(trial, dict) else trial)
        self._trial = trial
