"""Timelines of a simulated pipeline: which stage works on which micro-batch in which cycle, and the memory of each IPU.

    with trace.recording("traces"):
        ...  # every executor that runs in here is measured, and written to traces/training-1, traces/inference-2, ...

A cycle is as long as its slowest stage, by measured FLOPs: the timeline shows proportions, not seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import Any, Dict, Iterator, List, Sequence, Tuple
from xml.sax.saxutils import escape

from ipu_trainer.atomic import write_text
from ipu_trainer.machine import schedule as schedules
from ipu_trainer.machine.schedule import BACKWARD, FORWARD, RECOMPUTE, Schedule
from ipu_trainer.simulator.analysis.memory_map import memory_report
from ipu_trainer.simulator.analysis.stages import StageCost, StageMeter
from ipu_trainer.simulator.execution import executor as executors
from ipu_trainer.simulator.options.popart_enums import RecomputationType

# Relative duration of an action, in units of the stage's forward.
_DURATION = {FORWARD: 1.0, RECOMPUTE: 1.0, BACKWARD: 2.0}
_COLOURS = {FORWARD: "#4c78a8", RECOMPUTE: "#b0b0b0", BACKWARD: "#e45756"}
_NAMES = {FORWARD: "forward", RECOMPUTE: "recompute", BACKWARD: "backward"}


@dataclasses.dataclass(frozen=True)
class Span:
    """One action on the timeline: begin and duration in units of the whole model's forward FLOPs."""

    stage: int
    kind: str
    micro_batch: int
    begin: float
    duration: float


def timeline(stages: Sequence[StageCost], schedule: Schedule) -> Tuple[Span, ...]:
    """Begin and duration of each action, where the slowest stage determines the length of a cycle."""
    total = sum(stage.forward_flops for stage in stages) or 1
    costs = [max(stage.forward_flops / total, 0.01) for stage in stages]
    spans, now = [], 0.0
    for cycle in schedule.cycles:
        longest = 0.0
        free: Dict[int, float] = {}  # stages on one IPU run one after the other
        for index, actions in enumerate(cycle):
            begin = max(now, free.get(stages[index].ipu_id, now))
            for action in actions:
                duration = costs[index] * _DURATION[action.kind]
                spans.append(Span(index, action.kind, action.micro_batch, begin, duration))
                begin += duration
            free[stages[index].ipu_id] = begin
            longest = max(longest, begin - now)
        now += longest
    return tuple(spans)


