"""The command `ipu-trainer`: parse, call one library function, print.

ipu-trainer prepare  chest-xray   label CSV and images -> a prepared data set
ipu-trainer train    TASK         data and model -> a run: chest-xray, language-modeling, seq2seq, or a task of your own
ipu-trainer search   TASK         hyper-parameter search over what `train TASK` does
ipu-trainer evaluate chest-xray   run and prepared data set -> metrics
ipu-trainer predict  RUN IMAGES...   what a finished run says of new images, as CSV
ipu-trainer export   RUN --to onnx   a finished run's model for other programs
ipu-trainer report   RUN...       a run as one HTML page, or several side by side
ipu-trainer check    PATH         whether a prepared folder, a run, a model or a checkpoint is whole, and what to do
ipu-trainer phantoms chest-xray   synthetic chests to try all of this with
ipu-trainer simulate [--trace DIR] [--coalesce] SCRIPT | -m MODULE [ARGS...]   a program written for IPUs, on the simulator
ipu-trainer doctor                                what is there to compute with, and which backend `auto` takes
ipu-trainer plan --model PATH --system pod4       configurations ranked by predicted throughput
ipu-trainer profiles list | show NAME | check FILE --model PATH

Folders that are left out are those of PUBLIC_DATASETS_DIR, DATASETS_DIR and CHECKPOINT_DIR, where these are set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import List, Optional, Sequence

import ipu_trainer
from ipu_trainer import process_group
from ipu_trainer.command_line import hint, snake_case
from ipu_trainer.config import profiles
from ipu_trainer.errors import MissingFileError, UserError, is_user_error
from ipu_trainer.json_files import read_json
from ipu_trainer.tasks.output_guard import TRACES, check_output_file, claim, is_page
from ipu_trainer.tasks.task import load_task, task_names

# Commands that begin with the name of a task, and what --help says of them.
_TASK_COMMANDS = {
    "prepare": "check, split and decode a data set once",
    "train": "train a model; see `ipu-trainer train TASK --help`",
    "search": "hyper-parameter search; see `ipu-trainer search TASK --help`",
    "evaluate": "evaluate a finished run",
    "phantoms": "write synthetic data and a small model",
}

# Commands that begin with the folder of a run, whose task they are of.
_RUN_COMMANDS = {
    "predict": "probabilities and findings of new images; see `ipu-trainer predict RUN --help`",
    "export": "the model of a run for other programs; see `ipu-trainer export RUN --help`",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns the exit code.

    A user's mistake is one line on stderr and 1. A ValueError that is not one is a fault of this package, and is shown whole.
    IPU_TRAINER_TRACEBACK=1 shows where each error came from.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["simulate"]:  # whose program has flags of its own
        words = snake_case(words)
    try:
        if len(words) > 1 and words[0] in _TASK_COMMANDS and not words[1].startswith("-"):
            with process_group.closed_at_the_end():
                return _run_task(words[0], words[1], words[2:])
        if len(words) > 1 and words[0] in _RUN_COMMANDS and words[1] not in ("-h", "--help"):
            runs = [word for word in words[1:] if (Path(word) / "run.json").is_file()]  # flags may come before it
            return _run_task(words[0], _task_of(Path((runs or words[1:])[0])), words[1:])
        namespace = _parser().parse_args(words)
        code: Optional[int] = namespace.run(namespace)
        return code or 0
    except (ValueError, OSError) as error:
        if os.environ.get("IPU_TRAINER_TRACEBACK"):
            raise
        if is_user_error(error):
            print(f"ipu-trainer: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
            print("ipu-trainer: this is a fault of ipu-trainer; please report it with the lines above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ipu-trainer: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from ipu_trainer.planner import command as plan_command

    parser = argparse.ArgumentParser(prog="ipu-trainer", description=ipu_trainer.__doc__)
    parser.add_argument("--version", action="version", version=ipu_trainer.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, help_text in _TASK_COMMANDS.items():
        of_task = commands.add_parser(
            name, help=help_text, description=f"`ipu-trainer {name} TASK --help` lists flags."
        )
        of_task.add_argument("task", metavar="TASK", help=", ".join(task_names()))
        of_task.set_defaults(run=lambda namespace: _run_task(namespace.command, namespace.task, []))

    for name, help_text in _RUN_COMMANDS.items():
        of_run = commands.add_parser(name, help=help_text, description=f"`ipu-trainer {name} RUN --help` lists flags.")
        of_run.add_argument("run", metavar="RUN", help="folder of a finished run")

    report = commands.add_parser("report", help="a finished run as one HTML page, or several runs side by side")
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folder of a run, or of an evaluation")
    report.add_argument("--output", type=Path, help="file (default: RUN/report.html, comparison.html for several)")
    report.add_argument("--data", type=Path, help="the prepared data that was evaluated, if it has moved")
    report.add_argument("--boxes", type=Path, help="boxes by radiologists: NIH's BBox_List_2017.csv")
    report.add_argument("--radiologist_labels", type=Path, help="labels by radiologists: Google's for ChestX-ray14")
    report.set_defaults(run=_report)

    whole = commands.add_parser(
        "check", help="whether a prepared folder, a run, a model folder or a checkpoint is whole"
    )
    whole.add_argument("path", type=Path, metavar="PATH", help="folder; nothing in it is changed")
    whole.set_defaults(run=_check)

    simulate = commands.add_parser(
        "simulate",
        help="run a program that imports poptorch, on the simulator: ipu-trainer simulate train.py --epochs 1",
    )
    simulate.add_argument("--trace", metavar="DIR", help="measure the stages: timeline and memory of every executor")
    simulate.add_argument("--device", default="cpu", help="where the simulator computes: cpu (default) or cuda")
    simulate.add_argument(
        "--coalesce",
        action="store_true",
        help="compute the micro-batches of an update in one pass; refused where that is not equal",
    )
    simulate.add_argument("--fold", action="store_true", help=argparse.SUPPRESS)
    simulate.add_argument(
        "-m", dest="is_module", action="store_true", help="SCRIPT is a module's name, run as `python -m` runs it"
    )
    simulate.add_argument("script", metavar="SCRIPT", help="Python file, or after -m a module: package.train")
    simulate.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")
    simulate.set_defaults(run=_simulate)

    plan = commands.add_parser("plan", help="predict memory and throughput, and rank configurations")
    plan_command.add_arguments(plan)
    plan.set_defaults(run=plan_command.run)

    doctor = commands.add_parser("doctor", help="what this machine has to compute with, and which backend auto takes")
    doctor.set_defaults(run=_doctor)

    profile = commands.add_parser("profiles", help="ready-made IPUConfigs")
    actions = profile.add_subparsers(dest="action", required=True, metavar="list|show|check")
    actions.add_parser("list", help="one line a profile").set_defaults(run=lambda _: print(profiles.list_table()))
    show = actions.add_parser("show", help="a profile as JSON, with its source")
    show.add_argument("name", help="profile name, or path of an ipu_config.json")
    show.set_defaults(run=_profiles_show)
    check = actions.add_parser("check", help="hold an IPUConfig against a model")
    check.add_argument("file", help="profile name, or path of a profile or ipu_config.json")
    check.add_argument("--model", type=Path, required=True, help="model folder or its config.json")
    check.set_defaults(run=_profiles_check)
    return parser


def _run_task(command: str, name: str, words: List[str]) -> int:
    task = load_task(name)
    if command == "train":
        task.train(words)
        return 0
    if command == "search" and task.search is not None:
        from ipu_trainer.tasks.search import search_command

        search_command.run(name, task.search, words)
        return 0
    if command not in task.commands:
        there = ["train", *(["search"] if task.search else []), *task.commands]
        raise UserError(f"task {name} has no {command}. It has {', '.join(there)}.")
    return task.commands[command](words)


def _task_of(folder: Path) -> str:
    from ipu_trainer.tasks.run_record import task_of

    return task_of(folder)


def _report(namespace: argparse.Namespace) -> None:
    from ipu_trainer.tasks.reporting.run_comparison import check_runs

    folders: List[Path] = namespace.folders
    names = [_task_of(folder) for folder in folders]
    task = load_task(names[0])
    given = {name: getattr(namespace, name) for name in ("data", "boxes", "radiologist_labels")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and (len(folders) > 1 or not set(given) <= set(task.report_inputs)):
        flags = ", ".join(f"--{name}" for name in given)
        raise UserError(f"{flags} goes with one chest X-ray run. Leave it out, or give one such run.")
    if len(folders) > 1:
        check_runs(names)
    output = namespace.output or (Path("comparison.html") if len(folders) > 1 else None)
    if output is not None:
        check_output_file(output, is_page)
    try:
        if len(folders) > 1 and task.write_comparison is not None and output is not None:
            print(task.write_comparison(folders, output))
        elif len(folders) == 1 and task.write_report is not None:
            print(task.write_report(folders[0], output, **given))
        else:
            raise UserError(f"task {names[0]} makes no report of {len(folders)} runs.")
    except KeyError as error:
        raise UserError(
            f"run.json or metrics.json of {', '.join(map(str, folders))} has no {error}: another release wrote it, or a "
            "program changed it. Evaluate the run again, or make the report with that release."
        ) from error


def _check(namespace: argparse.Namespace) -> int:
    from ipu_trainer.tasks.checking import check_command

    return check_command.run(namespace.path)


def _simulate(namespace: argparse.Namespace) -> int:
    import contextlib

    from ipu_trainer import simulator
    from ipu_trainer.simulator.analysis import trace

    if namespace.trace:
        claim(Path(namespace.trace), TRACES, "--trace")
    simulator.use_torch_device(namespace.device)
    if namespace.fold:
        hint("--fold", "--coalesce")
    simulator.coalesce_micro_batches(namespace.coalesce or namespace.fold)
    simulator.install()
    if not namespace.is_module and not Path(namespace.script).is_file():
        raise MissingFileError(
            f"{namespace.script} is not a file; give the Python script to simulate, or -m and a module's name."
        )
    run = simulator.run_module if namespace.is_module else simulator.run_script
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(trace.recording(namespace.trace)) if namespace.trace else None
        try:
            run(namespace.script, namespace.arguments)
        except simulator.NotRunnableError:
            raise
        except Exception:  # the script's own, whatever it is: shown in full, as Python would
            traceback.print_exc()
            return 1
    if recorder is not None:
        for path in recorder.written:
            print(path, file=sys.stderr)
    return 0


def _doctor(_: argparse.Namespace) -> None:
    from ipu_trainer.backends.doctor import report

    print(report())


def _profiles_show(namespace: argparse.Namespace) -> None:
    profile = profiles.load_profile(namespace.name)
    print(json.dumps({"about": dict(profile.about), "config": profile.config.to_dict()}, indent=2))


def _profiles_check(namespace: argparse.Namespace) -> int:
    profile = profiles.load_profile(namespace.file)
    path = namespace.model / "config.json" if namespace.model.is_dir() else namespace.model
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist. Give a model folder with a config.json, or that file.")
    problems = profiles.check(profile.config, read_json(path, profiles.MODEL, not_finite=True))
    print("\n".join(problems) if problems else f"{namespace.file} fits {namespace.model}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
