"""`ipu-trainer search TASK`: hyper-parameter search over a task's recipe, and its results as files that people look at.

    ipu-trainer search TASK --output FOLDER [--space NAME=LOW:HIGH:log ...] [--n_trials N] [any flag of train TASK]

FOLDER holds the study (study.db), trials.csv, study.json, plots and best.json, which `ipu-trainer train TASK --config`
takes. The same command resumes a study that was killed: no finished trial is repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

import transformers

from ipu_trainer.atomic import remove_leftovers, write_json
from ipu_trainer.command_line import plain_value, snake_case
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.tasks.folders import results
from ipu_trainer.tasks.output_guard import SEARCH, check_output
from ipu_trainer.tasks.recipe.early_checks import check_metric
from ipu_trainer.tasks.recipe.flags import flags_given, with_config
from ipu_trainer.tasks.search.search_results import header, row, write_results
from ipu_trainer.tasks.task import SearchTask
from ipu_trainer.training.hyperparameter_search.optuna_search import GEOMETRY


@dataclass(frozen=True)
class Range:
    """One searched value. choices, or low to high: floats, or whole numbers in steps."""

    name: str
    choices: Tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: Optional[int] = None

    def suggest(self, trial: Any) -> Any:
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.step is not None:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=self.step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def describe(self) -> str:
        if self.choices:
            return f"{self.name} of {', '.join(map(str, self.choices))}"
        kind = "logarithmic" if self.log else f"in steps of {self.step}" if self.step else "even"
        return f"{self.name} from {self.low:.4g} to {self.high:.4g}, {kind}"


def parse_range(text: str) -> Range:
    """NAME=a,b,c; NAME=LOW:HIGH; NAME=LOW:HIGH:log; NAME=LOW:HIGH:STEP, of whole numbers where both ends are."""
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    rule = "NAME=LOW:HIGH, NAME=LOW:HIGH:log, NAME=LOW:HIGH:STEP of whole numbers, or NAME=a,b,c"
    if not equals or not name or not values:
        raise UserError(f"--space {text!r} is not {rule}.")
    if ":" not in values:
        choices = tuple(plain_value(item) for item in values.split(","))
        if len(set(choices)) < len(choices):
            raise UserError(f"--space {text!r} names a value twice.")
        return Range(name, choices)
    parts = values.split(":")
    ends = [plain_value(part) for part in parts[:2]]
    if len(parts) > 3 or not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends):
        raise UserError(f"--space {text!r} is not {rule}.")
    low, high = ends
    whole = isinstance(low, int) and isinstance(high, int)
    last = parts[2] if len(parts) == 3 else ""
    step = int(last) if last.isdigit() else None
    if not low < high or (last not in ("", "log") and step is None) or (step is not None and not (whole and step)):
        raise UserError(f"--space {text!r}: LOW must be below HIGH, and the rule is {rule}.")
    if last == "log" and low <= 0:
        raise UserError(f"--space {text!r}: a logarithmic range begins above 0.")
    return Range(name, (), low, high, last == "log", (step or 1) if whole else None)


SEARCH_FILE = "search.json"
STUDY_FILE = "study.db"


def run(task: str, prepare: Callable[[Sequence[str]], SearchTask], words: Sequence[str]) -> None:
    """`ipu-trainer search TASK`. prepare: the task's search, given the flags of train."""
    options, rest = _parser(task).parse_known_args(snake_case(words))
    if options.help:
        _parser(task).print_help()
        print(f"\nEvery flag of `ipu-trainer train {task}` may follow: it holds for all trials.")
        return
    if options.n_trials < 1:
        raise UserError(f"--n_trials {options.n_trials}: a search needs at least 1.")
    space = [parse_range(text) for text in options.space]
    names = [item.name for item in space]
    if len(set(names)) < len(names):
        raise UserError(f"--space names one value twice: {', '.join(names)}.")
    pruner = _pruner(options.pruner)
    folder = Path(options.output or results("--output", f"{task}-search"))
    check_output(folder, SEARCH)
    rest = with_config(task, rest)
    # Trials leave neither checkpoints nor logs unless they are asked for: the study has the results.
    quiet = [("--save_strategy", "no"), ("--report_to", "none")]
    given = {word.split("=")[0] for word in rest}
    search = prepare(
        ["--output", str(folder), *rest, *(word for pair in quiet if pair[0] not in given for word in pair)]
    )
    args = search.trainer.args
    rate = args.learning_rate
    space = space or [Range("learning_rate", (), rate / 10, rate * 10, True), Range("weight_decay", (), 0.0, 0.3)]
    names = [item.name for item in space]
    _check_space(space, search.trainer)
    objectives = options.objective.split(",") if options.objective else [search.objective]
    for name in objectives:
        check_metric("objective", name, search.metrics)
    objectives = [name if name.startswith("eval_") else f"eval_{name}" for name in objectives]
    directions = options.direction.split(",") if options.direction else _known_directions(objectives, search)
    if len(directions) != len(objectives):
        raise UserError(
            f"{len(objectives)} objective(s) ({', '.join(objectives)}) and {len(directions)} direction(s) "
            f"({', '.join(directions)}): give one --direction for each, as --direction minimize,maximize."
        )
    plan = {
        "task": task,
        "objectives": objectives,
        "directions": directions,
        "space": [dataclasses.asdict(item) for item in space],
        "flags": flags_given(rest),
        "settings": search.settings,
    }
    _check_same(folder, plan)
    remove_leftovers(folder)
    write_json(folder / SEARCH_FILE, plan)
    print(search.about)
    print("searching   " + "\n            ".join(item.describe() for item in space))
    print(f"objective   {', '.join(f'{d} {o}' for o, d in zip(objectives, directions))}; {options.n_trials} trials")
    study_name, storage = options.study or task, options.storage or str(folder / STUDY_FILE)

    def objective(metrics: Mapping[str, float]) -> Any:
        values = [float(metrics[name]) for name in objectives]
        return values if len(values) > 1 else values[0]

    transformers.utils.logging.set_verbosity_error()  # each trial is one line
    print(header(objectives, names))
    search.trainer.hyperparameter_search(
        hp_space=lambda trial: {item.name: item.suggest(trial) for item in space},
        compute_objective=objective,
        n_trials=options.n_trials,
        direction=directions if len(directions) > 1 else directions[0],
        study_name=study_name,
        storage=storage,
        pruner=pruner,
        is_feasible=search.is_feasible,
        callbacks=[lambda study, trial: print(row(trial, names), flush=True)],
        **({"timeout": options.timeout} if options.timeout else {}),
    )
    write_results(folder, storage, study_name, plan, search.trainer)


