"""Hyper-parameter search: trials of one trainer, on any of its backends, in an optuna study that survives a kill.

What differs from the search of transformers: every trial starts from the arguments as given, a trial that fails is a failed
trial, a named study in a storage resumes, and `micro_batch` and `replication_factor` can be searched at a fixed global
batch. Ray runs as transformers has it, checked before work (ray_search.py); so does wandb.
"""

from __future__ import annotations

import difflib
import gc
import inspect
import os
import platform
import random
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import torch
from transformers.trainer_utils import (
    BestRun,
    HPSearchBackend,
    default_compute_objective,
    default_hp_space_optuna,
    number_of_arguments,
)
from transformers.utils import logging

from ipu_trainer.compat.argument_names import takes
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.config.ipu_config import IPUConfig

logger = logging.get_logger(__name__)

Direction = Union[str, Sequence[str]]
Feasible = Callable[[Any, int], Optional[str]]
GEOMETRY = ("micro_batch", "replication_factor")


class SearchError(ValueError):
    """The search was set up wrongly: it ends the study, where any other error ends one trial."""


class _FailedTrial(Exception):
    pass


def search_backend(name: Any) -> str:
    """The backend's name, optuna for None. Raises ValueError for one that this transformers does not have."""
    chosen = str(getattr(name, "value", name or "optuna"))
    known = [item.value for item in HPSearchBackend]
    if chosen == "sigopt" and chosen not in known:
        raise ValueError(
            "backend='sigopt': SigOpt is a dead service, which transformers 5 removed. Use one of "
            + ", ".join(known)
            + "."
        )
    if chosen not in known:
        raise ValueError(f"backend={chosen!r} is not one of {', '.join(known)}.")
    return chosen


def check_search(trainer: Any, n_trials: int, direction: Optional[Direction], compute_objective: Any) -> List[str]:
    """The directions, one for each objective. Raises ValueError, before any work, for what cannot be searched."""
    direction = _only_direction(trainer, compute_objective) if direction is None else direction
    if trainer.model_init is None:
        raise ValueError("A search makes a model for each trial: give the trainer model_init= instead of model=.")
    if not isinstance(n_trials, int) or n_trials < 1:
        raise ValueError(f"n_trials={n_trials!r}: a search needs a whole number of trials, at least 1.")
    directions = [direction] if isinstance(direction, str) else list(direction)
    wrong = [item for item in directions if item not in ("minimize", "maximize")]
    if wrong or not directions:
        raise ValueError(f"direction={direction!r}: each direction is 'minimize' or 'maximize'.")
    if len(directions) > 1 and compute_objective is None:
        raise ValueError(
            f"{len(directions)} directions for one objective: the default objective is one number. Give one direction, or "
            "compute_objective= that returns one number for each."
        )
    return directions


def _only_direction(trainer: Any, compute_objective: Any) -> str:
    """ "minimize" where the objective is the evaluation's loss. Raises ValueError for any other."""
    objective = compute_objective or default_compute_objective
    # Numbers that a sum or a product with another metric would not give back.
    metrics = {"eval_loss": 0.734375}
    if trainer.compute_metrics is not None or isinstance(trainer.eval_dataset, dict):
        metrics["eval_metric"] = 0.171875
    try:
        is_the_loss = objective(dict(metrics)) == metrics["eval_loss"]
    except (LookupError, TypeError, AttributeError):  # it asks for another metric
        is_the_loss = False
    if is_the_loss:
        return "minimize"
    raise ValueError(_no_direction(compute_objective))


def _no_direction(compute_objective: Any) -> str:
    what = "what compute_objective= returns" if compute_objective else "the sum of what compute_metrics= returns"
    return (
        f"no direction= for an objective that is not the evaluation's loss alone, but {what}: say direction='maximize' (as for "
        "accuracy) or 'minimize', or search the loss with compute_objective=lambda metrics: metrics['eval_loss']."
    )


def the_loss(compute_objective: Any, metrics: Dict[str, float]) -> float:
    """The objective where no direction was given. Raises SearchError if an evaluation makes it anything but its loss."""
    value = (compute_objective or default_compute_objective)(metrics)
    loss = metrics.get("eval_loss")
    if loss is None or (value != loss and loss == loss):
        raise SearchError(_no_direction(compute_objective))
    return loss


