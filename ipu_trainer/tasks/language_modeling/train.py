"""The recipe: a language model on fixed-shape rows of text, against the unigram baseline, with samples as it learns.

    ipu-trainer train language-modeling --output RUN [--corpus FOLDER] [--model gpt2-small] [any TrainingArguments flag]

It reads top to bottom: training and its results, then what is decided before: model and tokenizer, corpus, trainer.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import transformers

from ipu_trainer.atomic import write_json, write_text
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.tasks.language_modeling.corpus import Corpus, prepare_corpus
from ipu_trainer.tasks.language_modeling.html_report import write_report
from ipu_trainer.tasks.language_modeling.metrics import perplexity, token_losses
from ipu_trainer.tasks.language_modeling.model import (
    NO_DROPOUT,
    SIZES,
    build_model,
    check_architecture,
    check_shapes,
    is_masked,
    load_model,
)
from ipu_trainer.tasks.language_modeling.packing import PackedRows, RowCollator, unigram_perplexity
from ipu_trainer.tasks.language_modeling.recipe_arguments import LanguageModelingArguments, parse_arguments
from ipu_trainer.tasks.language_modeling.samples import PrintSamples, continuations, fillings
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
from ipu_trainer.tasks.text.text_models import (
    change_config,
    check_overrides,
    find_config,
    from_scratch,
    is_small,
    own_tokenizer,
    parse_overrides,
)
from ipu_trainer.tasks.text.tokenizers import has_tokenizer, save_tokenizer
from ipu_trainer.training.acceleration.choices import describe_acceleration
from ipu_trainer.training.acceleration.precision import used_precision
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.monitor import watch
from ipu_trainer.training.tracking import experiment_tracker_hint
from ipu_trainer.training.trainer import IPUTrainer

METRICS = ("perplexity", "nats_per_token", "num_tokens")  # of perplexity()


def run(words: Sequence[str]) -> None:
    """`ipu-trainer train language-modeling`: parse, train, print."""
    recipe, args = parse_arguments(words)
    metrics = train(recipe, args)
    if metrics:
        print(f"\n{table(metrics)}\n\nmodel, metrics, samples, plots and report.html: {args.output_dir}")


def train(recipe: LanguageModelingArguments, args: IPUTrainingArguments) -> Dict[str, Any]:
    """Run the recipe; returns what metrics.json holds. Raises ValueError for input that cannot work, before training."""
    run_dir = Path(args.output_dir)
    job = prepare_job(recipe, args)
    masked, corpus = job.masked, job.corpus
    settings = _settings(recipe, args, job)
    checkpoint = resumable_checkpoint(run_dir, args, settings)
    trained = trained_record(run_dir, args)
    model = job.new_model() if trained is None else load_model(str(run_dir), masked)
    trainer = job.trainer(model=model)
    watch(trainer, tokens_per_sample=job.sequence_length)
    prompts = list(recipe.sample_prompts)

    def write(current: Any) -> List[str]:
        if masked:
            return fillings(current, corpus.tokenizer, prompts)
        return continuations(current, corpus.tokenizer, prompts, recipe.sample_tokens, args.seed)

    if prompts:
        trainer.add_callback(PrintSamples(trainer.model_on_host, write))
    baseline, _ = unigram_perplexity(corpus.train, corpus.validation, len(corpus.tokenizer))
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
        print(corpus.describe())
        print(
            f"{'model':12}{recipe.model}, {model.num_parameters():,} parameters, rows of {job.sequence_length} tokens"
        )
        print(record["batch_table"])
        print(f"backend     {trainer.backend.name} ({trainer.backend.reason})")
        print(f"precision   {record['precision']['name']} ({record['precision']['reason']})")
        print(f"speed       {describe_acceleration(args, trainer.backend.has_executors, trainer.model)}")
        print(f"live view   {experiment_tracker_hint(args.report_to, args.output_dir)}")
        print(f"baseline    unigram perplexity on validation {baseline:,.1f}")
        if trained or checkpoint:
            print(f"resuming from {'the trained weights' if trained else checkpoint}")
        begin_run(run_dir, record)
        if recipe.ipu_config:
            warn(fit_warning(model, job.ipu_config, args, job.sequence_length))

    train_or_restore(trainer, record, checkpoint)
    final = trainer.evaluate()
    if not trainer.is_world_process_zero():
        return {}
    result = _result(final, baseline, corpus, masked)
    result["samples"] = write(trainer.model_on_host()) if prompts else []
    save_tokenizer(corpus.tokenizer, run_dir)
    write_json(run_dir / "metrics.json", result)
    history = trainer.state.log_history
    write_history(run_dir, history)
    plot_training(run_dir / "plots" / "training.png", history, "eval_perplexity", "validation perplexity", True)
    write_text(run_dir / "README.md", model_card(record, result))
    finish_run(run_dir, record, functools.partial(report_or_reason, write_report))
    return result


def searched(words: Sequence[str]) -> Searched:
    """What `ipu-trainer search language-modeling` varies: the recipe's trainer, which makes a model for each trial."""
    recipe, args = parse_arguments(words)
    job = prepare_job(recipe, args)
    trainer = job.trainer(model_init=job.new_model)
    check = feasibility_check(trainer, job.sequence_length)
    return Searched(
        trainer, "eval_nats_per_token", "minimize", job.corpus.describe(), _settings(recipe, args, job), check, METRICS
    )


