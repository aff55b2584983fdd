"""Checks of inputs without host-device synchronisation: answered without the GPU, or later; never left out."""

import logging

import pytest
import torch
from gpu_watch import steps_without_waiting
from tiny_models import gpt2
from transformers import PreTrainedModel, Trainer

from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.transformers_training import PADDING_WARNING, masking_utils
from ipu_trainer.training.acceleration import host_sync
from ipu_trainer.training.acceleration.host_sync import deferred_padding_warning, skip_packing_check

WARNING = PADDING_WARNING.target.rpartition(".")[2]
searches = pytest.mark.skipif(
    not hasattr(masking_utils, "find_packed_sequence_indices"), reason="transformers looks for no packed rows"
)
warns = pytest.mark.skipif(not hasattr(PreTrainedModel, WARNING), reason="transformers does not warn of padding")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@searches
def test_positions_of_one_row_for_all_are_not_searched_on_a_device():
    search = masking_utils.find_packed_sequence_indices
    alike = torch.arange(8, device="meta")[None].expand(4, -1)
    with pytest.raises(RuntimeError):  # it reads a number
        search(alike)
    with skip_packing_check({"input_ids": None}):
        assert masking_utils.find_packed_sequence_indices(alike) is None
        for positions in (alike.contiguous(), alike[:1]):  # rows of their own: known only from the numbers
            with pytest.raises(RuntimeError):
                masking_utils.find_packed_sequence_indices(positions)
    assert masking_utils.find_packed_sequence_indices is search


@searches
def test_given_positions_are_searched_and_what_was_there_comes_back_after_an_error():
    search = masking_utils.find_packed_sequence_indices
    for inputs in ({"position_ids": torch.zeros(1)}, None):
        with skip_packing_check(inputs):
            assert masking_utils.find_packed_sequence_indices is search
    with pytest.raises(RuntimeError, match="in a step"), skip_packing_check({}):
        assert masking_utils.find_packed_sequence_indices is not search
        raise RuntimeError("in a step")
    assert masking_utils.find_packed_sequence_indices is search


@searches
def test_packed_rows_are_kept_apart_in_training(tmp_path):
    """Two sequences in a row give the loss that they give apart."""
    model = gpt2(attn_implementation="eager")
    row = torch.randint(3, 50, (8,), generator=torch.Generator().manual_seed(0))
    labels = row.clone()
    labels[[0, 4]] = -100  # first tokens follow nothing
    positions = torch.arange(4).repeat(2)
    args = IPUTrainingArguments(
        **compat.training_defaults(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, backend="host", dataloader_pin_memory=False, max_steps=1,
            learning_rate=0.0, per_device_train_batch_size=2, logging_steps=1, save_strategy="no", disable_tqdm=True,
        )
    )  # fmt: skip
    sample = {"input_ids": row, "labels": labels, "position_ids": positions}
    trainer = IPUTrainer(model, args, train_dataset=[sample] * 8)
    trainer.train()
    packed = trainer.state.log_history[0]["loss"]
    with torch.no_grad():
        apart = [model(input_ids=part[None], labels=part[None]).loss for part in row.split(4)]
    assert packed == pytest.approx(float(torch.stack(apart).mean()), abs=1e-4)


@warns
def test_on_a_cpu_the_padding_warning_comes_at_once_and_nothing_is_left_behind(monkeypatch):
    told = []

    def check(model, input_ids, attention_mask):
        told.append((type(model).__name__, attention_mask))

    monkeypatch.setattr(PreTrainedModel, WARNING, check)
    model = gpt2(pad_token_id=0)
    padded = torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(RuntimeError, match="in a step"), deferred_padding_warning():
        model(input_ids=padded)
        model(input_ids=padded, attention_mask=torch.ones_like(padded))
        assert [name for name, _ in told] == ["GPT2Model"] * 2
        assert told[0][1] is None and told[1][1] is not None
        assert getattr(PreTrainedModel, WARNING) is not check
        raise RuntimeError("in a step")
    assert getattr(PreTrainedModel, WARNING) is check


@warns
def test_the_padding_warning_comes_once_the_tokens_have_arrived_and_at_the_end(monkeypatch):
    made = []

    class Copied:
        there = False

        def query(self):
            return self.there

        def synchronize(self):
            self.there = True

    def copy_ends(input_ids):
        assert input_ids.device.type == "meta"  # of which no number can be read
        made.append(Copied())
        return torch.full((2, 2), len(made) - 1), made[-1]

    checked = []
    monkeypatch.setattr(host_sync, "_copy_ends", copy_ends)
    monkeypatch.setattr(PreTrainedModel, WARNING, lambda model, ends, mask: checked.append(int(ends[0, 0])))
    model, without_padding = gpt2(pad_token_id=0), gpt2()
    rows = torch.zeros(2, 8, dtype=torch.long, device="meta")
    with deferred_padding_warning():
        tell = getattr(PreTrainedModel, WARNING)
        tell(model, rows, None)
        tell(without_padding, rows, None)
        tell(model, rows, None)  # not there yet: nothing is told, and nothing more is looked at
        assert (checked, len(made)) == ([], 1)
        made[0].there = True
        tell(model, rows, None)
        assert (checked, len(made)) == ([0], 2)
    assert checked == [0, 1]
    assert made[1].there


