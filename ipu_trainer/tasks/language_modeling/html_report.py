"""The task's report page: perplexity beside its baseline, curves, and what the model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Page,
    Preformatted,
    Section,
    Text,
    Tiles,
    number,
    write_page,
)
from ipu_trainer.tasks.reporting.run_comparison import Compared, check_runs, comparison_page, distinct_names
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, Run, Watched, load_run, run_page

WATCHED = Watched("eval_perplexity", "validation perplexity", logarithmic=True)
_NOTICE = ""


def write_report(folder: Path, output: Optional[Path] = None) -> Path:
    """Write report.html of a finished run, into its folder or to output; returns the path."""
    file = Path(output) if output else Path(folder) / REPORT_FILE
    write_page(file, page(load_run(folder)))
    return file


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write one page that holds several runs side by side; returns the path."""
    runs = [load_run(folder) for folder in folders]
    check_runs([run.task for run in runs])
    columns = [
        Compared(run, name, headline(run), f"{run.record['data'].get('fingerprint', '')}")
        for run, name in zip(runs, distinct_names(folders))
    ]
    samples = [
        Section(f"Samples of {column.name}", sample_blocks(column.run.metrics.get("samples", []))) for column in columns
    ]
    write_page(output, comparison_page(columns, _NOTICE, WATCHED, samples))
    return Path(output)


def page(run: Run) -> Page:
    metrics = run.metrics
    tokens = f"{metrics['num_tokens']:,} tokens of packages or folders not trained on"
    details = {"perplexity": tokens, "unigram perplexity": "word frequencies alone, on the same tokens"}
    tiles = Tiles([(name, number(value), details.get(name, "")) for name, value, _ in headline(run)])
    masked = bool(run.record["masked"])
    results = [Section("Samples", sample_blocks(metrics["samples"]))]
    workload = ("masked-lm" if masked else "causal-lm", int(run.record["sequence_length"]))
    return run_page(run, f"Language model: {run.name}", _NOTICE, tiles, results, WATCHED, workload)


def headline(run: Run) -> List[Tuple[str, Any, Any]]:
    """(name, value, None) of what runs are compared by."""
    names = ("perplexity", "unigram_perplexity", "nats_per_token", "bits_per_byte")
    return [(name.replace("_", " "), run.metrics[name], None) for name in names if name in run.metrics]


def sample_blocks(samples: Sequence[str]) -> List[Block]:
    if not samples:
        return [Text("The run was given no prompts.", "note")]
    return [Preformatted(text) for text in samples]
