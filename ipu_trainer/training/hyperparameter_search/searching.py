"""Hyper-parameter search as a part of the trainer; Ray Tune's is transformers' own, with checks before work.

Each trial of Ray is a pickled copy of the trainer in a process of its own, on any machine of Ray's cluster. Ray cannot skip a
trial, so all choices of `micro_batch` and `replication_factor` must divide the global batch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import itertools
from typing import Any, Dict, Iterator, List, Mapping

from transformers.trainer_utils import HPSearchBackend, default_hp_space_ray

from ipu_trainer.compat.argument_names import takes
from ipu_trainer.compat.stock_trainer import StockTrainer
from ipu_trainer.errors import UserError
from ipu_trainer.training.hyperparameter_search.optuna_search import (
    GEOMETRY,
    check_names,
    check_search,
    search_backend,
    search_with_optuna,
    set_geometry,
    the_loss,
    why_not_geometry,
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
        if len(directions) > 1:
            raise UserError(
                f"{len(directions)} directions are for backend='optuna': {chosen} searches one objective. Give one direction."
            )
        with prepared_for_ray(self, hp_space, options) if chosen == "ray" else contextlib.nullcontext():
            return super().hyperparameter_search(
                hp_space, compute_objective, n_trials, directions[0], chosen, hp_name, **options
            )

    def set_up_trial(self, trial: Any) -> None:
        super().set_up_trial(arguments_of_trial(self, trial) if isinstance(trial, dict) else trial)
        self._trial = trial


# Option of an optuna study -> its counterpart in Ray Tune.
_OF_OPTUNA = {
    "study_name": "name= and storage_path= name an experiment",
    "storage": "storage_path= names the folder of the results",
    "sampler": "search_alg= draws the values",
    "pruner": "scheduler= ends trials early",
    "timeout": "time_budget_s= bounds the search",
    "n_jobs": "max_concurrent_trials= and resources_per_trial= say how many run at once",
    "load_if_exists": "resume= goes on with an experiment",
    "gc_after_trial": "each trial has a process of its own",
}


@contextlib.contextmanager
def prepared_for_ray(trainer: Any, hp_space: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block the trainer is as every trial starts from it; after it, its model and arguments are restored.

    Raises UserError, before any work, for an invalid search.
    """
    _check_options(trainer, options)
    space = (hp_space or default_hp_space_ray)(None)
    check_names(trainer, list(space))
    _check_geometry(trainer, space)
    model, arguments = trainer.model, dict(vars(trainer.args))
    trainer.execution.forget_training()
    trainer.optimizer = trainer.lr_scheduler = None  # of an earlier training: every trial makes its own
    try:
        yield
    finally:  # transformers removes the model, and leaves the number of GPUs of one trial
        trainer.model, trainer.hp_search_backend = model, None
        vars(trainer.args).update(arguments)


def arguments_of_trial(trainer: Any, trial: Dict[str, Any]) -> Dict[str, Any]:
    """A trial's values that transformers sets on the arguments. Sets the batch geometry; model_init(trial) reads the rest."""
    if "micro_batch" in trial or "replication_factor" in trial:
        micro_batch = int(trial.get("micro_batch", trainer.args.per_device_train_batch_size))
        replicas = trial.get("replication_factor")
        copies = None if replicas is None else int(replicas)
        wrong = why_not_geometry(trainer.batch_geometry, micro_batch, copies or trainer.batch_geometry.replicas)
        if wrong:  # of a wandb sweep, whose values cannot be checked before
            raise UserError(f"{wrong}. Give values that all make it up.")
        set_geometry(trainer, trainer.batch_geometry, trainer.ipu_config, micro_batch, copies)
    is_ray = trainer.hp_search_backend == HPSearchBackend.RAY
    known = {name: value for name, value in trial.items() if not is_ray or takes(trainer.args, name)}
    return {name: value for name, value in known.items() if name not in GEOMETRY}


def _check_options(trainer: Any, options: Mapping[str, Any]) -> None:
    if importlib.util.find_spec("ray") is None:
        raise UserError("backend='ray' needs Ray: pip install 'ipu-trainer[search]' (Python 3.9 or newer).")
    from ray import tune

    for name in options:
        if name in _OF_OPTUNA:
            raise UserError(f"{name}= is for backend='optuna'. With ray, {_OF_OPTUNA[name]}.")
    known = [name for name in inspect.signature(tune.run).parameters if not name.startswith("_")]
    # transformers gives these itself.
    unknown = [name for name in options if name not in known or name in ("run_or_experiment", "config", "num_samples")]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no option of ray.tune.run that a search takes. See its documentation.")
    if trainer.args.world_size > 1:
        raise UserError(
            f"{trainer.args.world_size} processes would each begin a Ray search. Begin it from one; "
            "resources_per_trial= says what a trial gets."
        )


def _check_geometry(trainer: Any, space: Mapping[str, Any]) -> None:
    if not any(name in space for name in GEOMETRY):
        return
    both = [name for name in ("per_device_train_batch_size", "gradient_accumulation_steps") if name in space]
    if both:
        raise UserError(f"hp_space has {', '.join(both)} beside {' or '.join(GEOMETRY)}, which set it. Leave it out.")
    geometry = trainer.batch_geometry
    micro_batches = _choices(space, "micro_batch", trainer.args.per_device_train_batch_size)
    copies = _choices(space, "replication_factor", geometry.replicas)
    for micro_batch, replicas in itertools.product(micro_batches, copies):
        wrong = why_not_geometry(geometry, micro_batch, replicas)
        if wrong:
            raise UserError(f"hp_space: {wrong}, and Ray cannot skip a trial. Give choices that all make it up.")


def _choices(space: Mapping[str, Any], name: str, given: int) -> List[int]:
    value = space.get(name, given)
    if isinstance(value, Mapping) and "grid_search" in value:
        value = value["grid_search"]
    value = getattr(value, "categories", value)
    choices = list(value) if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(choice, int) for choice in choices):
        raise UserError(f"hp_space: {name} must be ray.tune.choice([...]) or grid_search([...]) of whole numbers.")
    return choices
