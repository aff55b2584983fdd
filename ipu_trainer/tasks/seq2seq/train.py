"""The recipe: an encoder-decoder on pairs of fixed shape, scored by what it writes for packages it has not seen.

    ipu-trainer train seq2seq --output RUN [--pairs FILE.jsonl] [--model t5-small] [any Seq2SeqTrainingArguments flag]

It reads top to bottom: pairs, tokenizer and model, trainer, results.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import transformers

from ipu_trainer.atomic import write_json, write_text
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.tasks.curves import plot_training
from ipu_trainer.tasks.documents import drawn, fingerprint, shuffled, split_by_group, unique
from ipu_trainer.tasks.models import (
    change_config,
    check_overrides,
    find_config,
    from_scratch,
    own_tokenizer,
    parse_overrides,
)
from ipu_trainer.tasks.pages.run import report_or_reason
from ipu_trainer.tasks.python_code import installed_python
from ipu_trainer.tasks.record import RUN_FILE, resumable_checkpoint, training_settings, versions, write_history
from ipu_trainer.tasks.seq2seq.arguments import Seq2SeqArguments, parse_arguments
from ipu_trainer.tasks.seq2seq.metrics import baseline_texts, decoded, generation_metrics, text_scores
from ipu_trainer.tasks.seq2seq.model import NO_DROPOUT, SIZES, build_model, check_encoder_decoder, check_shapes
from ipu_trainer.tasks.seq2seq.page import write_report
from ipu_trainer.tasks.seq2seq.pairs import FixedShapePairs, Pair, docstring_pairs, read_pairs
from ipu_trainer.tasks.tokenizers import has_tokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments


def run(words: Sequence[str]) -> None:
    """`ipu-trainer train seq2seq`: parse, train, print."""
    recipe, args = parse_arguments(words)
    metrics = train(recipe, args)
    if metrics:
        print(f"\n{table(metrics)}\n\nmodel, metrics, predictions.csv, plots and report.html: {args.output_dir}")


def train(recipe: Seq2SeqArguments, args: IPUSeq2SeqTrainingArguments) -> Dict[str, Any]:
    """Run the recipe; returns what metrics.json holds. Raises ValueError for input that cannot work, before training."""
    run_dir = Path(args.output_dir)
    config = find_config(recipe.model, SIZES, NO_DROPOUT)
    check_encoder_decoder(recipe.model, config)
    scratch = from_scratch(recipe.model, SIZES, recipe.from_scratch)
    overrides = parse_overrides(recipe.model_overrides)
    check_overrides(overrides, scratch)
    change_config(config, overrides)
    lengths = (recipe.source_length, recipe.target_length)
    check_shapes(config, 0, lengths)
    train_pairs, validation_pairs = split_pairs(recipe, args.seed)
    own = own_tokenizer(recipe.model, SIZES)
    source = recipe.tokenizer or (own if own and has_tokenizer(own) else "")
    if source:
        tokenizer = load_tokenizer(source)
    else:
        texts = (text for pair in train_pairs for text in (pair.source, pair.target))
        tokenizer = train_tokenizer(texts, recipe.vocab_size, "RobertaTokenizer")
    ipu_config = load_profile(recipe.ipu_config).config if recipe.ipu_config else IPUConfig(output_mode="sum")
    settings = _settings(recipe, args, ipu_config, train_pairs, validation_pairs)
    checkpoint = resumable_checkpoint(run_dir, args, settings)

    transformers.set_seed(args.seed)
    model = build_model(recipe.model, config, tokenizer, lengths, scratch, overrides)
    train_set = FixedShapePairs(train_pairs, tokenizer, *lengths, recipe.source_prefix)
    validation_set = FixedShapePairs(validation_pairs, tokenizer, *lengths, recipe.source_prefix)
    trainer = IPUSeq2SeqTrainer(
        model=model,
        args=args,
        ipu_config=ipu_config,
        train_dataset=train_set,
        eval_dataset=validation_set,
        processing_class=tokenizer,
        compute_metrics=generation_metrics(tokenizer) if args.predict_with_generate else None,
    )
    references = [pair.target for pair in validation_pairs]
    baseline = text_scores(baseline_texts(validation_pairs), references)
    record = {
        "status": "running",
        **settings,
        "num_parameters": model.num_parameters(),
        "backend": {**trainer.backend.describe(), "torch_device": str(args.device)},
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
        print(f"baseline    words of the name: BLEU {baseline['bleu']:.1f}, chrF {baseline['chrf']:.1f}")
        if checkpoint:
            print(f"resuming from {checkpoint}")
        write_json(run_dir / RUN_FILE, record)

    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
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
    record["status"] = "finished"
    write_json(run_dir / RUN_FILE, record)
    report_or_reason(write_report, run_dir)
    return result


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


def _settings(
    recipe: Seq2SeqArguments,
    args: IPUSeq2SeqTrainingArguments,
    ipu_config: IPUConfig,
    train_pairs: Sequence[Pair],
    validation_pairs: Sequence[Pair],
) -> Dict[str, Any]:
    return {
        "task": "seq2seq",
        "model": recipe.model,
        "seed": args.seed,
        "data": {
            "pairs": len(train_pairs),
            "groups": sorted({pair.group for pair in train_pairs})[:50],
            "fingerprint": fingerprint([*train_pairs, *validation_pairs]),
        },
        "settings": {
            "recipe": dataclasses.asdict(recipe),
            "training": training_settings(args),
            "ipu_config": ipu_config.to_dict(),
        },
    }
