"""Shared fixtures: phantoms instead of patients, tiny models, one thread."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def garbage_is_looked_for_among_what_tests_made():
    """Every training calls gc.collect(), which would look at a million objects of libraries: most of a tiny training's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def nih_sample():
    """Real X-rays beside the repository, where there are some."""
    folder = REPOSITORY.parent / "shared" / "nih-sample"
    if not folder.is_dir():
        pytest.skip("no real X-rays beside the repository")
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """120 synthetic chests with their CSV, and a tiny ViT for 32 pixels."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from ipu_trainer.tasks.chest_xray.data.phantoms import PhantomSettings, write_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, PhantomSettings(num_images=120, size=48, seed=1), progress=False)
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    ViTForImageClassification(config).save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="session")
def prepared(phantoms, tmp_path_factory):
    """The phantoms, prepared at 32 pixels."""
    from ipu_trainer.tasks.chest_xray.data.prepare import PrepareSettings, prepare

    output = tmp_path_factory.mktemp("prepared") / "data"
    settings = PrepareSettings(
        phantoms / "phantoms.csv",
        phantoms / "images",
        output,
        size=32,
        workers=1,
        validation_fraction=0.2,
        test_fraction=0.2,
    )
    assert prepare(settings, progress=False).finished
    return output


@pytest.fixture
def plots_are_drawn_fast(monkeypatch):
    """Figures are made and not rendered, for tests that do not look at them: rendering takes most of a tiny run's time."""
    from matplotlib.figure import Figure

    def savefig(figure, file, format, **_):
        if format == "svg":
            return file.write('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>')
        return Path(file).write_bytes(b"drawn")

    monkeypatch.setattr(Figure, "savefig", savefig)
