"""A checkpoint is loaded or refused; from scratch means float32."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from ipu_trainer.cli import main
from ipu_trainer.compat.transformers_versions import load_renamed_weights
from ipu_trainer.tasks.language_modeling import model as language_model
from ipu_trainer.tasks.pretrained import DTYPE, load_pretrained
from ipu_trainer.tasks.seq2seq import model as seq2seq_model
from ipu_trainer.tasks.text.text_models import ModelChoice, train_tokenizer

GPT2 = {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 320, "n_positions": 32}
GPT2.update(bos_token_id=0, eos_token_id=0)
BERT = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 320}
T5 = {"num_layers": 1, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "vocab_size": 320}
BART = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
BART.update(encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=320, max_position_embeddings=32)


def saved(folder, kind, values, class_name):
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(transformers.AutoConfig.for_model(kind, **values))
    model.save_pretrained(folder)
    return model


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(autouse=True)
def safetensors_on_both_stacks(monkeypatch):
    real = transformers.PreTrainedModel.save_pretrained
    if "safe_serialization" in real.__code__.co_varnames:
        safe = lambda self, folder, **named: real(self, folder, **{"safe_serialization": True, **named})  # noqa: E731
        monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", safe)


@pytest.mark.parametrize(
    "kind, values, class_name, auto",
    [
        ("gpt2", GPT2, "GPT2LMHeadModel", AutoModelForCausalLM),
        ("gpt2", GPT2, "GPT2Model", AutoModelForCausalLM),  # the head is tied to the embeddings
        ("bert", BERT, "BertForMaskedLM", AutoModelForMaskedLM),
        ("bert", BERT, "BertModel", AutoModelForMaskedLM),  # a new head
        ("t5", T5, "T5ForConditionalGeneration", AutoModelForSeq2SeqLM),
        ("t5", {**T5, "tie_word_embeddings": False}, "T5Model", AutoModelForSeq2SeqLM),  # a new head
        ("bart", BART, "BartModel", AutoModelForSeq2SeqLM),
    ],
)
def test_a_checkpoint_with_its_body_is_loaded_whole_whatever_its_head(tmp_path, kind, values, class_name, auto):
    source = saved(tmp_path, kind, values, class_name)
    model, _ = load_pretrained(auto, str(tmp_path), "")
    loaded = {value.data_ptr(): value for value in model.state_dict().values()}
    for name, value in source.state_dict().items():
        if "pooler" not in name and "cls." not in name and value.is_floating_point() and value.dim() > 1:
            assert any(value.shape == other.shape and torch.equal(value, other) for other in loaded.values()), name


@pytest.mark.parametrize(
    "kind, values, class_name, auto, lost",
    [
        ("gpt2", GPT2, "GPT2LMHeadModel", AutoModelForCausalLM, "transformer.h.1.attn.c_attn.weight"),
        ("bert", BERT, "BertForMaskedLM", AutoModelForMaskedLM, "bert.encoder.layer.0.output.dense.bias"),
        ("t5", T5, "T5ForConditionalGeneration", AutoModelForSeq2SeqLM, "decoder.final_layer_norm.weight"),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named_and_counted(
    tmp_path, kind, values, class_name, auto, lost
):
    saved(tmp_path, kind, values, class_name)
    whole = load_file(tmp_path / "model.safetensors")
    edit_weights(tmp_path, lambda tensors: tensors.pop(lost))
    with pytest.raises(
        ValueError, match=rf"{tmp_path} \(model_type {kind}\).* 1 of its \d+ tensors .* {lost}.*Do this"
    ):
        load_pretrained(auto, str(tmp_path), "Do this.")
    edit_weights(tmp_path, lambda tensors: tensors.update({lost: whole[lost].repeat(*[2] * whole[lost].dim())}))
    with pytest.raises(ValueError, match=rf"1 of \d+ have another shape, such as {lost}"):
        load_pretrained(auto, str(tmp_path), "")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda tensors, name: tensors.update({name.replace("h.1", "h.7"): tensors[name] + 0}), "no place for.*h.7"),
        (lambda tensors, name: tensors.update({name: tensors[name].int()}), r"another type.*h.1.*\(I32\)"),
        (lambda tensors, name: tensors[name].fill_(float("inf")), "1 tensors hold NaN or infinity.*h.1"),
    ],
)
def test_a_pretrained_model_has_the_layers_of_its_config_and_finite_numbers(tmp_path, change, reason):
    saved(tmp_path, "gpt2", GPT2, "GPT2LMHeadModel")
    edit_weights(tmp_path, lambda tensors: change(tensors, "transformer.h.1.ln_1.weight"))
    with pytest.raises(ValueError, match=reason):
        load_pretrained(AutoModelForCausalLM, str(tmp_path), "")


def test_a_finished_run_has_its_head_and_a_checkpoint_all_tensors(tmp_path):
    model = saved(tmp_path, "gpt2", {**GPT2, "tie_word_embeddings": False}, "GPT2LMHeadModel")
    assert load_renamed_weights(model, tmp_path) is False  # Trainer loads it
    edit_weights(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    load_pretrained(AutoModelForCausalLM, str(tmp_path), "")  # a new head
    with pytest.raises(ValueError, match="not there, such as lm_head.weight"):
        load_pretrained(AutoModelForCausalLM, str(tmp_path), "", finished=True)
    with pytest.raises(ValueError, match="missing \\['lm_head.weight'\\]"):
        load_renamed_weights(model, tmp_path)


def test_weights_that_are_cut_short_or_a_pointer_are_one_line(tmp_path):
    saved(tmp_path, "gpt2", GPT2, "GPT2LMHeadModel")
    for content in (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b""):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read.*git lfs") as error:
            load_pretrained(AutoModelForCausalLM, str(tmp_path), "")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "task, kind, values, class_name, message",
    [
        (
            "language-modeling",
            "vit",
            {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2},
            "ViTModel",
            "vit",
        ),
        ("language-modeling", "t5", T5, "T5ForConditionalGeneration", "t5"),
        ("seq2seq", "gpt2", GPT2, "GPT2LMHeadModel", "gpt2"),
        ("language-modeling", "gpt2", GPT2, None, "1 of its"),
        ("seq2seq", "t5", T5, None, "1 of its"),
    ],
)
@pytest.mark.parametrize("command", ["train", "search"])
def test_a_text_task_refuses_before_work(tmp_path, task, kind, values, class_name, message, command, capsys):
    if command == "search":
        pytest.importorskip("optuna")
    whole = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}
    saved(tmp_path / "model", kind, values, class_name or whole[kind])
    if class_name is None:
        lost = "transformer.h.0.ln_1.weight" if kind == "gpt2" else "encoder.final_layer_norm.weight"
        edit_weights(tmp_path / "model", lambda tensors: tensors.pop(lost))
    train_tokenizer(["a b"] * 20, 300, "GPT2Tokenizer").save_pretrained(str(tmp_path / "model"))
    (tmp_path / "text.txt").write_text("a b c\n" * 100)
    data = ["--corpus", str(tmp_path / "text.txt")] if task == "language-modeling" else ["--pairs", "nowhere.jsonl"]
    words = [task, "--model", str(tmp_path / "model"), "--output", str(tmp_path / "run"), *data]
    assert main([command, *words]) == 1
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert str(tmp_path / "model") in line and message in line and kind in line
    assert not (tmp_path / "run").exists()


def of_half(kind, values):
    config = transformers.AutoConfig.for_model(kind, **values)
    setattr(config, DTYPE, torch.float16)
    return config


@pytest.mark.parametrize("kind, values", [("gpt2", GPT2), ("t5", T5)])
def test_a_model_from_scratch_is_float32_unless_another_type_is_asked_for(tmp_path, kind, values):
    special = "GPT2Tokenizer" if kind == "gpt2" else "RobertaTokenizer"
    tokenizer = train_tokenizer(["a b"] * 20, 300, special)

    def build(overrides):
        choice = ModelChoice(of_half(kind, values), True, overrides, "")
        if kind == "gpt2":
            return language_model.build_model("m", choice, tokenizer, 16, False)
        return seq2seq_model.build_model("m", choice, tokenizer, (8, 8))

    def types(model):
        return {value.dtype for value in model.parameters()}

    model = build({})
    assert types(model) == {torch.float32}
    # Drawn in float32, not rounded to float16 first.
    assert any(not torch.equal(value, value.half().float()) for value in model.parameters())
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[DTYPE] == "float32"
    assert types(build({DTYPE: "float16"})) == {torch.float16}
    with pytest.raises(ValueError, match="int8 is not one of float32"):
        build({DTYPE: "int8"})


def test_weights_in_float16_are_trained_in_float32(tmp_path):
    saved(tmp_path, "gpt2", GPT2, "GPT2LMHeadModel").half().save_pretrained(tmp_path)
    model, _ = load_pretrained(AutoModelForCausalLM, str(tmp_path), "")
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_tensor_that_shares_the_memory_of_a_loaded_one_is_not_missing():
    """Some releases of transformers list tied embeddings as missing, and tables of positions."""
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))

    class Auto:
        @staticmethod
        def from_pretrained(*_, **__):
            return model, {"missing_keys": missing, "mismatched_keys": []}

    missing = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    assert load_pretrained(Auto, "folder", "") == (model, set())
    missing.append("shared.weight")
    missing.append("lm_head.weight")
    with pytest.raises(ValueError, match="3 of its"):
        load_pretrained(Auto, "folder", "")
