"""Hyper-parameter search: trials of one trainer, on any of its backends, in an optuna study that survives a kill.

Unlike transformers' own search: every trial starts from the given arguments, an error fails one trial and not the study, a named
study in a storage resumes, and `micro_batch` and `replication_factor` can be searched at a fixed global batch. Ray and wandb run
transformers' own search (searching.py).
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import inspect
import os
import platform
import random
import sqlite3
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import psutil
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
from ipu_trainer.errors import UserError

logger = logging.get_logger(__name__)

Feasible = Callable[[Any, int], Optional[str]]
GEOMETRY = ("micro_batch", "replication_factor")


class SearchError(UserError):
    """A wrong setup of the search, which ends the study. Any other error ends one trial."""


class _TrialFailed(Exception):
    pass


def search_backend(name: Any) -> str:
    """The backend's name, optuna for None. Raises UserError for one that this transformers does not have."""
    chosen = str(getattr(name, "value", name or "optuna"))
    known = [item.value for item in HPSearchBackend]
    if chosen not in known:
        hint = ": SigOpt is a dead service, which transformers 5 removed. It" if chosen == "sigopt" else ""
        raise UserError(f"backend={chosen!r}{hint} is not one of {', '.join(known)}.")
    return chosen


def check_search(
    trainer: Any, n_trials: int, direction: Union[str, Sequence[str], None], compute_objective: Any
) -> List[str]:
    """The directions, one for each objective. Raises UserError, before any work, for an invalid search."""
    direction = _default_direction(trainer, compute_objective) if direction is None else direction
    if trainer.model_init is None:
        raise UserError("A search makes a model for each trial: give the trainer model_init= instead of model=.")
    if not isinstance(n_trials, int) or n_trials < 1:
        raise UserError(f"n_trials={n_trials!r}: a search needs a whole number of trials, at least 1.")
    directions = [direction] if isinstance(direction, str) else list(direction)
    wrong = [item for item in directions if item not in ("minimize", "maximize")]
    if wrong or not directions:
        raise UserError(f"direction={direction!r}: each direction is 'minimize' or 'maximize'.")
    if len(directions) > 1 and compute_objective is None:
        raise UserError(
            f"{len(directions)} directions for one objective: the default objective is one number. Give one direction, or "
            "compute_objective= that returns one number for each."
        )
    return directions


def _default_direction(trainer: Any, compute_objective: Any) -> str:
    """ "minimize" where the objective is the evaluation loss. Raises UserError for any other."""
    objective = compute_objective or default_compute_objective
    # Values whose sum or product is not one of them.
    metrics = {"eval_loss": 0.734375}
    if trainer.compute_metrics is not None or isinstance(trainer.eval_dataset, dict):
        metrics["eval_metric"] = 0.171875
    try:
        if objective(dict(metrics)) == metrics["eval_loss"]:
            return "minimize"
    except (LookupError, TypeError, AttributeError):  # it reads another metric
        pass
    raise UserError(_no_direction(compute_objective))


def _no_direction(compute_objective: Any) -> str:
    what = "what compute_objective= returns" if compute_objective else "the sum of what compute_metrics= returns"
    return (
        f"no direction= for an objective that is not the evaluation's loss alone, but {what}: say direction='maximize' (as for "
        "accuracy) or 'minimize', or search the loss with compute_objective=lambda metrics: metrics['eval_loss']."
    )


def the_loss(compute_objective: Any, metrics: Dict[str, float]) -> float:
    """The objective where no direction was given. Raises SearchError if it is not the evaluation loss."""
    value = (compute_objective or default_compute_objective)(metrics)
    loss = metrics.get("eval_loss")
    if loss is None or (value != loss and loss == loss):
        raise SearchError(_no_direction(compute_objective))
    return loss


def check_names(trainer: Any, names: Sequence[str]) -> None:
    """Raises SearchError for names in hp_space that neither the training arguments nor model_init(trial) read."""
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
    """Why this micro-batch and number of replicas do not divide the global batch; None if they do."""
    if micro_batch > 0 and replicas > 0 and geometry.global_batch % (micro_batch * replicas) == 0:
        return None
    return f"micro-batch {micro_batch} x {replicas} replicas x accumulation is not the global batch {geometry.global_batch}"


def set_geometry(
    trainer: Any, geometry: BatchGeometry, config: IPUConfig, micro_batch: int, replicas: Optional[int]
) -> None:
    """Set micro-batch, accumulation and replicas at the global batch of `geometry`. replicas: None keeps the configuration's."""
    accumulation = geometry.global_batch // (micro_batch * (replicas or geometry.replicas))
    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = micro_batch, accumulation
    changes = {} if replicas is None else {"replication_factor": replicas}
    trainer.ipu_config = config.updated(gradient_accumulation_steps=accumulation, **changes)


