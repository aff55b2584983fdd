"""`ipu-trainer plan`: flags, the model's config, one search, printed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ipu_trainer.atomic import write_json
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.machine.hardware import find_system
from ipu_trainer.planner import report
from ipu_trainer.planner.job import STATE_BYTES, Job
from ipu_trainer.planner.memory import predict_memory
from ipu_trainer.planner.search import Plan, SearchResult, search
from ipu_trainer.planner.time import predict_time
from ipu_trainer.planner.workload import TASKS, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="model folder, its config.json, or an id on the Hub")
    parser.add_argument("--task", choices=tuple(TASKS), help="what it is trained for (default: its architecture)")
    parser.add_argument("--system", required=True, help="pod4, pod16, bow-pod16, ...")
    parser.add_argument("--global-batch", type=int, default=128, help="samples of one weight update (default 128)")
    parser.add_argument("--sequence-length", type=int, help="tokens of a sample (default 128)")
    parser.add_argument("--optimizer", default="adamw", choices=tuple(STATE_BYTES))
    parser.add_argument("--dataset-size", type=int, help="samples of an epoch: predicts a whole training")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--top", type=int, default=5, help="plans to show (default 5)")
    parser.add_argument("--config", help="predict this IPUConfig (profile or file) instead of searching")
    parser.add_argument("--micro-batch", type=int, help="of --config (default: the profile's own, or 1)")
    parser.add_argument("--save", type=Path, help="write the best as a file that `train --ipu-config` takes")
    parser.add_argument("--explain", action="store_true", help="show the terms of time and memory")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(namespace: argparse.Namespace) -> int:
    if namespace.top < 1:
        raise ValueError(f"--top {namespace.top} must be at least 1. Ask for one plan or more.")
    if namespace.epochs < 1 or (namespace.dataset_size is not None and namespace.dataset_size < 1):
        raise ValueError(
            f"--epochs {namespace.epochs} and --dataset-size {namespace.dataset_size} must be at least 1. Give both counts."
        )
    system = find_system(namespace.system)
    workload = measure(model_config(namespace.model), namespace.task, namespace.sequence_length)
    if namespace.config:
        profile = load_profile(namespace.config)
        micro_batch = namespace.micro_batch or profile.micro_batch or 1
        job = Job.from_config(profile.config, workload, micro_batch, namespace.optimizer)
        if job.num_ipus > system.num_ipus:
            raise ValueError(
                f"{namespace.config} takes {job.num_ipus} IPUs, {system.name} has {system.num_ipus}. "
                "Give a larger --system or lower replication_factor."
            )
        memory = predict_memory(workload, job, sram_bytes=system.ipu.sram_bytes)
        result = SearchResult((Plan(job, memory, predict_time(workload, job, system.ipu)),), {}, 1)
    elif namespace.micro_batch is not None:
        raise ValueError(
            f"--micro-batch {namespace.micro_batch} belongs to --config; a search tries all. Leave it out."
        )
    else:
        result = search(workload, system, namespace.global_batch, namespace.optimizer)
    if namespace.json:
        plans = [report.to_dict(plan) for plan in result.plans[: namespace.top]]
        print(json.dumps({"plans": plans, "dropped": result.dropped, "candidates": result.num_candidates}, indent=2))
    else:
        print(report.render(result, namespace.top, namespace.explain, namespace.dataset_size, namespace.epochs))
    if not result.plans:
        return 1
    if namespace.save:
        best = result.plans[0]
        about = {"basis": "predicted by ipu-trainer plan", "system": system.name, "micro_batch": best.job.micro_batch}
        write_json(namespace.save, {"about": about, "config": best.to_config().to_dict()})
    return 0


def model_config(source: str) -> Any:
    """A Transformers config from a folder, a config.json, or the Hub."""
    import transformers

    return transformers.AutoConfig.from_pretrained(source)