def check_names(trainer: Any, names: Sequence[str]) -> None:
    """Raises SearchError for names in hp_space that neither the training arguments nor model_init(trial) can take."""
    unknown = [name for name in names if name not in GEOMETRY and not takes(trainer.args, name)]
    for name in unknown:
        near = difflib.get_close_matches(name, [*vars(trainer.args), *GEOMETRY], 1, 0.88)
        if near:
            raise SearchError(f"hp_space has {name!r}, which is no TrainingArguments field. Did you mean {near[0]!r}?")
    if unknown and number_of_arguments(trainer.model_init) == 0:
        raise SearchError(
            f"hp_space has {unknown}: neither TrainingArguments fields nor {', '.join(GEOMETRY)}. What the model is made of "
            "belongs in model_init: let it take the trial, model_init(trial), and make the model of the trial's values "
            "(optuna: trial.suggest_float(...) in it; ray: trial[name]). A trial of None asks for the model as it is by default."
        )


def why_not_geometry(geometry: BatchGeometry, micro_batch: int, replicas: int) -> Optional[str]:
    """Why these do not make up the global batch; None if they do."""
    if micro_batch > 0 and replicas > 0 and geometry.global_batch % (micro_batch * replicas) == 0:
        return None
    return f"micro-batch {micro_batch} x {replicas} replicas x accumulation is not the global batch {geometry.global_batch}"


def set_geometry(
    trainer: Any, geometry: BatchGeometry, config: IPUConfig, micro_batch: int, replicas: Optional[int]
) -> None:
    """Let the trainer's global batch be that of `geometry`, of such micro-batches. replicas: None keeps the configuration's."""
    accumulation = geometry.global_batch // (micro_batch * (replicas or geometry.replicas))
    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = micro_batch, accumulation
    changes = {} if replicas is None else {"replication_factor": replicas}
    trainer.ipu_config = config.updated(gradient_accumulation_steps=accumulation, **changes)


