"""The recipe: an encoder-decoder on pairs of fixed shape, scored by what it writes for packages it has not seen.

    ipu-trainer train seq2seq --output RUN [--pairs FILE.jsonl] [--model t5-small] [any Seq2SeqTrainingArguments flag]

It reads top to bottom: training and its results, then what is decided before: pairs, tokenizer and model, trainer.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import io
import itertools
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import transformers

from ipu_trainer.atomic import write_json, write_text
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.tasks.recipe.early_checks import checked
from ipu_trainer.tasks.recipe.fit_warning import feasibility_check, fit_warning, warn
from ipu_trainer.tasks.recipe.flags import check_read
from ipu_trainer.tasks.recipe.run_record import (
    RUNNING,
    begin_run,
    finish_run,
    resumable_checkpoint,
    train_or_restore,
    trained_record,
    training_settings,
    versions,
    write_history,
)
from ipu_trainer.tasks.reporting.curves import plot_training
from ipu_trainer.tasks.reporting.run_report import report_or_reason
from ipu_trainer.tasks.search.search_command import Searched
from ipu_trainer.tasks.seq2seq.html_report import write_report
from ipu_trainer.tasks.seq2seq.metrics import baseline_texts, decoded, generation_metrics, text_scores
from ipu_trainer.tasks.seq2seq.model import (
    NO_DROPOUT,
    SIZES,
    build_model,
    check_encoder_decoder,
    check_shapes,
    load_model,
)
from ipu_trainer.tasks.seq2seq.pairs import FixedShapePairs, Pair, WithDecoderInputs, docstring_pairs, read_pairs
from ipu_trainer.tasks.seq2seq.recipe_arguments import Seq2SeqArguments, parse_arguments
from ipu_trainer.tasks.text.documents import drawn, fingerprint, shuffled, split_by_group, unique
from ipu_trainer.tasks.text.python_code import installed_python
from ipu_trainer.tasks.text.text_models import (
    change_config,
    check_overrides,
    find_config,
    from_scratch,
    own_tokenizer,
    parse_overrides,
)
from ipu_trainer.tasks.text.tokenizers import has_tokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from ipu_trainer.training.acceleration.choices import describe_acceleration
from ipu_trainer.training.acceleration.precision import used_precision
from ipu_trainer.training.monitor import watch
from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments
from ipu_trainer.training.tracking import experiment_tracker_hint

METRICS = ("bleu", "chrf", "exact_match", "generated_tokens")  # of generation_metrics()


def run(words: Sequence[str]) -> None:
    """`ipu-trainer train seq2seq`: parse, train, print."""
    recipe, args = parse_arguments(words)
    metrics = train(recipe, args)
    if metrics:
        print(f"\n{table(metrics)}\n\nmodel, metrics, predictions.csv, plots and report.html: {args.output_dir}")


def train(recipe: Seq2SeqArguments, args: IPUSeq2SeqTrainingArguments) -> Dict[str, Any]:
    """Run the recipe; returns what metrics.json holds. Raises ValueError for input that cannot work, before training."""
    run_dir = Path(args.output_dir)
    job = prepare_job(recipe, args)
    tokenizer, validation_pairs = job.tokenizer, job.validation_pairs
    settings = _settings(recipe, args, job)
    checkpoint = resumable_checkpoint(run_dir, args, settings)
    trained = trained_record(run_dir, args)
    model = job.new_model() if trained is None else load_model(str(run_dir))
    trainer = job.trainer(model=model)
    watch(trainer, tokens_per_sample=recipe.source_length + recipe.target_length)
    train_set, validation_set = trainer.train_dataset, trainer.eval_dataset
    references = [pair.target for pair in validation_pairs]
    baseline = text_scores(baseline_texts(validation_pairs), references)
    record = trained or {
        "status": RUNNING,
        **settings,
        "num_parameters": model.num_parameters(),
        "backend": {**trainer.backend.describe(), "torch_device": str(args.device)},
        "precision": dataclasses.asdict(used_precision(recipe.precision, args)),
        "versions": versions(),
        "batch_table": trainer.batch_table(),
    }
    if trainer.is_world_process_zero():
        print(f"training    {train_set.describe()}")
        print(
            f"validation  {validation_set.describe()} of {', '.join(sorted({pair.group for pair in validation_pairs})[:5])}"
        )
        print(f"model       {recipe.model}, {model.num_parameters():,} parameters")
        print(record["batch_table"])
        print(f"backend     {trainer.backend.name} ({trainer.backend.reason})")
        print(f"precision   {record['precision']['name']} ({record['precision']['reason']})")
        print(f"speed       {describe_acceleration(args, trainer.backend.has_executors, trainer.model)}")
        print(f"live view   {experiment_tracker_hint(args.report_to, args.output_dir)}")
        print(f"baseline    words of the name: BLEU {baseline['bleu']:.1f}, chrF {baseline['chrf']:.1f}")
        if trained or checkpoint:
            print(f"resuming from {'the trained weights' if trained else checkpoint}")
        begin_run(run_dir, record)
        if recipe.ipu_config:
            warn(fit_warning(model, job.ipu_config, args, *job.lengths))

    train_or_restore(trainer, record, checkpoint)
    predicted = trainer.predict(validation_set, metric_key_prefix="validation")
    if not trainer.is_world_process_zero():
        return {}
    result: Dict[str, Any] = {
        "num_pairs": len(validation_pairs),
        "baseline": baseline,
        **{name.replace("validation_", ""): value for name, value in predicted.metrics.items()},
        "examples": [],
    }
    if args.predict_with_generate:
        written = decoded(tokenizer, predicted.predictions)
        write_text(run_dir / "predictions.csv", _predictions(validation_pairs, written))
        result["examples"] = [
            {"name": pair.name, "reference": pair.target, "written": text}
            for pair, text in list(zip(validation_pairs, written))[:5]
        ]
    save_tokenizer(tokenizer, run_dir)
    write_json(run_dir / "metrics.json", result)
    write_history(run_dir, trainer.state.log_history)
    plot_training(run_dir / "plots" / "training.png", trainer.state.log_history, "eval_chrf", "validation chrF")
    write_text(run_dir / "README.md", model_card(record, result))
    finish_run(run_dir, record, functools.partial(report_or_reason, write_report))
    return result


def searched(words: Sequence[str]) -> Searched:
    """What `ipu-trainer search seq2seq` varies: the recipe's trainer, which makes a model for each trial."""
    recipe, args = parse_arguments(words)
    job = prepare_job(recipe, args)
    trainer = job.trainer(model_init=job.new_model)
    told = f"training    {trainer.train_dataset.describe()}\nvalidation  {trainer.eval_dataset.describe()}"
    check = feasibility_check(trainer, *job.lengths)
    return Searched(trainer, "eval_loss", "minimize", told, _settings(recipe, args, job), check, job.metrics)


