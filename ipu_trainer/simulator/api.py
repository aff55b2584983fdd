"""Which of poptorch's public names are implemented and which are refused, as docs/simulator.md lists them.

    python -m ipu_trainer.simulator.api docs/simulator.md

writes the tables into the document, between its markers. Tests freeze them.
"""

from __future__ import annotations

import sys
from typing import Dict, List, Tuple

import ipu_trainer.simulator as simulator
from ipu_trainer.simulator.sdk import unavailable

UNAVAILABLE: Tuple[str, ...] = tuple(sorted(unavailable.REASONS))

# Public names of the simulator that poptorch does not have.
_ADDITIONS = {
    "BlockObserver",
    "ExecutedBlock",
    "NotRunnableError",
    "coalesce_micro_batches",
    "fold_micro_batches",
    "install",
    "register_custom_op",
    "run_module",
    "run_script",
    "testing",
    "trace",
    "use_torch_device",
}
IMPLEMENTED: Tuple[str, ...] = tuple(sorted(set(simulator.__all__) - set(UNAVAILABLE) - _ADDITIONS))

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
