"""docs/migration.md says things about optimum-graphcore 0.7.1: here the real one is asked, where it is installed.

What the page says about this package is run by test_documentation.py.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ASKED = """
    import dataclasses, inspect, math, sys
    import torch
    from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
    from transformers import BertConfig, BertForSequenceClassification
    from ipu_trainer import IPUConfig as Ours

    # The same file, both ways.
    ours = Ours(layers_per_ipu=(2, 2), inference_layers_per_ipu=(4,), gradient_accumulation_steps=8, replication_factor=2)
    ours.save_pretrained("ours")
    theirs = IPUConfig.from_pretrained("ours")
    theirs.save_pretrained("theirs")
    assert Ours.from_pretrained("theirs") == ours

    # A mode switches what an attribute means; setting one is not held against the others.
    assert theirs.train()._layers_per_ipu == [2, 2] and theirs.eval()._layers_per_ipu == [4]
    assert ours.layers_per_ipu == (2, 2) and ours.for_inference().layers_per_ipu == (4,)
    theirs.train().layers_per_ipu = [1, 1, 2]
    assert theirs.ipus_per_replica == 2  # three IPUs' layers on two: not noticed
    assert IPUConfig().output_mode == Ours().output_mode == "final"

    # Arguments.
    fields = {item.name: item.default for item in dataclasses.fields(IPUTrainingArguments)}
    assert fields["fp32"] is False and fields["loss_scaling"] is None
    assert {"lamb", "lamb_no_bias_correction", "n_ipu", "ipu_config_name", "ipu_config_overrides", "auto_loss_scaling",
            "dataloader_mode", "pad_on_batch_axis", "compile_only"} <= set(fields)
    assert not {"optim", "bf16", "torch_compile"} & set(fields)
    names = list(inspect.signature(IPUTrainer.__init__).parameters)
    assert names[1:4] == ["model", "ipu_config", "args"] and {"eval_data_collator", "force_to_pipelined"} <= set(names)

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16, initializer_range=0.5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row), "token_type_ids": torch.zeros_like(row),
             "labels": int(row[0]) % 2} for row in torch.randint(5, 50, (9, 8))]
    args = IPUTrainingArguments(output_dir="out", max_steps=1, per_device_train_batch_size=1, per_device_eval_batch_size=2,
        report_to=[], fp32=True, max_grad_norm=0.5, disable_tqdm=True, save_strategy="no", dataloader_num_workers=0)
    config = IPUConfig(layers_per_ipu=[1, 1], gradient_accumulation_steps=4, output_mode="all")
    trainer = IPUTrainer(model=model, ipu_config=config, args=args, train_dataset=data, eval_dataset=data[:5])
    trainer.train()

    # max_grad_norm is taken, and the optimizer never hears of it.
    assert args.max_grad_norm == 0.5
    limits = {group.get("max_grad_norm") for group in trainer.optimizer.param_groups}
    assert limits <= {None, math.inf}, limits

    # The last, smaller batch of an evaluation, five samples in batches of two: an error, or left out.
    trainer.save_model("saved")
    plain = BertForSequenceClassification.from_pretrained("saved").eval()
    batch = {name: torch.stack([torch.as_tensor(sample[name]) for sample in data[:5]]) for name in data[0]}
    with torch.no_grad():
        exact, first = (float(plain(**{name: values[:n] for name, values in batch.items()}).loss) for n in (5, 4))
    found = {}
    for setting in ("", "dataloader_drop_last"):
        args = IPUTrainingArguments(output_dir="out", per_device_eval_batch_size=2, report_to=[], fp32=True, disable_tqdm=True,
            dataloader_num_workers=0, **({setting: True} if setting else {}))
        again = IPUTrainer(model=BertForSequenceClassification.from_pretrained("saved"), ipu_config=config, args=args,
            eval_dataset=data[:5])
        try:
            found[setting] = again.evaluate()["eval_loss"]
        except Exception as error:
            found[setting] = str(error)
    print(found, "exact", exact, "of the first four", first)
    assert "Shape mismatch" in str(found[""])
    assert abs(found["dataloader_drop_last"] - first) < 1e-5
    assert abs(found["dataloader_drop_last"] - exact) > 1e-3
    print("asked")
"""


def test_what_the_page_says_about_optimum_graphcore_is_so(tmp_path):
    if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.graphcore") is None:
        pytest.skip("optimum-graphcore is on the Pod stack alone")
    (tmp_path / "ask.py").write_text(textwrap.dedent(ASKED))
    done = subprocess.run(
        [sys.executable, "-m", "ipu_trainer.cli", "simulate", "ask.py"],
        cwd=str(tmp_path), env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=200,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "asked" in done.stdout, done.stdout[-500:] + done.stderr[-3000:]
