"""What is private in other libraries is read and replaced in ipu_trainer/compat alone, and every row there names a test."""

import ast
import importlib
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path

import pytest
import torch
import transformers

import ipu_trainer.compat
from ipu_trainer.compat.internals import Internal

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "ipu_trainer"

STANDARD_LIBRARY = {module.name for module in pkgutil.iter_modules([os.path.dirname(os.__file__)])}
STANDARD_LIBRARY |= {*sys.builtin_module_names, "__future__"}
# namedtuple's documented methods begin with an underscore so that they cannot be mistaken for fields.
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace"}
LIBRARY_OBJECTS = (
    torch.nn.Module(),
    torch.Tensor,
    torch.UntypedStorage,
    torch.optim.SGD([torch.zeros(1)], lr=0.1),
    torch.utils.data.DataLoader([0]),
    transformers.PretrainedConfig,
    transformers.PreTrainedModel,
    transformers.Trainer,
    transformers.TrainingArguments,
)


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in DOCUMENTED


LIBRARY_NAMES = {name for thing in LIBRARY_OBJECTS for name in dir(thing) if is_private(name)}


def defined_in(tree):
    """Names that a module defines: functions, classes, variables, and attributes that its classes set on themselves."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return names


def is_self(node):
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def imported_from_libraries(tree):
    """Local name -> library, for what is imported from other libraries than the standard one."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({alias.asname or alias.name: node.module.partition(".")[0] for alias in node.names})
    own = STANDARD_LIBRARY | {"ipu_trainer", "ipu_configs"}
    return {name: library for name, library in found.items() if library not in own}


def root_of(node):
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def reaches(tree, own):
    """The lines of every private access and every replacement. `own`: module -> names that it defines, for our package."""
    libraries = imported_from_libraries(tree)
    bases = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module in own]
    inherited = defined_in(tree).union(*(own[module] for module in bases))
    anywhere = set().union(*own.values())
    standard = {alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    standard -= set(libraries)

    def is_foreign(name, receiver):
        if not is_private(name) or root_of(receiver) in standard:
            return False
        if root_of(receiver) in libraries or name not in anywhere:
            return True
        return name in LIBRARY_NAMES and not (is_self(receiver) and name in inherited)

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            replaces = isinstance(node.ctx, (ast.Store, ast.Del)) and root_of(node) in libraries
            if replaces or is_foreign(node.attr, node.value):
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in libraries.values():
            private = [name for name in [*node.module.split("."), *(a.name for a in node.names)] if is_private(name)]
            if private:
                yield node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "setattr",
            "delattr",
            "hasattr",
        ):
            name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else ""
            replaces = node.func.id in ("setattr", "delattr") and root_of(node.args[0]) in libraries
            if replaces or is_foreign(str(name), node.args[0]):
                yield node.lineno


@pytest.fixture(scope="module")
def found():
    sources = {path.relative_to(REPOSITORY): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    trees = {path: ast.parse(source) for path, source in sources.items() if "compat" not in path.parts}
    own = {".".join(path.with_suffix("").parts): defined_in(tree) for path, tree in trees.items()}
    return {
        path.as_posix(): [
            f"{line}: {sources[path].splitlines()[line - 1].strip()}" for line in sorted(set(reaches(tree, own)))
        ]
        for path, tree in trees.items()
    }


def test_only_compat_reaches_into_other_libraries(found):
    lines = [f"{name}:{hit}" for name, hits in found.items() for hit in hits]
    assert not lines, "Move these into ipu_trainer/compat, beside a row:\n" + "\n".join(lines)


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch._C.x",
        "def f(tensor): return tensor._version",
        "def f(module): return module._parameters",
        "class A:\n    def f(self): return self._parameters",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "def f(config): return getattr(config, '_attn_implementation', None)",
        "from torch.nn import functional\nfunctional.gelu = None",
        "from torch.nn import functional\nsetattr(functional, 'gelu', None)",
        "import accelerate\naccelerate.Accelerator.backward = None",
        "import accelerate\ndel accelerate.Accelerator.backward",
    ],
)
def test_the_scan_finds(code):
    assert list(reaches(ast.parse(code), {"other": {"_parameters"}}))


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys._getframe(1)\nsys.argv = []",
        "def f(options): return options._frozen",
        "class A:\n    def f(self):\n        self._parameters = []\n        return self._parameters",
        "def f(module): module.forward = None",
        "def f(value): return value._asdict()",
    ],
)
def test_the_scan_lets_pass(code):
    assert not list(reaches(ast.parse(code), {"other": {"_parameters", "_frozen"}}))


def rows():
    for module in pkgutil.iter_modules(ipu_trainer.compat.__path__):
        for value in vars(importlib.import_module(f"ipu_trainer.compat.{module.name}")).values():
            values = value if isinstance(value, (list, tuple)) else [value]
            yield from (row for row in values if isinstance(row, Internal))


@pytest.mark.parametrize("row", sorted(set(rows()), key=lambda row: row.target), ids=lambda row: row.target)
def test_every_row_names_a_test_that_exists(row):
    file, _, name = row.test.partition("::")
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    assert name and f"def {name.partition('[')[0]}(" in text
    assert [int(part) for part in row.first.split(".")] <= [int(part) for part in row.last.split(".")]
    assert row.library in ("torch", "transformers") or importlib.util.find_spec(row.library)
