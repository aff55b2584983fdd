"""timm's models through Transformers' wrapper, in a process of their own: its torchvision is beside the environment.

PyPI's torchvision belongs to the CUDA build of torch. Beside a CPU build its import fails, because two operators are not registered;
the process declares them (sitecustomize.py), and none of them is called.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

FOLDER = Path(sys.prefix) / "timm"
REPOSITORY = Path(__file__).resolve().parents[2]
needs_timm = pytest.mark.skipif(
    transformers.__version__.startswith("4.29") or not (FOLDER / "timm").is_dir(),
    reason="Transformers' wrapper of timm is in 4.53 and later; the test environment has timm in a folder of its own",
)
OPERATORS = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def run(script, folder, *arguments):
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(OPERATORS)
    path = os.pathsep.join(
        [str(folder / "site"), str(FOLDER), str(REPOSITORY), str(REPOSITORY / "tests" / "chest_xray")]
    )
    words = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


@needs_timm
def test_models_of_timm(prepared, phantoms, tmp_path):
    """The checks are in timm_checks.py, which needs timm: one process for all, as its imports take longest."""
    done = run(REPOSITORY / "tests" / "chest_xray" / "timm_checks.py", tmp_path, prepared, phantoms, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.strip().splitlines()[-1] == "9 checks passed"


@pytest.mark.skipif(transformers.__version__.startswith("4.29"), reason="4.29 has no wrapper of timm")
def test_without_timm_a_model_of_it_is_refused_with_the_extra(tmp_path):
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is installed")
    from ipu_trainer.tasks.chest_xray.model.architectures import read_config

    (tmp_path / "config.json").write_text(json.dumps({"architecture": "densenet121", "pretrained_cfg": {}}))
    with pytest.raises(ValueError, match=r"pip install 'ipu-trainer\[timm\]'.*CPU build of torch"):
        read_config(tmp_path)


@pytest.mark.skipif(not transformers.__version__.startswith("4.29"), reason="this Transformers has the wrapper of timm")
def test_an_old_transformers_names_the_release_that_has_the_wrapper(tmp_path):
    from ipu_trainer.tasks.chest_xray.model.architectures import read_config

    (tmp_path / "config.json").write_text(json.dumps({"architecture": "densenet121", "pretrained_cfg": {}}))
    with pytest.raises(ValueError, match=r"timm_wrapper \(densenet121\), which needs Transformers 4.53 or later; 4.29"):
        read_config(tmp_path)