def svg(stages: Sequence[StageCost], spans: Sequence[Span]) -> str:
    """The timeline as an SVG image: one row a stage, one box an action."""
    end = max((span.begin + span.duration for span in spans), default=1.0)
    width, row, left, top = 1200, 40, 110, 34
    scale = (width - left - 10) / end
    height = top + row * len(stages) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    used = sorted({span.kind for span in spans}, key=list(_COLOURS).index)
    for position, kind in enumerate(used):
        x = float(left + 130 * position)
        parts.append(f'<circle cx="{x + 6:.0f}" cy="16" r="6" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="20">{_NAMES[kind]}</text>')
    for stage in stages:
        y = top + row * stage.index
        label = f"stage {stage.index} on IPU {stage.ipu_id}"
        parts.append(
            f'<text x="4" y="{y + row / 2 + 4:.0f}"><title>{escape(", ".join(stage.blocks))}</title>{label}</text>'
        )
    for span in spans:
        x, w = left + span.begin * scale, max(span.duration * scale, 1.0)
        y = top + row * span.stage + 4
        title = f"{_NAMES[span.kind]} of micro-batch {span.micro_batch} on stage {span.stage}"
        parts.append(
            f'<rect class="{_NAMES[span.kind]}" x="{x:.1f}" y="{y}" width="{w:.1f}" height="{row - 8}" '
            f'fill="{_COLOURS[span.kind]}" stroke="white"><title>{title}</title></rect>'
        )
        if w > 14:
            parts.append(
                f'<text x="{x + w / 2:.1f}" y="{y + row / 2:.0f}" fill="white" text-anchor="middle">{span.micro_batch}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


def chrome_trace(stages: Sequence[StageCost], spans: Sequence[Span]) -> Dict[str, Any]:
    """The timeline for chrome://tracing or Perfetto. Time is not measured: 1 ms stands for the FLOPs of the model's forward."""
    events: List[Dict[str, Any]] = [
        {
            "ph": "M",
            "name": "thread_name",
            "pid": 0,
            "tid": s.index,
            "args": {"name": f"stage {s.index}, IPU {s.ipu_id}"},
        }
        for s in stages
    ]
    for span in spans:
        events.append(
            {
                "ph": "X",
                "name": f"{_NAMES[span.kind]} {span.micro_batch}",
                "cat": _NAMES[span.kind],
                "pid": 0,
                "tid": span.stage,
                "ts": round(span.begin * 1000, 3),
                "dur": round(span.duration * 1000, 3),
            }
        )
    return {
        "traceEvents": events,
        "otherData": {"unit": "relative to the model's forward FLOPs: proportions, not measured time"},
    }


def schedule_of(executor: executors.PoplarExecutor, num_stages: int) -> Schedule:
    """The schedule of one weight update, or of one host step of inference."""
    options = executor.options
    pipelined = options._execution_strategy.mode == "Pipelined"
    if executor.is_training:
        accumulation = int(options.Training.gradient_accumulation)
        if pipelined:
            return schedules.pipelined_training(num_stages, accumulation, recompute=recomputes(executor))
        return schedules.sharded_training(num_stages, accumulation)
    iterations = int(options.device_iterations)
    if pipelined:
        return schedules.pipelined_inference(num_stages, iterations)
    return schedules.sharded_inference(num_stages, iterations)


def recomputes(executor: executors.PoplarExecutor) -> bool:
    """Whether stages recompute their forward for backward: in a pipeline they do, unless autoRecomputation is 0."""
    return bool(executor.options._Popart.options.get("autoRecomputation", RecomputationType.Pipeline))


class Recorder:
    """Measures executors, and writes their traces."""

    def __init__(self) -> None:
        self._measured: List[Tuple[executors.PoplarExecutor, StageMeter]] = []
        self.written: List[str] = []

    def measure(self, executor: executors.PoplarExecutor) -> None:
        """Measure this executor's first micro-batch from now on."""
        state_bytes, accumulator_bytes = executor.bytes_per_parameter()
        meter = StageMeter(executor.device_weights, state_bytes, accumulator_bytes)
        executor.observe(meter)
        self._measured.append((executor, meter))

    def write(self, directory: str) -> List[str]:
        """One folder for each executor that has run. Returns all paths."""
        for number, (executor, meter) in enumerate(self._measured, start=1):
            if meter.finished:
                kind = "training" if executor.is_training else "inference"
                self.written += trace_executor(executor, meter, os.path.join(directory, f"{kind}-{number}"))
        return self.written


def trace_executor(executor: executors.PoplarExecutor, meter: StageMeter, directory: str) -> List[str]:
    """Write timeline.txt, timeline.svg, trace.json, memory.txt and stages.json of a measured executor. Returns the paths."""
    stages, training = meter.stages, executor.is_training
    schedule = schedule_of(executor, len(stages))
    spans = timeline(stages, schedule)
    memory = memory_report(
        stages, schedule, training, meter.state_bytes, meter.accumulator_bytes, recompute=recomputes(executor)
    )
    what = "One weight update" if training else "One host step of inference"
    title = f"{what}: {len(stages)} stages, {schedule.num_micro_batches} micro-batches, one column a cycle"
    names = "\n".join(f"row {s.index}: IPU {s.ipu_id}, blocks {', '.join(s.blocks) or '(none)'}" for s in stages)
    contents = {
        "timeline.txt": f"{title}\n\n{schedule.grid()}\n\n{names}\n",
        "timeline.svg": svg(stages, spans),
        "trace.json": json.dumps(chrome_trace(stages, spans), indent=1),
        "memory.txt": memory.table() + "\n",
        "stages.json": json.dumps([dataclasses.asdict(stage) for stage in stages], indent=1),
    }
    for name, text in contents.items():
        write_text(os.path.join(directory, name), text)
    return [os.path.join(directory, name) for name in contents]


@contextlib.contextmanager
def recording(directory: str) -> Iterator[Recorder]:
    """Measure everything that runs in the body, and write it to `directory`, also after an error."""
    recorder = Recorder()
    executors.on_compiled.append(recorder.measure)
    try:
        yield recorder
    finally:
        executors.on_compiled.remove(recorder.measure)
        recorder.write(directory)
