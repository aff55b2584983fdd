"""Which of poptorch's public names are here, as lists that tests freeze and docs/simulator.md shows.

    python -m ipu_trainer.simulator.api docs/simulator.md

writes the tables into the document, between its markers.
"""

from __future__ import annotations

import sys
from typing import Dict, List, Tuple

from ipu_trainer.simulator.sdk import unavailable

UNAVAILABLE: Tuple[str, ...] = tuple(sorted(unavailable.REASONS))

IMPLEMENTED: Tuple[str, ...] = (
    "AsynchronousDataAccessor",
    "Attribute",
    "AutoStage",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "BlockId",
    "CPU",
    "CommGroupType",
    "ConfigFileError",
    "ConnectionType",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "HalfFloatCastingBehavior",
    "ICustomArgParser",
    "LegacyBeginBlockFn",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConv",
    "MultiConvPlanType",
    "NameScope",
    "Options",
    "OutputMode",
    "OverlapMode",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "SerialPhasedExecution",
    "ShardedExecution",
    "SharingStrategy",
    "Stage",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "VariableRetrievalMode",
    "cond",
    "createPoptorchError",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "enums",
    "for_loop",
    "fps",
    "identity_loss",
    "inferenceModel",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "ipu_print_tensor",
    "isRunningOnIpu",
    "load",
    "module_repr",
    "nearest",
    "nop",
    "ops",
    "optim",
    "options",
    "poptorchAtExit",
    "poptorch_core",
    "print",
    "profiling",
    "recomputationCheckpoint",
    "registerCustomArgParser",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "removeBlocks",
    "serializedMatMul",
    "setLogLevel",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
    "trainingModel",
)

# Methods of implemented classes that are refused, and settings that compiling refuses.
_REFUSED: Dict[str, str] = {
    "PoplarExecutor.cycleCount": "cycles are the hardware's",
}
_REFUSED_SETTINGS: Dict[str, str] = {
    "Options.anchorTensor": "an `Error` when the model is compiled, for names other than those of weights, buffers, "
    "`Gradient___<weight>`, `UpdatedVar___<weight>` and `finalLossScale`",
    "VariableRetrievalMode.AllReplicas": "refused by replicaGrouping: one value a group is returned",
}
_BEGIN, _END = "<!-- names: begin -->", "<!-- names: end -->"


def method_refusals() -> List[str]:
    """Names of PoplarExecutor's methods that raise NotImplementedError."""
    return [name.split(".")[1] for name in _REFUSED]


def tables() -> str:
    """Both lists as Markdown."""
    refused = {f"poptorch.{name}": reason for name, reason in unavailable.REASONS.items()}
    rows = {**refused, **_REFUSED, **_REFUSED_SETTINGS}
    lines = [f"{len(IMPLEMENTED)} public names are implemented:", "", ", ".join(f"`{n}`" for n in IMPLEMENTED), ""]
    lines += ["Refused, with `NotImplementedError` unless said otherwise:", "", "| name | why |", "|---|---|"]
    return "\n".join(lines + [f"| `{name}` | {reason} |" for name, reason in rows.items()])


def main(path: str) -> None:
    """Put the tables into the document."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{before}{_BEGIN}\n{tables()}\n{_END}{after}")


if __name__ == "__main__":
    main(sys.argv[1])
