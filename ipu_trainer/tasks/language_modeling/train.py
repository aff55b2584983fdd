"""The recipe: a language model on fixed-shape rows of text, against the unigram baseline, with samples as it learns.

    ipu-trainer train language-modeling --output RUN [--corpus FOLDER] [--model gpt2-small] [any TrainingArguments flag]

Here is what is particular to the task: corpus, tokenizer and model, trainer, evaluation; recipe.py has the rest.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from ipu_trainer.atomic import write_json
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.tasks.language_modeling.corpus import (
    Corpus,
    PackedRows,
    RowCollator,
    prepare_corpus,
    unigram_perplexity,
)
from ipu_trainer.tasks.language_modeling.model import (
    NO_DROPOUT,
    SIZES,
    build_model,
    check_shapes,
    is_masked,
    load_finished,
    load_model,
    num_positions,
)
from ipu_trainer.tasks.language_modeling.recipe_arguments import LanguageModelingArguments, parse_arguments
from ipu_trainer.tasks.language_modeling.samples import PrintSamples, continuations, fillings, perplexity, token_losses
from ipu_trainer.tasks.recipe.flags import check_read
from ipu_trainer.tasks.recipe.recipe import Results, Rows, recipe_task
from ipu_trainer.tasks.reporting.html_document import Block, Preformatted, Text, Tiles, number
from ipu_trainer.tasks.reporting.run_comparison import Headline, TaskReport
from ipu_trainer.tasks.reporting.run_report import ValidationMetric
from ipu_trainer.tasks.run_record import Run, run_settings
from ipu_trainer.tasks.text.text_models import (
    ModelChoice,
    check_task,
    choose_model,
    is_small,
    model_card,
    save_tokenizer,
)
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.trainer import IPUTrainer

METRIC = ValidationMetric("eval_perplexity", "validation perplexity", logarithmic=True)
_SCORES = ("perplexity", "unigram_perplexity", "nats_per_token", "bits_per_byte")
_METRICS = {"num_tokens": float, "samples?": [str], **{f"{name}?": (float, None) for name in _SCORES}}
_RECORD = {"masked": bool, "sequence_length": int}


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


_REPORT = TaskReport("Language model", METRIC, headline, tiles, samples, workload, _METRICS, _RECORD)
write_report, write_comparison = _REPORT.write, _REPORT.write_comparison


@dataclasses.dataclass
class LanguageModelingRun:
    """A run before it has a model, as recipe.TaskRun says: flags are checked, the corpus is read."""

    recipe: LanguageModelingArguments
    args: IPUTrainingArguments
    choice: ModelChoice
    masked: bool
    ipu_config: IPUConfig
    corpus: Corpus
    sequence_length: int
    settings: Dict[str, Any]
    baseline: float  # perplexity of token frequencies
    sample_shape: Sequence[int]
    loaded: Optional[Any]  # the model with its weights, for new_model() to give away once
    metrics: Sequence[str] = ("perplexity", "nats_per_token", "num_tokens")
    objective: Tuple[str, str] = ("eval_nats_per_token", "minimize")
    tracked: Any = METRIC
    write_report: Optional[Callable[[Path], Path]] = write_report

    def describe(self) -> Rows:
        baseline = f"unigram perplexity on validation {self.baseline:,.1f}"
        return [*self.corpus.describe(), ("rows", f"{self.sequence_length} tokens"), ("baseline", baseline)]

    def new_model(self) -> Any:
        model, self.loaded = self.loaded, None
        if model is not None:
            return model
        return build_model(self.recipe.model, self.choice, self.corpus.tokenizer, self.sequence_length, self.masked)

    def trained_model(self, run_dir: Path) -> Any:
        return load_finished(run_dir, self.masked)

    def trainer(self, **model: Any) -> IPUTrainer:
        corpus, length, causal = self.corpus, self.sequence_length, not self.masked
        trainer = IPUTrainer(
            **model,
            args=self.args,
            ipu_config=self.ipu_config,
            train_dataset=PackedRows(corpus.train, length, causal),
            eval_dataset=PackedRows(corpus.validation, length, causal, once=True),
            data_collator=RowCollator(corpus.tokenizer, self.masked, self.recipe.mlm_probability, self.args.seed),
            compute_metrics=perplexity,
            preprocess_logits_for_metrics=token_losses(causal=causal),
        )
        if "model" in model and self.recipe.sample_prompts:  # trials of a search print no samples
            trainer.add_callback(PrintSamples(trainer.model_on_host, self.samples))
        return trainer

    def samples(self, model: Any) -> List[str]:
        """What the model writes for each prompt."""
        prompts, tokenizer = self.recipe.sample_prompts, self.corpus.tokenizer
        if self.masked:
            return fillings(model, tokenizer, prompts)
        return continuations(model, tokenizer, prompts, self.recipe.sample_tokens, self.args.seed)

    def predict(self, trainer: IPUTrainer) -> Dict[str, float]:
        metrics: Dict[str, float] = trainer.evaluate()
        return metrics

    def results(self, trainer: IPUTrainer, predicted: Dict[str, float]) -> Results:
        nats = predicted["eval_nats_per_token"]
        metrics: Dict[str, Any] = {
            "perplexity": predicted["eval_perplexity"],
            "nats_per_token": nats,
            "num_tokens": int(predicted["eval_num_tokens"]),
            "unigram_perplexity": self.baseline,
            "eval_loss": predicted["eval_loss"],
        }
        if not self.masked:  # independent of the tokenizer
            about = self.corpus.about["validation"]
            metrics["bits_per_byte"] = nats / math.log(2) * about["tokens"] / about["bytes"]
        metrics["samples"] = self.samples(trainer.model_on_host()) if self.recipe.sample_prompts else []

        def write(run_dir: Path) -> None:
            save_tokenizer(self.corpus.tokenizer, run_dir)
            write_json(run_dir / "metrics.json", metrics)

        return Results(metrics, write)

    def table(self, metrics: Mapping[str, Any]) -> str:
        rows = [
            f"{'validation':24}{metrics['num_tokens']:>12,} tokens of packages or folders not trained on, each weighed once",
            f"{'unigram perplexity':24}{metrics['unigram_perplexity']:>12,.1f}",
            f"{'perplexity':24}{metrics['perplexity']:>12,.2f}",
            f"{'nats a token':24}{metrics['nats_per_token']:>12.4f}",
        ]
        if "bits_per_byte" in metrics:
            rows.append(f"{'bits a byte':24}{metrics['bits_per_byte']:>12.4f}")
        return "\n".join(rows + [f"\n>>> {text}" for text in metrics["samples"]])

    def model_card(self, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
        corpus = self.recipe.corpus or "installed Python code"
        data = f"{self.corpus.about['train']['tokens']:,} tokens ({corpus})"
        return model_card(record, "fill-mask" if self.masked else "text-generation", data, self.table(metrics))


def prepare(flags: Sequence[str]) -> LanguageModelingRun:
    """Flags of `ipu-trainer train language-modeling` to a LanguageModelingRun. Raises UserError for what does not go together."""
    recipe, args = parse_arguments(flags)
    choice = choose_model(recipe, SIZES, NO_DROPOUT)
    masked = is_masked(choice.config, recipe.objective)
    mapping = MODEL_FOR_MASKED_LM_MAPPING if masked else MODEL_FOR_CAUSAL_LM_MAPPING
    check_task(recipe.model, choice.config, mapping, f"{'masked' if masked else 'causal'} language modelling")
    check_read(recipe, "mlm_probability", masked, f"{recipe.model} is causal, and masks no tokens")
    length = recipe.sequence_length or (128 if is_small(recipe.model) else num_positions(choice.config) or 512)
    check_shapes(choice.config, 0, length)
    transformers.set_seed(args.seed)
    loaded = None if choice.from_scratch else load_model(recipe.model, masked)  # refused before the corpus is read
    with args.main_process_first(local=False, desc="corpus"):
        corpus = prepare_corpus(recipe, choice.tokenizer, masked, Path(args.output_dir) / "data", args.seed)
    check_shapes(choice.config, 0 if choice.from_scratch else len(corpus.tokenizer), length)
    config = load_profile(args.ipu_config).config if args.ipu_config else IPUConfig(output_mode="sum")
    settings = run_settings(
        "language-modeling", recipe, args, config, masked=masked, sequence_length=length, data=corpus.about
    )
    baseline, _ = unigram_perplexity(corpus.train, corpus.validation, len(corpus.tokenizer))
    return LanguageModelingRun(
        recipe, args, choice, masked, config, corpus, length, settings, baseline, (length,), loaded
    )


TASK = recipe_task(prepare, write_report=write_report, write_comparison=write_comparison)
