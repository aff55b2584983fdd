#!/usr/bin/env bash
# Accumulating over 8 micro-batches multiplies BERT's loss and update by 8, and leaves ViT's as they are.
#
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0, Python 3.11.
#
# Expected: one update on the same 8 samples is the same for one batch of 8 as for 8 accumulated batches of 1, but for
# rounding (no dropout, plain SGD, no clipping, one label per sample). The logged loss is the same too.
#
# Instead: for BertForSequenceClassification both are 8 times as large with accumulation. ViTForImageClassification,
# with the same arguments, is equal.
#
# Why: Trainer divides by the number of accumulated batches only if it thinks that the model did not normalize its loss.
# It thinks so of every model whose forward takes **kwargs, to which it passes num_items_in_batch. ViT's head uses that
# number; BERT's head takes it, ignores it, and returns the mean over the micro-batch. The lines "given
# num_items_in_batch" below call the models directly with a number 8 times that of the samples. With
# trainer.model_accepts_loss_kwargs = False, BERT is equal as well.
#
# Output seen:
#   BertForSequenceClassification
#     accepts loss kwargs: True; loss given num_items_in_batch: 1.000 of the loss without
#     8 x 1: loss 0.6932   1 x 8: loss 5.5456   loss ratio 8.000   update ratio 8.000
#   ViTForImageClassification
#     accepts loss kwargs: True; loss given num_items_in_batch: 0.125 of the loss without
#     8 x 1: loss 0.6952   1 x 8: loss 0.6952   loss ratio 1.000   update ratio 1.000
#   BertForSequenceClassification, model_accepts_loss_kwargs = False
#     8 x 1: loss 0.6932   1 x 8: loss 0.6932   loss ratio 1.000   update ratio 1.000
#
# Why it matters: accumulation is how small devices reach the batch of a large one. With stock Trainer, moving such a
# fine-tuning from one GPU with batch 8 to 8 accumulated micro-batches multiplies the gradient by 8. With SGD that is 8
# times the learning rate; with Adam much of it cancels, and clipping and the logged loss are off. A trainer that
# averages over micro-batches is right and differs from stock Trainer here, so the two can be compared for this model
# only without accumulation or with the attribute above.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$work/home" TRANSFORMERS_VERBOSITY=error

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0

cat > "$work/show.py" <<'PY'
import sys

import torch
from transformers import (
    BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification,
)
from transformers.trainer_callback import PrinterCallback

small = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
)
generator = torch.Generator().manual_seed(1)
texts = [{"input_ids": torch.randint(1, 30, (6,), generator=generator), "labels": i % 2} for i in range(8)]
images = [{"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 2} for i in range(8)]


def build(kind):
    torch.manual_seed(0)
    if kind is BertForSequenceClassification:
        return kind(BertConfig(vocab_size=30, **small))
    return kind(ViTConfig(image_size=8, patch_size=4, **small))


def update(kind, rows, batch, accumulation, told):
    model = build(kind)
    before = torch.cat([one.detach().clone().flatten() for one in model.parameters()])
    arguments = TrainingArguments(
        sys.argv[1], per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=1,
        optim="sgd", learning_rate=0.01, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    if told is not None:
        trainer.model_accepts_loss_kwargs = told
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    after = torch.cat([one.detach().flatten() for one in model.parameters()])
    return loss, after - before, trainer.model_accepts_loss_kwargs


def head(kind, rows):
    model = build(kind).eval()
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    with torch.no_grad():
        return (model(**batch, num_items_in_batch=8 * len(rows)).loss / model(**batch).loss).item()


def compare(kind, rows, told=None):
    print(kind.__name__ + (f", model_accepts_loss_kwargs = {told}" if told is not None else ""))
    whole, whole_change, accepts = update(kind, rows, 8, 1, told)
    parts, parts_change, _ = update(kind, rows, 1, 8, told)
    if told is None:
        given = head(kind, rows)
        print(f"  accepts loss kwargs: {accepts}; loss given num_items_in_batch: {given:.3f} of the loss without")
        assert accepts
        assert abs(given - (1 if kind is BertForSequenceClassification else 1 / 8)) < 1e-3
    factor = (parts_change.norm() / whole_change.norm()).item()
    print(
        f"  8 x 1: loss {whole:.4f}   1 x 8: loss {parts:.4f}   "
        f"loss ratio {parts / whole:.3f}   update ratio {factor:.3f}"
    )
    # The two updates point the same way: only the length differs.
    assert torch.allclose(parts_change, round(factor) * whole_change, rtol=1e-2, atol=1e-6)
    return round(parts / whole, 3), round(factor, 3)


assert compare(BertForSequenceClassification, texts) == (8.0, 8.0)
assert compare(ViTForImageClassification, images) == (1.0, 1.0)
assert compare(BertForSequenceClassification, texts, told=False) == (1.0, 1.0)
PY
"$work/venv/bin/python" "$work/show.py" "$work/out"
