"""The house rules that a reader relies on: packages that can be surveyed, one name for one thing, a small trainer."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import ipu_trainer
from ipu_trainer.compat import stock_trainer
from ipu_trainer.training.execution import Execution
from ipu_trainer.training.trainer import IPUTrainer

PACKAGE = Path(ipu_trainer.__file__).parent
FOLDERS = sorted({file.parent for file in PACKAGE.rglob("*.py")})
TRAINING = PACKAGE / "training"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE.parent)))
def test_a_package_is_described_and_has_at_most_twenty_modules(folder):
    modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
    assert len(modules) <= 20
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


def test_no_two_classes_of_the_package_have_one_name():
    found = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(file.relative_to(PACKAGE)))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


@pytest.mark.parametrize("file", ["trainer.py", "host/host_execution.py", "device/device_execution.py", "execution.py"])
def test_the_trainer_and_its_executions_are_small(file):
    assert len((TRAINING / file).read_text(encoding="utf-8").splitlines()) <= 250


def test_the_trainer_does_not_ask_which_backend_it_has():
    tree = ast.parse((TRAINING / "trainer.py").read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"has_executors", "HostExecution", "DeviceExecution"}


def test_an_execution_has_no_public_method_that_the_trainer_does_not_know():
    """What differs between host and device is in the interface; what one of them has besides is for its own package."""
    trainer = (TRAINING / "trainer.py").read_text(encoding="utf-8") + "".join(
        file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py") if "execution" not in file.name
    )
    for name in vars(Execution):
        if not name.startswith("_"):
            assert f"execution.{name}" in trainer, name


@pytest.mark.parametrize("name", sorted(stock_trainer.PRIVATE))
def test_a_private_step_of_trainer_is_there(name):
    stock = stock_trainer.StockTrainer.__mro__[1]
    assert hasattr(stock, name) or name == "_train_batch_size"
    assert stock.__module__ == "transformers.trainer"


def test_private_steps_are_overridden_in_one_place():
    """Parts of IPUTrainer override the public names of StockTrainer, so that each private name occurs once."""
    parts = [cls for cls in IPUTrainer.__mro__ if cls.__module__.startswith("ipu_trainer.training.")]
    for cls in parts:
        assert not set(vars(cls)) & (set(stock_trainer.PRIVATE) - {"_train_batch_size"}), cls
