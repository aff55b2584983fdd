"""Models of transformers, trained on the simulator and in a plain loop: the same weights, bit for bit, dropout included."""

import pytest
import torch
import transformers

from ipu_trainer.compat.torch_workarounds import contiguous_gelu_gradients

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SEQ2SEQ = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
SAMPLES = 4


def tokens(length=12):
    return torch.randint(3, 90, (SAMPLES, length))


def causal():
    input_ids = tokens()
    return {"input_ids": input_ids, "labels": input_ids.clone()}


def images():
    return {"pixel_values": torch.randn(SAMPLES, 3, 32, 32), "labels": torch.randint(0, 2, (SAMPLES,))}


def pairs():
    return {"input_ids": tokens(), "labels": tokens(6)}


MODELS = {
    "ViT": ("ViTForImageClassification", "ViTConfig", {"image_size": 32, "patch_size": 8, **SMALL}, images),
    "BERT": ("BertForMaskedLM", "BertConfig", {"vocab_size": 100, **SMALL}, pairs),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}, causal),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {"vocab_size": 100, **SMALL}, causal),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 100,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        pairs,
    ),
    "BART": ("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, pairs),
    "Whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **SEQ2SEQ,
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        lambda: {"input_features": torch.randn(SAMPLES, 16, 64), "labels": tokens(6)},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_transformers_model_trains_as_in_a_plain_loop(poptorch, name):
    model_class, config_class, settings, make = MODELS[name]
    config = getattr(transformers, config_class)(**settings)
    twins = []
    for _ in range(2):
        torch.manual_seed(0)
        twins.append(getattr(transformers, model_class)(config).train())
    torch.manual_seed(1)
    batch = make()
    if name == "BERT":
        batch["labels"] = batch["input_ids"]

    plain, simulated = twins
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, foreach=False)
    torch.manual_seed(5)
    for _ in range(2):
        optimizer.zero_grad()
        for first in (0, 2):
            with contiguous_gelu_gradients(plain):
                plain(**{key: value[first : first + 2] for key, value in batch.items()}).loss.backward()
        for parameter in plain.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(2)
        optimizer.step()

    options = poptorch.Options().randomSeed(5)
    options.Training.gradientAccumulation(2)
    executor = poptorch.trainingModel(simulated, options, poptorch.optim.AdamW(simulated.parameters(), lr=1e-3))
    for _ in range(2):
        executor(**batch)
    executor.destroy()
    expected = plain.state_dict()
    for key, value in simulated.state_dict().items():
        assert torch.equal(value, expected[key]), key
