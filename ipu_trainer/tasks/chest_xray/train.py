"""The recipe: fine-tune a ViT on prepared chest X-rays, choose thresholds on validation, evaluate on patients unseen.

    ipu-trainer train chest-xray --data PREPARED --model PATH_OR_HUB_ID --output RUN [any TrainingArguments flag]

It reads top to bottom: training and its results, then what is decided before: data, model, trainer. Defaults were chosen
by patient-disjoint five-fold cross-validation on 1,050 NIH images (docs/chest_xray.md has the table).
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Dict, Sequence

import numpy as np
import transformers

from ipu_trainer.atomic import write_text
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset, PreparedChestXrays, load_prepared
from ipu_trainer.tasks.chest_xray.data.transforms import ChestXrayCollator, Normalisation, load_normalisation
from ipu_trainer.tasks.chest_xray.evaluation import metrics as metric
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import ChestXrayTrainer, sigmoid
from ipu_trainer.tasks.chest_xray.model.classifier import (
    load_finished,
    load_model,
    load_processor,
    read_config,
)
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.tasks.chest_xray.recipe_arguments import ChestXrayArguments, finding_loss, parse_arguments
from ipu_trainer.tasks.chest_xray.report import artifacts as report
from ipu_trainer.tasks.chest_xray.report.html_report import write_report
from ipu_trainer.tasks.chest_xray.run_settings import resolved_settings
from ipu_trainer.tasks.recipe.early_checks import checked
from ipu_trainer.tasks.recipe.fit_warning import feasibility_check, fit_warning, warn
from ipu_trainer.tasks.recipe.run_record import (
    RUNNING,
    begin_run,
    finish_run,
    resumable_checkpoint,
    train_or_restore,
    trained_record,
    versions,
    write_history,
)
from ipu_trainer.tasks.reporting.curves import plot_training
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, report_or_reason
from ipu_trainer.tasks.search.search_command import Searched
from ipu_trainer.training.acceleration.choices import describe_acceleration
from ipu_trainer.training.acceleration.precision import used_precision
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.monitor import watch
from ipu_trainer.training.tracking import experiment_tracker_hint

METRICS = ("mean_auroc_14",)  # of _watch


def run(words: Sequence[str]) -> None:
    """`ipu-trainer train chest-xray`: parse, train, print."""
    recipe, args = parse_arguments(words)
    metrics = train(recipe, args)
    if metrics:
        table = report.metrics_table(metrics)
        print(f"\n{metrics['split']} split\n{table}\n\nmodel, metrics and plots: {args.output_dir}")
        if recipe.report:
            print(f"to read: {Path(args.output_dir) / REPORT_FILE}")


def train(recipe: ChestXrayArguments, args: IPUTrainingArguments) -> Dict[str, Any]:
    """Run the recipe; returns what metrics.json holds. Raises ValueError for input that cannot work, before training."""
    run_dir = Path(args.output_dir)
    job = prepare_job(recipe, args)
    data, validation_set = job.data, job.validation_set
    checkpoint = resumable_checkpoint(run_dir, args, job.settings)
    trained = trained_record(run_dir, args)
    model = job.new_model() if trained is None else load_finished(run_dir)
    trainer = job.trainer(model=model)
    watch(trainer)
    table = trainer.batch_table(trainer.epoch_plan)
    record = trained or {
        "status": RUNNING,
        **job.settings,
        "backend": {**trainer.backend.describe(), "torch_device": str(args.device)},
        "precision": dataclasses.asdict(used_precision(recipe.precision, args)),
        "versions": versions(),
        "batch_table": table,
    }
    if trainer.is_world_process_zero():
        print(table)
        where = trainer.backend.device if trainer.backend.has_executors else args.device
        print(f"backend    {trainer.backend.name} on {where} ({trainer.backend.reason})")
        print(f"precision  {record['precision']['name']} ({record['precision']['reason']})")
        print(f"speed      {describe_acceleration(args, trainer.backend.has_executors, trainer.model)}")
        print(f"loss       {job.loss.describe()}")
        print(f"live view  {experiment_tracker_hint(args.report_to, args.output_dir)}")
        if trained or checkpoint:
            print(f"resuming from {'the trained weights' if trained else checkpoint}")
        begin_run(run_dir, record)
        if recipe.ipu_config:
            warn(fit_warning(model, job.ipu_config, args))

    train_or_restore(trainer, record, checkpoint)
    validation = trainer.probabilities(validation_set)
    thresholds = metric.choose_thresholds(validation_set.labels, validation, data.findings)
    test_set = data.split("test")
    evaluated = "test" if len(test_set) else "validation"
    subject = test_set if len(test_set) else validation_set
    probability = trainer.probabilities(test_set) if len(test_set) else validation
    if not trainer.is_world_process_zero():
        return {}
    result = {
        "split": evaluated,
        **metric.evaluate_predictions(
            subject.labels, probability, data.findings, subject.table, thresholds, recipe.num_bootstrap, args.seed
        ),
        "validation_mean_auroc_14": metric.mean_auroc(validation_set.labels, validation, data.findings),
    }
    load_processor(recipe.model).save_pretrained(run_dir)
    report.write_evaluation(run_dir, result, subject.labels, probability, data.findings, subject.table)
    write_history(run_dir, trainer.state.log_history)
    plot_training(
        run_dir / "plots" / "training.png",
        trainer.state.log_history,
        "eval_mean_auroc_14",
        "validation AUROC, macro mean",
    )
    results = {"thresholds": thresholds, "evaluated_split": evaluated}
    write_text(run_dir / "README.md", report.model_card({**record, **results}, result))
    page = functools.partial(report_or_reason, write_report) if recipe.report else None
    finish_run(run_dir, record, page, **results)
    return result


def searched(words: Sequence[str]) -> Searched:
    """What `ipu-trainer search chest-xray` varies: the recipe's trainer, which makes a model for each trial."""
    recipe, args = parse_arguments(words)
    job = prepare_job(recipe, args)
    trainer = job.trainer(model_init=job.new_model)
    told = f"{len(job.train_set):,} training and {len(job.validation_set):,} validation images of {recipe.data}"
    return Searched(trainer, "eval_mean_auroc_14", "maximize", told, job.settings, feasibility_check(trainer), METRICS)


