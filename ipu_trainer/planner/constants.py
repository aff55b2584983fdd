"""Every number of the model that is not a measured shape: assumptions here with their source, fitted ones in calibrated.json.

No torch, so that the command line can name tasks and optimizers without it.

`python -m ipu_trainer.planner.calibrate --write` makes calibrated.json from published.csv alone. Nothing was measured on an IPU
by us.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import parse_json
from ipu_trainer.machine.hardware import FP16_MACS_PER_TILE_AND_CYCLE, TILES_PER_IPU

# Peak in float16: two operations a multiply-add.
FLOP_PER_CYCLE = 2 * FP16_MACS_PER_TILE_AND_CYCLE * TILES_PER_IPU
# Ramp up and down of a pipeline, weighted by occupancy: 2 (D - 1) cycles count as 1.5 (D - 1). Assumed, not fitted.
RAMP = 1.5
# Ring all-reduce between replicas, and optimizer state from streaming memory, bytes per second. Assumed: no source exists.
REDUCE_BYTES_PER_S = 40e9
STATE_BYTES_PER_S = 5e9
# Seconds per host step in the training loops of Graphcore's benchmark applications. Assumed.
HOST_S_OWN_LOOP = 0.02
# Bands of memory: about 15 % stay unresolved, so between the two the answer is "borderline".
FITS_BELOW, DOES_NOT_FIT_ABOVE = 0.85, 1.10
# The fullest published run is taken to be at this share of SRAM: between all of it and the end of "borderline".
FULLEST = 1.05
# A family without calibrated rows may be this factor slower or faster. A judgement: see docs/planner.md for what is known.
SPREAD_UNSEEN = 2.0
# Bytes of optimizer state a parameter: one half-precision momentum for SGD, a half and a single for Adam and LAMB.
STATE_BYTES = {"sgd": 2, "adam": 6, "adamw": 6, "lamb": 6}
# What a model is trained for -> the class of Transformers that builds it.
TASKS = {
    "image-classification": "AutoModelForImageClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "question-answering": "AutoModelForQuestionAnswering",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "audio-classification": "AutoModelForAudioClassification",
}
# model_type -> calibration family. Only these have rows that the fit used.
FAMILIES: Dict[str, str] = {"bert": "bert", "roberta": "bert", "gpt2": "gpt2", "vit": "image", "swin": "image"}


@dataclass(frozen=True)
class TimeConstants:
    """Fitted. Cycles unless the name says otherwise. spread[family]: the factor that held-out throughputs stayed within."""

    efficiency: float  # share of the FP16 peak that layer products reach
    head_efficiency: float  # the same for a full-vocabulary head
    layer_cycles: float  # per layer and micro-batch, whatever its size
    linear_cycles: float  # per output element of a linear product and pass, over all tiles
    softmax_cycles: float  # per attention probability and pass, over all tiles
    host_s: float  # per host step in a Python loop
    gateway_s: float  # per weight update and doubling of replicas beyond 8
    image_factor: float  # models of images take this much longer
    spread: Mapping[str, float] = field(default_factory=dict, hash=False)

    def spread_of(self, family: str) -> float:
        """Published throughput lies between the prediction divided and multiplied by this, as far as was seen."""
        return self.spread.get(family, SPREAD_UNSEEN)


@dataclass(frozen=True)
class MemoryConstants:
    """code_bytes: code, vertex state, exchange and whatever else is unknown; the most that lets all published runs fit."""

    code_bytes: float


@dataclass(frozen=True)
class Calibration:
    """What a fit of rows gave, and how many rows there were."""

    time: TimeConstants
    memory: MemoryConstants
    num_rows: int

    def to_dict(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)


def load_calibration(path: Optional[Path] = None) -> Calibration:
    """From a file of `calibrate --write`, by default the packaged one. Raises UserError for a file that is not one."""
    text = path.read_text(encoding="utf-8") if path else packaged("calibrated.json")
    try:
        shape: Dict[str, Any] = {"time": {}, "memory": {}, "num_rows": int}
        values = parse_json(text, path or "calibrated.json", shape)
        return Calibration(
            TimeConstants(**values["time"]), MemoryConstants(**values["memory"]), int(values["num_rows"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path or 'calibrated.json'} is no calibration ({error}). Make one: python -m ipu_trainer.planner.calibrate "
            "ROWS.csv --write FILE."
        ) from error


def packaged(name: str) -> str:
    """The text of a file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


SHIPPED = load_calibration()
TIME, MEMORY = SHIPPED.time, SHIPPED.memory
