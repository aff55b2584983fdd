"""What a search varies, as it is written on the command line: learning_rate=1e-5:1e-3:log, micro_batch=1,2,4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Tuple

from ipu_trainer.command_line import plain_value
from ipu_trainer.errors import UserError


@dataclass(frozen=True)
class Range:
    """One searched value. choices, or low to high: floats, or whole numbers in steps."""

    name: str
    choices: Tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: Optional[int] = None

    def suggest(self, trial: Any) -> Any:
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.step is not None:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=self.step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def describe(self) -> str:
        if self.choices:
            return f"{self.name} of {', '.join(map(str, self.choices))}"
        kind = "logarithmic" if self.log else f"in steps of {self.step}" if self.step else "even"
        return f"{self.name} from {self.low:.4g} to {self.high:.4g}, {kind}"


def parse_range(text: str) -> Range:
    """NAME=a,b,c; NAME=LOW:HIGH; NAME=LOW:HIGH:log; NAME=LOW:HIGH:STEP, of whole numbers where both ends are."""
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    rule = "NAME=LOW:HIGH, NAME=LOW:HIGH:log, NAME=LOW:HIGH:STEP of whole numbers, or NAME=a,b,c"
    if not equals or not name or not values:
        raise UserError(f"--space {text!r} is not {rule}.")
    if ":" not in values:
        choices = tuple(plain_value(item) for item in values.split(","))
        if len(set(choices)) < len(choices):
            raise UserError(f"--space {text!r} names a value twice.")
        return Range(name, choices)
    parts = values.split(":")
    ends = [plain_value(part) for part in parts[:2]]
    if len(parts) > 3 or not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends):
        raise UserError(f"--space {text!r} is not {rule}.")
    low, high = ends
    whole = isinstance(low, int) and isinstance(high, int)
    last = parts[2] if len(parts) == 3 else ""
    step = int(last) if last.isdigit() else None
    if not low < high or (last not in ("", "log") and step is None) or (step is not None and not (whole and step)):
        raise UserError(f"--space {text!r}: LOW must be below HIGH, and the rule is {rule}.")
    if last == "log" and low <= 0:
        raise UserError(f"--space {text!r}: a logarithmic range begins above 0.")
    return Range(name, (), low, high, last == "log", (step or 1) if whole else None)
