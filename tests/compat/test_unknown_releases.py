"""On a release of another library that was never tried, optional accelerations leave the library as it is and say so once."""

import importlib.metadata
import logging

import pytest
import torch
from accelerate.utils import operations
from transformers import PreTrainedModel

from ipu_trainer.compat import internals
from ipu_trainer.compat.internals import is_known
from ipu_trainer.compat.transformers_training import PADDING_WARNING, masking_utils
from ipu_trainer.training.acceleration.accelerated_training import skip_logits_upcast
from ipu_trainer.training.acceleration.choices import choose_compile
from ipu_trainer.training.acceleration.host_sync import deferred_padding_warning, skip_packing_check


@pytest.fixture
def unknown_releases(monkeypatch, caplog):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    is_known.cache_clear()
    internals._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "ipu_trainer"):
        yield caplog
    is_known.cache_clear()


PADDING = PADDING_WARNING.target.rpartition(".")[2]
CASES = {
    "packing": (lambda: skip_packing_check({}), masking_utils, "find_packed_sequence_indices"),
    "padding": (deferred_padding_warning, PreTrainedModel, PADDING),
    "logits": (skip_logits_upcast, operations, "convert_to_fp32"),
}


@pytest.mark.parametrize("case", CASES)
def test_checks_and_conversions_stay_stock_with_one_warning(case, unknown_releases):
    make, owner, name = CASES[case]
    stock = getattr(owner, name, None)
    if stock is None:
        pytest.skip("this release has no such function")
    for _ in range(2):
        with make():
            assert getattr(owner, name) is stock
    warnings = [record.getMessage() for record in unknown_releases.records if name in record.getMessage()]
    assert len(warnings) == 1 and "99.0" in warnings[0]


@pytest.mark.parametrize("case", CASES)
def test_they_are_replaced_on_a_release_that_was_tried(case):
    make, owner, name = CASES[case]
    stock = getattr(owner, name, None)
    if stock is None:
        pytest.skip("this release has no such function")
    with make():
        assert getattr(owner, name) is not stock
    assert getattr(owner, name) is stock


@pytest.mark.skipif(not hasattr(torch.nn.Module, "compile"), reason="torch compiles no modules in place")
def test_layers_are_not_compiled(unknown_releases):
    assert "newer than" in choose_compile("auto", "cuda").reason
    assert choose_compile("auto", "cuda").name == choose_compile("off", "cuda").name == "off"
    with pytest.raises(ValueError, match="compile=layers: torch .* is newer than"):
        choose_compile("layers", "cpu")
    assert len([one for one in unknown_releases.records if "_compiled_call_impl" in one.getMessage()]) == 1
