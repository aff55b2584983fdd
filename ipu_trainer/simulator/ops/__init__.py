"""poptorch.ops: every operator and annotation, gathered from the modules that define them."""

from __future__ import annotations

from ipu_trainer.simulator.ops.annotations import (
    BeginBlock,
    Block,
    BlockFunction,
    LegacyBeginBlockFn,
    NameScope,
    recomputationCheckpoint,
    removeBlocks,
)
from ipu_trainer.simulator.ops.control_flow import CPU, cond, for_loop
from ipu_trainer.simulator.ops.custom_ops import custom_op
from ipu_trainer.simulator.ops.decoders import ctc_beam_search_decoder
from ipu_trainer.simulator.ops.multiconv import MultiConv
from ipu_trainer.simulator.ops.points import fps, nearest
from ipu_trainer.simulator.ops.tensor_ops import (
    dynamic_slice,
    dynamic_update,
    identity_loss,
    ipu_print_tensor,
    nop,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)

__all__ = [
    "CPU",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "LegacyBeginBlockFn",
    "MultiConv",
    "NameScope",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]
