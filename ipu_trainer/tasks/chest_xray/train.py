"""The recipe: fine-tune an image model on prepared chest X-rays, choose thresholds on validation, evaluate on patients unseen.

    ipu-trainer train chest-xray --data PREPARED --model PATH_OR_HUB_ID --output RUN [any TrainingArguments flag]

Here is what is particular to the task: data, model, trainer, evaluation; recipe.py has the rest. Defaults were chosen by
patient-disjoint five-fold cross-validation on 1,050 NIH images (docs/chest_xray.md has the table).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np
from transformers import TrainerCallback

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset, PreparedChestXrays, load_prepared
from ipu_trainer.tasks.chest_xray.data.known_labels import prevalence, without_positive
from ipu_trainer.tasks.chest_xray.data.labels import label_source, pathologies
from ipu_trainer.tasks.chest_xray.evaluation import metrics as metric
from ipu_trainer.tasks.chest_xray.model.architectures import NEXT_MOVE, classifier_class, read_config
from ipu_trainer.tasks.chest_xray.model.checkpoint import load_finished, load_model
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import ChestXrayTrainer
from ipu_trainer.tasks.chest_xray.model.image_processor import write_processor
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, Normalisation, starting_normalisation
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.tasks.chest_xray.model.predictor import sigmoid
from ipu_trainer.tasks.chest_xray.recipe_arguments import (
    ChestXrayArguments,
    check_stochastic_depth,
    finding_loss,
    parse_arguments,
)
from ipu_trainer.tasks.chest_xray.report import artifacts
from ipu_trainer.tasks.chest_xray.report.html_report import METRIC, write_report
from ipu_trainer.tasks.pretrained import check_size
from ipu_trainer.tasks.recipe.recipe import Results, Rows, recipe_task
from ipu_trainer.tasks.run_record import run_settings
from ipu_trainer.training.arguments import IPUTrainingArguments


@dataclasses.dataclass
class ChestXrayRun:
    """A run before it has a model, as recipe.TaskRun says: flags are checked, the prepared data are open."""

    recipe: ChestXrayArguments
    args: IPUTrainingArguments
    data: PreparedChestXrays
    ipu_config: IPUConfig
    normalisation: Normalisation
    loss: FindingLoss
    settings: Dict[str, Any]
    train_set: ChestXrayDataset
    validation_set: ChestXrayDataset
    write_report: Optional[Callable[[Path], Path]]
    metrics: Sequence[str] = ("mean_auroc_14",)
    objective: Tuple[str, str] = ("eval_mean_auroc_14", "maximize")
    tracked: Any = METRIC
    sample_shape: Sequence[int] = ()
    input_notes: Tuple[str, ...] = ()
    model_notes: Tuple[str, ...] = ()

    def describe(self) -> Rows:
        images = (
            f"{len(self.train_set):,} training and {len(self.validation_set):,} validation images of {self.recipe.data}"
        )
        rows = [("data", images), ("labels", self._describe_labels())] if self.loss.masked else [("data", images)]
        never = without_positive(self.train_set.labels, self.data.findings)
        rows += (
            [("no positive", f"no training image is known to have {', '.join(never)}: not learned")] if never else []
        )
        notes = (*self.model_notes, *self.input_notes)
        checkpoint = [("checkpoint", "\n".join(notes))] if notes else []
        return [*rows, ("loss", self.loss.describe()), *checkpoint]

    def _describe_labels(self) -> str:
        labels = self.data.everything.labels
        unknown = int(np.isnan(labels).sum())
        return f"{unknown:,} of {labels.size:,} unknown (NaN): left out of loss, thresholds and metrics"

    def new_model(self) -> Any:
        rates = prevalence(self.train_set.labels)
        new = load_model(self.recipe.model, self.data.findings, rates, self.data.size, self.args.drop_path)
        self.model_notes = new.notes
        return new.model

    def trained_model(self, run_dir: Path) -> Any:
        return load_finished(run_dir)

    def trainer(self, **model: Any) -> ChestXrayTrainer:
        recipe = self.recipe
        trainer = ChestXrayTrainer(
            **model,
            args=self.args,
            ipu_config=self.ipu_config,
            train_dataset=self.train_set,
            eval_dataset=self.validation_set,
            data_collator=ChestXrayCollator(self.normalisation, recipe.augmentation, self.args.seed),
            compute_metrics=self._mean_auroc,
            finding_loss=self.loss,
            balance=recipe.balance,
            tail=recipe.tail,
        )
        trainer.add_callback(_PixelsChecked(self.data))
        return trainer

    def predict(self, trainer: ChestXrayTrainer) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """Probabilities of validation and, where there is one, of the test split, shape (images, findings)."""
        self.data.pixel_check.wait()
        test_set = self.data.split("test")
        validation = trainer.probabilities(self.validation_set)
        return validation, trainer.probabilities(test_set) if len(test_set) else None

    def results(self, trainer: ChestXrayTrainer, predicted: Tuple[np.ndarray, Optional[np.ndarray]]) -> Results:
        """Metrics of the test split, else of validation, with thresholds that were chosen on validation."""
        findings, (validation, tested) = self.data.findings, predicted
        truth = self.validation_set.labels
        thresholds = metric.choose_thresholds(truth, validation, findings)
        split = "validation" if tested is None else "test"
        subject, probability = self.data.split(split), validation if tested is None else tested
        metrics = {
            "split": split,
            **metric.evaluate_predictions(
                subject.labels,
                probability,
                findings,
                subject.table,
                thresholds,
                self.recipe.num_bootstrap,
                self.args.seed,
            ),
            "validation_mean_auroc_14": metric.mean_auroc(truth, validation, findings),
        }

        def write(run_dir: Path) -> None:
            write_processor(
                run_dir, self.recipe.model, self.data.size, self.data.manifest["resample"], *self.normalisation.values
            )
            artifacts.write_evaluation(run_dir, metrics, subject.labels, probability, findings, subject.table)

        return Results(metrics, write, {"thresholds": thresholds, "evaluated_split": split})

    def table(self, metrics: Mapping[str, Any]) -> str:
        return f"{metrics['split']} split\n{artifacts.metrics_table(metrics)}"

    def model_card(self, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
        return artifacts.model_card(record, metrics)

    def _mean_auroc(self, prediction: Any) -> Dict[str, float]:
        probability = sigmoid(np.asarray(prediction.predictions, dtype=np.float64))
        return {"mean_auroc_14": metric.mean_auroc(prediction.label_ids, probability, self.data.findings)}


class _PixelsChecked(TrainerCallback):
    """Ends a training whose stored pixels are damaged, as soon as that is found; all of them are compared once a process."""

    def __init__(self, data: PreparedChestXrays) -> None:
        self._data = data

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._data.pixel_check.raise_if_failed()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._data.pixel_check.raise_if_failed()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._data.pixel_check.wait()


def prepare(flags: Sequence[str]) -> ChestXrayRun:
    """Flags of `ipu-trainer train chest-xray` to a ChestXrayRun. Raises UserError for what does not go together."""
    recipe, args = parse_arguments(flags)
    config = read_config(recipe.model)
    check_size(classifier_class(config), recipe.model, config, NEXT_MOVE)
    notes = check_stochastic_depth(config, recipe.model, args, flags)
    data = load_prepared(recipe.data)
    train_set, validation_set = data.split("train"), data.split("validation")
    if not len(validation_set):
        raise UserError(
            f"{recipe.data} has no validation images, which thresholds are chosen on. Prepare it again with a larger "
            "--validation_fraction."
        )
    ipu_config = load_profile(args.ipu_config).config if args.ipu_config else IPUConfig()
    normalisation, input_notes = starting_normalisation(recipe.model, data.size, data.manifest["resample"])
    if np.isnan(train_set.labels).all():
        raise UserError(f"{recipe.data} has no known label in its training split, so there is nothing to learn.")
    loss = finding_loss(recipe, args, train_set, data.everything)
    settings = run_settings(
        "chest-xray",
        recipe,
        args,
        ipu_config,
        findings=data.findings,
        pathologies=pathologies(data.findings),
        split_method=data.manifest["split"]["method"],
        label_source=label_source(data.manifest.get("labels", {}).get("format")),
        synthetic_data=data.manifest["source"]["csv"].endswith("phantoms.csv"),
        data={
            "folder": recipe.data,
            "fingerprint": data.fingerprint,
            "size": data.size,
            "decoding": data.decoding.to_dict(),
        },
    )
    settings["settings"].update(
        loss=dataclasses.asdict(loss),
        augmentation=dataclasses.asdict(recipe.augmentation),
        normalisation=dataclasses.asdict(normalisation),
    )
    report = write_report if recipe.report else None
    return ChestXrayRun(
        recipe,
        args,
        data,
        ipu_config,
        normalisation,
        loss,
        settings,
        train_set,
        validation_set,
        report,
        input_notes=(*notes, *input_notes),
    )


RECIPE = recipe_task(prepare)
