"""The recipe: fine-tune a ViT on prepared chest X-rays, choose thresholds on validation, evaluate on patients unseen.

    ipu-trainer train chest-xray --data PREPARED --model PATH_OR_HUB_ID --output RUN [any TrainingArguments flag]

It reads top to bottom: arguments, data, model, trainer, results. Defaults were chosen by patient-disjoint five-fold
cross-validation on 1,050 NIH images (docs/chest_xray.md has the table).
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, TrainerCallback, ViTForImageClassification

import ipu_trainer
from ipu_trainer.atomic import write_json, write_text
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import Profile, load_profile
from ipu_trainer.tasks.chest_xray import metrics as metric
from ipu_trainer.tasks.chest_xray import report
from ipu_trainer.tasks.chest_xray.dataset import ChestXrayDataset, PreparedChestXrays, load_prepared
from ipu_trainer.tasks.chest_xray.labels import pathologies
from ipu_trainer.tasks.chest_xray.losses import FindingLoss, inverse_frequency
from ipu_trainer.tasks.chest_xray.sampler import FindingBatchSampler
from ipu_trainer.tasks.chest_xray.splits import SPLITS
from ipu_trainer.tasks.chest_xray.transforms import (
    NO_AUGMENTATION,
    Augmentation,
    ChestXrayCollator,
    Normalisation,
    load_normalisation,
)
from ipu_trainer.training import compat
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.checkpoints import last_complete_checkpoint
from ipu_trainer.training.precision import Precision, choose_precision
from ipu_trainer.training.trainer import IPUTrainer

RUN_FILE = "run.json"
# Pairs of one micro-batch make the ranking loss; fewer samples than this give it too few.
_SMALLEST_RANKED_MICRO_BATCH = 8
_RECIPE = compat.training_defaults(
    num_train_epochs=20.0,
    learning_rate=4e-4,
    weight_decay=0.05,
    warmup_ratio=0.1,
    lr_scheduler_type="cosine",
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=2,
    save_safetensors=True,
    logging_steps=10,
    per_device_eval_batch_size=64,
    remove_unused_columns=False,
    dataloader_pin_memory=torch.cuda.is_available(),
    report_to=["none"],
)
_OWN_RECIPE = {"layer_decay": 0.65, "head_learning_rate_factor": 5.0, "drop_path": 0.1}


@dataclass
class ChestXrayArguments:
    """What the recipe takes besides IPUTrainingArguments."""

    data: str = field(metadata={"help": "Folder made by `ipu-trainer prepare chest-xray`."})
    model: str = field(metadata={"help": "Model folder or Hub id, with its preprocessor_config.json."})
    ipu_config: Optional[str] = field(default=None, metadata={"help": "Profile name, ipu_config.json or folder."})
    precision: str = field(default="auto", metadata={"help": "auto, bf16 or fp32; auto takes bf16 where it is fast."})
    loss: str = field(default="bce", metadata={"help": "bce or asymmetric."})
    ranking_weight: Optional[float] = field(
        default=None,
        metadata={"help": "Share of the pairwise ranking loss; default 0.5, or 0 for micro-batches below 8."},
    )
    pos_weight: bool = field(default=False, metadata={"help": "Weigh positives by inverse frequency (at most 20)."})
    balance: float = field(default=0.0, metadata={"help": "0 to 1: how far rare findings are drawn more often."})
    tail: str = field(default="drop", metadata={"help": "drop or pad what does not fill the last host step."})
    augment: bool = field(default=True, metadata={"help": "Augment training pictures."})
    rotation_degrees: float = field(default=Augmentation.rotation_degrees, metadata={"help": "Largest rotation."})
    scale: float = field(default=Augmentation.scale, metadata={"help": "Largest relative zoom."})
    aspect: float = field(default=Augmentation.aspect, metadata={"help": "Largest relative change of aspect."})
    shift: float = field(default=Augmentation.shift, metadata={"help": "Largest shift, as a share of the side."})
    brightness: float = field(default=Augmentation.brightness, metadata={"help": "Largest brightness offset."})
    contrast: float = field(default=Augmentation.contrast, metadata={"help": "Largest relative contrast change."})
    gamma: float = field(default=Augmentation.gamma, metadata={"help": "Largest relative gamma."})
    erasing: float = field(default=Augmentation.erasing, metadata={"help": "Probability of one erased rectangle."})
    horizontal_flip: bool = field(default=False, metadata={"help": "Flip left and right (dextrocardia: off)."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Patient-bootstrap replicates for intervals."})

    @property
    def augmentation(self) -> Augmentation:
        if not self.augment:
            return NO_AUGMENTATION
        names = [item.name for item in dataclasses.fields(Augmentation)]
        return Augmentation(**{name: getattr(self, name) for name in names})


def parse_arguments(argv: Sequence[str]) -> Tuple[ChestXrayArguments, IPUTrainingArguments]:
    """Command-line flags to arguments, the recipe's defaults in place of Trainer's.

    The micro-batch, unless given, is the profile's published one, or 32, or what a smaller training set allows.
    """
    parser = HfArgumentParser([ChestXrayArguments, IPUTrainingArguments], prog="ipu-trainer train chest-xray")
    parser.set_defaults(**_RECIPE, **_OWN_RECIPE, per_device_train_batch_size=0)
    renamed = [_field_flag(word) for word in argv]
    if not any(word.split("=")[0] == "--output_dir" for word in renamed) and not _asks_help(argv):
        raise ValueError("--output RUN is missing: the folder for checkpoints and results.")
    namespace, unknown = parser.parse_known_args(renamed)
    if unknown:
        raise ValueError(f"unknown flags {' '.join(unknown)}. `ipu-trainer train chest-xray --help` lists them.")
    values = vars(namespace)
    names = {item.name for item in dataclasses.fields(ChestXrayArguments)}
    recipe = ChestXrayArguments(**{name: value for name, value in values.items() if name in names})
    if not values["per_device_train_batch_size"]:
        values["per_device_train_batch_size"] = _default_micro_batch(recipe)
    values["bf16"] = _takes_bf16(recipe.precision, values)
    args_names = {item.name for item in dataclasses.fields(IPUTrainingArguments) if item.init}
    args = IPUTrainingArguments(**{name: value for name, value in values.items() if name in args_names})
    return recipe, args


def train(recipe: ChestXrayArguments, args: IPUTrainingArguments) -> Dict[str, Any]:
    """Run the recipe; returns what metrics.json holds. Raises ValueError for input that cannot work, before training."""
    run_dir = Path(args.output_dir)
    data = load_prepared(recipe.data)
    train_set, validation_set = data.split("train"), data.split("validation")
    if not len(validation_set):
        raise ValueError(
            f"{recipe.data} has no validation images, which thresholds are chosen on. Prepare it again with a larger "
            "--validation-fraction."
        )
    profile = load_profile(recipe.ipu_config) if recipe.ipu_config else None
    config = profile.config if profile else IPUConfig()
    normalisation = load_normalisation(recipe.model, data.size, data.manifest["resample"])
    loss = _loss(recipe, args, train_set)
    settings = _resolved(recipe, args, config, data, normalisation, loss)
    checkpoint = _may_resume(run_dir, args, settings)

    transformers.set_seed(args.seed)
    model = _load_model(recipe.model, data.findings, train_set.labels.mean(axis=0))
    collator = ChestXrayCollator(normalisation, recipe.augmentation, args.seed)
    trainer = ChestXrayTrainer(
        model=model,
        args=args,
        ipu_config=config,
        train_dataset=train_set,
        eval_dataset=validation_set,
        data_collator=collator,
        compute_metrics=_watch(data.findings),
        finding_loss=loss,
        balance=recipe.balance,
        tail=recipe.tail,
    )
    table = trainer.batch_table(trainer.train_sampler.plan)
    record = {
        "status": "running",
        **settings,
        "backend": {"name": trainer.backend.name, "reason": trainer.backend.reason, "device": str(args.device)},
        "precision": dataclasses.asdict(_precision(recipe, args)),
        "versions": _versions(),
        "batch_table": table,
    }
    if trainer.is_world_process_zero():
        print(table)
        print(f"backend    {trainer.backend.name} on {args.device} ({trainer.backend.reason})")
        print(f"precision  {record['precision']['name']} ({record['precision']['reason']})")
        print(f"loss       {loss.describe()}")
        if checkpoint:
            print(f"resuming from {checkpoint}")
        write_json(run_dir / RUN_FILE, record)

    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
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
    normalised_processor(recipe.model).save_pretrained(run_dir)
    report.write_evaluation(run_dir, result, subject.labels, probability, data.findings, subject.table)
    report.plot_training(run_dir / "plots" / "training.png", trainer.state.log_history)
    record.update(status="finished", thresholds=thresholds, evaluated_split=evaluated)
    write_text(run_dir / "README.md", report.model_card(record, result))
    write_json(run_dir / RUN_FILE, record)
    return result


class ChestXrayTrainer(IPUTrainer):
    """IPUTrainer with the task's loss and its batch sampler.

    compute_loss: finding_loss of the logits. get_train_dataloader: whole host steps from FindingBatchSampler, already
    shared out over the processes. Everything else is IPUTrainer's.
    """

    def __init__(
        self, *positional: Any, finding_loss: FindingLoss, balance: float = 0.0, tail: str = "drop", **named: Any
    ) -> None:
        super().__init__(*positional, **named)
        self.finding_loss = finding_loss
        geometry, copies = self.batch_geometry, max(1, self.args.n_gpu)
        self.train_sampler = FindingBatchSampler(
            self.train_dataset.labels,
            # Several GPUs of one process (DataParallel) share out one batch: the micro-batches of all of them.
            dataclasses.replace(
                geometry, micro_batch=geometry.micro_batch * copies, replicas=geometry.replicas // copies
            ),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            balance=balance,
            tail=tail,
            process_index=self.args.process_index,
            num_processes=self.args.world_size,
        )
        self.add_callback(_SamplerEpoch(self.train_sampler))

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
        labels = inputs["labels"]
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        loss = self.finding_loss(logits, labels)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def get_train_dataloader(self) -> Any:
        args = self.args
        workers: Dict[str, Any] = {}
        if args.dataloader_num_workers:
            workers["persistent_workers"] = getattr(args, "dataloader_persistent_workers", False)
            workers["prefetch_factor"] = getattr(args, "dataloader_prefetch_factor", None) or 2
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            **workers,
        )

    def probabilities(self, dataset: ChestXrayDataset) -> np.ndarray:
        """float64 (num_images, num_findings): sigmoid of the logits."""
        logits = self.predict(dataset).predictions
        return _sigmoid(np.asarray(logits, dtype=np.float64))


def evaluate(run_dir: Path, data_dir: Path, split: str, output: Path, num_bootstrap: int = 1000) -> Dict[str, Any]:
    """Evaluate a finished run on a split of any prepared data set; findings are matched by name.

    Findings that the model does not know are named in the result; those that the data never shows are undefined.
    """
    record = read_run(run_dir)
    data = load_prepared(data_dir)
    subject = data.split(split)
    if not len(subject):
        raise ValueError(f"the {split} split of {data_dir} is empty. Evaluate another of {', '.join(SPLITS)}, all.")
    findings: List[str] = record["findings"]
    normalisation = load_normalisation(run_dir, data.size, data.manifest["resample"])
    model = ViTForImageClassification.from_pretrained(str(run_dir))
    precision = choose_precision(record["settings"]["recipe"]["precision"], False)
    args = IPUTrainingArguments(
        output_dir=str(output),
        per_device_eval_batch_size=64,
        bf16=precision.name == "bf16",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=["none"],
        seed=record["seed"],
    )
    trainer = IPUTrainer(model=model, args=args, data_collator=_PicturesOnly(ChestXrayCollator(normalisation)))
    known = [name for name in findings if name in data.findings]
    truth = np.zeros((len(subject), len(findings)), dtype=np.float32)
    for name in known:
        truth[:, findings.index(name)] = subject.labels[:, data.findings.index(name)]
    logits = trainer.predict(subject).predictions
    probability = _sigmoid(np.asarray(logits, dtype=np.float64))
    thresholds = {name: _nan_if_none(value) for name, value in record["thresholds"].items()}
    result = {
        "split": split,
        "run": str(run_dir),
        "data_fingerprint": data.fingerprint,
        "findings_unknown_to_the_model": [name for name in data.findings if name not in findings],
        **metric.evaluate_predictions(
            truth, probability, findings, subject.table, thresholds, num_bootstrap, record["seed"]
        ),
    }
    report.write_evaluation(output, result, truth, probability, findings, subject.table)
    return result


def read_run(run_dir: Path) -> Dict[str, Any]:
    """run.json of a finished run. Raises ValueError if there is none."""
    path = Path(run_dir) / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{run_dir} holds no run ({RUN_FILE} is missing). Make one: ipu-trainer train chest-xray ...")
    record: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("status") != "finished":
        raise ValueError(f"the run in {run_dir} is not finished. Give the same train command again: it resumes.")
    return record


def normalised_processor(model: str) -> Any:
    """The model's image processor, saved beside the weights so that the run is a complete model folder."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(model)


