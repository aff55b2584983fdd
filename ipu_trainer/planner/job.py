"""A workload under one IPUConfig: placement and batch geometry, as inputs of the cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Sequence, Tuple

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.machine.placement import ipu_of_layer, num_stages
from ipu_trainer.planner.constants import STATE_BYTES
from ipu_trainer.planner.workload import PartCost, Workload


@dataclass(frozen=True)
class Job:
    """All counts are at least 1. own_loop: a loop without a Transformers trainer. head_fraction: share of output positions
    that the head computes; optimizer one of STATE_BYTES; matmul_proportion one value for each IPU."""

    layers_per_ipu: Tuple[int, ...]
    micro_batch: int
    accumulation: int
    replicas: int = 1
    device_iterations: int = 1
    recompute: bool = True
    sharded_state: bool = False
    state_off_chip: bool = False
    matmul_proportion: Tuple[float, ...] = (0.2,)
    optimizer: str = "adamw"
    head_fraction: float = 1.0
    head_serialization: int = 1
    own_loop: bool = False
    float8_stash: bool = False  # recomputation checkpoints in eight bits, as some MLPerf entries keep them
    # Where a pipeline recomputes: what enters each layer is kept, and one layer is made again at a time; or only what enters
    # the stage is kept, and all its layers are made again together.
    checkpoint_each_layer: bool = True

    def __post_init__(self) -> None:
        for name in ("micro_batch", "accumulation", "replicas", "device_iterations", "head_serialization"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1. Use {name}=1 or more.")
        if self.optimizer not in STATE_BYTES:
            raise UserError(f"optimizer {self.optimizer!r} is not one of {', '.join(STATE_BYTES)}. Use adamw.")
        if not 0 < self.head_fraction <= 1:
            raise UserError(
                f"head_fraction {self.head_fraction} must be over 0 and at most 1. Use 1 for all positions."
            )
        if len(self.matmul_proportion) not in (1, len(self.layers_per_ipu)):
            raise UserError(
                f"matmul_proportion has {len(self.matmul_proportion)} values for {len(self.layers_per_ipu)} IPUs. Give each one."
            )

    @classmethod
    def from_config(
        cls, config: IPUConfig, workload: Workload, micro_batch: int, optimizer: str = "adamw", recompute: bool = True
    ) -> Job:
        """Raises IPUConfigError where layers_per_ipu does not fit the workload. Optimum recomputes wherever it pipelines."""
        proportion = config.matmul_proportion
        layers = config.resolve_layers(len(workload.layers))
        return cls(
            layers,
            micro_batch,
            config.gradient_accumulation_steps,
            config.replication_factor,
            config.device_iterations,
            recompute and len(layers) > 1,
            config.replicated_tensor_sharding,
            config.optimizer_state_offchip,
            proportion if isinstance(proportion, tuple) else (proportion,),
            optimizer,
            head_serialization=config.embedding_serialization_factor or 1,
            checkpoint_each_layer=config.recompute_checkpoint_every_layer,
        )

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.replicas

    @property
    def num_ipus(self) -> int:
        return len(self.layers_per_ipu) * self.replicas

    def placed(self, workload: Workload) -> Tuple[Tuple[PartCost, ...], ...]:
        """The parts on each IPU, by the rules of pipelining.plan: stem and tied heads on IPU 0, other heads on the last."""
        if sum(self.layers_per_ipu) != len(workload.layers) or min(self.layers_per_ipu) < 0:
            raise UserError(
                f"layers_per_ipu {list(self.layers_per_ipu)} places {sum(self.layers_per_ipu)} layers, but "
                f"{workload.model_name} has {len(workload.layers)}. Make the entries sum to that."
            )
        ipus: List[List[PartCost]] = [[] for _ in self.layers_per_ipu]
        for part, ipu in self.placements(workload):
            ipus[ipu].append(part)
        return tuple(tuple(parts) for parts in ipus)

    def placements(self, workload: Workload) -> Tuple[Tuple[PartCost, int], ...]:
        """(part, IPU) in execution order."""
        return tuple(place_parts(workload, ipu_of_layer(self.layers_per_ipu), len(self.layers_per_ipu) - 1))

    def num_stages(self, workload: Workload) -> int:
        """Pipeline stages of forward: a head that goes back to IPU 0 is one more."""
        return num_stages(ipu for _, ipu in self.placements(workload)[1:])


def place_parts(workload: Workload, layer_ipus: Sequence[int], last_ipu: int) -> Iterator[Tuple[PartCost, int]]:
    """(part, IPU) in execution order, from the IPU of each layer: a bridge goes with the layer that follows it."""
    done, after_tied = 0, False
    for part in workload.parts:
        if part.kind == "layer":
            ipu, done = layer_ipus[done], done + 1
        elif part.kind == "stem" or part.at_stem or after_tied:
            ipu, after_tied = 0, after_tied or part.kind == "tied head"
        else:
            ipu = last_ipu if part.kind == "head" else layer_ipus[min(done, len(layer_ipus) - 1)]
        yield part, ipu
