"""What is damaged: commands with the files that they read, in one folder that is made once and copied for each case.

files/      films of four formats, phantoms.csv, phantoms.csv.gz, lists of both splits
prepared/   the films, prepared
model/      a tiny ViT
run/        a finished run with checkpoints
killed/     the same run before its end: its command resumes it
search/     a search of one trial
"""

import gzip
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ipu_trainer.atomic import write_json
from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat

_TRAIN = (
    "train chest-xray --data {0}/prepared --model {0}/model --max_steps 4 --save_strategy steps --save_steps 2 "
    "--num_bootstrap 4 --disable_tqdm true --report_to none --logging_steps 1 --per_device_train_batch_size 4 --backend host"
    f" --{compat.field_name('use_cpu')} true --output "
)
_PREPARE = (
    "prepare chest-xray --images {0}/files/images --size 32 --workers 1 --validation_fraction 0.3 --test_fraction 0.3 "
)


@dataclass(frozen=True)
class Scenario:
    """words: a command, {0} being the folder of the case. reads: patterns of the files to damage. results: files that are equal
    where the damage changed nothing. writes: folders that the command may change besides out/. loose: patterns of files without a
    checksum, where a changed result is no fault."""

    name: str
    words: str
    reads: tuple
    results: tuple
    writes: tuple = ()
    loose: tuple = ()


_RUN_FILES = ("run/*.json", "run/*.safetensors")
_CHECKPOINTS = tuple(f"killed/checkpoint-*/{kind}" for kind in ("*.json", "*.safetensors", "*.pt", "*.pth"))
_PREPARED = ("prepared/*.json", "prepared/pixels.u8", "prepared/metadata/*")
_SOURCES = ("*.csv", "*.gz", "*.txt", "*.jpg", "*.tif", "*.dcm")

SCENARIOS = (
    Scenario(
        "prepare",
        _PREPARE + "--csv {0}/files/phantoms.csv --output {0}/out/data",
        ("files/images/*", "files/phantoms.csv"),
        ("out/data/prepared.json", "out/data/pixels.u8"),
        loose=_SOURCES,
    ),
    Scenario(
        "prepare from gz and lists",
        _PREPARE
        + "--csv {0}/files/phantoms.csv.gz --train_val_list {0}/files/train.txt --test_list {0}/files/test.txt --output {0}/out/data",
        ("files/phantoms.csv.gz", "files/*.txt"),
        ("out/data/prepared.json", "out/data/pixels.u8"),
        loose=("*.txt",),
    ),
    Scenario(
        "prepare again",
        _PREPARE + "--csv {0}/files/phantoms.csv --output {0}/prepared",
        ("prepared/*.json", "prepared/pixels.u8", "prepared/metadata/*"),
        (
            "prepared/prepared.json",
            "prepared/pixels.u8",
            "prepared/metadata.jsonl",
            "prepared/metadata/data-00000-of-00001.arrow",
        ),
        writes=("prepared",),
    ),
    Scenario(
        "evaluate",
        "evaluate chest-xray --run {0}/run --data {0}/prepared --split test --num_bootstrap 4 --output {0}/out/results",
        (*_PREPARED, *_RUN_FILES),
        ("out/results/metrics.json", "out/results/predictions.csv"),
    ),
    Scenario(
        "train",
        _TRAIN + "{0}/out/run",
        (*_PREPARED, "model/*"),
        ("out/run/model.safetensors", "out/run/predictions.csv"),
    ),
    Scenario(
        "resume",
        _TRAIN + "{0}/killed",
        (*_CHECKPOINTS, "killed/run.json"),
        ("killed/model.safetensors", "killed/predictions.csv"),
        writes=("killed",),
    ),
    Scenario(
        "predict",
        "predict {0}/run {0}/files/images --output {0}/out/predictions.csv",
        (*_RUN_FILES, "files/images/*"),
        ("out/predictions.csv",),
        loose=("*.jpg", "*.tif", "*.dcm"),
    ),
    Scenario(
        "report",
        "report {0}/run --output {0}/out/report.html",
        ("run/*.json", "run/predictions.csv", "run/*.safetensors", *_PREPARED),
        ("out/report.html",),
    ),
    Scenario(
        "compare",
        "report {0}/run {0}/run --output {0}/out/comparison.html",
        ("run/*.json", "run/predictions.csv"),
        ("out/comparison.html",),
    ),
    Scenario(
        "search",
        _TRAIN.replace("train chest", "search chest").replace("--report_to none", "--report_to none --n_trials 1")
        + "{0}/search",
        ("search/search.json", "search/study.db"),
        ("search/best.json",),
        writes=("search",),
    ),
    Scenario("export", "export {0}/run --to onnx --output {0}/out/model.onnx", _RUN_FILES, ("out/preprocessing.json",)),
    Scenario("check run", "check {0}/run", (*_RUN_FILES, "run/predictions.csv", "run/plots/*"), ()),
    Scenario("check prepared", "check {0}/prepared", _PREPARED, ()),
    Scenario(
        "check checkpoint", "check {0}/killed/checkpoint-2", tuple(f.replace("*/", "2/", 1) for f in _CHECKPOINTS), ()
    ),
    Scenario(
        "profile",
        "profiles check {0}/profile.json --model {0}/model",
        ("profile.json", "model/config.json"),
        (),
    ),
)