@dataclasses.dataclass
class Job:
    """What the recipe decides before a model is made: checked, with the prepared data opened."""

    recipe: ChestXrayArguments
    args: IPUTrainingArguments
    data: PreparedChestXrays
    ipu_config: IPUConfig
    normalisation: Normalisation
    loss: FindingLoss
    settings: Dict[str, Any]
    train_set: ChestXrayDataset
    validation_set: ChestXrayDataset

    def new_model(self) -> Any:
        transformers.set_seed(self.args.seed)
        model = load_model(self.recipe.model, self.data.findings, self.train_set.labels.mean(axis=0))
        transformers.set_seed(self.args.seed)  # a trial then draws as a run, whose trainer begins with this seed
        return model

    def trainer(self, **model: Any) -> ChestXrayTrainer:
        """model: model= or model_init=."""
        recipe = self.recipe
        trainer = ChestXrayTrainer(
            **model,
            args=self.args,
            ipu_config=self.ipu_config,
            train_dataset=self.train_set,
            eval_dataset=self.validation_set,
            data_collator=ChestXrayCollator(self.normalisation, recipe.augmentation, self.args.seed),
            compute_metrics=_watch(self.data.findings),
            finding_loss=self.loss,
            balance=recipe.balance,
            tail=recipe.tail,
        )
        return checked(trainer, METRICS)  # type: ignore[no-any-return]  # what it was given


def prepare_job(recipe: ChestXrayArguments, args: IPUTrainingArguments) -> Job:
    """Model, data, normalisation and loss. Raises ValueError for what does not go together."""
    read_config(recipe.model)
    data = load_prepared(recipe.data)
    train_set, validation_set = data.split("train"), data.split("validation")
    if not len(validation_set):
        raise ValueError(
            f"{recipe.data} has no validation images, which thresholds are chosen on. Prepare it again with a larger "
            "--validation-fraction."
        )
    config = load_profile(recipe.ipu_config).config if recipe.ipu_config else IPUConfig()
    normalisation = load_normalisation(recipe.model, data.size, data.manifest["resample"])
    loss = finding_loss(recipe, args, train_set)
    settings = resolved_settings(recipe, args, config, data, normalisation, loss)
    return Job(recipe, args, data, config, normalisation, loss, settings, train_set, validation_set)


def _watch(findings: Sequence[str]) -> Any:
    def compute(prediction: Any) -> Dict[str, float]:
        probability = sigmoid(np.asarray(prediction.predictions, dtype=np.float64))
        return {"mean_auroc_14": metric.mean_auroc(prediction.label_ids, probability, findings)}

    return compute
