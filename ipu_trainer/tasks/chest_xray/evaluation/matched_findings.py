"""Which findings a model and a data set have in common, whatever each calls them, and the truth of the model's findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.finding_names import same_finding


@dataclass(frozen=True)
class MatchedFindings:
    """of_data: the data's name of each finding of the model that both have (finding_names.same_finding)."""

    of_model: Tuple[str, ...]
    in_data: Tuple[str, ...]
    of_data: Dict[str, str]

    @classmethod
    def of(cls, of_model: Sequence[str], in_data: Sequence[str]) -> MatchedFindings:
        """Raises UserError where the two have no finding in common."""
        pairs = [(name, same_finding(name, in_data)) for name in of_model]
        of_data = {name: found for name, found in pairs if found is not None}
        if not of_data:
            raise UserError(
                f"the model knows {', '.join(of_model)}; the data have {', '.join(in_data)}: no finding in common, so there is "
                "nothing to evaluate. Names match in any spelling, and by the synonyms of data/finding_names.py."
            )
        return cls(tuple(of_model), tuple(in_data), of_data)

    @property
    def renamed(self) -> Dict[str, str]:
        """The matched findings with another name in the data: the model's name -> the data's."""
        return {name: other for name, other in self.of_data.items() if name != other}

    @property
    def unknown_to_the_model(self) -> List[str]:
        return [name for name in self.in_data if name not in self.of_data.values()]

    @property
    def unknown_to_the_data(self) -> List[str]:
        return [name for name in self.of_model if name not in self.of_data]

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """float32 (num_images, findings of the model) from the data's labels; NaN for findings that the data do not have."""
        truth = np.full((len(labels), len(self.of_model)), np.nan, dtype=np.float32)
        for name, other in self.of_data.items():
            truth[:, self.of_model.index(name)] = labels[:, self.in_data.index(other)]
        return truth
