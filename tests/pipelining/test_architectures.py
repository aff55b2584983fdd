"""Models of Transformers, cut into four stages from outside: every layer runs where the plan says, in order, with the host's numbers."""

import inspect

import pytest
import torch
import transformers
from torch import nn

import ipu_trainer.simulator as poptorch
from ipu_trainer import IPUConfig
from ipu_trainer.backends import choose_backend
from ipu_trainer.backends.poptorch_options import make_options
from ipu_trainer.pipelining import PipeliningError, find_anatomy, pipelined
from ipu_trainer.pipelining.plan import place, table

TEXT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
CAUSAL = {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 32, "use_cache": False}
IMAGE = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
PAIR = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "use_cache": False,
    "max_position_embeddings": 32,
}  # fmt: skip
SPEECH = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False, "layerdrop": 0.0,
    "pad_token_id": 0, "ctc_loss_reduction": "mean",
}  # fmt: skip
# Name: class, settings, what goes in, IPUs of the blocks in execution order without repetitions.
MODELS = {
    "vit": ("ViTForImageClassification", IMAGE, "image", "0123"),
    "deit": ("DeiTForImageClassification", IMAGE, "image", "0123"),
    "dinov2": ("Dinov2ForImageClassification", {**IMAGE, "mlp_ratio": 2}, "image", "0123"),
    "beit": ("BeitForImageClassification", IMAGE, "image", "0123"),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
        "image",
        "0123",
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"image_size": 32, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2]},
        "image",
        "0123",
    ),
    "bert": ("BertForMaskedLM", TEXT, "text", "01230"),
    "bert-classifier": ("BertForSequenceClassification", TEXT, "text-class", "0123"),
    "roberta": ("RobertaForMaskedLM", {**TEXT, "max_position_embeddings": 40}, "text", "01230"),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": 64, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32},
        "text",
        "01230",
    ),
    "electra": ("ElectraForMaskedLM", {**TEXT, "embedding_size": 16}, "text", "01230"),
    "deberta": ("DebertaForMaskedLM", {**TEXT, "relative_attention": True, "pos_att_type": ["c2p"]}, "text", "01230"),
    "deberta-v2": ("DebertaV2ForSequenceClassification", TEXT, "text-class", "0123"),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 4, "n_head": 2, "use_cache": False},
        "text",
        "01230",
    ),
    "opt": (
        "OPTForCausalLM",
        {**CAUSAL, "ffn_dim": 32, "word_embed_proj_dim": 16, "pad_token_id": 1},
        "text",
        "01230",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", CAUSAL, "text", "0123"),
    "llama": ("LlamaForCausalLM", CAUSAL, "text", "0123"),
    "qwen2": ("Qwen2ForCausalLM", CAUSAL, "text", "0123"),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2,
            "num_heads": 2, "decoder_start_token_id": 0, "use_cache": False,
        },
        "text",
        "010230",
    ),
    "bart": ("BartForConditionalGeneration", PAIR, "text", "010230"),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            **PAIR, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        },
        "mel",
        "010230",
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", SPEECH, "sound", "0123"),
    "hubert": ("HubertForCTC", SPEECH, "sound", "0123"),
}  # fmt: skip
FOUR_IPUS = IPUConfig(layers_per_ipu=(1, 1, 1, 1), gradient_accumulation_steps=16)


def tiny(name):
    class_name, settings, _, _ = MODELS[name]
    if not hasattr(transformers, class_name):
        pytest.skip(f"transformers {transformers.__version__} has no {class_name}")
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    known = inspect.signature(model_class.config_class.__init__).parameters
    extra = {key: 0.0 for key in known if "drop" in key and key not in settings and key != "classifier_dropout"}
    config = model_class.config_class(**{**extra, **settings})
    return model_class(config).eval()


def inputs(kind, samples=16):
    torch.manual_seed(1)
    tokens = torch.randint(3, 30, (samples, 8))
    return {
        "image": lambda: {"pixel_values": torch.randn(samples, 3, 32, 32), "labels": torch.arange(samples) % 2},
        "text": lambda: {"input_ids": tokens, "labels": tokens.clone()},
        "text-class": lambda: {"input_ids": tokens, "labels": torch.arange(samples) % 2},
        "mel": lambda: {"input_features": torch.randn(samples, 8, 32), "labels": tokens},
        "sound": lambda: {"input_values": torch.randn(samples, 200), "labels": tokens[:, :4]},
    }[kind]()


def executor_of(pipeline, config=FOUR_IPUS):
    backend = choose_backend("simulated")
    options = make_options(config, backend, seed=0)
    options.outputMode(poptorch.OutputMode.All)
    optimizer = poptorch.optim.SGD(pipeline.module.parameters(), lr=0.0)
    pipeline.annotate(False)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = pipeline.module

        def forward(self, **given):
            return self.model(**given)["loss"]

    return poptorch.trainingModel(Loss(), options, optimizer)