@pytest.mark.skipif(not hasattr(Trainer, "create_accelerator_and_postprocess"), reason="Trainer itself copies batches")
@pytest.mark.parametrize(
    "given, non_blocking",
    [
        ({}, True),
        ({"accelerator_config": {"split_batches": False}}, True),
        ({"accelerator_config": '{"split_batches": false}'}, True),
        ({"accelerator_config": {"non_blocking": False}}, False),
        ({"accelerator_config": '{"non_blocking": false}'}, False),
        ({"dataloader_pin_memory": False}, False),
    ],
)
def test_batches_are_copied_to_a_gpu_without_blocking_unless_asked_otherwise(
    tmp_path, monkeypatch, given, non_blocking
):
    values = {"bf16": False, **given}
    assert not language_modeling(tmp_path, use_cpu=True, **values).accelerator_config.non_blocking  # nothing to copy
    monkeypatch.setattr(IPUTrainingArguments, "device", torch.device("cuda"))
    assert language_modeling(tmp_path, **values).accelerator_config.non_blocking == non_blocking


@searches
@pytest.mark.parametrize("own_positions", [False, True])
def test_a_training_step_computes_inside_of_both(tmp_path, own_positions):
    """On a CPU too, where they change nothing."""
    search, check = masking_utils.find_packed_sequence_indices, getattr(PreTrainedModel, WARNING)
    seen = []

    def look(*_):
        searched = masking_utils.find_packed_sequence_indices is search
        seen.append((searched, getattr(PreTrainedModel, WARNING) is check))

    model = gpt2()
    model.register_forward_pre_hook(look)
    extra = {"position_ids": torch.arange(16)} if own_positions else {}
    samples = [{**row, **extra} for row in rows(False)]
    args = language_modeling(tmp_path, bf16=False, use_cpu=True, dataloader_pin_memory=False, max_steps=2)
    IPUTrainer(model, args, train_dataset=samples).train()
    assert seen == [(own_positions, False)] * 2
    assert masking_utils.find_packed_sequence_indices is search
    assert getattr(PreTrainedModel, WARNING) is check


def language_modeling(folder, **changes):
    values = {
        "output_dir": str(folder), "max_steps": 8, "per_device_train_batch_size": 4, "bf16": True, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1000, "logging_nan_inf_filter": False,
        "backend": "host", **changes,
    }  # fmt: skip
    return IPUTrainingArguments(**compat.training_defaults(**values))


def rows(padded):
    made = torch.randint(3, 50, (32, 16), generator=torch.Generator().manual_seed(0))
    if padded:
        made[:, -1] = 0
    return [{"input_ids": row, "labels": row} for row in made]


@on_gpu
@pytest.mark.parametrize("compile", ["off", "layers"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_no_step_of_a_language_model_waits_for_the_gpu(tmp_path, compile, accumulation):
    args = language_modeling(tmp_path, compile=compile, gradient_accumulation_steps=accumulation, fold=False)
    assert args.accelerator_config.non_blocking
    trainer = IPUTrainer(gpt2(pad_token_id=0), args, train_dataset=rows(False))
    assert steps_without_waiting(trainer) == 4


@on_gpu
@pytest.mark.parametrize("padded", [False, True])
def test_the_padding_warning_comes_on_a_gpu_too(tmp_path, caplog, monkeypatch, padded):
    from transformers import modeling_utils

    modeling_utils.logger.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        IPUTrainer(gpt2(pad_token_id=0), language_modeling(tmp_path, max_steps=2), train_dataset=rows(padded)).train()
    assert ("attention_mask" in caplog.text) == padded


@on_gpu
def test_a_padded_vocabulary_trains_to_the_same_weights_on_a_gpu(tmp_path):
    results = {}
    for name in ("off", "layers"):
        model = gpt2()
        args = language_modeling(tmp_path / name, compile=name, bf16=False, tf32=False)
        IPUTrainer(model, args, train_dataset=rows(False)).train()
        results[name] = model.state_dict()
    for name, value in results["off"].items():
        torch.testing.assert_close(results["layers"][name], value, rtol=0, atol=1e-5)
