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


class LanguageModelReport(TaskReport):
    title = "Language model"
    metric = METRIC

    def headline(self, run: Run) -> Headline:
        return [(name.replace("_", " "), run.metrics[name], None) for name in _SCORES if name in run.metrics]

    def tiles(self, run: Run) -> Tiles:
        tokens = f"{run.metrics['num_tokens']:,} tokens of packages or folders not trained on"
        details = {"perplexity": tokens, "unigram perplexity": "word frequencies alone, on the same tokens"}
        return Tiles([(name, number(value), details.get(name, "")) for name, value, _ in self.headline(run)])

    def samples(self, run: Run) -> List[Block]:
        samples = run.metrics.get("samples", [])
        return [Preformatted(text) for text in samples] or [Text("The run had no prompts.", "note")]

    def workload(self, run: Run) -> Tuple[str, int]:
        return "masked-lm" if run.record["masked"] else "causal-lm", int(run.record["sequence_length"])


write_report = LanguageModelReport().write
write_comparison = LanguageModelReport().write_comparison