@dataclasses.dataclass
class Job:
    """What the recipe decides before a model is made: checked, with the corpus read."""

    recipe: LanguageModelingArguments
    args: IPUTrainingArguments
    config: Any
    ipu_config: IPUConfig
    corpus: Corpus
    sequence_length: int
    masked: bool
    scratch: bool
    overrides: Dict[str, Any]
    loaded: Optional[Any] = None  # the model with its weights, for new_model() to give away once

    def new_model(self) -> Any:
        transformers.set_seed(self.args.seed)
        model, self.loaded = self.loaded, None
        if model is None:
            model = build_model(
                self.recipe.model,
                copy.deepcopy(self.config),
                self.corpus.tokenizer,
                self.sequence_length,
                self.masked,
                self.scratch,
                self.overrides,
            )
        transformers.set_seed(self.args.seed)  # a trial then draws as a run, whose trainer begins with this seed
        return model

    def trainer(self, **model: Any) -> IPUTrainer:
        """model: model= or model_init=."""
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
        return checked(trainer, METRICS)  # type: ignore[no-any-return]  # what it was given


def prepare_job(recipe: LanguageModelingArguments, args: IPUTrainingArguments) -> Job:
    """Model configuration, tokenizer and corpus. Raises ValueError for what does not go together."""
    config = find_config(recipe.model, SIZES, NO_DROPOUT)
    masked = is_masked(config, recipe.objective)
    check_architecture(recipe.model, config, masked)
    scratch = from_scratch(recipe.model, SIZES, recipe.from_scratch)
    own = own_tokenizer(recipe.model, SIZES)
    source = recipe.tokenizer or (own if own and has_tokenizer(own) else "")
    check_read(recipe, "mlm_probability", masked, f"{recipe.model} is causal, and masks no tokens")
    check_read(recipe, "vocab_size", not source, f"the tokenizer of {source} is there")
    overrides = parse_overrides(recipe.model_overrides)
    check_overrides(overrides, scratch)
    change_config(config, overrides)
    sequence_length = recipe.sequence_length or _default_length(recipe.model, config)
    check_shapes(config, 0, sequence_length)
    transformers.set_seed(args.seed)
    loaded = None if scratch else load_model(recipe.model, masked)  # refused before the corpus is read
    with args.main_process_first(local=False, desc="corpus"):
        corpus = prepare_corpus(recipe, source, masked, Path(args.output_dir) / "data", args.seed)
    check_shapes(config, 0 if scratch else len(corpus.tokenizer), sequence_length)
    ipu_config = load_profile(recipe.ipu_config).config if recipe.ipu_config else IPUConfig(output_mode="sum")
    return Job(recipe, args, config, ipu_config, corpus, sequence_length, masked, scratch, overrides, loaded)


def table(metrics: Dict[str, Any]) -> str:
    """What came out, as a person reads it."""
    rows = [
        f"{'validation':24}{metrics['num_tokens']:>12,} tokens of packages or folders not trained on, each weighed once",
        f"{'unigram perplexity':24}{metrics['unigram_perplexity']:>12,.1f}",
        f"{'perplexity':24}{metrics['perplexity']:>12,.2f}",
        f"{'nats a token':24}{metrics['nats_per_token']:>12.4f}",
    ]
    if "bits_per_byte" in metrics:
        rows.append(f"{'bits a byte':24}{metrics['bits_per_byte']:>12.4f}")
    return "\n".join(rows + [f"\n>>> {text}" for text in metrics["samples"]])


def model_card(run: Dict[str, Any], metrics: Dict[str, Any]) -> str:
    kind = "fill-mask" if run["masked"] else "text-generation"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {kind}\ntags: [language-modeling, ipu_trainer]\n---\n"
        f"# {run['model']}, {run['num_parameters']:,} parameters\n\nTrained by `ipu-trainer train language-modeling` on "
        f"{run['data']['train']['tokens']:,} tokens ({run['data']['settings']['corpus'] or 'installed Python code'}).\n\n"
        f"```\n{table(metrics)}\n```\n"
    )


def _result(final: Dict[str, float], baseline: float, corpus: Corpus, masked: bool) -> Dict[str, Any]:
    nats, count = final["eval_nats_per_token"], int(final["eval_num_tokens"])
    result: Dict[str, Any] = {
        "perplexity": final["eval_perplexity"],
        "nats_per_token": nats,
        "num_tokens": count,
        "unigram_perplexity": baseline,
        "eval_loss": final["eval_loss"],
    }
    if not masked:  # independent of the tokenizer
        told = corpus.about["validation"]
        result["bits_per_byte"] = nats / math.log(2) * told["tokens"] / told["bytes"]
    return result


def _default_length(model: str, config: Any) -> int:
    if is_small(model):
        return 128
    positions = int(getattr(config, "max_position_embeddings", 512))
    return positions - 2 if config.model_type in ("roberta", "camembert", "xlm-roberta") else positions


def _settings(recipe: LanguageModelingArguments, args: IPUTrainingArguments, job: Job) -> Dict[str, Any]:
    return {
        "task": "language-modeling",
        "model": recipe.model,
        "masked": job.masked,
        "sequence_length": job.sequence_length,
        "seed": args.seed,
        "data": job.corpus.about,
        "settings": {
            "recipe": dataclasses.asdict(recipe),
            "training": training_settings(args),
            "ipu_config": job.ipu_config.to_dict(),
        },
    }
