"""optimum-graphcore's pipelined classes, where that package is installed."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from typing import Any, Dict, List, Tuple

import torch
from torch import nn

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.pipelining.anatomy import PipeliningError

_INFERENCE_MAY_DIFFER = (
    "layers_per_ipu",
    "ipus_per_replica",
    "serialized_projection_splits_per_ipu",
    "serialized_embedding_splits_per_ipu",
)


class OptimumPipeline:
    """A Pipeline whose module is a twin of the model, of optimum-graphcore's class; undo() copies its state to the model.

    Raises PipeliningError where the package, the namespace or a class for this model is missing.
    """

    changes_names = True

    def __init__(self, model: nn.Module, config: IPUConfig, poptorch: Any) -> None:
        if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.graphcore") is None:
            raise PipeliningError(
                "pipelining='optimum' needs optimum-graphcore, which is not installed. pip install "
                "ipu_trainer[ipu], or use pipelining='generic'."
            )
        if sys.modules.get("poptorch") not in (None, poptorch):
            raise PipeliningError("pipelining='optimum' uses the poptorch of this program, which is another one.")
        if sys.modules.get("poptorch") is None and poptorch.__name__ == "ipu_trainer.simulator":
            poptorch.install(for_program=False)  # the package imports poptorch
        from optimum.graphcore import IPUConfig as OptimumConfig
        from optimum.graphcore.modeling_utils import to_pipelined

        self.model = model
        self.config = config
        # Not known: poptorch refuses a pipeline that the accumulation does not fill.
        self.placements: Dict[bool, Tuple[Any, ...]] = {}
        known = set(inspect.signature(OptimumConfig.__init__).parameters)
        values = {name: value for name, value in config.to_dict().items() if name in known and value is not None}
        self._optimum_config = OptimumConfig(**values)
        try:
            self.module = to_pipelined(model, self._optimum_config)
        except KeyError as error:
            raise PipeliningError(
                f"optimum-graphcore has no pipelined class for {type(model).__name__} ({error}). "
                "Use pipelining='generic'."
            ) from None
        self.module.tie_weights()  # PipelinedMPNetForMaskedLM replaces its embeddings after they were tied
        self.module.train(model.training)
        self._annotated_for: Any = None
        self._one_placement = all(
            getattr(config, f"inference_{name}") in (None, getattr(config, name)) for name in _INFERENCE_MAY_DIFFER
        )
        before = dict(self.module.named_parameters(remove_duplicate=False))
        weights = dict(model.named_parameters(remove_duplicate=False))
        self.annotate(False)
        self._twins = self._twin_weights(weights, before)
        obstacle = self._obstacle(weights)
        if obstacle:
            self.undo()
            raise PipeliningError(
                f"optimum-graphcore's {type(self.module).__name__} {obstacle}. Use pipelining='generic'."
            )
        self.replaced: Dict[int, List[nn.Parameter]] = {id(weights[name]): [self._twins[name]] for name in weights}

    def _twin_weights(
        self, weights: Dict[str, nn.Parameter], before: Dict[str, nn.Parameter]
    ) -> Dict[str, nn.Parameter]:
        """The twin's weights by the model's names: of that name, or renamed by parallelize()."""
        after = dict(self.module.named_parameters(remove_duplicate=False))
        present = {id(parameter) for parameter in after.values()}
        renamed = {name: twin for name, twin in before.items() if name in weights and id(twin) in present}
        return {**renamed, **{name: after[name] for name in weights if name in after}}

    def _obstacle(self, weights: Dict[str, nn.Parameter]) -> str:
        """Why the twin cannot train the model's weights; "" if it can."""
        divided = sorted(set(weights) - set(self._twins))
        if divided:
            return f"divides {_some(divided)} into other weights"
        scaled = sorted(name for name, twin in self._twins.items() if not torch.equal(twin, weights[name]))
        if scaled:
            return f"scales {_some(scaled)}, which changes updates too"
        if not self._one_placement:
            self.annotate(True)
            self.annotate(False)
            present = {id(parameter) for parameter in self.module.parameters()}
            copied = sorted(name for name, twin in self._twins.items() if id(twin) not in present)
            if copied:
                return (
                    f"copies {_some(copied)} at each placement, and inference is placed differently from training. Place "
                    "both alike"
                )
        return ""

    def describe(self) -> str:
        """The class that pipelines the model."""
        return f"optimum-graphcore: {type(self.module).__name__}, layers_per_ipu {list(self.config.layers_per_ipu)}"

    def annotate(self, for_inference: bool) -> None:
        """Parallelise for training or inference; once where both are placed alike, since some classes remove buffers again."""
        if self._annotated_for is for_inference or (self._annotated_for is not None and self._one_placement):
            return
        if self._annotated_for is not None:
            self.module.deparallelize()
        self.module.ipu_config.eval() if for_inference else self.module.ipu_config.train()
        self.module.parallelize()
        self._annotated_for = for_inference

    def state_dict(self) -> Dict[str, torch.Tensor]:
        """The plain model's state with the twin's weights."""
        state = {**self.module.state_dict(), **{name: twin.detach() for name, twin in self._twins.items()}}
        return {name: state[name] for name in self.model.state_dict()}

    def undo(self) -> None:
        """Copy the twin's weights to the model."""
        if self._annotated_for is not None:
            self.module.deparallelize()
            self._annotated_for = None
        self.model.load_state_dict(self.module.state_dict(), strict=False)


def _some(names: List[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
