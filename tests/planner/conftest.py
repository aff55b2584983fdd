import pytest
import transformers

from ipu_trainer.planner.published import read_rows
from ipu_trainer.planner.workload import measure


@pytest.fixture(scope="session")
def rows():
    return read_rows()


@pytest.fixture(scope="session")
def vit():
    return measure(transformers.ViTConfig(num_labels=14), "image-classification")


@pytest.fixture(scope="session")
def gpt2():
    return measure(transformers.GPT2Config(), "causal-lm", 128)