def make(folder):
    """Everything that the scenarios read, in folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from ipu_trainer.tasks.chest_xray.data.phantoms import PhantomSettings, write_phantoms

    write_phantoms(folder / "files", PhantomSettings(num_images=36, size=32, seed=1), progress=False)
    _other_formats(folder / "files")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    _run(_PREPARE + "--csv {0}/files/phantoms.csv --output {0}/prepared", folder)
    _run(_TRAIN + "{0}/run", folder)
    _run(_TRAIN + "{0}/killed", folder)
    record = json.loads((folder / "killed" / "run.json").read_text())
    for path in (folder / "killed").iterdir():
        if path.is_dir() and not path.name.startswith("checkpoint-"):
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    added = ("thresholds", "evaluated_split")
    record = {name: value for name, value in record.items() if name not in added}
    write_json(folder / "killed" / "run.json", {**record, "status": "running"})
    scenario = next(item for item in SCENARIOS if item.name == "search")
    _run(scenario.words, folder)
    profile = {"about": {"source": "made up"}, "config": {"ipus_per_replica": 1, "layers_per_ipu": [2]}}
    write_json(folder / "profile.json", profile)


def _other_formats(files):
    """Some of the PNG films as JPEG, TIFF and DICOM under their own names; the table in gzip; lists of two splits."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "chest_xray"))
    from made_up_dicom import film

    table = (files / "phantoms.csv").read_text()
    for number, path in enumerate(sorted((files / "images").iterdir())):
        suffix = (".png", ".png", ".jpg", ".tif", ".dcm")[number % 5]
        if suffix == ".png":
            continue
        target = path.with_suffix(suffix)
        image = Image.open(path)
        if suffix == ".dcm":
            target.write_bytes(film(np.asarray(image, dtype=np.uint8)))
        else:
            image.save(target, **({"quality": 95} if suffix == ".jpg" else {}))
        path.unlink()
        table = table.replace(path.name, target.name)
    (files / "phantoms.csv").write_text(table)
    (files / "phantoms.csv.gz").write_bytes(gzip.compress(table.encode(), mtime=0))
    names = [line.split(",")[0] for line in table.splitlines()[1:]]
    tested = {name for name in names if int(name.split("_")[0]) % 4 == 0}
    (files / "train.txt").write_text("\n".join(name for name in names if name not in tested))
    (files / "test.txt").write_text("\n".join(name for name in names if name in tested))


def _run(words, folder):
    code = main(words.format(folder).split())
    if code:
        raise SystemExit(f"the undamaged input does not work ({code}): {words.format(folder)}")
