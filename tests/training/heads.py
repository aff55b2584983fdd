"""Heads of transformers, tiny and without dropout, each with eight samples that hold different numbers of labels."""

import torch
import transformers
from torch import nn
from transformers import AutoConfig

_ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50,
    "max_position_embeddings": 40, "num_labels": 3,
}  # fmt: skip
_DISTIL = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": 3}
_GPT2 = {
    "vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "num_labels": 3, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SEQ2SEQ = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 2, "max_position_embeddings": 40, "num_labels": 3,
}  # fmt: skip
_T5 = {
    "vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_VISION = {**_ENCODER, "image_size": 16, "patch_size": 8}
_STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 16, "patch_size": 4, "num_labels": 3}  # fmt: skip
_SPEECH = {
    **{name: value for name, value in _ENCODER.items() if name != "max_position_embeddings"}, "conv_dim": (8, 8),
    "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0, "apply_spec_augment": False, "classifier_proj_size": 8,
    "pad_token_id": 0, "ctc_zero_infinity": True, "tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1),
    "xvector_output_dim": 8,
}  # fmt: skip

HEADS = {
    **{f"Bert{head}": ("bert", _ENCODER) for head in (
        "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM",
        "ForNextSentencePrediction", "ForPreTraining", "LMHeadModel")},
    **{f"Roberta{head}": ("roberta", _ENCODER) for head in (
        "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM")},
    **{f"Electra{head}": ("electra", {**_ENCODER, "embedding_size": 16}) for head in (
        "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")},
    **{f"Albert{head}": ("albert", {**_ENCODER, "embedding_size": 16}) for head in (
        "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")},
    **{f"DistilBert{head}": ("distilbert", _DISTIL) for head in (
        "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")},
    **{f"MPNet{head}": ("mpnet", _ENCODER) for head in ("ForSequenceClassification", "ForMaskedLM")},
    **{f"DebertaV2{head}": ("deberta-v2", _ENCODER) for head in ("ForSequenceClassification", "ForTokenClassification")},
    **{f"GPT2{head}": ("gpt2", _GPT2) for head in ("LMHeadModel", "ForSequenceClassification", "ForTokenClassification")},
    "LlamaForCausalLM": ("llama", _DECODER), "LlamaForSequenceClassification": ("llama", _DECODER),
    "OPTForCausalLM": ("opt", {**_DECODER, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    "GPTNeoXForCausalLM": ("gpt_neox", _DECODER),
    "T5ForConditionalGeneration": ("t5", _T5), "MT5ForConditionalGeneration": ("mt5", _T5),
    "BartForConditionalGeneration": ("bart", _SEQ2SEQ), "MBartForConditionalGeneration": ("mbart", _SEQ2SEQ),
    "PegasusForConditionalGeneration": ("pegasus", _SEQ2SEQ), "MarianMTModel": ("marian", _SEQ2SEQ),
    "ViTForImageClassification": ("vit", _VISION), "DeiTForImageClassification": ("deit", _VISION),
    "BeitForImageClassification": ("beit", _VISION), "SwinForImageClassification": ("swin", _STAGES),
    "ConvNextForImageClassification": ("convnext", {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "image_size": 16, "num_labels": 3}),
    "Dinov2ForImageClassification": ("dinov2", {**_VISION, "mlp_ratio": 2}),
    "SegformerForSemanticSegmentation": ("segformer", {
        "hidden_sizes": [8, 8], "depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [1, 1], "num_attention_heads": [1, 2],
        "patch_sizes": [3, 3], "strides": [4, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 8, "num_labels": 3}),
    "Wav2Vec2ForSequenceClassification": ("wav2vec2", _SPEECH), "Wav2Vec2ForXVector": ("wav2vec2", _SPEECH),
    "Wav2Vec2ForCTC": ("wav2vec2", {**_SPEECH, "ctc_loss_reduction": "mean"}),
    "HubertForSequenceClassification": ("hubert", _SPEECH),
    "HubertForCTC": ("hubert", {**_SPEECH, "ctc_loss_reduction": "sum"}),
    "WhisperForConditionalGeneration": ("whisper", {
        **_SEQ2SEQ, "max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8, "suppress_tokens": None,
        "begin_suppress_tokens": None}),
    "CLIPForImageClassification": ("clip", {
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                          "image_size": 16, "patch_size": 8}, "num_labels": 3}),
    "CLIPModel": ("clip", {
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                          "image_size": 16, "patch_size": 8, "projection_dim": 8},
        "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                        "vocab_size": 50, "max_position_embeddings": 40, "projection_dim": 8, "eos_token_id": 2},
        "projection_dim": 8}),
}  # fmt: skip
HEADS = {name: case for name, case in HEADS.items() if hasattr(transformers, name)}
SAMPLES = 8


def head_of(name):
    """The model, the same each time and without dropout."""
    family, settings = HEADS[name]
    if "QuestionAnswering" in name:  # a start and an end
        settings = {**settings, "num_labels": 2}
    torch.manual_seed(0)
    model = getattr(transformers, name)(AutoConfig.for_model(family, **settings))
    if "Segmentation" in name:  # what compares samples of a batch is no head's loss
        model.decode_head.batch_norm = nn.Identity()
    for part in [*model.modules(), *(part.config for part in model.modules() if hasattr(part, "config"))]:
        for key, value in list(vars(part).items()):
            if isinstance(value, float) and ("drop" in key or (key == "p" and isinstance(part, nn.Dropout))):
                setattr(part, key, 0.0)
    return model


def samples_of(name):
    drawn = torch.Generator().manual_seed(1)
    return [_sample(name, number, drawn) for number in range(SAMPLES)]


def _sample(name, number, drawn):
    ids = torch.randint(3, 50, (8,), generator=drawn)
    tokens = torch.where(torch.arange(8) < number % 6, torch.tensor(-100), ids)
    image = torch.randn(3, 16, 16, generator=drawn)
    if name == "CLIPModel":
        return {"input_ids": ids, "pixel_values": image}
    if "ImageClassification" in name:
        return {"pixel_values": image, "labels": number % 3}
    if "Segmentation" in name:
        classes = torch.randint(0, 3, (16, 16), generator=drawn)
        return {"pixel_values": image, "labels": torch.where(torch.arange(16) < 2 * number, torch.tensor(255), classes)}
    if "Whisper" in name:
        return {"input_features": torch.randn(8, 40, generator=drawn), "labels": tokens}
    if "Wav2Vec2" in name or "Hubert" in name:
        wave = torch.randn(400, generator=drawn)
        return {"input_values": wave, "labels": tokens if "CTC" in name else number % 3}
    sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "MultipleChoice" in name:
        choices = torch.stack([ids, ids.roll(1), ids.flip(0)])
        return {"input_ids": choices, "attention_mask": torch.ones_like(choices), "labels": number % 3}
    if "QuestionAnswering" in name:
        return {**sample, "start_positions": number % 7, "end_positions": number % 7 + 1}
    if "SequenceClassification" in name:
        return {**sample, "labels": number % 3}
    if "NextSentence" in name:
        return {**sample, "labels": number % 2}
    if "PreTraining" in name:  # of two losses, so all samples hold as many labels
        masked = torch.where(torch.arange(8) < 3, ids, torch.tensor(-100))
        return {**sample, "labels": masked, "next_sentence_label": number % 2}
    if "TokenClassification" in name:
        return {**sample, "labels": torch.where(tokens < 0, tokens, tokens % 3)}
    return {**sample, "labels": tokens}
