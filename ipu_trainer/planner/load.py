"""Compute and memory demand of one IPU, and the formulas for its seconds and bytes; scalars, or arrays of many placements.

predict_time and predict_memory ask for one placement, the search for all of them: both through here, so they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ipu_trainer.machine.hardware import TILES_PER_IPU
from ipu_trainer.planner.constants import FLOP_PER_CYCLE, STATE_BYTES, MemoryConstants, TimeConstants
from ipu_trainer.planner.job import Job, place_parts
from ipu_trainer.planner.workload import PartCost, Workload

# A float or an array of floats.
Number = Any


@dataclass(frozen=True)
class Load:
    """Of one IPU, for one sample and one pass where a field depends on them. Fields are numbers or arrays of one shape.

    head_flops and num_heads count heads that have products; outputs are bytes that layers hand on, first_output those of the
    first alone; saved bytes are what autograd keeps of layers without dropout masks; largest_gradient counts elements of one
    layer's products and probabilities; has_products is 1 or 0.
    """

    parameters: Number
    stem_flops: Number
    head_flops: Number
    num_heads: Number
    logits: Number
    layer_flops: Number
    linear_elements: Number
    softmax_elements: Number
    num_layers: Number
    outputs: Number
    first_output: Number
    saved: Number
    largest_saved: Number
    largest_gradient: Number
    has_products: Number


def load_of(parts: Sequence[PartCost]) -> Load:
    """The load of an IPU that holds these parts."""
    layers = [part for part in parts if part.kind == "layer"]
    heads = [part for part in parts if part.kind not in ("layer", "stem")]
    saved = [part.saved_bytes - part.mask_bytes for part in layers]
    return Load(
        parameters=sum(part.parameters for part in parts),
        stem_flops=sum(part.flops for part in parts if part.kind == "stem"),
        head_flops=sum(part.flops for part in heads),
        num_heads=sum(part.flops > 0 for part in heads),
        logits=sum(part.logit_elements for part in parts),
        layer_flops=sum(part.flops for part in layers),
        linear_elements=sum(part.linear_elements for part in layers),
        softmax_elements=sum(part.softmax_elements for part in layers),
        num_layers=len(layers),
        outputs=sum(part.output_bytes for part in layers),
        first_output=layers[0].output_bytes if layers else 0,
        saved=sum(saved),
        largest_saved=max(saved, default=0),
        largest_gradient=max((part.linear_elements + part.softmax_elements for part in layers), default=0),
        has_products=int(any(part.flops for part in parts)),
    )


@functools.lru_cache(maxsize=4096)
def loads(workload: Workload, layers_per_ipu: Tuple[int, ...]) -> Tuple[Load, ...]:
    """The load of every IPU. Raises UserError where the counts do not add up to the model's layers."""
    return tuple(load_of(parts) for parts in Job(layers_per_ipu, 1, 1).placed(workload))


@functools.lru_cache(maxsize=64)
def all_loads(workload: Workload, num_ipus: int) -> Tuple[Load, ...]:
    """For every IPU its load with layers a to b - 1, as arrays indexed [a, b]; where b < a they mean nothing.

    What is no layer goes where Job.placements puts it: stem and tied heads on IPU 0, other heads on the last, a bridge with
    the layer that follows it.
    """
    found = {ipu: _table(workload, ipu, num_ipus) for ipu in sorted({0, min(1, num_ipus - 1), num_ipus - 1})}
    # All IPUs between the first and the last are alike.
    return tuple(found[ipu] if ipu in found else found[1] for ipu in range(num_ipus))


def _table(workload: Workload, ipu: int, num_ipus: int) -> Load:
    count = len(workload.layers)
    names = [item.name for item in dataclasses.fields(Load)]
    arrays = {name: np.zeros((count + 1, count + 1)) for name in names}
    for a in range(count + 1):
        for b in range(a, count + 1):
            load = load_of(_parts(workload, ipu, num_ipus, a, b))
            for name in names:
                arrays[name][a, b] = getattr(load, name)
    return Load(**arrays)


def _parts(workload: Workload, ipu: int, num_ipus: int, a: int, b: int) -> List[PartCost]:
    """The parts of an IPU with layers a to b - 1."""
    layer_ipus = [ipu if a <= layer < b else -1 for layer in range(len(workload.layers))]
    return [part for part, home in place_parts(workload, layer_ipus, num_ipus - 1) if home == ipu]


def cycles(load: Load, job: Job, constants: TimeConstants, image: bool) -> Number:
    """Cycles for one micro-batch: forward, backward twice, and forward again where layers are recomputed."""
    batch, passes = job.micro_batch, 4 if job.recompute else 3
    result = (
        3 * batch * load.stem_flops / (FLOP_PER_CYCLE * constants.efficiency)
        + 3 * batch * job.head_fraction * load.head_flops / (FLOP_PER_CYCLE * constants.head_efficiency)
        + passes * batch * load.layer_flops / (FLOP_PER_CYCLE * constants.efficiency)
        + constants.layer_cycles * (load.num_layers + load.num_heads / 2)
        + passes
        * batch
        * (constants.linear_cycles * load.linear_elements + constants.softmax_cycles * load.softmax_elements)
        / TILES_PER_IPU
    )
    return result * (constants.image_factor if image else 1.0)


def bytes_by_purpose(
    load: Load, job: Job, depth: int, proportion: float, sram_bytes: int, constants: MemoryConstants
) -> Dict[str, Number]:
    """Bytes of an IPU that stashes `depth` micro-batches. What may peak together is summed, so it errs to the full side."""
    batch, shards = job.micro_batch, job.replicas if job.sharded_state else 1
    state = 0.0 if job.state_off_chip else STATE_BYTES[job.optimizer] / shards
    if not job.recompute:
        stash, live = depth * batch * load.saved, batch * load.saved
    elif job.checkpoint_each_layer:
        stash, live = depth * batch * load.outputs, batch * load.largest_saved
    else:
        stash, live = depth * batch * load.first_output, batch * load.saved
    return {
        "weights": 2.0 * load.parameters,
        "gradients": 2.0 * load.parameters,
        "optimizer state": state * load.parameters,
        "stash": stash * (0.5 if job.float8_stash else 1.0),
        # Beside what is kept of the layers that are made again, the gradients of one layer's products and probabilities.
        "recomputation": live + 2.0 * batch * load.largest_gradient,
        "head": 6.0 * batch * job.head_fraction * load.logits / job.head_serialization,
        # What the option bounds.
        "temporary": proportion * sram_bytes * load.has_products,
        "code": constants.code_bytes + 0.0 * load.parameters,
    }
