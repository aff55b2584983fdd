"""Private settings of transformers' configurations do what this package takes them to do."""

import torch
from torch.nn import functional
from transformers import BertConfig, BertModel

from ipu_trainer.compat.transformers_training import use_eager_attention


def test_eager_attention_computes_probabilities_as_tensors(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("fused attention")

    config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    use_eager_attention(config)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", refuse)
    outputs = BertModel(config).eval()(torch.zeros(1, 3, dtype=torch.long), output_attentions=True)
    assert outputs.attentions[0].shape == (1, 1, 3, 3)
