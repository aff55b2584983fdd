"""A run's model as an ONNX file for other programs, with its preprocessing beside it: `ipu-trainer export RUN --to onnx`.

The file is checked before it gets its name: onnxruntime and PyTorch must give the same probabilities on real images.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from torch import nn

from ipu_trainer.atomic import atomic_path, write_json
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError, read_image_file
from ipu_trainer.tasks.chest_xray.predict import RunPredictor
from ipu_trainer.tasks.output_guard import check_output_file
from ipu_trainer.tasks.run_record import Run

PREPROCESSING = "preprocessing.json"
LARGEST_DIFFERENCE = 1e-4  # of a probability
_CHECKED_IMAGES = 8


class Probabilities(nn.Module):
    """float32 (images, findings) of normalised pixel_values, float32 (images, channels, height, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        probabilities: torch.Tensor = self.model(pixel_values=pixel_values, return_dict=False)[0].float().sigmoid()
        return probabilities


def export_onnx(run: Run, output: Path, images: Sequence[str] = ()) -> Dict[str, Any]:
    """Write output (model.onnx) and preprocessing.json beside it; returns what the latter holds.

    images: files to check with; default, images of the prepared data that the run was evaluated on. Raises UserError without
    any, where a package is missing, and where the probabilities differ by more than 1e-4.
    """
    _refuse_foreign_files(output)
    onnxruntime = _import_onnxruntime()
    predictor = RunPredictor(run, "fp32")
    pixels = _images_to_check(predictor, images)
    normalise = predictor.predictor.normalisation
    pixel_values = normalise(torch.from_numpy(pixels).float() / 255.0)
    model = Probabilities(predictor.predictor.model.cpu()).eval()
    with torch.no_grad():
        expected = model(pixel_values).numpy()
    with atomic_path(output) as temporary:
        _export(model, pixel_values[:2], temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        difference = max(
            float(np.abs(session.run(None, {"pixel_values": part.numpy()})[0] - wanted).max())
            for part, wanted in ((pixel_values[:1], expected[:1]), (pixel_values, expected))
        )
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"the ONNX model's probabilities differ from PyTorch's by {difference:.2g}, at most {LARGEST_DIFFERENCE:g} is "
                f"accepted; {output} was not written. Try another release of torch or onnxruntime, and please report it."
            )
        checked = {"images": len(pixels), "largest_difference": difference, "onnxruntime": onnxruntime.__version__}
        description = _description(predictor, output.name, checked)
        # Before the model has its name: a kill between the two leaves what the same command completes.
        write_json(output.with_name(PREPROCESSING), description)
    return description


def _description(predictor: RunPredictor, name: str, checked: Dict[str, Any]) -> Dict[str, Any]:
    """What preprocessing.json says of the model file of this name."""
    decoding, normalise = predictor.decoding, predictor.predictor.normalisation
    return {
        "model": name,
        "input": {
            "name": "pixel_values",
            "type": "float32",
            "shape": ["images", normalise.num_channels, decoding.size, decoding.size],
        },
        "output": {"name": "probabilities", "type": "float32", "shape": ["images", len(predictor.findings)]},
        "findings": list(predictor.findings),
        "thresholds": predictor.thresholds,
        "preprocessing": [
            "read the image, turn it as its orientation tag says, and convert it to one channel of 8-bit gray",
            f"resize to {decoding.size} x {decoding.size} ({decoding.resample}, Pillow's filter; the aspect ratio is not kept)",
            f"divide by 255, repeat for {normalise.num_channels} channels, subtract mean and divide by std",
        ],
        "decoding": decoding.to_dict(),
        "mean": list(normalise.mean),
        "std": list(normalise.std),
        "checked": checked,
    }


def _refuse_foreign_files(output: Path) -> None:
    """Raise UserError where output or the file beside it would be written over, and is no earlier export of this name."""
    about = output.with_name(PREPROCESSING)
    described = read_json(about) if about.is_file() else {}
    own = isinstance(described, dict) and {"model", "preprocessing"} <= set(described)
    if own and described["model"] != output.name:
        raise UserError(f"--output {output}: {about} describes {described['model']}. Give a file in another folder.")
    for file in (about, output):
        check_output_file(file, lambda _: own)


def _images_to_check(predictor: RunPredictor, images: Sequence[str]) -> np.ndarray:
    """uint8 (images, size, size)"""
    if images:
        decode = predictor.decoding
        pixels = []
        for path in images[:_CHECKED_IMAGES]:
            try:
                pixels.append(decode(read_image_file(Path(path))))
            except ImageError as error:
                raise UserError(f"--images {path}: {error}") from error
        return np.stack(pixels)
    record = predictor.run.record
    try:
        data = load_prepared(record["data"]["folder"])
    except ValueError as error:
        raise UserError(
            f"the exported model is checked on real images, and the data of the run are not there ({error}) "
            "Give some: --images FOLDER."
        ) from error
    subject = data.split(record["evaluated_split"])
    found: List[np.ndarray] = [pixels for _, pixels in zip(range(_CHECKED_IMAGES), subject.pixels())]
    return np.stack(found)


def _import_onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401  # torch needs it, and would say so later
        import onnxruntime
    except ImportError as error:
        raise UserError(f"export --to onnx needs {error.name}: pip install 'ipu-trainer[export]'.") from error
    return onnxruntime


def _export(model: nn.Module, example: torch.Tensor, file: Path) -> None:
    options: Dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["probabilities"]}
    parameters = inspect.signature(torch.onnx.export).parameters
    if "dynamic_shapes" in parameters:  # torch 2.5 and later export a graph instead of a trace
        images: Any = torch.export.Dim("images")
        options.update(dynamo=True, dynamic_shapes={"pixel_values": {0: images}})
        options.update({name: value for name, value in _ONE_QUIET_FILE.items() if name in parameters})
    else:
        options["dynamic_axes"] = {"pixel_values": {0: "images"}, "probabilities": {0: "images"}}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # of torch's own exporter
        target = Path(scratch) / "model.onnx"
        torch.onnx.export(model, (example,), str(target), **options)
        file.write_bytes(target.read_bytes())


_ONE_QUIET_FILE: Dict[str, Optional[bool]] = {"external_data": False, "verbose": False}