def open_storage(storage: Any) -> Any:
    """A storage for optuna. A URL or object is returned as it is; PATH.db or .sqlite3 is SQLite, PATH.journal or .log a journal.

    Raises UserError for a file of another suffix, and for one that is there and damaged.
    """
    if not isinstance(storage, (str, os.PathLike)) or "://" in str(storage):
        return storage
    path = Path(storage)
    if path.suffix not in (".db", ".sqlite", ".sqlite3", ".journal", ".log"):
        raise UserError(
            f"storage {path}: name it .db for SQLite or .journal for a journal file, or give a database URL."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".journal", ".log"):
        _check_sqlite(path)
        return f"sqlite:///{path}"
    from optuna import storages

    journal = getattr(storages, "journal", None)
    file_backend = getattr(journal, "JournalFileBackend", None) or storages.JournalFileStorage
    try:
        return storages.JournalStorage(file_backend(str(path)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # of what its lines hold
        raise UserError(_damaged(path, error)) from error


def _check_sqlite(path: Path) -> None:
    """Raise UserError for a file that SQLite finds damaged. It is only read; one that is locked is in use, so it opens."""
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            return
        raise UserError(_damaged(path, error)) from error
    except sqlite3.DatabaseError as error:
        raise UserError(_damaged(path, error)) from error
    if found != "ok":
        raise UserError(_damaged(path, found))


def _damaged(path: Path, reason: Any) -> str:
    text = " ".join(str(reason).split())[:200]
    return f"the study in {path} is damaged ({text}). Take the file from a copy, or give another --output or --storage."


def _open_database(url: str) -> Any:
    """The database behind url. Of processes that create its tables at the same moment all but one fail, and retry."""
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    for attempt in range(5):
        try:
            return RDBStorage(url)
        except (SQLAlchemyError, StorageInternalError):
            time.sleep(0.2 * (attempt + random.SystemRandom().random()))  # does not touch the seeded generator
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
    callbacks). Trials that a killed process left behind are marked as failed and do not count. Several processes may share a
    study: n_trials is the total of all of them, and each returns the best finished trial once there is none left to start.
    """
    import optuna

    if trainer.args.world_size > 1 or options.pop("n_jobs", 1) != 1:
        raise UserError(
            "One trainer runs one trial at a time: n_jobs=1, and one process. Start several on one storage."
        )
    known = set(inspect.signature(optuna.create_study).parameters) | {"timeout", "gc_after_trial", "callbacks"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no option of optuna's, which are {', '.join(sorted(known))}.")
    optimize = {name: options.pop(name) for name in ("timeout", "gc_after_trial", "callbacks") if name in options}
    storage = open_storage(options.get("storage"))
    options["storage"] = _open_database(storage) if isinstance(storage, str) else storage
    options.setdefault("load_if_exists", options.get("study_name") is not None)
    sampler = options.pop("sampler", None)
    study = optuna.create_study(directions=directions, **options)
    stored = [item.name.lower() for item in study.directions]
    if stored != directions:
        raise UserError(f"study {study.study_name!r} has directions {stored}, not {directions}. Give it another name.")
    fail_stale_trials(study)
    study.sampler = sampler or study.sampler
    trials = _TrialRunner(trainer, directions, hp_space, compute_objective, hp_name, is_feasible)
    if options.get("study_name"):
        trials.arguments["output_dir"] = str(Path(trainer.args.output_dir) / options["study_name"])
    trials.n_trials, trials.draws_by_number = n_trials, sampler is None
    optimize["callbacks"] = [*(optimize.get("callbacks") or ()), trials.stop_after_last]
    try:
        if _num_started(study) < n_trials:
            study.optimize(trials.run, n_trials=n_trials, catch=(_TrialFailed,), **optimize)
    finally:
        trials.close()
    best = study.best_trials if any(item.state.name == "COMPLETE" for item in study.trials) else []
    if not best:
        errors = sorted(
            {str(item.user_attrs.get("error") or item.user_attrs.get("infeasible")) for item in study.trials}
        )
        raise UserError(f"none of {len(study.trials)} trials of {study.study_name!r} finished: {'; '.join(errors[:3])}")
    if len(directions) > 1:
        return [BestRun(str(item.number), item.values, item.params, None) for item in best]
    return BestRun(str(study.best_trial.number), study.best_value, study.best_params, None)


def _num_started(study: Any, before: Optional[int] = None) -> int:
    """How many trials count towards the total: finished and running ones, in all processes.

    before: only trials with a smaller number.
    """
    return sum(
        item.state.name in ("COMPLETE", "PRUNED", "RUNNING")
        or (item.state.name == "FAIL" and "error" in item.user_attrs)
        for item in study.get_trials(deepcopy=False)
        if before is None or item.number < before
    )


def fail_stale_trials(study: Any) -> None:
    """Mark running trials as failed whose process, on this machine, no longer exists."""
    import optuna

    for item in study.trials:
        if item.state.name != "RUNNING":
            continue
        host, pid = item.user_attrs.get("host"), int(item.user_attrs.get("pid", 0))
        # Another process may have started it just now, and not yet recorded its own id.
        is_new = host is None and datetime.now() - item.datetime_start < timedelta(minutes=1)
        if is_new or host not in (None, platform.node()) or (pid not in (0, os.getpid()) and psutil.pid_exists(pid)):
            logger.warning(
                "trial %d runs in process %s on %s and counts. If that process is dead: study.tell(%d, state=TrialState.FAIL)",
                item.number,
                pid,
                host,
                item.number,
            )
            continue
        study.tell(item.number, state=optuna.trial.TrialState.FAIL)


class _TrialRunner:
    """Runs trials of one trainer, each starting from the arguments as given."""

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
        self.objective = objective or default_compute_objective
        trainer.compute_objective = self.checked_objective

    def run(self, trial: Any) -> Any:
        import optuna

        trainer = self.trainer
        # The host last: once it is there, fail_stale_trials() of another process judges the trial by its pid.
        trial.set_user_attr("pid", os.getpid())
        trial.set_user_attr("host", platform.node())
        # Another process may have started the last trial at the same time.
        if _num_started(trial.study, trial.number) >= self.n_trials:
            trial.study.stop()
            raise _TrialFailed("the study is complete")
        if self.draws_by_number:  # else a resumed study or another process would draw the same values again
            trial.study.sampler = optuna.samplers.TPESampler(seed=self.given["seed"] + trial.number)
        self._restore(self.arguments)
        try:
            self._apply(trial, dict(self.space(trial)))
            trainer.objective = None
            trainer.train(trial=trial)
            if trainer.objective is None:
                trainer.objective = trainer.compute_objective(trainer.evaluate())
            return trainer.objective
        except (optuna.TrialPruned, SearchError):
            raise
        except Exception as error:  # out of memory too: it ends this trial, not the study
            message = f"{type(error).__name__}: {error}"
        trial.set_user_attr("error", message[:1000])
        logger.warning("trial %d failed: %s", trial.number, message)
        trainer.optimizer = trainer.lr_scheduler = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise _TrialFailed(message)

    def stop_after_last(self, study: Any, _: Any) -> None:
        """Optuna's callback after each trial."""
        if _num_started(study) >= self.n_trials:
            study.stop()

    def checked_objective(self, metrics: Dict[str, float]) -> Any:
        """One number, or one for each direction. Raises SearchError for another count."""
        value = self.objective(dict(metrics))
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
            if not takes(args, name):  # model_init(trial) reads it
                continue
            old: Any = self.given.get(name)
            cast = old is not None and type(old) in (int, float, str)
            setattr(args, name, type(old)(value) if cast else value)
        if micro_batch is not None or replicas is not None:
            micro = int(micro_batch or args.per_device_train_batch_size)
            copies = int(replicas or self.geometry.replicas)
            self._skip_if(trial, why_not_geometry(self.geometry, micro, copies))
            set_geometry(self.trainer, self.geometry, self.config, micro, None if replicas is None else copies)
            wanted = values.get("gradient_accumulation_steps", args.gradient_accumulation_steps)
            if wanted != args.gradient_accumulation_steps:
                rest = f"the {args.gradient_accumulation_steps} of the global batch"
                self._skip_if(trial, f"accumulation {wanted} is not {rest}")
        if self.feasible:
            self._skip_if(trial, self.feasible(self.trainer.ipu_config, args.per_device_train_batch_size))

    def _skip_if(self, trial: Any, reason: Optional[str]) -> None:
        import optuna

        if reason:
            trial.set_user_attr("infeasible", reason)
            raise optuna.TrialPruned(reason)

    def _restore(self, arguments: Dict[str, Any]) -> None:
        vars(self.trainer.args).clear()
        vars(self.trainer.args).update(arguments)
        self.trainer.ipu_config = self.config

    def close(self) -> None:
        self._restore(self.given)
        self.trainer.hp_search_backend, self.trainer.compute_objective = None, self.objective
