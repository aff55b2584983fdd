"""Models that are tiny, without dropout and the same each time, for tests of what the host makes of them."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)


def gpt2(**changes):
    """Two layers of width 16 and 50 tokens, no multiple of 8."""
    torch.manual_seed(0)
    values = {
        "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2, **changes,
    }  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**values))


def bert(kind=BertForSequenceClassification):
    """Two layers of width 16 and 50 tokens."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=50,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return kind(config)


def vit(layers=2):
    """Layers of width 16, 16 px in patches of 8, two classes."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)