def _known_directions(objectives: Sequence[str], search: SearchTask) -> List[str]:
    """Directions of the task's metric and of the loss. Raises UserError for other metrics, whose direction only the user knows."""
    known = {"eval_loss": "minimize", search.objective: search.direction}
    unknown = [name for name in objectives if name not in known]
    if unknown:
        raise UserError(
            f"--objective {','.join(objectives)}: whether {', '.join(unknown)} is better larger or smaller is not known here. Say "
            f"--direction maximize or --direction minimize{', one for each objective' if len(objectives) > 1 else ''}."
        )
    return [known[name] for name in objectives]


def _parser(task: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"ipu-trainer search {task}", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--output", help="folder for the study and its results; a study in it is resumed")
    parser.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="learning_rate=1e-5:1e-3:log, num_train_epochs=1:4, micro_batch=1,2,4; may be given several times. "
        "micro_batch and replication_factor keep the global batch. Default: learning rate and weight decay",
    )
    parser.add_argument("--n_trials", type=int, default=12, help="trials in all, earlier ones included (default 12)")
    parser.add_argument("--objective", help="metric of the evaluation, or several with commas (default: the task's)")
    parser.add_argument(
        "--direction",
        help="minimize or maximize, one for each objective (default: of the task's metric and of the loss)",
    )
    parser.add_argument("--pruner", default="median", help="median (default), hyperband or none: ends hopeless trials")
    parser.add_argument("--timeout", type=float, help="begin no trial after so many seconds")
    parser.add_argument("--study", help="the study's name (default: the task's)")
    parser.add_argument("--storage", help=".db (SQLite), .journal, or a database URL (default: study.db in the output)")
    return parser


def _pruner(name: str) -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("`ipu-trainer search` needs optuna: pip install 'ipu-trainer[search]'.") from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "none": optuna.pruners.NopPruner,
    }
    if name not in pruners:
        raise UserError(f"--pruner {name!r} is not one of {', '.join(pruners)}.")
    return pruners[name]()


def _check_space(space: Sequence[Range], trainer: Any) -> None:
    """Raises UserError for names that trials may not differ in, and micro-batches that never make up the global batch."""
    fields = {item.name for item in dataclasses.fields(trainer.args)}
    for item in space:
        if item.name in ("output_dir", "backend") or (item.name not in fields and item.name not in GEOMETRY):
            raise UserError(
                f"--space {item.name}: not a value that trials may differ in. Those are fields of the training "
                f"arguments, {' and '.join(GEOMETRY)}; model and data are the same for all trials."
            )
    searched = {item.name: item for item in space}
    if "micro_batch" in searched and "replication_factor" not in searched:
        geometry = trainer.batch_geometry
        per_replica = geometry.global_batch // geometry.replicas
        wrong = [size for size in searched["micro_batch"].choices if not isinstance(size, int) or per_replica % size]
        if wrong:
            raise UserError(
                f"--space micro_batch={','.join(map(str, wrong))}: micro-batch x accumulation must stay "
                f"{per_replica} samples a replica (global batch {geometry.global_batch}). Give divisors of "
                f"{per_replica}, or change --gradient_accumulation_steps."
            )


def _check_same(folder: Path, plan: Mapping[str, Any]) -> None:
    """Raises UserError if the folder holds a search with other settings, whose trials would not be comparable."""
    path = folder / SEARCH_FILE
    if not path.is_file():
        return
    then, now = read_json(path, {"settings?": {}}, "Give another --output."), json.loads(json.dumps(plan, default=str))
    changed = [name for name in ("task", "objectives", "directions", "space", "flags") if then.get(name) != now[name]]
    if then.get("settings", {}).get("data") != now["settings"].get("data"):
        changed.append("data")
    if changed:
        raise UserError(
            f"{folder} holds a search with other {', '.join(changed)}. Give the same command to resume it (--n_trials may "
            "grow), or another --output."
        )
