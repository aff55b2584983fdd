"""What a search leaves: a table, plots, and the best trial as a config file that `ipu-trainer train TASK --config` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence

from ipu_trainer.atomic import atomic_path, write_csv, write_json
from ipu_trainer.tasks.reporting.drawing import new_figure
from ipu_trainer.training.hyperparameter_search.optuna_search import open_storage

# Where trials and their results go is no setting of the best run.
_NOT_IN_CONFIG = ("output_dir", "save_strategy")


def write_results(folder: Path, storage: str, study_name: str, plan: Mapping[str, Any], trainer: Any) -> None:
    import optuna

    study = optuna.load_study(study_name=study_name, storage=open_storage(storage))
    names = [item["name"] for item in plan["space"]]
    importance = _importance(study)
    best = list(study.best_trials)
    if len(plan["objectives"]) == 1:
        best = [study.best_trial]
    write_csv(folder / "trials.csv", _table(study, plan["objectives"], names))
    about = {
        "study": study_name,
        "objectives": plan["objectives"],
        "directions": plan["directions"],
        "space": plan["space"],
        "importance": importance,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name,
                "values": trial.values,
                "params": trial.params,
                **{key: trial.user_attrs[key] for key in ("error", "infeasible") if key in trial.user_attrs},
            }
            for trial in study.trials
        ],
        "best": [trial.number for trial in best],
    }
    write_json(folder / "study.json", about)
    for position, trial in enumerate(best):
        name = "best.json" if position == 0 else f"best_{position + 1}.json"
        write_json(folder / name, _as_config(trial, plan, trainer))
    _plot(folder / "plots" / "history.png", study, plan["objectives"], importance)
    print()
    for trial in best:
        pairs = ", ".join(f"{name} {_number(value)}" for name, value in trial.params.items())
        print(f"best        trial {trial.number}: {', '.join(map(_number, trial.values))} with {pairs}")
    if importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
        print(f"importance  {shares} (share of the objective's variance)")
    print(f"results     {folder}: trials.csv, study.json, plots/history.png")
    print(f"next        ipu-trainer train {plan['task']} --config {folder / 'best.json'} --output RUN")


def _as_config(trial: Any, plan: Mapping[str, Any], trainer: Any) -> Dict[str, Any]:
    """What `train TASK --config` takes: the flags of the search, with the trial's values in their place."""
    flags: Dict[str, Any] = {**plan["flags"]}
    values = dict(trial.params)
    micro_batch, replicas = values.pop("micro_batch", None), values.pop("replication_factor", None)
    flags.update(values)
    if micro_batch is not None or replicas is not None:
        geometry = trainer.batch_geometry
        micro = int(micro_batch or flags.get("per_device_train_batch_size") or geometry.micro_batch)
        copies = int(replicas or geometry.replicas)
        flags["per_device_train_batch_size"] = micro
        flags["gradient_accumulation_steps"] = geometry.global_batch // (micro * copies)
        if replicas is not None:
            before = str(flags.get("ipu_config_overrides") or "")
            flags["ipu_config_overrides"] = ",".join(filter(None, [before, f"replication_factor={copies}"]))
    about = {
        "task": plan["task"],
        "trial": trial.number,
        **dict(zip(plan["objectives"], trial.values)),
        "of": f"{len(plan['space'])} searched values: {', '.join(item['name'] for item in plan['space'])}",
    }
    return {"about": about, "flags": {name: value for name, value in flags.items() if name not in _NOT_IN_CONFIG}}


def _importance(study: Any) -> Dict[str, float]:
    """Share of the objective's variance that each value explains; empty where there are too few trials, or several objectives."""
    import optuna

    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(study.directions) > 1 or len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _plot(file: Path, study: Any, objectives: Sequence[str], importance: Mapping[str, float]) -> None:
    """The objective of every trial with the best so far, and importances; two objectives against each other."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    figure = new_figure(figsize=(11 if importance else 7, 4))
    panels = figure.subplots(1, 2 if importance else 1, squeeze=False)
    axes = panels[0][0]
    if len(objectives) > 1:
        best = {trial.number for trial in study.best_trials}
        for label, chosen, colour in (("trial", False, "#4878a8"), ("Pareto front", True, "#b04a4a")):
            shown = [trial.values for trial in complete if (trial.number in best) is chosen]
            axes.plot([v[0] for v in shown], [v[1] for v in shown], "o", color=colour, label=label)
        axes.set_xlabel(objectives[0])
        axes.set_ylabel(objectives[1])
    else:
        axes.plot([t.number for t in complete], [t.value for t in complete], "o", color="#4878a8", label="trial")
        pick = min if study.direction.name == "MINIMIZE" else max
        so_far = [pick(t.value for t in complete[: count + 1]) for count in range(len(complete))]
        axes.step([t.number for t in complete], so_far, where="post", color="#b04a4a", label="best so far")
        pruned = [t for t in study.trials if t.state.name == "PRUNED" and t.value is not None]
        axes.plot([t.number for t in pruned], [t.value for t in pruned], "x", color="#999999", label="pruned")
        axes.set_xlabel("trial")
        axes.set_ylabel(objectives[0])
    axes.legend(frameon=False)
    if importance:
        names = list(importance)[::-1]
        panels[0][1].barh(names, [importance[name] for name in names], color="#4878a8")
        panels[0][1].set_xlabel("share of the objective's variance")
    figure.tight_layout()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _table(study: Any, objectives: Sequence[str], names: Sequence[str]) -> Iterator[List[Any]]:
    yield ["trial", "state", *objectives, *names, "seconds", "note"]
    for trial in study.trials:
        values = trial.values or [""] * len(objectives)
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
        params = [trial.params.get(name, "") for name in names]
        yield [trial.number, _state(trial), *values, *params, seconds, _note(trial)]


def header(objectives: Sequence[str], names: Sequence[str]) -> str:
    return "\n" + "  ".join(["trial", "state   ", *(f"{name:>14}" for name in (*objectives, *names)), "seconds"])


def row(trial: Any, names: Sequence[str]) -> str:
    values = [_number(value) for value in trial.values] if trial.values else ["-"]
    params = [_number(trial.params[name]) if name in trial.params else "-" for name in names]
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    cells = [f"{trial.number:5}", f"{_state(trial):8}", *(f"{cell:>14}" for cell in (*values, *params))]
    note = _note(trial)
    return "  ".join([*cells, f"{seconds:7.1f}"]) + (f"  {note}" if note else "")


def _note(trial: Any) -> str:
    return str(trial.user_attrs.get("error") or trial.user_attrs.get("infeasible") or "")


def _state(trial: Any) -> str:
    return "skipped" if "infeasible" in trial.user_attrs else str(trial.state.name).lower()


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
