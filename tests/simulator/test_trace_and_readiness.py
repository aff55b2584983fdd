"""Measured stages, memory and pictures of a pipeline; and what a model does that an IPU cannot."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from ipu_trainer.machine import schedule as schedules
from ipu_trainer.machine.hardware import SRAM_BYTES_PER_IPU
from ipu_trainer.simulator.analysis import trace
from ipu_trainer.simulator.analysis.memory_map import memory_report
from ipu_trainer.simulator.analysis.stages import StageCost

NUM_SAMPLES = 5  # in a micro-batch


class Pipeline(torch.nn.Module):
    def __init__(self, poptorch, attention=False):
        super().__init__()
        self.first = poptorch.BeginBlock(torch.nn.Linear(6, 8), "first", ipu_id=0)
        self.second = poptorch.BeginBlock(torch.nn.Conv1d(2, 4, 3, padding=1), "second", ipu_id=1)
        self.head = poptorch.BeginBlock(torch.nn.Linear(16, 3), "head", ipu_id=2)
        self.attention = attention

    def forward(self, x, labels):
        hidden = torch.relu(self.first(x)).reshape(-1, 2, 4)
        hidden = self.second(hidden)
        if self.attention:
            hidden = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        logits = self.head(hidden.flatten(1))
        return torch.nn.functional.cross_entropy(logits, labels)


def measured(poptorch, tmp_path, accumulation=5, **settings):
    model = Pipeline(poptorch, **settings)
    opts = poptorch.Options().autoRoundNumIPUs(True)
    opts.Training.gradientAccumulation(accumulation)
    with trace.recording(str(tmp_path)) as recorder:
        executor = poptorch.trainingModel(model, opts, poptorch.optim.AdamW(model.parameters(), lr=0.01))
        for _ in range(2):
            executor(
                torch.randn(NUM_SAMPLES * accumulation, 6), torch.zeros(NUM_SAMPLES * accumulation, dtype=torch.int64)
            )
    return recorder._measured[0][1].stages


def test_flops_and_parameters_of_each_stage_are_counted_exactly(poptorch, tmp_path):
    stages = measured(poptorch, tmp_path)
    assert [(stage.ipu_id, stage.blocks) for stage in stages] == [(0, ["first"]), (1, ["second"]), (2, ["head"])]
    n = NUM_SAMPLES
    assert [stage.forward_flops for stage in stages] == [2 * n * 6 * 8, 2 * n * 4 * 4 * (2 * 3), 2 * n * 16 * 3]
    assert [stage.num_parameters for stage in stages] == [6 * 8 + 8, 4 * 2 * 3 + 4, 16 * 3 + 3]


def test_attention_counts_both_of_its_products(poptorch, tmp_path):
    plain, attending = measured(poptorch, tmp_path / "a"), measured(poptorch, tmp_path / "b", attention=True)
    # (samples, 4 positions, 4 features): scores and weighted sum, two products of 4 x 4 x 4.
    assert attending[1].forward_flops - plain[1].forward_flops == 2 * NUM_SAMPLES * 2 * 4 * 4 * 4


def test_saved_activations_are_those_of_one_micro_batch_without_parameters_and_counted_once(poptorch, tmp_path):
    n = NUM_SAMPLES
    first, second, head = measured(poptorch, tmp_path)
    # Linear keeps its input, ReLU its result; the reshaped view of that, which the convolution keeps, is on IPU 1.
    assert first.saved_bytes == 4 * n * (6 + 8) and first.input_bytes == 4 * n * 6
    assert second.saved_bytes == 4 * n * 8 and second.input_bytes == 4 * n * 8
    # The head keeps its input, cross-entropy its log-probabilities and the labels: 32-bit on the device.
    assert head.saved_bytes >= 4 * n * (16 + 3 + 1) and head.saved_bytes <= 4 * n * (16 + 3 + 1) + 8


def test_frozen_parameters_have_no_gradient_and_buffers_count_as_weights(poptorch, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    wrapped = WithCrossEntropy(model)
    with trace.recording(str(tmp_path)) as recorder:
        poptorch.trainingModel(wrapped)(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    (stage,) = recorder._measured[0][1].stages
    assert (stage.num_parameters, stage.num_trained) == (9 + 6 + 8, 6 + 8)
    assert stage.buffer_bytes == 4 * (3 + 3 + 1)


class WithCrossEntropy(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, labels):
        return torch.nn.functional.cross_entropy(self.model(x), labels)


def test_stages_on_one_ipu_take_turns():
    stages = [StageCost(0, 0, forward_flops=5), StageCost(1, 1, forward_flops=5), StageCost(2, 0, forward_flops=5)]
    spans = trace.timeline(stages, schedules.pipelined_training(3, 5))
    on_ipu_0 = sorted((s.begin, s.begin + s.duration) for s in spans if s.stage in (0, 2))
    assert all(end <= begin + 1e-9 for (_, end), (begin, _) in zip(on_ipu_0, on_ipu_0[1:]))


def test_memory_follows_from_stages_and_schedule():
    stages = [
        StageCost(
            0, 0, ["a"], 10, 100, 90, 400, 8, input_bytes=7, saved_bytes=50, checkpoint_bytes=3, segment_bytes=30
        ),
        StageCost(1, 1, ["b"], 10, 200, 200, 800, input_bytes=5, saved_bytes=60),
    ]
    schedule = schedules.pipelined_training(2, 4)
    kept = memory_report(stages, schedule, True, 8, 4, recompute=False).ipus
    assert kept[0].bytes_by_purpose == {
        "weights": 408, "gradients": 360, "optimizer state": 720, "stash": 3 * 50, "activations": 0, "recomputation": 0,
    }  # fmt: skip
    assert kept[1].bytes_by_purpose["stash"] == 0 and kept[1].bytes_by_purpose["activations"] == 60
    again = memory_report(stages, schedule, True, 8, 4, recompute=True).ipus[0].bytes_by_purpose
    assert again["stash"] == 3 * (7 + 3) and again["recomputation"] == 30
    inference = memory_report(stages, schedules.pipelined_inference(2, 2), False, 8, 4, recompute=True)
    assert [ipu.peak_bytes for ipu in inference.ipus] == [408, 800]


def test_what_does_not_fit_is_named_with_its_largest_tensors():
    size = SRAM_BYTES_PER_IPU
    stages = [StageCost(0, 0, [], 1, 1, 1, 4, saved_bytes=size, largest=[(size, "4096x4096 float32")]), StageCost(1, 1)]
    report = memory_report(stages, schedules.pipelined_training(2, 3), True, 8, 4, recompute=False)
    assert not report.fits and report.ipus[1].fits
    assert re.search(r"IPU 0 does not fit: 2691 MiB\. Largest activations: 4096x4096 float32", report.table())


def test_state_off_the_chip_takes_no_room_on_it(poptorch):
    opts = poptorch.Options()
    opts.TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useOnChipStorage(False))
    model = torch.nn.Linear(1, 1)
    assert poptorch.trainingModel(model, opts, poptorch.optim.AdamW(model.parameters())).bytes_per_parameter() == (0, 4)


def test_the_timeline_is_a_grid_a_picture_and_a_chrome_trace(poptorch, tmp_path):
    measured(poptorch, tmp_path)
    folder = tmp_path / "training-1"
    text = (folder / "timeline.txt").read_text()
    schedule = schedules.parse_grid("\n".join(line for line in text.splitlines() if line.startswith("IPU")))
    actions = [action for cycle in schedule.cycles for work in cycle for action in work]
    picture = ElementTree.parse(folder / "timeline.svg").getroot()
    boxes = [element for element in picture.iter() if element.get("class") in ("forward", "backward", "recompute")]
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert len(boxes) == len(events) == len(actions) > 0
    by_stage = {}
    for event in events:
        by_stage.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in by_stage.values():
        spans.sort()
        assert all(end <= begin + 1e-6 for (_, end), (begin, _) in zip(spans, spans[1:]))  # one thing at a time


def test_a_sharded_and_an_inference_executor_have_their_own_schedules(poptorch, tmp_path):
    with trace.recording(str(tmp_path)):
        opts = poptorch.Options().deviceIterations(2).setExecutionStrategy(poptorch.ShardedExecution())
        poptorch.inferenceModel(torch.nn.Linear(2, 2), opts)(torch.ones(2, 2))
    assert (tmp_path / "inference-1" / "timeline.txt").read_text().splitlines()[2].split() == ["IPU", "0", "F0", "F1"]


def test_measuring_changes_no_number(poptorch, tmp_path):
    outputs = []
    for folder in (None, tmp_path):
        torch.manual_seed(0)
        model = Pipeline(poptorch)
        opts = poptorch.Options().autoRoundNumIPUs(True)
        opts.Training.gradientAccumulation(5)
        executor = poptorch.trainingModel(model, opts)
        x, labels = torch.randn(5, 6), torch.zeros(5, dtype=torch.int64)
        if folder is None:
            outputs.append([executor(x, labels) for _ in range(3)])
        else:
            with trace.recording(str(folder)):
                outputs.append([executor(x, labels) for _ in range(3)])
    assert outputs[0] == outputs[1]


class ReadsValues(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            x = x + x.max().item()
        return x


class HasDynamicShapes(torch.nn.Module):
    def forward(self, x):
        return x[x > 0].sum() + torch.nonzero(x).sum()


def line_of(text):
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


@pytest.mark.parametrize(
    "model, kind, texts",
    [
        (ReadsValues(), "value read", ["if x.sum() > " + "0:", "x.max()." + "item()"]),
        (HasDynamicShapes(), "dynamic shape", ["x[x > " + "0].sum()"]),
    ],
)
def test_what_an_ipu_cannot_do_is_reported_with_the_line_that_does_it(poptorch, model, kind, texts):
    executor = poptorch.inferenceModel(model)
    executor.compile(torch.ones(3))
    found = {(finding.kind, finding.line) for finding in executor.readiness}
    for text in texts:
        assert (kind, line_of(text)) in found
    assert all(finding.file == __file__ for finding in executor.readiness)


def test_a_model_that_is_ready_has_nothing_to_report(poptorch, tmp_path):
    executor = poptorch.inferenceModel(torch.nn.Linear(2, 2))
    executor(torch.ones(2, 2))
    assert executor.readiness == ()
