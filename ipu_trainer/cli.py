"""The command `ipu-trainer`: parse, call one library function, print.

ipu-trainer prepare  chest-xray   label CSV and images -> a prepared data set
ipu-trainer train    chest-xray   prepared data set and model -> a run
ipu-trainer search   TASK         hyper-parameter search over what `train TASK` does
ipu-trainer evaluate chest-xray   run and prepared data set -> metrics
ipu-trainer report   RUN...       a run as one HTML page, or several side by side
ipu-trainer phantoms chest-xray   synthetic chests to try all of this with
ipu-trainer simulate [--trace DIR] [--coalesce] SCRIPT | -m MODULE [ARGS...]   a program written for IPUs, on the simulator
ipu-trainer doctor                                what is there to compute with, and which backend `auto` takes
ipu-trainer plan --model PATH --system pod4       configurations ranked by predicted throughput
ipu-trainer profiles list | show NAME | check FILE --model PATH

Folders that are left out are those of PUBLIC_DATASETS_DIR, DATASETS_DIR and CHECKPOINT_DIR, where these are set.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import ipu_trainer
from ipu_trainer.config import profiles

# Name on the command line -> package in ipu_trainer.tasks, whose train.py has run(words) and searched(words).
_TASKS = {"chest-xray": "chest_xray", "language-modeling": "language_modeling", "seq2seq": "seq2seq"}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns the exit code. What a user can mend ends in one line on stderr and 1.

    IPU_TRAINER_TRACEBACK=1 shows where the error came from instead.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-"):
            return _train(words[1], words[2:])
        if words[:1] == ["search"] and len(words) > 1 and not words[1].startswith("-"):
            return _search(words[1], words[2:])
        namespace = _parser().parse_args(words)
        code: int = namespace.run(namespace)
        return code
    except (ValueError, OSError) as error:
        if os.environ.get("IPU_TRAINER_TRACEBACK"):
            raise
        print(f"ipu-trainer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ipu-trainer: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from ipu_trainer.planner import command as plan_command

    parser = argparse.ArgumentParser(prog="ipu-trainer", description=ipu_trainer.__doc__)
    parser.add_argument("--version", action="version", version=ipu_trainer.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    prepare = _task_command(commands, "prepare", "check, split and decode a data set once")
    prepare.add_argument(
        "--csv",
        type=Path,
        help="label table, NIH's Data_Entry CSV (.gz) or one like it (default: that of chest-xray-nihcc)",
    )
    prepare.add_argument(
        "--images", type=Path, help="folder with the image files, flat or as NIH ships it (default: beside that table)"
    )
    prepare.add_argument(
        "--output", type=Path, help="folder for the prepared data set (default: DATASETS_DIR/chest-xray)"
    )
    prepare.add_argument("--train-val-list", type=Path, help="NIH's train_val_list.txt")
    prepare.add_argument("--test-list", type=Path, help="NIH's test_list.txt")
    prepare.add_argument("--size", type=int, default=224, help="side in pixels (default 224)")
    prepare.add_argument("--resample", default="bilinear", help="nearest, bilinear (default), bicubic or lanczos")
    prepare.add_argument("--workers", type=int, default=0, help="decoding processes (default: one for each core)")
    prepare.add_argument("--in-place", action="store_true", help="also write metadata.jsonl beside the images")
    prepare.add_argument("--only-present", action="store_true", help="leave out rows whose image is not there")
    prepare.add_argument("--skip-bad", action="store_true", help="go on without rejected rows and files")
    prepare.add_argument("--split", help="official (with the lists), by-patient, or random-images (misleading)")
    prepare.add_argument("--validation-fraction", type=float, default=0.1, help="share of patients (default 0.1)")
    prepare.add_argument(
        "--test-fraction", type=float, default=0.1, help="share of patients, without lists (default 0.1)"
    )
    prepare.add_argument("--seed", type=int, default=0, help="of the split by patient")
    prepare.add_argument("--findings", help="comma-separated names to accept, or any (default: NIH's fifteen)")
    prepare.set_defaults(run=_prepare)

    train = _task_command(commands, "train", "train a model; see `ipu-trainer train TASK --help`", tuple(_TASKS))
    train.set_defaults(run=lambda namespace: _train(namespace.task, ["--help"]))

    search = _task_command(
        commands, "search", "hyper-parameter search; see `ipu-trainer search TASK --help`", tuple(_TASKS)
    )
    search.set_defaults(run=lambda namespace: _search(namespace.task, ["--help"]))

    evaluate = _task_command(commands, "evaluate", "evaluate a finished run")
    evaluate.add_argument(
        "--run",
        type=Path,
        dest="run_dir",
        metavar="RUN",
        help="folder of a finished run (default: CHECKPOINT_DIR/chest-xray)",
    )
    evaluate.add_argument("--data", type=Path, help="prepared data set (default: as train)")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test", "all"))
    evaluate.add_argument(
        "--output",
        type=Path,
        help="folder for metrics, predictions and plots (default: CHECKPOINT_DIR/chest-xray-SPLIT)",
    )
    evaluate.add_argument("--num-bootstrap", type=int, default=1000, help="patient-bootstrap replicates")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="a finished run as one HTML page, or several runs side by side")
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folder of a run, or of an evaluation")
    report.add_argument("--output", type=Path, help="file (default: RUN/report.html, comparison.html for several)")
    report.add_argument("--data", type=Path, help="the prepared data that was evaluated, if it has moved")
    report.add_argument("--boxes", type=Path, help="boxes by radiologists: NIH's BBox_List_2017.csv")
    report.add_argument("--radiologist-labels", type=Path, help="labels by radiologists: Google's for ChestX-ray14")
    report.set_defaults(run=_report)

    phantoms = _task_command(commands, "phantoms", "write synthetic chest X-rays and a small ViT")
    phantoms.add_argument(
        "--output", type=Path, help="folder for images, phantoms.csv and model (default: DATASETS_DIR/phantoms)"
    )
    phantoms.add_argument("--num-images", type=int, default=1500)
    phantoms.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    phantoms.add_argument("--model-size", type=int, default=64, help="side that the small ViT reads")
    phantoms.add_argument("--seed", type=int, default=0)
    phantoms.set_defaults(run=_phantoms)

    simulate = commands.add_parser(
        "simulate",
        help="run a program that imports poptorch, on the simulator: ipu-trainer simulate train.py --epochs 1",
    )
    simulate.add_argument("--trace", metavar="DIR", help="measure the stages: timeline and memory of every executor")
    simulate.add_argument("--device", default="cpu", help="where the simulator computes: cpu (default) or cuda")
    simulate.add_argument(
        *("--coalesce", "--fold"),
        dest="fold",
        action="store_true",
        help="compute the micro-batches of an update as one, or refuse where not equal",
    )
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
    actions.add_parser("list", help="one line a profile").set_defaults(run=_profiles_list)
    show = actions.add_parser("show", help="a profile as JSON, with its source")
    show.add_argument("name", help="profile name, or path of an ipu_config.json")
    show.set_defaults(run=_profiles_show)
    check = actions.add_parser("check", help="hold an IPUConfig against a model")
    check.add_argument("file", help="profile name, or path of a profile or ipu_config.json")
    check.add_argument("--model", type=Path, required=True, help="model folder or its config.json")
    check.set_defaults(run=_profiles_check)
    return parser


def _task_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help_text: str,
    tasks: Sequence[str] = ("chest-xray",),
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text)
    parser.add_argument("task", choices=tasks, help="the task")
    return parser


def _prepare(namespace: argparse.Namespace) -> int:
    from ipu_trainer.tasks import folders
    from ipu_trainer.tasks.chest_xray.data import source
    from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS
    from ipu_trainer.tasks.chest_xray.data.prepare import PrepareSettings, prepare

    given = {name: getattr(namespace, name) for name in ("csv", "images", "train_val_list", "test_list")}
    for name, path in source.stand_ins(given, namespace.split).items():
        setattr(namespace, name, path)
        print(f"--{name.replace('_', '-')} {path}")
    namespace.output = namespace.output or folders.data_to_write("--output", "chest-xray")
    values: Dict[str, object] = {
        name: value for name, value in vars(namespace).items() if name not in ("command", "task", "run", "findings")
    }
    if namespace.findings is None:
        findings = NIH_FINDINGS
    else:
        names = [name.strip() for name in namespace.findings.split(",") if name.strip()]
        findings = () if names == ["any"] else tuple(names)
    settings = PrepareSettings(findings=findings, **values)  # type: ignore[arg-type]  # argparse made these types
    if settings.split == "random-images":
        print(
            "warning: --split random-images puts most patients into training and evaluation alike (83.7 % of NIH's "
            "validation images with the usual 95/5 split), so its AUROC says nothing about unseen patients.",
            file=sys.stderr,
        )
    summary = prepare(settings)
    print(summary.describe(), file=sys.stdout if summary.finished else sys.stderr)
    return 0 if summary.finished else 1


def _train(task: str, words: List[str]) -> int:
    _task_module(task, "train").run(words)
    return 0


def _search(task: str, words: List[str]) -> int:
    from ipu_trainer.tasks.search import search_command as search

    search.run(task, _task_module(task, "train").searched, words)
    return 0


def _task_module(task: str, name: str) -> Any:
    if task not in _TASKS:
        raise ValueError(f"task {task!r} is not one of {', '.join(_TASKS)}.")
    return importlib.import_module(f"ipu_trainer.tasks.{_TASKS[task]}.{name}")


def _evaluate(namespace: argparse.Namespace) -> int:
    from ipu_trainer.tasks import folders
    from ipu_trainer.tasks.chest_xray.evaluation.evaluate_run import evaluate
    from ipu_trainer.tasks.chest_xray.report import artifacts as report

    run_dir = namespace.run_dir or folders.results("--run", "chest-xray")
    data = namespace.data or folders.data_to_read("--data", "chest-xray")
    output = namespace.output or folders.results("--output", f"chest-xray-{namespace.split}")
    metrics = evaluate(run_dir, data, namespace.split, output, namespace.num_bootstrap)
    for name in metrics["findings_unknown_to_the_model"]:
        print(f"warning: the model has no output for {name!r}", file=sys.stderr)
    print(f"{report.metrics_table(metrics)}\n\nmetrics, plots and report.html: {output}")
    return 0


def _report(namespace: argparse.Namespace) -> int:
    from ipu_trainer.tasks.reporting.run_comparison import check_runs
    from ipu_trainer.tasks.reporting.run_report import task_of

    folders: List[Path] = namespace.folders
    tasks = [task_of(folder) for folder in folders]
    given = {name: getattr(namespace, name) for name in ("data", "boxes", "radiologist_labels")}
    flags = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if flags and (len(folders) > 1 or tasks[0] != "chest-xray"):
        raise ValueError(f"{', '.join(flags)} goes with one chest X-ray run. Leave it out, or give one such run.")
    if len(folders) > 1:
        check_runs(tasks)
    module = _task_module(tasks[0], "report.html_report" if tasks[0] == "chest-xray" else "html_report")
    try:
        if len(folders) > 1:
            print(module.write_comparison(folders, namespace.output or Path("comparison.html")))
        else:
            print(module.write_report(folders[0], namespace.output, *([module.ReportInputs(**given)] if flags else [])))
    except KeyError as error:
        raise ValueError(
            f"run.json or metrics.json of {', '.join(map(str, folders))} has no {error}: another release wrote it, or a "
            "program changed it. Evaluate the run again, or make the report with that release."
        ) from error
    return 0


def _phantoms(namespace: argparse.Namespace) -> int:
    from ipu_trainer.tasks import folders
    from ipu_trainer.tasks.chest_xray.data.phantoms import PhantomSettings, write_phantoms, write_small_vit

    settings = PhantomSettings(namespace.num_images, namespace.size, seed=namespace.seed)
    output = namespace.output or folders.data_to_write("--output", "phantoms")
    csv_path = write_phantoms(output, settings)
    model = write_small_vit(output / "model", namespace.model_size, namespace.seed)
    print(
        f"{namespace.num_images} synthetic images: {csv_path.parent / 'images'}, labels {csv_path}, small ViT {model}"
    )
    return 0


def _simulate(namespace: argparse.Namespace) -> int:
    import contextlib
    import traceback

    from ipu_trainer import simulator
    from ipu_trainer.simulator.analysis import trace

    simulator.use_torch_device(namespace.device)
    simulator.coalesce_micro_batches(namespace.fold)
    simulator.install()
    if not namespace.is_module and not Path(namespace.script).is_file():
        raise FileNotFoundError(
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


def _doctor(_: argparse.Namespace) -> int:
    from ipu_trainer.backends.doctor import report

    print(report())
    return 0


def _profiles_list(_: argparse.Namespace) -> int:
    print(profiles.list_table())
    return 0


def _profiles_show(namespace: argparse.Namespace) -> int:
    profile = profiles.load_profile(namespace.name)
    print(json.dumps({"about": dict(profile.about), "config": profile.config.to_dict()}, indent=2))
    return 0


def _profiles_check(namespace: argparse.Namespace) -> int:
    profile = profiles.load_profile(namespace.file)
    path = namespace.model / "config.json" if namespace.model.is_dir() else namespace.model
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give a model folder with a config.json, or that file.")
    problems = profiles.check(profile.config, json.loads(path.read_text(encoding="utf-8")))
    print("\n".join(problems) if problems else f"{namespace.file} fits {namespace.model}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