@dataclasses.dataclass
class Job:
    """What the recipe decides before a model is made: checked, with the pairs read."""

    recipe: Seq2SeqArguments
    args: IPUSeq2SeqTrainingArguments
    config: Any
    ipu_config: IPUConfig
    tokenizer: Any
    train_pairs: List[Pair]
    validation_pairs: List[Pair]
    lengths: Tuple[int, int]
    scratch: bool
    overrides: Dict[str, Any]
    loaded: Optional[Any] = None  # the model with its weights, for new_model() to give away once

    def new_model(self) -> Any:
        transformers.set_seed(self.args.seed)
        model, self.loaded = self.loaded, None
        if model is None:
            config = copy.deepcopy(self.config)
            model = build_model(self.recipe.model, config, self.tokenizer, self.lengths, self.scratch, self.overrides)
        transformers.set_seed(self.args.seed)  # a trial then draws as a run, whose trainer begins with this seed
        return model

    def trainer(self, **model: Any) -> IPUSeq2SeqTrainer:
        """model: model= or model_init=."""
        prefix = self.recipe.source_prefix
        trainer = IPUSeq2SeqTrainer(
            **model,
            args=self.args,
            ipu_config=self.ipu_config,
            train_dataset=FixedShapePairs(self.train_pairs, self.tokenizer, *self.lengths, prefix),
            eval_dataset=FixedShapePairs(self.validation_pairs, self.tokenizer, *self.lengths, prefix),
            processing_class=self.tokenizer,
            compute_metrics=generation_metrics(self.tokenizer) if self.args.predict_with_generate else None,
        )
        if self.args.label_smoothing_factor:  # the smoothed loss takes the labels out of what the model gets
            trainer.data_collator = WithDecoderInputs(trainer)
        return checked(trainer, self.metrics)  # type: ignore[no-any-return]  # what it was given

    @property
    def metrics(self) -> Tuple[str, ...]:
        return METRICS if self.args.predict_with_generate else ()