def open_storage(storage: Any) -> Any:
    """What optuna takes as storage: a URL or object as it is; PATH.db or .sqlite3 is SQLite, PATH.journal or .log a journal."""
    if not isinstance(storage, (str, os.PathLike)) or "://" in str(storage):
        return storage
    path = Path(storage)
    if path.suffix not in (".db", ".sqlite", ".sqlite3", ".journal", ".log"):
        raise ValueError(
            f"storage {path}: name it .db for SQLite or .journal for a journal file, or give a database URL."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        return f"sqlite:///{path}"
    from optuna import storages

    journal = getattr(storages, "journal", None)
    file_backend = getattr(journal, "JournalFileBackend", None) or storages.JournalFileStorage
    return storages.JournalStorage(file_backend(str(path)))


def _with_tables(url: str) -> Any:
    """The database behind url. Of processes that make its tables at the same moment all but one fail, and look again."""
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    for attempt in range(5):
        try:
            return RDBStorage(url)
        except (SQLAlchemyError, StorageInternalError):
            time.sleep(0.2 * (attempt + random.SystemRandom().random()))  # the program's generator is not asked
    return RDBStorage(url)


def search_with_optuna(
    trainer: Any,
    n_trials: int,
    directions: List[str],
    hp_space: Any = None,
    compute_objective: Any = None,
    hp_name: Any = None,
    is_feasible: Optional[Feasible] = None,
    **options: Any,
) -> Any:
    """Run trials until the study has n_trials; the BestRun, or those on the Pareto front for several directions.

    options go to optuna.create_study (study_name, storage, sampler, pruner) and Study.optimize (timeout, gc_after_trial,
    callbacks). Trials that a killed process left behind are marked as failed and do not count. Several processes may work on one
    study: n_trials is the total of all of them, and each returns the best of what is finished when there is no trial left to begin.
    """
    import optuna

    if trainer.args.world_size > 1 or options.pop("n_jobs", 1) != 1:
        raise ValueError(
            "One trainer runs one trial at a time: n_jobs=1, and one process. Start several on one storage."
        )
    known = set(inspect.signature(optuna.create_study).parameters) | {"timeout", "gc_after_trial", "callbacks"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no option of optuna's, which are {', '.join(sorted(known))}.")
    optimize = {name: options.pop(name) for name in ("timeout", "gc_after_trial", "callbacks") if name in options}
    storage = open_storage(options.get("storage"))
    options["storage"] = _with_tables(storage) if isinstance(storage, str) else storage
    options.setdefault("load_if_exists", options.get("study_name") is not None)
    sampler = options.pop("sampler", None)
    study = optuna.create_study(directions=directions, **options)
    if [item.name.lower() for item in study.directions] != directions:
        stored = [item.name.lower() for item in study.directions]
        raise ValueError(f"study {study.study_name!r} has directions {stored}, not {directions}. Give it another name.")
    _bury_the_dead(study)
    study.sampler = sampler or study.sampler
    trials = _Trials(trainer, directions, hp_space, compute_objective, hp_name, is_feasible)
    if options.get("study_name"):
        trials.arguments["output_dir"] = str(Path(trainer.args.output_dir) / options["study_name"])
    trials.n_trials, trials.draws_by_number = n_trials, sampler is None
    optimize["callbacks"] = [*(optimize.get("callbacks") or ()), trials.stop_at_the_last]
    try:
        if _begun(study) < n_trials:
            study.optimize(trials.run, n_trials=n_trials, catch=(_FailedTrial,), **optimize)
    finally:
        trials.close()
    best = study.best_trials if any(item.state.name == "COMPLETE" for item in study.trials) else []
    if not best:
        errors = sorted(
            {str(item.user_attrs.get("error") or item.user_attrs.get("infeasible")) for item in study.trials}
        )
        raise ValueError(
            f"none of {len(study.trials)} trials of {study.study_name!r} finished: {'; '.join(errors[:3])}"
        )
    if len(directions) > 1:
        return [BestRun(str(item.number), item.values, item.params, None) for item in best]
    return BestRun(str(study.best_trial.number), study.best_value, study.best_params, None)


def _begun(study: Any, before: Optional[int] = None) -> int:
    """How many trials count towards the total: finished ones and those that run, here or in other processes.

    before: of those with a smaller number alone.
    """
    return sum(
        item.state.name in ("COMPLETE", "PRUNED", "RUNNING")
        or (item.state.name == "FAIL" and "error" in item.user_attrs)
        for item in study.get_trials(deepcopy=False)
        if before is None or item.number < before
    )


def _bury_the_dead(study: Any) -> None:
    """Mark as failed what a process of this machine that is no more left running."""
    import optuna

    for item in study.trials:
        if item.state.name != "RUNNING":
            continue
        host, pid = item.user_attrs.get("host"), int(item.user_attrs.get("pid", 0))
        # Another process may have begun it just now, and not yet said which one it is.
        is_new = host is None and datetime.now() - item.datetime_start < timedelta(minutes=1)
        if is_new or host not in (None, platform.node()) or (pid not in (0, os.getpid()) and _is_alive(pid)):
            logger.warning(
                "trial %d runs in process %s on %s and counts. If that is no more: study.tell(%d, state=TrialState.FAIL)",
                item.number,
                pid,
                host,
                item.number,
            )
            continue
        study.tell(item.number, state=optuna.trial.TrialState.FAIL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Trials:
    """The trainer, with its arguments as they were given, to begin each trial with."""

    n_trials = 0  # of the whole study
    draws_by_number = True

    def __init__(
        self, trainer: Any, directions: List[str], space: Any, objective: Any, name: Any, feasible: Any
    ) -> None:
        self.trainer, self.directions, self.feasible = trainer, directions, feasible
        self.space = space or default_hp_space_optuna
        self.given: Dict[str, Any] = dict(vars(trainer.args))
        self.arguments = dict(self.given)
        self.config, self.geometry = trainer.ipu_config, trainer.batch_geometry
        trainer.hp_search_backend = HPSearchBackend.OPTUNA
        trainer.hp_name = name
        trainer.hp_space = lambda trial: {}  # set here, before the trainer asks
        trainer.compute_objective = objective or default_compute_objective
        trainer._report_to_hp_search = self.report

    def run(self, trial: Any) -> Any:
        import optuna

        trainer = self.trainer
        # The machine last: with it the trial says whose it is, and may be taken for one that a dead process left.
        trial.set_user_attr("pid", os.getpid())
        trial.set_user_attr("host", platform.node())
        if _begun(trial.study, trial.number) >= self.n_trials:  # another process began the last one at the same time
            trial.study.stop()
            raise _FailedTrial("there are enough")
        if self.draws_by_number:  # neither a resumed study nor another process may draw the same values once more
            trial.study.sampler = optuna.samplers.TPESampler(seed=self.given["seed"] + trial.number)
        self._restore(self.arguments)
        try:
            self._apply(trial, dict(self.space(trial)))
            trainer.objective = None
            trainer.train(trial=trial)
            if trainer.objective is None:
                trainer.objective = self._objective(trainer.evaluate())
            return trainer.objective
        except (optuna.TrialPruned, SearchError):
            raise
        except Exception as error:  # whatever it is, out of memory too: this trial's end and not the study's
            message = f"{type(error).__name__}: {error}"
        trial.set_user_attr("error", message[:1000])
        logger.warning("trial %d failed: %s", trial.number, message)
        trainer.optimizer = trainer.lr_scheduler = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise _FailedTrial(message)

    def stop_at_the_last(self, study: Any, _: Any) -> None:
        """What optuna calls after each trial."""
        if _begun(study) >= self.n_trials:
            study.stop()

    def report(self, trial: Any, step: int, metrics: Dict[str, float]) -> None:
        """What the training loop calls after each evaluation; ends a trial that the pruner gives up."""
        import optuna

        if trial is None:
            return
        self.trainer.objective = self._objective(metrics)
        if len(self.directions) == 1:
            trial.report(self.trainer.objective, step)
            if trial.should_prune():
                self.trainer.callback_handler.on_train_end(self.trainer.args, self.trainer.state, self.trainer.control)
                raise optuna.TrialPruned()

    def _objective(self, metrics: Dict[str, float]) -> Any:
        value = self.trainer.compute_objective(dict(metrics))
        count = len(value) if isinstance(value, (tuple, list)) else 1
        if count != len(self.directions):
            raise SearchError(
                f"{len(self.directions)} directions for {count} objective(s). Give one direction for each."
            )
        return value[0] if isinstance(value, (tuple, list)) and count == 1 else value

    def _apply(self, trial: Any, values: Dict[str, Any]) -> None:
        check_names(self.trainer, list(values))
        args = self.trainer.args
        micro_batch, replicas = values.pop("micro_batch", None), values.pop("replication_factor", None)
        for name, value in values.items():
            if not takes(args, name):  # model_init(trial) has it
                continue
            old: Any = self.given.get(name)
            cast = old is not None and type(old) in (int, float, str)
            setattr(args, name, type(old)(value) if cast else value)
        if micro_batch is not None or replicas is not None:
            micro = int(micro_batch or args.per_device_train_batch_size)
            copies = int(replicas or self.geometry.replicas)
            wrong = why_not_geometry(self.geometry, micro, copies)
            if wrong:
                self._skip(trial, wrong)
            set_geometry(self.trainer, self.geometry, self.config, micro, None if replicas is None else copies)
            wanted = values.get("gradient_accumulation_steps", args.gradient_accumulation_steps)
            if wanted != args.gradient_accumulation_steps:
                self._skip(
                    trial, f"accumulation {wanted} is not the {args.gradient_accumulation_steps} of the global batch"
                )
        reason = self.feasible(self.trainer.ipu_config, args.per_device_train_batch_size) if self.feasible else None
        if reason:
            self._skip(trial, reason)

    def _skip(self, trial: Any, reason: str) -> None:
        import optuna

        trial.set_user_attr("infeasible", reason)
        raise optuna.TrialPruned(reason)

    def _restore(self, arguments: Dict[str, Any]) -> None:
        vars(self.trainer.args).clear()
        vars(self.trainer.args).update(arguments)
        self.trainer.ipu_config = self.config

    def close(self) -> None:
        self._restore(self.given)
        self.trainer.hp_search_backend = None
        del self.trainer._report_to_hp_search
