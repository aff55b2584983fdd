"""The section "On IPUs" of a report: the pipeline and the planner's prediction for the run's IPUConfig."""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.machine.hardware import SYSTEMS
from ipu_trainer.machine.schedule import Schedule, pipelined_training
from ipu_trainer.planner import report as plan_report
from ipu_trainer.planner.command import model_config
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.memory import predict_memory
from ipu_trainer.planner.search import Plan
from ipu_trainer.planner.time import predict_time
from ipu_trainer.planner.workload import Workload, measure
from ipu_trainer.simulator.analysis.stages import StageCost
from ipu_trainer.simulator.analysis.trace import svg, timeline
from ipu_trainer.tasks.reporting.html_document import Block, Collapsed, Drawing, Preformatted, Text, Tiles
from ipu_trainer.tasks.run_record import Run


def ipu_blocks(run: Run, workload_of: Sequence[Any]) -> List[Block]:
    """Pipeline and prediction for the run's IPUConfig; empty for a run without one.

    workload_of: what planner.measure takes besides the model.
    """
    settings = run.record["settings"]
    training = settings["training"]
    named = training.get("ipu_config") or settings["recipe"].get("ipu_config")  # where older runs have it
    if not named and not training.get("ipu_config_overrides"):
        return []
    try:
        config = IPUConfig.from_dict(settings["ipu_config"])
        if training.get("ipu_config_overrides"):
            config = config.updated_from_string(training["ipu_config_overrides"])
        if training["gradient_accumulation_steps"] > 1:
            config = config.updated(gradient_accumulation_steps=training["gradient_accumulation_steps"])
        plan, workload, system = _plan(run, config, workload_of)
    except (ValueError, OSError) as error:
        return [Text(f"No prediction for this model and IPUConfig: {error}", "warning")]
    low, high = plan.time.interval
    stages = plan.job.num_stages(workload)
    blocks: List[Block] = [
        Text(
            "Predicted by ipu-trainer's planner from the model's shapes, for "
            f"{named or 'the IPUConfig'} on {system}. These are predictions and no measurements: they were made without an IPU.",
            "warning",
        ),
        Tiles(
            [
                ("throughput, predicted", f"{plan.time.throughput:,.0f} samples/s", f"{low:,.0f} – {high:,.0f}"),
                ("fullest IPU, predicted", f"{100 * plan.memory.share:.0f} % of SRAM", plan.memory.band),
                ("host step, predicted", f"{1e3 * plan.time.step_s:,.1f} ms", f"{plan.time.samples} samples"),
                ("IPUs", str(plan.job.num_ipus), f"{plan.job.replicas} replicas of {len(plan.job.layers_per_ipu)}"),
            ]
        ),
    ]
    if stages == 1:
        blocks.append(Text("The model is on one IPU: there is no pipeline."))
    elif plan.job.accumulation < 2 * stages - 1:
        blocks.append(Text(f"{plan.job.accumulation} micro-batches cannot fill {stages} stages: no pipeline.", "note"))
    else:
        drawn, schedule = pipeline_stages(plan.job, workload)
        caption = (
            f"One weight update, drawn with {schedule.num_micro_batches} of {plan.job.accumulation} micro-batches; a box is "
            "as long as its share of the model's FLOPs."
        )
        blocks.append(Drawing(svg(drawn, timeline(drawn, schedule)), caption, "wide"))
    blocks.append(Preformatted(plan_report.memory_bars(plan)))
    blocks.append(Collapsed("Terms of the prediction", [Preformatted(plan_report.explain(plan))]))
    return blocks


def pipeline_stages(job: Job, workload: Workload) -> Tuple[List[StageCost], Schedule]:
    """The stages of a job with their FLOPs, and the shortest weight update that fills its pipeline."""
    stages: List[StageCost] = []
    for part, ipu in job.placements(workload):
        if not stages or stages[-1].ipu_id != ipu:
            stages.append(StageCost(len(stages), ipu))
        stages[-1].blocks.append(part.name)
        stages[-1].forward_flops += part.flops
    count = min(job.accumulation, 2 * len(stages) - 1)
    return stages, pipelined_training(len(stages), count, job.recompute)


def _plan(run: Run, config: IPUConfig, workload_of: Sequence[Any]) -> Tuple[Plan, Workload, str]:
    training = run.record["settings"]["training"]
    workload = measure(model_config(str(run.folder)), *workload_of)
    optimizer = "sgd" if "sgd" in str(training["optim"]) else "adamw"
    job = Job.from_config(config, workload, training["per_device_train_batch_size"], optimizer)
    system = next((s for s in SYSTEMS.values() if s.num_ipus >= job.num_ipus), SYSTEMS["pod256"])
    memory = predict_memory(workload, job, sram_bytes=system.ipu.sram_bytes)
    return Plan(job, memory, predict_time(workload, job, system.ipu)), workload, system.name
