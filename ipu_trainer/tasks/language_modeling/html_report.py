"""report.html of a language model: perplexity beside its baseline, curves, and samples that the model wrote."""

from __future__ import annotations

from typing import List, Tuple

from ipu_trainer.tasks.reporting.finished_run import Run
from ipu_trainer.tasks.reporting.html_document import Block, Preformatted, Text, Tiles, number
from ipu_trainer.tasks.reporting.run_comparison import Headline
from ipu_trainer.tasks.reporting.run_report import ValidationMetric
from ipu_trainer.tasks.reporting.task_report import TaskReport

METRIC = ValidationMetric("eval_perplexity", "validation perplexity", logarithmic=True)
_SCORES = ("perplexity", "unigram_perplexity", "nats_per_token", "bits_per_byte")


def headline(run: Run) -> Headline:
    return [(name.replace("_", " "), run.metrics[name], None) for name in _SCORES if name in run.metrics]


def tiles(run: Run) -> Tiles:
    tokens = f"{run.metrics['num_tokens']:,} tokens of packages or folders not trained on"
    details = {"perplexity": tokens, "unigram perplexity": "word frequencies alone, on the same tokens"}
    return Tiles([(name, number(value), details.get(name, "")) for name, value, _ in headline(run)])


def samples(run: Run) -> List[Block]:
    return [Preformatted(text) for text in run.metrics.get("samples", [])] or [Text("The run had no prompts.", "note")]


def workload(run: Run) -> Tuple[str, int]:
    return "masked-lm" if run.record["masked"] else "causal-lm", int(run.record["sequence_length"])


_REPORT = TaskReport("Language model", METRIC, headline, tiles, samples, workload)
write_report, write_comparison = _REPORT.write, _REPORT.write_comparison