class _PicturesOnly:
    """Leaves the labels out: those of another data set may be of other findings than the model's outputs."""

    def __init__(self, collator: ChestXrayCollator) -> None:
        self.collator = collator

    def __call__(self, samples: Any) -> Dict[str, torch.Tensor]:
        return {"pixel_values": self.collator(samples)["pixel_values"]}


class _SamplerEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler which epoch begins; the stock loop reaches only samplers of its own making, on some versions."""

    def __init__(self, sampler: FindingBatchSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


def _default_micro_batch(recipe: ChestXrayArguments) -> int:
    profile: Optional[Profile] = load_profile(recipe.ipu_config) if recipe.ipu_config else None
    if profile is not None and profile.micro_batch is not None:
        return profile.micro_batch
    num_samples = len(load_prepared(recipe.data).split("train"))
    return min(32, 1 << max(0, num_samples.bit_length() - 1))


def _loss(recipe: ChestXrayArguments, args: IPUTrainingArguments, train_set: ChestXrayDataset) -> FindingLoss:
    micro_batch = args.per_device_train_batch_size
    weight = recipe.ranking_weight
    if weight is None:
        weight = 0.5 if micro_batch >= _SMALLEST_RANKED_MICRO_BATCH else 0.0
    elif weight and micro_batch < 2:
        raise ValueError(
            f"ranking_weight {weight} compares samples of a micro-batch, but the micro-batch is {micro_batch}. "
            "Use --ranking_weight 0, or a --per_device_train_batch_size of at least 2 (8 works well)."
        )
    pos_weight = inverse_frequency(train_set.labels) if recipe.pos_weight else None
    return FindingLoss(recipe.loss, weight, pos_weight)


def _load_model(source: str, findings: Sequence[str], prevalence: np.ndarray) -> Any:
    """A ViT with one output a finding; a new head starts at each finding's prevalence."""
    names = dict(enumerate(findings))
    model, loading = ViTForImageClassification.from_pretrained(
        source,
        num_labels=len(findings),
        id2label=names,
        label2id={name: position for position, name in names.items()},
        problem_type="multi_label_classification",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model = model.float()
    fresh = set(loading["missing_keys"]) | {str(item[0]) for item in loading["mismatched_keys"]}
    if "classifier.bias" in fresh:
        rate = torch.as_tensor(np.clip(prevalence, 0.005, 0.99), dtype=torch.float32)
        with torch.no_grad():
            model.classifier.bias.copy_(torch.logit(rate))
    return model


def _may_resume(run_dir: Path, args: IPUTrainingArguments, settings: Dict[str, Any]) -> Optional[str]:
    """The checkpoint to go on from. Raises ValueError if the folder holds a finished or a different run."""
    path = run_dir / RUN_FILE
    if args.resume_from_checkpoint and args.resume_from_checkpoint not in ("True", "true"):
        return str(args.resume_from_checkpoint)
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("status") == "finished":
        raise ValueError(f"{run_dir} holds a finished run. Give another --output, or remove it.")
    then, now = record.get("settings", {}), json.loads(json.dumps(settings["settings"], default=str))
    changed = sorted(
        name
        for group in ("recipe", "training")
        for name in set(then.get(group, {})) | set(now[group])
        if then.get(group, {}).get(name) != now[group].get(name)
    )
    if record.get("data", {}).get("fingerprint") != settings["data"]["fingerprint"]:
        changed.append("data")
    if changed:
        raise ValueError(
            f"{run_dir} holds an interrupted run with other settings ({', '.join(changed)}). "
            "Give the same command to go on, or another --output."
        )
    return last_complete_checkpoint(run_dir)


def _resolved(
    recipe: ChestXrayArguments,
    args: IPUTrainingArguments,
    config: IPUConfig,
    data: PreparedChestXrays,
    normalisation: Normalisation,
    loss: FindingLoss,
) -> Dict[str, Any]:
    """What run.json says of a run before it starts."""
    training = {
        name: value
        for name, value in args.to_dict().items()
        if name not in ("resume_from_checkpoint", "logging_dir", "local_rank", "hub_token", "push_to_hub_token")
    }
    return {
        "task": "chest-xray",
        "model": recipe.model,
        "findings": data.findings,
        "pathologies": pathologies(data.findings),
        "seed": args.seed,
        "split_method": data.manifest["split"]["method"],
        "synthetic_data": data.manifest["source"]["csv"].endswith("phantoms.csv"),
        "data": {"folder": recipe.data, "fingerprint": data.fingerprint, "size": data.size},
        "settings": {
            "recipe": dataclasses.asdict(recipe),
            "training": training,
            "ipu_config": config.to_dict(),
            "loss": dataclasses.asdict(loss),
            "augmentation": dataclasses.asdict(recipe.augmentation),
            "normalisation": dataclasses.asdict(normalisation),
        },
    }


def _takes_bf16(requested: str, values: Mapping[str, Any]) -> bool:
    """Whether to set Trainer's bf16. Its own flags --bf16 and --fp16 stand in for --precision auto."""
    flags = [name for name in ("bf16", "fp16") if values.get(name)]
    if flags and requested not in ("auto", flags[0]):
        raise ValueError(f"--precision {requested} and --{flags[0]} contradict each other. Give one of them.")
    if flags:
        return "bf16" in flags
    return choose_precision(requested, bool(values.get(compat.field_name("use_cpu")))).name == "bf16"


def _precision(recipe: ChestXrayArguments, args: IPUTrainingArguments) -> Precision:
    chosen = choose_precision(recipe.precision, args.device.type == "cpu")
    used = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    return chosen if chosen.name == used else Precision(used, f"--{used}")


def _watch(findings: Sequence[str]) -> Any:
    def compute(prediction: Any) -> Dict[str, float]:
        probability = _sigmoid(np.asarray(prediction.predictions, dtype=np.float64))
        return {"mean_auroc_14": metric.mean_auroc(prediction.label_ids, probability, findings)}

    return compute


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def _nan_if_none(value: Optional[float]) -> float:
    return float("nan") if value is None else float(value)


def _field_flag(word: str) -> str:
    """--ipu-config and --ipu_config are one flag, --output is Trainer's --output_dir."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    flag = "--" + flag[2:].replace("-", "_")
    return ("--output_dir" if flag == "--output" else flag) + equals + value


def _asks_help(argv: Sequence[str]) -> bool:
    return "-h" in argv or "--help" in argv


def _versions() -> Dict[str, str]:
    import accelerate
    import datasets

    return {
        "ipu_trainer": ipu_trainer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "datasets": datasets.__version__,
        "numpy": np.__version__,
        "platform": sys.platform,
    }
