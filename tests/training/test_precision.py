"""One flag for precision on both backends, and an IPUConfig that arguments name."""

import dataclasses

import pytest
import torch

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.training.acceleration.choices import used_precision


def arguments(folder, **values):
    cpu = {compat.field_name("use_cpu"): True}
    return IPUTrainingArguments(output_dir=str(folder), report_to=[], **{"backend": "host", **cpu, **values})


@pytest.mark.parametrize(
    ("given", "bf16", "half", "used"),
    [
        ({}, False, False, "fp32"),
        ({"precision": "auto"}, False, False, "fp32"),
        ({"precision": "fp32"}, False, False, "fp32"),
        ({"precision": "bf16"}, True, False, "bf16"),
        ({"precision": "auto", "bf16": True}, True, False, "bf16"),
        ({"precision": "bf16", "bf16": True}, True, False, "bf16"),
        ({"precision": "fp16", "backend": "simulated"}, False, True, "fp16"),
        ({"precision": "auto", "half": True, "backend": "simulated"}, False, True, "fp16"),
        ({"precision": "auto", "backend": "simulated"}, False, False, "fp32"),
        ({"half": True, "backend": "simulated"}, False, True, "fp16"),
    ],
    ids=str,
)
def test_precision_is_autocast_on_the_host_and_half_on_a_device(tmp_path, given, bf16, half, used):
    args = arguments(tmp_path, **given)
    assert (args.bf16, args.half, args.fp16) == (bf16, half, False)
    assert used_precision(args, given.get("backend") == "simulated").name == used


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is not one of auto, fp32, bf16, fp16"),
        ({"precision": "fp32", "bf16": True}, "--precision fp32 and --bf16 contradict each other"),
        ({"precision": "bf16", "fp16": True}, "--precision bf16 and --fp16 contradict each other"),
        ({"precision": "fp32", "half": True, "backend": "simulated"}, "--precision fp32 and --half contradict"),
        ({"precision": "bf16", "backend": "simulated"}, "IPUs have no bfloat16. Use --precision fp16 or fp32"),
    ],
    ids=str,
)
def test_what_contradicts_the_precision_or_the_backend_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **given)


def test_a_trainer_takes_the_config_that_its_arguments_name_and_refuses_another(tmp_path):
    config = IPUConfig(replication_factor=2)
    config.save_pretrained(str(tmp_path / "two"))
    args = arguments(tmp_path, ipu_config=str(tmp_path / "two"))
    model = torch.nn.Linear(1, 1)
    assert IPUTrainer(model=model, args=args).ipu_config == config
    assert IPUTrainer(model=model, args=args, ipu_config=config).ipu_config == config
    other = dataclasses.replace(config, replication_factor=1)
    for given in (other, "one_ipu"):
        with pytest.raises(
            ValueError, match=f"ipu_config={tmp_path / 'two'} of its arguments differ.*replication_factor"
        ):
            IPUTrainer(model=model, args=args, ipu_config=given)


def test_arguments_from_flags_take_both_spellings_and_defaults_of_any_release(tmp_path):
    flags = ["--output-dir", str(tmp_path), "--ipu-config", "vit_base_pod4", "--learning_rate", "0.5"]
    args = IPUTrainingArguments.from_flags(flags, evaluation_strategy="epoch", ipu_config="one_ipu", max_steps=3)
    assert (args.ipu_config, args.learning_rate, args.max_steps) == ("vit_base_pod4", 0.5, 3)
    assert getattr(args, compat.field_name("eval_strategy")) == "epoch"
