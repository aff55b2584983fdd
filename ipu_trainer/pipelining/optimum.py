"""optimum-graphcore's own pipelined classes, where that package is installed."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from typing import Any, Dict, List, Tuple

import torch
from torch import nn

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.pipelining.anatomy import PipeliningError


class OptimumPipeline:
    """A Pipeline whose module is a twin of the model, of optimum-graphcore's class; state travels back in undo().

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
            poptorch.install()  # the package says `import poptorch`
        from optimum.graphcore import IPUConfig as OptimumConfig
        from optimum.graphcore.modeling_utils import to_pipelined

        self.model = model
        self.config = config
        # Unknown from here: poptorch refuses a pipeline that the accumulation does not fill.
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
        self.module.tie_weights()  # PipelinedMPNetForMaskedLM makes its own embeddings after they were tied
        self.module.train(model.training)
        # Optimizers were made for the model's weights: the twin's stand in for them, by name.
        self._annotated_for: Any = None
        self.annotate(False)
        twins = dict(self.module.named_parameters(remove_duplicate=False))
        own = dict(model.named_parameters(remove_duplicate=False))
        missing = sorted(set(own) - set(twins))
        if missing:
            self.undo()
            raise PipeliningError(
                f"optimum-graphcore's {type(self.module).__name__} divides {', '.join(missing)} into other weights. "
                "Use pipelining='generic' for serialised embeddings and projections."
            )
        self.replaced: Dict[int, List[nn.Parameter]] = {id(own[name]): [twins[name]] for name in own}

    def describe(self) -> str:
        """The class that pipelines the model."""
        return f"optimum-graphcore: {type(self.module).__name__}, layers_per_ipu {list(self.config.layers_per_ipu)}"

    def annotate(self, for_inference: bool) -> None:
        """Parallelise for training or inference."""
        if self._annotated_for is for_inference:
            return
        if self._annotated_for is not None:
            self.module.deparallelize()
        self.module.ipu_config.eval() if for_inference else self.module.ipu_config.train()
        self.module.parallelize()
        self._annotated_for = for_inference

    def state_dict(self) -> Dict[str, torch.Tensor]:
        """The plain model's state with the twin's weights."""
        state = self.module.state_dict()
        return {name: state[name] for name in self.model.state_dict()}

    def undo(self) -> None:
        """Bring the twin's weights back into the model."""
        if self._annotated_for is not None:
            self.module.deparallelize()
            self._annotated_for = None
        self.model.load_state_dict(self.module.state_dict(), strict=False)
