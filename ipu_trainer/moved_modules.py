"""Old paths of modules that documentation named: they import the module that replaced them, with a hint, for one release."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any, Optional, Sequence

_XRAY = "ipu_trainer.tasks.chest_xray"
MOVED = {
    "ipu_trainer.simulator.trace": "ipu_trainer.simulator.analysis.trace",
    "ipu_trainer.training.compat": "ipu_trainer.compat.transformers_versions",
    "ipu_trainer.tasks.flag_table": "ipu_trainer.tasks.recipe.flag_table",
    f"{_XRAY}.arguments": f"{_XRAY}.recipe_arguments",
    f"{_XRAY}.dataset": f"{_XRAY}.data.dataset",
    f"{_XRAY}.labels": f"{_XRAY}.data.labels",
    f"{_XRAY}.losses": f"{_XRAY}.model.losses",
    f"{_XRAY}.metrics": f"{_XRAY}.evaluation.metrics",
    f"{_XRAY}.phantoms": f"{_XRAY}.data.phantoms",
    f"{_XRAY}.prepare": f"{_XRAY}.data.prepare",
    f"{_XRAY}.trainer": f"{_XRAY}.model.chest_xray_trainer",
    f"{_XRAY}.transforms": f"{_XRAY}.model.inputs",
}


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        moved = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} has moved and goes with the next release. Import {moved}.", FutureWarning, stacklevel=2
        )
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        moved = importlib.import_module(MOVED[module.__name__])

        def attribute(name: str) -> Any:
            return getattr(moved, name)

        module.__getattr__ = attribute  # type: ignore[method-assign]
        module.__dict__["__all__"] = [name for name in vars(moved) if not name.startswith("_")]


def install() -> None:
    """Let the old paths be imported; called once by `import ipu_trainer`."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
