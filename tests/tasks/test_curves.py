"""PNG plots of a run."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from ipu_trainer.tasks.reporting.drawing import plot_training


@pytest.fixture
def inline_backend():
    """A backend of the caller's, as a notebook's inline one is."""
    before = matplotlib.get_backend()
    plt.switch_backend("svg")
    yield
    plt.switch_backend(before)


def test_plotting_leaves_the_callers_backend_and_figures_alone(inline_backend, tmp_path):
    # A notebook's own figures were no longer shown after a training in it had switched to Agg.
    history = [{"epoch": 1, "loss": 2.0}, {"epoch": 1, "eval_accuracy": 0.5}, {"epoch": 2, "loss": 1.0}]
    plot_training(tmp_path / "training.png", history, "eval_accuracy", "accuracy")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert matplotlib.get_backend() == "svg" and plt.get_fignums() == []