def prepare_job(recipe: Seq2SeqArguments, args: IPUSeq2SeqTrainingArguments) -> Job:
    """Model configuration, pairs and tokenizer. Raises ValueError for what does not go together."""
    config = find_config(recipe.model, SIZES, NO_DROPOUT)
    check_encoder_decoder(recipe.model, config)
    scratch = from_scratch(recipe.model, SIZES, recipe.from_scratch)
    overrides = parse_overrides(recipe.model_overrides)
    check_overrides(overrides, scratch)
    change_config(config, overrides)
    lengths = (recipe.source_length, recipe.target_length)
    check_shapes(config, 0, lengths)
    transformers.set_seed(args.seed)
    loaded = None if scratch else load_model(recipe.model)  # refused before pairs are read
    train_pairs, validation_pairs = split_pairs(recipe, args.seed)
    own = own_tokenizer(recipe.model, SIZES)
    source = recipe.tokenizer or (own if own and has_tokenizer(own) else "")
    check_read(recipe, "vocab_size", not source, f"the tokenizer of {source} is there")
    if source:
        tokenizer = load_tokenizer(source)
    else:
        texts = (text for pair in train_pairs for text in (pair.source, pair.target))
        tokenizer = train_tokenizer(texts, recipe.vocab_size, "RobertaTokenizer")
    check_shapes(config, 0 if scratch else len(tokenizer), lengths)
    ipu_config = load_profile(recipe.ipu_config).config if recipe.ipu_config else IPUConfig(output_mode="sum")
    pairs = (train_pairs, validation_pairs)
    return Job(recipe, args, config, ipu_config, tokenizer, *pairs, lengths, scratch, overrides, loaded)


def split_pairs(recipe: Seq2SeqArguments, seed: int) -> Tuple[List[Pair], List[Pair]]:
    """(training, validation) pairs: each once, no package or group in both, at most max_pairs and max_validation_pairs."""
    if recipe.pairs:
        pairs = drawn(unique(read_pairs(Path(recipe.pairs))), recipe.max_pairs)
    else:  # files in drawn order, parsed until there are enough
        found = unique(docstring_pairs(shuffled(installed_python(True))))
        pairs = drawn(itertools.islice(found, recipe.max_pairs or None), 0)
    if not pairs:
        raise ValueError("there are no pairs to learn from. Give --pairs FILE.jsonl.")
    train_pairs, validation_pairs = split_by_group(pairs, recipe.validation_fraction, seed)
    return train_pairs, drawn(validation_pairs, recipe.max_validation_pairs)


def table(metrics: Dict[str, Any]) -> str:
    """What came out, as a person reads it."""
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


def model_card(run: Dict[str, Any], metrics: Dict[str, Any]) -> str:
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text2text-generation\ntags: [seq2seq, ipu_trainer]\n---\n"
        f"# {run['model']}, {run['num_parameters']:,} parameters\n\nTrained by `ipu-trainer train seq2seq` on "
        f"{run['data']['pairs']:,} pairs.\n\n```\n{table(metrics)}\n```\n"
    )


def _predictions(pairs: Sequence[Pair], written: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "source", "reference", "written"])
    writer.writerows([pair.name, pair.source, pair.target, text] for pair, text in zip(pairs, written))
    return out.getvalue()


def _settings(recipe: Seq2SeqArguments, args: IPUSeq2SeqTrainingArguments, job: Job) -> Dict[str, Any]:
    return {
        "task": "seq2seq",
        "model": recipe.model,
        "seed": args.seed,
        "data": {
            "pairs": len(job.train_pairs),
            "groups": sorted({pair.group for pair in job.train_pairs})[:50],
            "fingerprint": fingerprint([*job.train_pairs, *job.validation_pairs]),
        },
        "settings": {
            "recipe": dataclasses.asdict(recipe),
            "training": training_settings(args),
            "ipu_config": job.ipu_config.to_dict(),
        },
    }
