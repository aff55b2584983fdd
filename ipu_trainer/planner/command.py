"""`ipu-trainer plan`: flags, the model's config, one search, printed. torch is imported when it runs, not for --help."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ipu_trainer.atomic import write_json
from ipu_trainer.errors import UserError, user_input
from ipu_trainer.json_files import read_json
from ipu_trainer.planner.constants import STATE_BYTES, TASKS, load_calibration

_GLOBAL_BATCH = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="model folder, its config.json, or an id on the Hub")
    parser.add_argument("--task", choices=tuple(TASKS), help="what it is trained for (default: its architecture)")
    parser.add_argument("--system", required=True, help="pod4, pod16, bow-pod16, ...")
    parser.add_argument("--global_batch", type=int, help=f"samples of one weight update (default {_GLOBAL_BATCH})")
    parser.add_argument("--sequence_length", type=int, help="tokens of a sample (default 128)")
    parser.add_argument(
        "--target_length", type=int, help="tokens of a decoder's sample (default: as --sequence_length)"
    )
    parser.add_argument("--device_iterations", type=int, help="weight updates of one host step (default 1)")
    parser.add_argument("--optimizer", default="adamw", choices=tuple(STATE_BYTES))
    parser.add_argument("--dataset_size", type=int, help="samples of an epoch: predicts a whole training")
    parser.add_argument("--epochs", type=int, help="of --dataset_size (default 1)")
    parser.add_argument("--top", type=int, help="plans to show (default 5)")
    parser.add_argument("--config", help="predict this IPUConfig (profile or file) instead of searching")
    parser.add_argument("--micro_batch", type=int, help="of --config (default: the profile's own, or 1)")
    parser.add_argument("--constants", type=Path, help="a file of `calibrate --write`, fitted to rows of your own")
    parser.add_argument("--save", type=Path, help="write the best as a file that `train --ipu_config` takes")
    parser.add_argument("--explain", action="store_true", help="show the terms of time and memory")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(namespace: argparse.Namespace) -> int:
    _refuse(namespace)
    from ipu_trainer.machine.hardware import find_system
    from ipu_trainer.planner import report
    from ipu_trainer.planner.search import search
    from ipu_trainer.planner.workload import measure

    system = find_system(namespace.system)
    calibration = load_calibration(namespace.constants)
    workload = measure(
        model_config(namespace.model), namespace.task, namespace.sequence_length, namespace.target_length
    )
    if namespace.config:
        result = _of_config(namespace, workload, system, calibration)
    else:
        result = search(
            workload,
            system,
            namespace.global_batch or _GLOBAL_BATCH,
            namespace.optimizer,
            namespace.device_iterations or 1,
            calibration,
        )
    top, epochs = namespace.top or 5, namespace.epochs or 1
    if namespace.json:
        plans = [report.to_dict(plan, namespace.dataset_size, epochs) for plan in result.plans[:top]]
        print(json.dumps({"plans": plans, "dropped": result.dropped, "candidates": result.num_candidates}, indent=2))
    else:
        print(report.render(result, top, namespace.explain, namespace.dataset_size, epochs))
    if not result.plans:
        return 1
    if namespace.save:
        best = result.plans[0]
        about = {"basis": "predicted by ipu-trainer plan", "system": system.name, "micro_batch": best.job.micro_batch}
        write_json(namespace.save, {"about": about, "config": best.to_config().to_dict()})
    return 0


def _is_profile(file: Path) -> bool:
    try:
        return file.is_file() and {"about", "config"} <= set(read_json(file))
    except (UserError, TypeError):
        return False


def _refuse(namespace: argparse.Namespace) -> None:
    """Raises UserError for counts under 1 and for flags that would be ignored."""
    values = vars(namespace)
    counts = "global_batch", "device_iterations", "dataset_size", "epochs", "top", "micro_batch"
    for name in (*counts, "sequence_length", "target_length"):
        if values[name] is not None and values[name] < 1:
            raise UserError(f"--{name} {values[name]} must be at least 1. Give a whole number from 1 on.")
    if namespace.save is not None and namespace.save.exists() and not _is_profile(namespace.save):
        raise UserError(f"--save {namespace.save} exists, and is no profile that a plan saved. Give another file.")
    if namespace.epochs is not None and namespace.dataset_size is None:
        raise UserError(f"--epochs {namespace.epochs} needs --dataset_size: the samples of an epoch. Give it too.")
    if not namespace.config:
        if namespace.micro_batch is not None:
            raise UserError(
                f"--micro_batch {namespace.micro_batch} belongs to --config; a search tries all. Leave it out."
            )
        return
    decided = {
        "global_batch": "its accumulation and replicas and --micro_batch make the global batch",
        "device_iterations": "it has device_iterations",
        "top": "it is the only plan",
        "save": "it is a file already",
    }
    for name, why in decided.items():
        if values[name] is not None:
            raise UserError(
                f"--{name} {values[name]} is for a search. With --config {namespace.config}, {why}. Leave it out."
            )


def _of_config(namespace: argparse.Namespace, workload: Any, system: Any, calibration: Any) -> Any:
    from ipu_trainer.config.profiles import load_profile
    from ipu_trainer.planner.feasibility import feasibility
    from ipu_trainer.planner.job import Job
    from ipu_trainer.planner.search import Plan, SearchResult
    from ipu_trainer.planner.time import predict_time

    profile = load_profile(namespace.config)
    micro_batch = namespace.micro_batch or profile.micro_batch or 1
    answer = feasibility(profile.config, workload, system, micro_batch, namespace.optimizer, calibration.memory)
    broken = [finding.text for finding in answer.findings if finding.prevents and not finding.is_memory]
    if broken:
        raise UserError(f"{namespace.config}: {' '.join(broken)}")
    job = Job.from_config(profile.config, workload, micro_batch, namespace.optimizer)
    plan = Plan(job, answer.memory, predict_time(workload, job, system.ipu, calibration.time), profile.config)
    return SearchResult((plan,), {}, 1)


def model_config(source: str) -> Any:
    """A Transformers config from a folder, a config.json, or the Hub."""
    import transformers

    file = Path(source) / "config.json" if Path(source).is_dir() else Path(source)
    if file.is_file():
        read_json(file, {"model_type?": str}, "Give the config.json of a Transformers model.", not_finite=True)
    with user_input():
        return transformers.AutoConfig.from_pretrained(source)
