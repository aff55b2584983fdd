#!/usr/bin/env bash
# One metadata.jsonl above train/ and test/ is no longer read by imagefolder, and labels appear for half of the rows.
#
# Versions: datasets 5.2.0 (pillow 13.0.0), compared with datasets 2.14.7 (pyarrow 14.0.2, huggingface_hub 0.25.2,
# pillow 13.0.0), Python 3.11.
#
# Expected, and what 2.14.7 does: for
#   metadata.jsonl   {"file_name": "train/a.png", "caption": "train a"} and so on
#   train/a.png train/b.png test/a.png test/b.png
# load_dataset("imagefolder", data_dir=...) gives both splits the column "caption", as it does with one metadata.jsonl
# inside each split's folder.
#
# Instead, 5.2.0 leaves the file above the splits unread, without an error. Since it then takes the folder as one without
# metadata, it infers a column "label" with the two split names as classes. Whether labels are filled in is decided
# split by split, from the folder names met so far: train is first and has met one, so its labels are all None; test has
# met two, so its labels are all 0. With drop_labels=True the made-up column goes, and the caption is still not there.
#
# Output seen:
#   datasets 2.14.7, one file above the splits
#     train ['image', 'caption'] {'caption': ['train a', 'train b']}
#     test ['image', 'caption'] {'caption': ['test a', 'test b']}
#   datasets 2.14.7, one file in each split
#     train ['image', 'caption'] {'caption': ['train a', 'train b']}
#     test ['image', 'caption'] {'caption': ['test a', 'test b']}
#   datasets 5.2.0, one file above the splits
#     train ['image', 'label'] {'label': [None, None]}
#     test ['image', 'label'] {'label': [0, 0]}
#   datasets 5.2.0, one file above the splits, drop_labels=True
#     train ['image'] {}
#     test ['image'] {}
#   datasets 5.2.0, one file in each split
#     train ['image', 'caption'] {'caption': ['train a', 'train b']}
#     test ['image', 'caption'] {'caption': ['test a', 'test b']}
#
# Why it matters: image folders laid out for the older release still load. What a trainer then gets is a label column
# that says which split a row is in, empty for training and constant for evaluation, in place of the real targets. A
# data preparation step has to write one metadata file per split, and to check that its columns came back.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$work/home"

python3 -m venv "$work/old"
"$work/old/bin/pip" install --quiet datasets==2.14.7 pyarrow==14.0.2 'numpy<2' huggingface_hub==0.25.2 pillow==13.0.0
python3 -m venv "$work/new"
"$work/new/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0

cat > "$work/show.py" <<'PY'
import json
import sys
import tempfile
from pathlib import Path

import datasets
from PIL import Image


def rows(prefix, split):
    lines = [{"file_name": f"{prefix}{name}.png", "caption": f"{split} {name}"} for name in "ab"]
    return "".join(json.dumps(line) + "\n" for line in lines)


def load(title, above, **options):
    root = Path(tempfile.mkdtemp(dir=sys.argv[1]))
    for split in ("train", "test"):
        (root / split).mkdir()
        for name in "ab":
            Image.new("RGB", (4, 4)).save(root / split / f"{name}.png")
        if not above:
            (root / split / "metadata.jsonl").write_text(rows("", split))
    if above:
        (root / "metadata.jsonl").write_text(rows("train/", "train") + rows("test/", "test"))
    cache = tempfile.mkdtemp(dir=sys.argv[1])
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=cache, **options)
    print(f"datasets {datasets.__version__}, {title}")
    found = {}
    for split, data in loaded.items():
        found[split] = {column: list(data[column]) for column in data.column_names if column != "image"}
        print(" ", split, data.column_names, found[split])
    return found


if hasattr(datasets, "disable_progress_bars"):
    datasets.disable_progress_bars()
else:
    datasets.disable_progress_bar()

captions = {"train": {"caption": ["train a", "train b"]}, "test": {"caption": ["test a", "test b"]}}
if datasets.__version__ == "2.14.7":
    assert load("one file above the splits", above=True) == captions
else:
    labels = {"train": {"label": [None, None]}, "test": {"label": [0, 0]}}
    assert load("one file above the splits", above=True) == labels
    nothing = {"train": {}, "test": {}}
    assert load("one file above the splits, drop_labels=True", above=True, drop_labels=True) == nothing
assert load("one file in each split", above=False) == captions
PY
mkdir "$work/data"
"$work/old/bin/python" "$work/show.py" "$work/data"
"$work/new/bin/python" "$work/show.py" "$work/data"
