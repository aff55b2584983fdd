"""The main job from nothing: data, preparation, training, evaluation, and predictions for single images.

python scripts/demo_chest_xray.py                      synthetic phantoms and a small ViT, about 4 minutes on 2 cores
python scripts/demo_chest_xray.py --csv CSV --images DIR --model PATH_OR_HUB_ID      your own data and model
"""

import argparse
import csv
import sys
from pathlib import Path

from ipu_trainer.cli import main
from ipu_trainer.command_line import snake_case

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--csv", type=Path)
parser.add_argument("--images", type=Path)
parser.add_argument("--model")
parser.add_argument("--output", type=Path, default=Path("demo"))
parser.add_argument("--num_images", type=int, default=2400, help="how many phantoms to make")
arguments, training_flags = parser.parse_known_args(snake_case(sys.argv[1:]))

given = [arguments.csv, arguments.images, arguments.model]
if any(given) and not all(given):
    sys.exit("demo: --csv (NIH_CSV=), --images (NIH_IMAGES=) and --model (MODEL=) belong together")


def step(*words):
    print("\n$ ipu-trainer", *words, flush=True)
    code = main([str(word) for word in words])
    if code:
        sys.exit(code)


output = arguments.output
prepare = ["prepare", "chest-xray", "--output", output / "prepared"]
if all(given):
    step(*prepare, "--csv", arguments.csv, "--images", arguments.images, "--only_present")
    images, model, recipe = arguments.images, arguments.model, []
else:
    phantoms = output / "phantoms"
    if not (phantoms / "phantoms.csv").exists():
        step("phantoms", "chest-xray", "--output", phantoms, "--num_images", arguments.num_images)
    step(*prepare, "--csv", phantoms / "phantoms.csv", "--images", phantoms / "images", "--size", 64)
    images, model = phantoms / "images", phantoms / "model"
    # A small ViT that starts from random weights needs a larger rate, and no gentler one for its early layers.
    recipe = ["--learning_rate", 1e-3, "--layer_decay", 1, "--head_learning_rate_factor", 1, "--drop_path", 0]
    recipe += ["--num_train_epochs", 24, "--rotation_degrees", 4, "--dataloader_num_workers", 0]
step(
    "train",
    "chest-xray",
    "--data",
    output / "prepared",
    "--model",
    model,
    "--output",
    output / "run",
    *recipe,
    *training_flags,
)
with (output / "run" / "predictions.csv").open(newline="", encoding="utf-8") as file:
    unseen = [images / row["file_name"] for row in csv.DictReader(file)][:6]
step("predict", output / "run", *unseen, "--output", output / "new.csv", "--html", output / "new.html")
print(f"""
{"" if all(given) else "These were synthetic phantoms: the numbers show that the machinery works, nothing about medicine."}
to read   {output / "run" / "report.html"} (open it in a browser)
table     {output / "run" / "metrics.txt"}
curves    {output / "run" / "plots"} (auroc.png, roc.png, calibration.png, training.png)
new       {output / "new.html"}, {output / "new.csv"}: six images of patients that the run never saw
numbers   {output / "run" / "metrics.json"}, {output / "run" / "predictions.csv"}
model     {output / "run"} (a Hugging Face model folder with its model card README.md)""")
