"""One model of each family that optimum-graphcore supports, tiny and without dropout, and trainings of it."""

import torch
import transformers
from transformers import AutoConfig

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat

_ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64,
    "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_SEQ2SEQ = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip
_T5 = {
    "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
    "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
_SPEECH = {
    **{name: value for name, value in _ENCODER.items() if "dropout" not in name and name != "max_position_embeddings"},
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "layerdrop": 0.0,
    "apply_spec_augment": False, "classifier_proj_size": 8, "vocab_size": 16, "ctc_loss_reduction": "mean",
}  # fmt: skip
_TOKENS, _IMAGES, _WAVES = "tokens", "images", "waves"
CASES = {
    "bert": ("BertForPreTraining", _ENCODER, _TOKENS),
    "roberta": ("RobertaForSequenceClassification", _ENCODER, _TOKENS),
    "deberta": (
        "DebertaForTokenClassification",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
        _TOKENS,
    ),
    "mpnet": ("MPNetForMaskedLM", _ENCODER, _TOKENS),
    "distilbert": (
        "DistilBertForQuestionAnswering",
        {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0,
         "attention_dropout": 0.0, "qa_dropout": 0.0},
        _TOKENS,
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "resid_pdrop": 0.0,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 2},
        _TOKENS,
    ),
    "bart": ("BartForConditionalGeneration", {**_SEQ2SEQ, "max_position_embeddings": 40}, _TOKENS),
    "t5": ("T5ForConditionalGeneration", _T5, _TOKENS),
    "mt5": ("MT5ForConditionalGeneration", {**_T5, "tie_word_embeddings": False}, _TOKENS),
    "vit": ("ViTForImageClassification", {**_ENCODER, "image_size": 32, "patch_size": 16}, _IMAGES),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "image_size": 32, "drop_path_rate": 0.0},
        _IMAGES,
    ),
    "hubert": ("HubertForCTC", _SPEECH, _WAVES),
    "wav2vec2": ("Wav2Vec2ForCTC", _SPEECH, _WAVES),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**_SEQ2SEQ, "max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8,
         "suppress_tokens": None, "begin_suppress_tokens": None},
        "spectra",
    ),
    "lxmert": (
        "LxmertForQuestionAnswering",
        {**_ENCODER, "l_layers": 2, "x_layers": 2, "r_layers": 2, "visual_feat_dim": 8, "num_qa_labels": 5},
        "tokens and regions",
    ),
}  # fmt: skip
SAMPLES, MICRO_BATCH, ACCUMULATION = 40, 2, 10


def samples_of(name, kind):
    drawn = torch.Generator().manual_seed(0)
    samples = []
    for number in range(SAMPLES):
        ids = torch.randint(4, 60, (12,), generator=drawn)
        sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        masked = torch.where(torch.arange(12) < 3, ids, torch.tensor(-100))
        if kind == _IMAGES:
            sample = {"pixel_values": torch.randn(3, 32, 32, generator=drawn), "labels": number % 2}
        elif kind == _WAVES:
            labels = torch.randint(1, 15, (6,), generator=drawn)
            sample = {"input_values": torch.randn(400, generator=drawn), "labels": labels}
        elif kind == "spectra":
            sample = {"input_features": torch.randn(8, 40, generator=drawn), "labels": ids[:8]}
        elif kind == "tokens and regions":
            regions = {
                "visual_feats": torch.randn(4, 8, generator=drawn),
                "visual_pos": torch.rand(4, 4, generator=drawn),
            }
            sample.update(regions, labels=number % 5)
        elif "SequenceClassification" in name:
            sample["labels"] = number % 2
        elif "TokenClassification" in name:
            sample["labels"] = ids % 2
        elif "QuestionAnswering" in name:
            sample.update(start_positions=number % 10, end_positions=number % 10 + 1)
        elif "PreTraining" in name:
            sample.update(labels=masked, next_sentence_label=number % 2)
        else:
            sample["labels"] = masked if "Masked" in name else ids
        samples.append(sample)
    return samples


def model_of(family):
    name, settings, kind = CASES[family]
    torch.manual_seed(0)
    return getattr(transformers, name)(AutoConfig.for_model(family, **settings)), samples_of(name, kind)


def trained(folder, family, backend, pipelined=False, **changes):
    model, samples = model_of(family)
    args = IPUTrainingArguments(
        **compat.training_defaults(
            output_dir=str(folder), max_steps=2, per_device_train_batch_size=MICRO_BATCH, learning_rate=0.01,
            optim="sgd", max_grad_norm=0.0, report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True,
            dataloader_pin_memory=False, backend=backend, **changes,
        )
    )  # fmt: skip
    config = IPUConfig(gradient_accumulation_steps=ACCUMULATION)
    if pipelined:
        layers = {"lxmert": 6, "convnext": 4}.get(
            family, 4 if getattr(model.config, "is_encoder_decoder", False) else 2
        )
        halves = (layers // 2, layers - layers // 2)
        config = config.updated(layers_per_ipu=halves, ipus_per_replica=2)
    trainer = IPUTrainer(model, args, train_dataset=samples, ipu_config=config)
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_as_host(weights, expected, before):
    moved = 0.0
    for name, value in expected.items():
        moved = max(moved, float((value.float() - before[name].float()).abs().max()))
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert moved > 1e-4
