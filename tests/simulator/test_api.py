"""The public names, frozen: what is there, what is refused, and that the documentation lists both."""

import inspect
from pathlib import Path

import pytest
import torch

import ipu_trainer.simulator as simulator
from ipu_trainer.simulator.api import IMPLEMENTED, UNAVAILABLE, method_refusals, tables

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "simulator.md"


def test_every_public_name_is_implemented_or_refused_and_the_lists_are_frozen():
    assert set(IMPLEMENTED) | set(UNAVAILABLE) <= set(simulator.__all__)
    assert not set(IMPLEMENTED) & set(UNAVAILABLE)
    assert (len(IMPLEMENTED), sorted(UNAVAILABLE)) == (
        77,
        ["accessAttributes", "getIpuTensorId", "importPoptorchMetadataFromFile", "registerGeometricCustomArgParsers"],
    )
    for name in IMPLEMENTED:
        assert getattr(simulator, name) is not None


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_a_refused_name_says_which_and_why(name):
    with pytest.raises(NotImplementedError, match=rf"poptorch\.{name}: "):
        getattr(simulator, name)(1)


def test_refused_methods_say_which_and_why():
    executor = simulator.inferenceModel(torch.nn.Linear(1, 1), simulator.Options().logCycleCount(True))
    executor(torch.ones(1, 1))
    for name in method_refusals():
        with pytest.raises(NotImplementedError, match=name):
            getattr(executor, name)()


def test_the_documentation_has_both_lists():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert tables() in text, "regenerate with: python -m ipu_trainer.simulator.api docs/simulator.md"


def test_every_public_function_and_class_has_a_docstring():
    for name in IMPLEMENTED:
        value = getattr(simulator, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert (value.__doc__ or "").strip(), name
