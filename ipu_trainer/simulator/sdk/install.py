"""`import poptorch` and `import popart` of a program import the simulator.

install() writes nothing to disk, refuses where the real poptorch can be imported, and holds for the process and for those that
it spawns.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import multiprocessing.spawn
import os
import runpy
import sys
import types
from typing import Any, Callable, Dict, Iterator, List, Sequence

from ipu_trainer.errors import MissingFileError, UserError
from ipu_trainer.simulator.sdk import optimum_extensions

VERSION = "3.4.0"


class AlreadyInstalledError(UserError):
    """The real poptorch is importable, and is not replaced."""


class NotRunnableError(UserError):
    """No module of that name can be run."""


_requested_by_program = False


def install(for_program: bool = True) -> None:
    """Let `poptorch` and `popart` be the simulator in this process. Calling it again changes nothing.

    for_program: False where only a library imports poptorch, and the program did not request the simulator.
    Raises AlreadyInstalledError if the real poptorch is importable.
    """
    import ipu_trainer.simulator as simulator

    global _requested_by_program
    _requested_by_program = _requested_by_program or for_program
    if sys.modules.get("poptorch") is simulator:
        return
    spec = importlib.util.find_spec("poptorch") if "poptorch" not in sys.modules else sys.modules["poptorch"].__spec__
    if spec is not None or "poptorch" in sys.modules:
        where = getattr(spec, "origin", None) or "the running program"
        raise AlreadyInstalledError(
            f"the real poptorch is importable ({where}); the simulator does not replace it. Use an environment "
            "without the SDK, or `import ipu_trainer.simulator as poptorch`."
        )
    from ipu_trainer.simulator import enums, logs, ops, optim, options
    from ipu_trainer.simulator.arguments import nested_values
    from ipu_trainer.simulator.execution import compilation, executor
    from ipu_trainer.simulator.options import popart_enums
    from ipu_trainer.simulator.sdk import poptorch_core, profiling, sdk_internals, testing, unavailable

    sys.modules.update(
        {
            "poptorch": simulator,
            "poptorch.enums": enums,
            "poptorch.ops": ops,
            "poptorch.optim": optim,
            "poptorch.options": options,
            "poptorch.profiling": profiling,
            "poptorch.testing": testing,
            "poptorch.poptorch_core": poptorch_core,
            "poptorch._impl": sdk_internals,
            "poptorch._logging": logs,
            "poptorch._poplar_executor": _view("poptorch._poplar_executor", executor, compilation),
            "poptorch._utils": _view("poptorch._utils", nested_values, unavailable),
            "popart": _view("popart", popart_enums),
        }
    )
    for replaced in optimum_extensions.REPLACED:
        if replaced in sys.modules:  # imported before
            _OptimumExtensions().exec_module(sys.modules[replaced])
    for name in ("_impl", "_logging", "_poplar_executor", "_utils"):
        setattr(simulator, name, sys.modules[f"poptorch.{name}"])
    sys.meta_path.insert(0, _OptimumExtensions())
    sys.meta_path.append(_Metadata())
    multiprocessing.spawn.get_preparation_data = _preparation_data
    logs.console()
    level = os.environ.get("POPTORCH_LOG_LEVEL")
    if level:
        logs.setLogLevel(level)


def program_is_simulated() -> bool:
    """Whether this program runs under `ipu-trainer simulate`, or called install() itself."""
    return _requested_by_program


class _InstallingName(str):
    """The name of a process; unpickling it installs the simulator.

    A spawned process reads it first: before it imports the main module, and before it unpickles data sets, whose modules may
    import poptorch.
    """

    def __reduce__(self) -> Any:
        return (_install_and_name, (str(self),))


def _install_and_name(name: str) -> str:
    install()
    return name


_plain_preparation_data = multiprocessing.spawn.get_preparation_data


def _preparation_data(name: str) -> Dict[str, Any]:
    data = _plain_preparation_data(name)
    data["name"] = _InstallingName(data["name"])
    return data


def _view(name: str, *modules: types.ModuleType) -> types.ModuleType:
    """A module of that name with everything public from others."""
    view = types.ModuleType(name, modules[0].__doc__)
    for module in modules:
        view.__dict__.update({k: v for k, v in vars(module).items() if not k.startswith("__")})
    view.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=modules[0].__file__)
    return view


class _OptimumExtensions(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of optimum_extensions.REPLACED as any other: below their packages, which hold them as attributes."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        compiled = optimum_extensions.COMPILED
        if fullname == compiled.rpartition(".")[0] and compiled not in sys.modules:
            # Now: this package goes on to put a compiler of C++ in front of all finders.
            sys.modules[compiled] = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(compiled, self))
            self.exec_module(sys.modules[compiled])
        if fullname not in optimum_extensions.REPLACED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=optimum_extensions.__file__)

    def exec_module(self, module: types.ModuleType) -> None:
        for name in optimum_extensions.REPLACED[module.__name__]:
            setattr(module, name, getattr(optimum_extensions, name))


class _Distribution(importlib.metadata.Distribution):
    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> Any:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: {self._name}\nVersion: {VERSION}\nSummary: simulated\n"

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"{self._name} is simulated and has no files")


class _Metadata(importlib.metadata.DistributionFinder):
    """Answers importlib.metadata.version("poptorch")."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        return None

    def find_distributions(self, context: Any = None) -> Iterator[importlib.metadata.Distribution]:  # type: ignore[override]
        if context is not None and context.name in ("poptorch", "popart"):
            yield _Distribution(context.name)


def run_script(path: str, arguments: Sequence[str] = ()) -> Dict[str, Any]:
    """Run a Python file as the main program, with the simulator in place of the SDK. Returns its global names.

    Raises FileNotFoundError for a path that is no file.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} is not a file; give the Python script to simulate")
    folder = os.path.dirname(os.path.abspath(path))
    return _as_main([path, *arguments], folder, lambda: runpy.run_path(path, run_name="__main__"))


def run_module(name: str, arguments: Sequence[str] = ()) -> Dict[str, Any]:
    """Run a module as `python -m name` does, with the simulator in place of the SDK. Returns its global names.

    The current folder comes first on the path. Raises NotRunnableError if there is no such module.
    """

    def run() -> Dict[str, Any]:
        _check_module(name)
        return runpy.run_module(name, run_name="__main__", alter_sys=True)

    return _as_main([name, *arguments], os.getcwd(), run)


def _check_module(name: str) -> None:
    """Raises NotRunnableError where `python -m` finds nothing to run. Imports the packages above the module."""
    if not all(name.split(".")) or "/" in name or os.sep in name:
        raise NotRunnableError(
            f"-m {name}: not a module's name. Give it as in an import, -m package.train, or the file."
        )
    package, is_package = "", True
    for part in name.split("."):
        package = f"{package}.{part}" if package else part
        spec = importlib.util.find_spec(package) if is_package else None
        if spec is None:
            raise NotRunnableError(f"-m {name}: there is no module {package} in {os.getcwd()} or on the Python path.")
        is_package = spec.submodule_search_locations is not None
    if is_package and importlib.util.find_spec(f"{name}.__main__") is None:
        raise NotRunnableError(f"-m {name}: a package without __main__.py. Name a module of it: -m {name}.MODULE.")


def _as_main(argv: List[str], folder: str, run: Callable[[], Dict[str, Any]]) -> Dict[str, Any]:
    install()
    before: List[str] = sys.argv
    sys.argv = argv
    sys.path.insert(0, folder)
    try:
        return run()
    finally:
        sys.argv = before
        sys.path.remove(folder)
