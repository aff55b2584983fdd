"""What `ipu-trainer` does for chest X-rays: prepare, phantoms, train, search, evaluate and report."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from ipu_trainer.errors import MissingFileError, UserError
from ipu_trainer.tasks import folders
from ipu_trainer.tasks.folders import data_to_read, find_data
from ipu_trainer.tasks.output_guard import check_output_file, is_page, is_prediction_table
from ipu_trainer.tasks.task import Task

# NIH's data in the folder of Graphcore's tutorial: the table, the lists and images/.
FOLDER = "chest-xray-nihcc"
# The exit code of a command that left out files it could not read; the others have their results.
SOME_SKIPPED = 3
_MOST_NAMED = 20
_IMAGES_ON_PAGE = 24
TABLES = tuple(f"{FOLDER}/Data_Entry_2017{version}.csv{packed}" for version in ("_v2020", "") for packed in ("", ".gz"))
LISTS = {"train_val_list": f"{FOLDER}/train_val_list.txt", "test_list": f"{FOLDER}/test_list.txt"}


def default_paths(
    given: Dict[str, Optional[Path]], split: Optional[str], label_format: str = "auto"
) -> Dict[str, Path]:
    """Paths for the flags of `prepare` that are missing in given (csv, images, train_val_list, test_list).

    The lists are used if none of the four is given, both lists exist, and split is None or "official". A folder of images that
    holds its labels too needs no csv. Raises UserError if there is no table or no image folder.
    """
    from ipu_trainer.tasks.chest_xray.data.label_formats.recognition import label_files

    found: Dict[str, Path] = {}
    if given["images"] is not None and not given["images"].is_dir():
        raise UserError(f"--images {given['images']} is not a folder. Give the folder that holds the image files.")
    if given["csv"] is None:
        table = find_data(*TABLES)
        if given["images"] is None:
            found["csv"] = table or data_to_read("--csv", TABLES[0])
        else:
            try:
                label_files(given["images"], label_format)
            except MissingFileError:
                if table is None:
                    raise
                found["csv"] = table
    if given["images"] is None:
        found["images"] = data_to_read("--images", f"{FOLDER}/images")
    lists = {name: find_data(path) for name, path in LISTS.items()}
    if not any(given.values()) and split in (None, "official") and all(lists.values()):
        found.update({name: path for name, path in lists.items() if path is not None})
    return found


def _prepare(flags: Sequence[str]) -> int:
    from ipu_trainer.tasks.chest_xray.data.label_formats.recognition import FORMATS
    from ipu_trainer.tasks.chest_xray.data.prepare import prepare
    from ipu_trainer.tasks.chest_xray.data.prepare_settings import PrepareSettings

    parser = argparse.ArgumentParser(
        prog="ipu-trainer prepare chest-xray", description="Check, split and decode a data set once."
    )
    parser.add_argument(
        "--csv",
        type=Path,
        help="label table or metadata.jsonl (default: what --images holds, else that of chest-xray-nihcc)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder with the image files, as the data set ships it (default: beside chest-xray-nihcc's table)",
    )
    parser.add_argument("--dataset", help="instead of both: a Hugging Face data set, a folder or a name")
    parser.add_argument("--format", default="auto", help=f"of the labels: {', '.join(FORMATS)} (default auto)")
    parser.add_argument(
        "--uncertain", default="ignore", help="what -1 is: ignore (unknown, the default), zeros or ones"
    )
    parser.add_argument(
        "--blank", default="ignore", help="what a finding is that a report leaves out: ignore (unknown) or zeros"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the prepared data set (default: DATASETS_DIR/chest-xray)"
    )
    parser.add_argument("--train_val_list", type=Path, help="NIH's train_val_list.txt")
    parser.add_argument("--test_list", type=Path, help="NIH's test_list.txt")
    parser.add_argument("--size", type=int, default=224, help="side in pixels (default 224)")
    parser.add_argument("--resample", default="bilinear", help="nearest, bilinear (default), bicubic or lanczos")
    parser.add_argument(
        "--window",
        default="auto",
        help="DICOM and 16-bit images to 8 bits: auto (default), voi, percentile or full (docs/dicom.md)",
    )
    parser.add_argument("--workers", type=int, default=0, help="decoding processes (default: one for each core)")
    parser.add_argument("--in_place", action="store_true", help="also write metadata.jsonl beside the images")
    parser.add_argument("--only_present", action="store_true", help="leave out rows whose image is not there")
    parser.add_argument("--skip_bad", action="store_true", help="go on without rejected rows and files")
    parser.add_argument(
        "--split", help="official (lists), given, by-patient, by-study, by-image, random-images (misleading)"
    )
    parser.add_argument("--validation_fraction", type=float, default=0.1, help="share of patients (default 0.1)")
    parser.add_argument(
        "--test_fraction", type=float, default=0.1, help="share of patients, without lists (default 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient")
    parser.add_argument("--findings", help="comma-separated names to take, or any (default: the data set's)")
    namespace = parser.parse_args(flags)
    given = {name: getattr(namespace, name) for name in ("csv", "images", "train_val_list", "test_list")}
    if namespace.dataset is None:
        for name, path in default_paths(given, namespace.split, namespace.format).items():
            setattr(namespace, name, path)
            print(f"--{name} {path}")
    namespace.output = namespace.output or folders.data_to_write("--output", "chest-xray")
    values: Dict[str, object] = {name: value for name, value in vars(namespace).items() if name != "findings"}
    findings: Optional[Tuple[str, ...]] = None
    if namespace.findings is not None:
        names = [name.strip() for name in namespace.findings.split(",") if name.strip()]
        findings = () if names == ["any"] else tuple(names)
    settings = PrepareSettings(findings=findings, **values)  # type: ignore[arg-type]  # argparse made these types
    if settings.split == "random-images":
        print(
            "warning: --split random-images puts most patients into training and evaluation alike (83.7 % of NIH's "
            "validation images with the usual 95/5 split), so its AUROC says nothing about unseen patients.",
            file=sys.stderr,
        )
    summary = prepare(settings)
    print(summary.describe(), file=sys.stdout if summary.finished else sys.stderr)
    return 0 if summary.finished else 1


def _evaluate(flags: Sequence[str]) -> int:
    from ipu_trainer.tasks.chest_xray.evaluate import evaluate
    from ipu_trainer.tasks.chest_xray.report import artifacts as report

    parser = argparse.ArgumentParser(prog="ipu-trainer evaluate chest-xray", description="Evaluate a finished run.")
    parser.add_argument(
        "--run",
        type=Path,
        dest="run_dir",
        metavar="RUN",
        help="folder of a finished run (default: CHECKPOINT_DIR/chest-xray)",
    )
    parser.add_argument("--data", type=Path, help="prepared data set (default: as train)")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test", "all"))
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for metrics, predictions and plots (default: CHECKPOINT_DIR/chest-xray-SPLIT)",
    )
    parser.add_argument("--num_bootstrap", type=int, default=1000, help="patient-bootstrap replicates")
    parser.add_argument(
        "--precision", help="auto, fp32 or bf16 (default: as the run was trained, where that is possible)"
    )
    namespace = parser.parse_args(flags)
    run_dir = namespace.run_dir or folders.results("--run", "chest-xray")
    data = namespace.data or folders.data_to_read("--data", "chest-xray")
    output = namespace.output or folders.results("--output", f"chest-xray-{namespace.split}")
    metrics = evaluate(run_dir, data, namespace.split, output, namespace.num_bootstrap, namespace.precision)
    for name in metrics["findings_unknown_to_the_model"]:
        print(f"warning: the model has no output for {name!r}", file=sys.stderr)
    for name in metrics["findings_unknown_to_the_data"]:
        print(f"warning: the data have no labels of {name!r}, so it is not evaluated", file=sys.stderr)
    if metrics["window_differs"]:
        print(f"warning: {metrics['window_differs']}", file=sys.stderr)
    for name, other in metrics["findings_renamed"].items():
        print(f"the data's {other!r} is evaluated as the model's {name!r}")
    print(f"{report.metrics_table(metrics)}\n\nmetrics, plots and report.html: {output}")
    return 0


def _predict(flags: Sequence[str]) -> int:
    from ipu_trainer.tasks.chest_xray.data.image_paths import find_images
    from ipu_trainer.tasks.chest_xray.predict import RunPredictor
    from ipu_trainer.tasks.chest_xray.prediction_table import predict_to_csv
    from ipu_trainer.tasks.run_record import load_run

    parser = argparse.ArgumentParser(
        prog="ipu-trainer predict", description="Probabilities and findings of new images, as a CSV."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="files, folders, patterns, or CSV files with a column of file names"
    )
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    parser.add_argument("--precision", help="auto, fp32 or bf16 (default: as evaluate takes)")
    parser.add_argument("--html", type=Path, help="also write a page with images, findings and saliency maps")
    parser.add_argument("--html_images", type=int, help=f"images on that page (default {_IMAGES_ON_PAGE})")
    namespace = parser.parse_args(flags)
    if namespace.html_images is not None and namespace.html is None:
        raise UserError(f"--html_images {namespace.html_images} is of the page that --html FILE writes. Give both.")
    if namespace.html_images is not None and namespace.html_images < 1:
        raise UserError(f"--html_images {namespace.html_images} must be at least 1.")
    check_output_file(namespace.output, is_prediction_table)
    if any(
        Path(word).exists() and namespace.output.exists() and namespace.output.samefile(word)
        for word in namespace.images
    ):
        raise UserError(
            f"--output {namespace.output} is among the IMAGES, and would be written over. Give another file."
        )
    if namespace.html is not None:
        check_output_file(namespace.html, is_page, "--html")
    paths = find_images(namespace.images)
    predictor = RunPredictor(load_run(namespace.run), namespace.precision)
    without_threshold = [name for name, value in predictor.thresholds.items() if math.isnan(value)]
    if without_threshold:
        names = ", ".join(without_threshold)
        print(f"no threshold, so never among the findings: {names}", file=sys.stderr)
    rejected = predict_to_csv(predictor, paths, namespace.output)
    if namespace.html is not None:
        shown = paths[: namespace.html_images or _IMAGES_ON_PAGE]
        _module("report.prediction_page").write_prediction_page(namespace.html, predictor, shown, len(paths))
        print(namespace.html)
    for number, (path, reason) in enumerate(rejected.items()):
        if number == _MOST_NAMED:
            print(f"... and {len(rejected) - number:,} more", file=sys.stderr)
            break
        print(f"skipped {path}: {reason}", file=sys.stderr)
    print(f"{len(paths) - len(rejected):,} images: {namespace.output}. Not for clinical use.")
    return SOME_SKIPPED if rejected else 0


def _export(flags: Sequence[str]) -> int:
    from ipu_trainer.tasks.chest_xray.data.image_paths import find_images
    from ipu_trainer.tasks.chest_xray.export import PREPROCESSING, export_onnx
    from ipu_trainer.tasks.run_record import load_run

    parser = argparse.ArgumentParser(prog="ipu-trainer export", description="A run's model for other programs.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--to", required=True, choices=["onnx"], help="onnx")
    parser.add_argument("--output", type=Path, help="default: RUN/onnx/model.onnx")
    parser.add_argument("--images", nargs="+", default=[], help="images to check with (default: of the run's data)")
    namespace = parser.parse_args(flags)
    output = namespace.output or namespace.run / "onnx" / "model.onnx"
    images = find_images(namespace.images) if namespace.images else []
    checked = export_onnx(load_run(namespace.run), output, images)["checked"]
    print(
        f"{output}: probabilities differ from PyTorch's by at most {checked['largest_difference']:.1g} on {checked['images']} "
        f"images. Preprocessing, findings and thresholds: {output.with_name(PREPROCESSING)}"
    )
    return 0


def _phantoms(flags: Sequence[str]) -> int:
    from ipu_trainer.tasks.chest_xray.data.phantoms import PhantomSettings, write_phantoms, write_small_vit

    parser = argparse.ArgumentParser(
        prog="ipu-trainer phantoms chest-xray", description="Write synthetic chest X-rays and a small ViT."
    )
    parser.add_argument(
        "--output", type=Path, help="folder for images, phantoms.csv and model (default: DATASETS_DIR/phantoms)"
    )
    parser.add_argument("--num_images", type=int, default=1500)
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--model_size", type=int, default=64, help="side that the small ViT reads")
    parser.add_argument("--seed", type=int, default=0)
    namespace = parser.parse_args(flags)
    settings = PhantomSettings(namespace.num_images, namespace.size, seed=namespace.seed)
    output = namespace.output or folders.data_to_write("--output", "phantoms")
    csv_path = write_phantoms(output, settings)
    model = write_small_vit(output / "model", namespace.model_size, namespace.seed)
    print(
        f"{namespace.num_images} synthetic images: {csv_path.parent / 'images'}, labels {csv_path}, small ViT {model}"
    )
    return 0


def _module(name: str) -> Any:
    return importlib.import_module(f"ipu_trainer.tasks.chest_xray.{name}")


# Modules of the task are imported by the function that needs them: preparing data does not wait for torch.
TASK = Task(
    lambda flags: _module("train").RECIPE.train(flags),
    lambda flags: _module("train").RECIPE.search(flags),
    lambda folder, output=None, **inputs: _module("report.html_report").write_report(folder, output, **inputs),
    lambda folders, output: _module("report.html_report").write_comparison(folders, output),
    ("data", "boxes", "radiologist_labels"),
    {"prepare": _prepare, "evaluate": _evaluate, "predict": _predict, "export": _export, "phantoms": _phantoms},
    lambda run: _module("predict").RunPredictor(run).predict,
)