@pytest.mark.parametrize("name", MODELS)
def test_layers_run_in_order_on_their_ipus_with_the_hosts_loss(name):
    _, _, kind, expected = MODELS[name]
    model = tiny(name)
    names = list(model.state_dict())
    batch = inputs(kind)
    with torch.no_grad():
        losses = [model(**{key: value[i : i + 1] for key, value in batch.items()})["loss"] for i in range(16)]
    pipeline = pipelined(model, FOUR_IPUS, poptorch)
    executor = executor_of(pipeline)
    found = executor(**batch)
    blocks = executor.compilation.blocks
    ipus = "".join(str(block.ipu_id) for block in blocks)
    runs = "".join(ipu for i, ipu in enumerate(ipus) if not i or ipus[i - 1] != ipu)
    assert runs == expected, [(block.user_id, block.ipu_id) for block in blocks]
    planned = {p.name: p.ipu for p in pipeline.placements[False] if p.kind == "layer"}
    executed = [block.user_id for block in blocks if block.user_id in planned]
    assert executed == list(planned) and len(executed) == 4
    torch.testing.assert_close(found.reshape(-1), torch.stack(losses), atol=1e-5, rtol=1e-5)
    executor.destroy()
    pipeline.undo()
    assert list(model.state_dict()) == names
    assert "BeginBlock" not in repr(model)


def test_a_plan_prints_as_a_table():
    plan = place(find_anatomy(tiny("bert")), FOUR_IPUS.updated(layers_per_ipu=(2, 1, 0, 1)))
    assert table(plan) == (
        "IPU 0  stem, bert.encoder.layer.0-1, cls.predictions.decoder\n"
        "IPU 1  bert.encoder.layer.2\n"
        "IPU 3  bert.encoder.layer.3, cls.predictions.transform"
    )


def test_shared_layers_are_refused_with_the_reason():
    config = transformers.AlbertConfig(
        vocab_size=64, embedding_size=8, **{k: v for k, v in TEXT.items() if k != "vocab_size"}
    )
    with pytest.raises(PipeliningError, match="same weights, and a weight lives on one IPU"):
        find_anatomy(transformers.AlbertForMaskedLM(config))


class Tower(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.stem, self.layers = nn.Linear(4, 4), nn.ModuleList(layers)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)


def test_what_cannot_be_cut_is_refused_with_what_was_seen():
    with pytest.raises(PipeliningError, match="it has no repeated layers.*its parts are 0, 1"):
        find_anatomy(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    one = Layer()
    other = Layer()
    other.inner = one.inner
    with pytest.raises(PipeliningError, match=r"layers.0 and layers.1 share the weight inner.weight"):
        find_anatomy(Tower([one, other]))
    with pytest.raises(PipeliningError, match="4 layers in layers"):
        pipelined(Tower([Layer() for _ in range(4)]), IPUConfig(layers_per_ipu=(2, 1)), poptorch)
    with pytest.raises(ValueError, match="not one of generic, optimum, none"):
        pipelined(Tower([Layer(), Layer()]), FOUR_IPUS, poptorch, "automatic")


def test_random_draws_in_python_are_refused():
    class_name, settings, _, _ = MODELS["wav2vec2"]
    config = transformers.Wav2Vec2Config(**{**settings, "layerdrop": 0.1})
    with pytest.raises(PipeliningError, match=r"config.layerdrop=0.1 draws random numbers in Python"):
        pipelined(getattr(transformers, class_name)(config), FOUR_IPUS, poptorch)


@pytest.mark.parametrize(
    "changes",
    [
        {"projection_serialization_factor": 4, "embedding_serialization_factor": 2},
        {"serialized_projection_splits_per_ipu": (0, 0, 1, 1)},
        {"serialized_embedding_splits_per_ipu": (1, 1, 0, 0)},
        {"recompute_checkpoint_every_layer": True},
    ],
)
def test_large_weights_in_pieces_give_the_same_numbers_and_are_put_together_again(changes):
    model = tiny("llama").train()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    batch = inputs("text")
    expected = torch.stack([model(**{k: v[i : i + 1] for k, v in batch.items()})["loss"] for i in range(16)]).detach()
    config = FOUR_IPUS.updated(**changes)
    pipeline = pipelined(model, config, poptorch)
    executor = executor_of(pipeline, config)
    torch.testing.assert_close(executor(**batch).reshape(-1), expected, atol=1e-5, rtol=1e-5)
    state = pipeline.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {n: tuple(v.shape) for n, v in plain.items()}
    executor.destroy()
    pipeline.undo()
    for name, value in model.state_dict().items():
        assert torch.equal(value, plain[name]), name


def test_pieces_must_divide_and_tied_weights_stay_on_one_ipu():
    with pytest.raises(PipeliningError, match="makes 5 pieces of the 64 outputs of the projection.*Use 4"):
        pipelined(tiny("llama"), FOUR_IPUS.updated(projection_serialization_factor=5), poptorch)
    with pytest.raises(PipeliningError, match="are one tied weight"):
        pipelined(tiny("gpt2"), FOUR_IPUS.updated(serialized_projection_splits_per_ipu=(0, 0, 1, 1)), poptorch)


def test_pipelining_of_optimum_says_when_the_package_is_missing():
    if transformers.__version__.startswith("4.29"):
        pytest.skip("the Pod stack has it")
    with pytest.raises(PipeliningError, match="needs optimum-graphcore, which is not installed"):
        pipelined(tiny("vit"), FOUR_IPUS, poptorch, "optimum")
