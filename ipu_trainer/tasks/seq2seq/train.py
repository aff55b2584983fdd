"""Training an encoder-decoder on pairs of fixed shape, scored on texts that it generates for held-out groups.

    ipu-trainer train seq2seq --output RUN [--pairs FILE.jsonl] [--model t5-small] [any Seq2SeqTrainingArguments flag]

Here is what is particular to the task: pairs, tokenizer and model, trainer, evaluation; recipe.py has the rest.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import transformers

from ipu_trainer.atomic import write_csv, write_json
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.recipe.recipe import Results, Rows, recipe_task
from ipu_trainer.tasks.reporting.html_document import Block, Case, Cases, Text, Tiles, number
from ipu_trainer.tasks.reporting.run_comparison import Headline, TaskReport
from ipu_trainer.tasks.reporting.run_report import ValidationMetric
from ipu_trainer.tasks.run_record import Run, run_settings
from ipu_trainer.tasks.seq2seq.metrics import baseline_texts, decoded, generation_metrics, text_scores
from ipu_trainer.tasks.seq2seq.model import (
    NO_DROPOUT,
    SIZES,
    build_model,
    check_encoder_decoder,
    check_shapes,
    load_finished,
    load_model,
)
from ipu_trainer.tasks.seq2seq.pairs import FixedShapePairs, Pair, WithDecoderInputs, docstring_pairs, read_pairs
from ipu_trainer.tasks.seq2seq.recipe_arguments import Seq2SeqArguments, parse_arguments
from ipu_trainer.tasks.text.documents import drawn, fingerprint, installed_python, shuffled, split_by_group, unique
from ipu_trainer.tasks.text.text_models import (
    ModelChoice,
    choose_model,
    load_tokenizer,
    model_card,
    save_tokenizer,
    train_tokenizer,
)
from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments

METRIC = ValidationMetric("eval_chrf", "validation chrF")
_SCORES = (("BLEU", "bleu"), ("chrF", "chrf"), ("exactly right", "exact_match"), ("loss", "loss"))
_MOST_EXAMPLES = 24
_NUMBER = (float, None)
_METRICS = {"num_pairs": int, "baseline": {str: _NUMBER}, **{f"{key}?": _NUMBER for _, key in _SCORES}}
_RECORD = {"settings": {"recipe": {"source_length": int, "target_length": int}}}


def headline(run: Run) -> Headline:
    return [(label, run.metrics[key], None) for label, key in _SCORES if key in run.metrics]


def tiles(run: Run) -> Tiles:
    baseline = run.metrics["baseline"]
    details = {
        label: f"words of the name alone: {number(baseline[key], 2)}" for label, key in _SCORES if key in baseline
    }
    rows = [(name, number(value, 2), details.get(name, "")) for name, value, _ in headline(run)]
    return Tiles([*rows, ("pairs", f"{run.metrics['num_pairs']:,}", "of packages or groups not trained on")])


def example_predictions(run: Run) -> List[Block]:
    """Report blocks with the first rows of predictions.csv; a note where the run generated nothing."""
    file = run.folder / "predictions.csv"
    if not file.is_file():
        return [Text("The run generated no text (predict_with_generate False).", "note")]
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [row for row, _ in zip(csv.DictReader(opened), range(_MOST_EXAMPLES))]
    cases = [
        Case(str(row.get("name")), [f"reference: {row.get('reference')}", f"written: {row.get('written')}"], [])
        for row in rows
    ]
    note = f"The first {len(cases)} of {run.metrics['num_pairs']:,} pairs; predictions.csv has all."
    return [Cases(cases), Text(note, "note")]


def workload(run: Run) -> Tuple[str, int, int]:
    recipe = run.record["settings"]["recipe"]
    return "seq2seq-lm", int(recipe["source_length"]), int(recipe["target_length"])


_REPORT = TaskReport("Seq2seq", METRIC, headline, tiles, example_predictions, workload, _METRICS, _RECORD)
write_report, write_comparison = _REPORT.write, _REPORT.write_comparison


@dataclasses.dataclass
class Seq2SeqRun:
    """A run before it has a model, as recipe.TaskRun says: flags are checked, pairs are read and tokenized."""

    recipe: Seq2SeqArguments
    args: IPUSeq2SeqTrainingArguments
    choice: ModelChoice
    ipu_config: IPUConfig
    tokenizer: Any
    train_set: FixedShapePairs
    validation_set: FixedShapePairs
    validation_pairs: List[Pair]
    settings: Dict[str, Any]
    baseline: Dict[str, float]  # scores of the words of each function's name
    metrics: Sequence[str]
    sample_shape: Sequence[int]
    loaded: Optional[Any]  # the model with its weights, for new_model() to give away once
    objective: Tuple[str, str] = ("eval_loss", "minimize")
    tracked: Any = METRIC
    write_report: Optional[Callable[[Path], Path]] = write_report

    def describe(self) -> Rows:
        groups = ", ".join(sorted({pair.group for pair in self.validation_pairs})[:5])
        return [
            ("training", self.train_set.describe()),
            ("validation", f"{self.validation_set.describe()} of {groups}"),
            ("baseline", f"words of the name: BLEU {self.baseline['bleu']:.1f}, chrF {self.baseline['chrf']:.1f}"),
        ]

    def new_model(self) -> Any:
        model, self.loaded = self.loaded, None
        if model is not None:
            return model
        return build_model(self.recipe.model, self.choice, self.tokenizer, self.sample_shape)

    def trained_model(self, run_dir: Path) -> Any:
        return load_finished(run_dir)

    def trainer(self, **model: Any) -> IPUSeq2SeqTrainer:
        trainer = IPUSeq2SeqTrainer(
            **model,
            args=self.args,
            ipu_config=self.ipu_config,
            train_dataset=self.train_set,
            eval_dataset=self.validation_set,
            processing_class=self.tokenizer,
            compute_metrics=generation_metrics(self.tokenizer) if self.args.predict_with_generate else None,
        )
        if self.args.label_smoothing_factor:  # the smoothed loss takes the labels out of what the model gets
            trainer.data_collator = WithDecoderInputs(trainer)
        return trainer

    def predict(self, trainer: IPUSeq2SeqTrainer) -> Any:
        return trainer.predict(self.validation_set, metric_key_prefix="validation")

    def results(self, trainer: IPUSeq2SeqTrainer, predicted: Any) -> Results:
        pairs = self.validation_pairs
        written = decoded(self.tokenizer, predicted.predictions) if self.args.predict_with_generate else []
        metrics: Dict[str, Any] = {
            "num_pairs": len(pairs),
            "baseline": self.baseline,
            **{name.replace("validation_", ""): value for name, value in predicted.metrics.items()},
            "examples": [
                {"name": pair.name, "reference": pair.target, "written": text}
                for pair, text in list(zip(pairs, written))[:5]
            ],
        }

        def write(run_dir: Path) -> None:
            if self.args.predict_with_generate:
                rows = ([pair.name, pair.source, pair.target, text] for pair, text in zip(pairs, written))
                write_csv(run_dir / "predictions.csv", [["name", "source", "reference", "written"], *rows])
            save_tokenizer(self.tokenizer, run_dir)
            write_json(run_dir / "metrics.json", metrics)

        return Results(metrics, write)

    def table(self, metrics: Mapping[str, Any]) -> str:
        baseline = metrics["baseline"]
        rows = [
            f"{'':24}{'model':>8}{'names':>8}   {metrics['num_pairs']:,} pairs of packages or groups not trained on",
            *(
                f"{label:24}{metrics[name]:>8.2f}{baseline[name]:>8.2f}"
                for label, name in (("BLEU", "bleu"), ("chrF", "chrf"), ("exactly right", "exact_match"))
                if name in metrics
            ),
            f"{'loss':24}{metrics['loss']:>8.3f}",
        ]
        for example in metrics["examples"]:
            rows += ["", example["name"], f"  reference  {example['reference']}", f"  written    {example['written']}"]
        return "\n".join(rows)

    def model_card(self, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
        return model_card(record, "text2text-generation", f"{record['data']['pairs']:,} pairs", self.table(metrics))


def prepare(flags: Sequence[str]) -> Seq2SeqRun:
    """Flags of `ipu-trainer train seq2seq` to a Seq2SeqRun. Raises UserError for what does not go together."""
    recipe, args = parse_arguments(flags)
    choice = choose_model(recipe, SIZES, NO_DROPOUT)
    check_encoder_decoder(recipe.model, choice.config)
    lengths = (recipe.source_length, recipe.target_length)
    check_shapes(choice.config, 0, lengths)
    transformers.set_seed(args.seed)
    loaded = None if choice.from_scratch else load_model(recipe.model)  # refused before pairs are read
    train_pairs, validation_pairs = split_pairs(recipe, args.seed)
    if choice.tokenizer:
        tokenizer = load_tokenizer(choice.tokenizer)
    else:
        texts = (text for pair in train_pairs for text in (pair.source, pair.target))
        tokenizer = train_tokenizer(texts, recipe.vocab_size, "RobertaTokenizer")
    check_shapes(choice.config, 0 if choice.from_scratch else len(tokenizer), lengths)
    config = load_profile(args.ipu_config).config if args.ipu_config else IPUConfig(output_mode="sum")
    data = {
        "pairs": len(train_pairs),
        "groups": sorted({pair.group for pair in train_pairs})[:50],
        "fingerprint": fingerprint([*train_pairs, *validation_pairs]),
    }
    settings = run_settings("seq2seq", recipe, args, config, data=data)
    baseline = text_scores(baseline_texts(validation_pairs), [pair.target for pair in validation_pairs])
    train_set, validation_set = (
        FixedShapePairs(pairs, tokenizer, *lengths, recipe.source_prefix) for pairs in (train_pairs, validation_pairs)
    )
    metrics = ("bleu", "chrf", "exact_match", "generated_tokens") if args.predict_with_generate else ()
    data_sets = (train_set, validation_set, validation_pairs)
    return Seq2SeqRun(recipe, args, choice, config, tokenizer, *data_sets, settings, baseline, metrics, lengths, loaded)


def split_pairs(recipe: Seq2SeqArguments, seed: int) -> Tuple[List[Pair], List[Pair]]:
    """(training, validation) pairs: each once, no package or group in both, at most max_pairs and max_validation_pairs."""
    if recipe.pairs:
        pairs = drawn(unique(read_pairs(Path(recipe.pairs))), recipe.max_pairs)
    else:  # files in drawn order, parsed until there are enough
        found = unique(docstring_pairs(shuffled(installed_python(True))))
        pairs = drawn(itertools.islice(found, recipe.max_pairs or None), 0)
    if not pairs:
        raise UserError("there are no pairs to learn from. Give --pairs FILE.jsonl.")
    train_pairs, validation_pairs = split_by_group(pairs, recipe.validation_fraction, seed)
    return train_pairs, drawn(validation_pairs, recipe.max_validation_pairs)


TASK = recipe_task(prepare, write_report=write_report, write_comparison=write_comparison)
