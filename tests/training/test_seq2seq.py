"""IPUSeq2SeqTrainer: Seq2SeqTrainer's results on the host, and the host's on simulated IPUs."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from ipu_trainer import IPUConfig, IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.training.device.inference import why_not_on_device

ONE_IPU = IPUConfig(layers_per_ipu=(-1,))
FOUR_IPUS = IPUConfig(layers_per_ipu=(1, 1, 1, 1), gradient_accumulation_steps=16, inference_device_iterations=2)


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=60,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    )


def bart():
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=60,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=40,
            dropout=0.0,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
        )
    )


class Copies(Dataset):
    """Twelve tokens, of which the first seven are to be written."""

    def __init__(self, number, seed=0):
        self.ids = torch.randint(5, 60, (number, 12), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids = self.ids[index]
        mask = torch.ones(12, dtype=torch.long)
        mask[12 - index % 3 :] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.cat([ids[:7], torch.tensor([1])])}


def trainer(folder, make, backend="host", config=None, **values):
    torch.manual_seed(0)
    args = IPUSeq2SeqTrainingArguments(
        output_dir=str(folder),
        backend=backend,
        predict_with_generate=True,
        per_device_eval_batch_size=2,
        per_device_train_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        **{compat.field_name("use_cpu"): True, **values},
    )
    return IPUSeq2SeqTrainer(
        model=make(), args=args, ipu_config=config, train_dataset=Copies(64), eval_dataset=Copies(5, 1)
    )


GENERATION = [
    {"max_length": 10},
    {"max_length": 9, "num_beams": 3},
    {"max_new_tokens": 6, "num_beams": 2, "length_penalty": 0.5},
    {"max_length": 10, "do_sample": True, "top_k": 5},
]


@pytest.mark.parametrize("make", [t5, bart], ids=["t5", "bart"])
def test_on_the_host_it_is_seq2seq_trainer(tmp_path, make):
    ours = trainer(tmp_path, make)
    torch.manual_seed(0)
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), predict_with_generate=True, per_device_eval_batch_size=2, report_to=[],
        disable_tqdm=True, **{compat.field_name("use_cpu"): True},
    )  # fmt: skip
    stock = Seq2SeqTrainer(model=make(), args=args)
    for settings in GENERATION[:3]:
        one = ours.predict(Copies(5, 1), metric_key_prefix="mine", **settings)
        other = stock.predict(Copies(5, 1), metric_key_prefix="mine", **settings)
        assert np.array_equal(one.predictions, other.predictions)
        assert one.metrics["mine_loss"] == other.metrics["mine_loss"]


@pytest.mark.parametrize("config", [ONE_IPU, FOUR_IPUS], ids=["one IPU", "four IPUs"])
@pytest.mark.parametrize("make", [t5, bart], ids=["t5", "bart"])
def test_generation_on_a_device_writes_the_hosts_tokens(tmp_path, make, config, caplog):
    host, device = trainer(tmp_path, make), trainer(tmp_path, make, "simulated", config)
    # With more samples a call, sampling draws in another order.
    for settings in GENERATION if config is ONE_IPU else GENERATION[:3]:
        results = []
        for made in (host, device):
            torch.manual_seed(3)
            results.append(made.predict(Copies(4, 1), **settings))
        assert np.array_equal(results[0].predictions, results[1].predictions), settings
        assert results[0].metrics["test_loss"] == pytest.approx(results[1].metrics["test_loss"], abs=1e-6)
    assert "generating on the host" not in caplog.text


def test_the_device_generates_with_the_weights_that_it_trained(tmp_path):
    # SGD: where a gradient is zero but for rounding, Adam would make a step of that rounding, and words could change.
    settings = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.5}
    settings.update(compat.training_defaults(eval_strategy="steps", eval_steps=3))
    host = trainer(tmp_path, t5, "host", FOUR_IPUS, **settings)
    device = trainer(tmp_path, t5, "simulated", FOUR_IPUS, **settings)
    untrained = trainer(tmp_path, t5).predict(Copies(5, 1), max_length=10)
    for made in (host, device):
        made.train()
    one, other = (made.predict(Copies(5, 1), max_length=10) for made in (host, device))
    assert np.array_equal(one.predictions, other.predictions)
    assert not np.array_equal(one.predictions, untrained.predictions)


def test_evaluation_takes_generation_settings_and_the_arguments_defaults(tmp_path):
    seen = []

    def watch(prediction):
        seen.append(np.asarray(prediction.predictions))
        return {"rows": float(len(prediction.predictions))}

    made = trainer(tmp_path, t5, "simulated", ONE_IPU, generation_max_length=6, generation_num_beams=2)
    made.compute_metrics = watch
    told = made.evaluate(metric_key_prefix="mine")
    assert told["mine_rows"] == 5 and "mine_loss" in told
    told = made.evaluate(max_length=4, num_beams=1, ignore_keys=["past_key_values"])
    assert told["eval_rows"] == 5
    assert (seen[0][:, 6:] == 0).all() and (seen[1][:, 4:] == 0).all()  # T5's padding
    assert not np.array_equal(seen[0][:, :4], seen[1][:, :4]) or (seen[0][:, 4:6] != 0).any()


def test_what_has_no_fixed_shape_is_generated_on_the_host_and_said(tmp_path, caplog):
    device, host = trainer(tmp_path, t5, "simulated", FOUR_IPUS), trainer(tmp_path, t5)
    settings = {"max_length": 8, "output_scores": True}
    one, other = device.predict(Copies(5, 1), **settings), host.predict(Copies(5, 1), **settings)
    assert np.array_equal(one.predictions, other.predictions)
    assert "generating on the host: output_scores needs forward passes of other shapes" in caplog.text
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    assert "is no encoder-decoder" in why_not_on_device(decoder, {"input_ids": None}, {})
    assert "the batch has language_ids" in why_not_on_device(t5(), {"input_ids": 1, "language_ids": 1}, {})


def test_speech_to_text_generates_on_a_device(tmp_path):
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=10,
        max_target_positions=12, num_mel_bins=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, dropout=0.0, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    given = {"input_features": torch.randn(3, 8, 20)}
    made = trainer(tmp_path, lambda: model, "simulated", ONE_IPU)
    from ipu_trainer.training.device.inference import generate_on_device

    expected = model.generate(**given, max_length=8)
    found = generate_on_device(made.execution.run, model, given, {"max_length": 8}, 2)
    assert torch.equal(expected, found[:, : expected.shape[1]])
