"""Every number of the model that is not a measured shape, with the source or the fit that made it. One place.

The time constants restate a published-numbers fit to 120 configurations (of which published.csv has 76); they are not the
output of `python -m ipu_trainer.planner.calibrate`, which refits them and prints its own. Nothing here was measured on an
IPU by us.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict

from ipu_trainer.machine.hardware import FP16_MACS_PER_TILE_AND_CYCLE, TILES_PER_IPU

# Peak in float16: two operations a multiply-add.
FLOP_PER_CYCLE = 2 * FP16_MACS_PER_TILE_AND_CYCLE * TILES_PER_IPU
# Ramp up and down of a pipeline, weighted by occupancy: 2 (D - 1) cycles count as 1.5 (D - 1). Assumed, not fitted.
RAMP = 1.5
# Ring all-reduce between replicas, and optimizer state from streaming memory, bytes per second. Assumed: no source exists.
REDUCE_BYTES_PER_S = 40e9
STATE_BYTES_PER_S = 5e9
# Seconds per host step in Graphcore's own training loops. Assumed.
HOST_S_OWN_LOOP = 0.02
# Bands of memory: what is published to fit reaches 1.05 of SRAM in this model, so about 15 % stay unresolved.
FITS_BELOW, DOES_NOT_FIT_ABOVE = 0.85, 1.10
# Half-widths of the throughput interval: of families with rows (the worst held-out error, 28 %, is a little above), and
# of an unseen one, which no row tests.
INTERVAL_KNOWN, INTERVAL_UNKNOWN = 0.25, 0.50
# model_type -> calibration family. Only these have rows that the fit used.
FAMILIES: Dict[str, str] = {"bert": "bert", "roberta": "bert", "gpt2": "gpt2", "vit": "vit"}


@dataclass(frozen=True)
class TimeConstants:
    """Fitted. Cycles unless the name says otherwise."""

    efficiency: float = 0.42  # share of the FP16 peak that layer products reach
    head_efficiency: float = 0.0675  # the same for a full-vocabulary head
    layer_cycles: float = 4.0e5  # per layer and micro-batch, whatever its size
    linear_cycles: float = 0.69  # per output element of a linear product and pass, over all tiles
    softmax_cycles: float = 6.8  # per attention probability and pass, over all tiles
    host_s: float = 0.08  # per host step in a Transformers trainer
    gateway_s: float = 0.047  # per weight update and doubling of replicas beyond 8
    family_factor: Dict[str, float] = field(default_factory=lambda: {"vit": 1.52}, hash=False)


@dataclass(frozen=True)
class MemoryConstants:
    """The proposal's terms restated for measured shapes; only their total is constrained, and from one side only."""

    code_bytes: float = 169 * 2.0**20  # code, vertex state, exchange: absorbs everything unknown
    temporary: float = 7.8  # bytes of a layer's inputs, outputs and weights; capped by matmul proportion x SRAM
    # Bytes kept: times a layer's linear outputs and attention probabilities, while its forward is made again ...
    kept_linear: float = 1.67
    kept_softmax: float = 0.31
    # ... and beside them during backward.
    backward_linear: float = 1.07
    backward_softmax: float = 2.4


TIME = TimeConstants()
MEMORY = MemoryConstants()
