"""`poptorch` is what a program for IPUs would import."""

import pytest

import ipu_trainer.simulator


@pytest.fixture
def poptorch():
    return ipu_trainer.simulator
