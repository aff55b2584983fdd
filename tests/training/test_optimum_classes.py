"""optimum-graphcore's own classes on the simulator, which then is `poptorch` for the whole process: hence one of their own."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from families import ACCUMULATION, CASES, MICRO_BATCH, assert_as_host, model_of, trained
from test_on_device import ROUNDING, assert_same_weights, trainer_of
from transformers import TrainerCallback

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.backends import choose_backend
from ipu_trainer.compat import transformers_versions as compat

_ALONE = "IPU_TRAINER_TESTS_OPTIMUM_ALONE"
has_optimum = importlib.util.find_spec("optimum") is not None and importlib.util.find_spec("optimum.graphcore")
in_own_process = pytest.mark.skipif(_ALONE not in os.environ, reason="test_in_a_process_of_their_own runs it")
# Classes that compute with scaled weights, or count convolutions as layers.
NOT_WITH_OPTIMUM = {"t5": "scales", "mt5": "scales", "hubert": "number of layers", "wav2vec2": "number of layers"}


@pytest.mark.skipif(not has_optimum, reason="optimum-graphcore is on the Pod stack alone")
@pytest.mark.skipif(_ALONE in os.environ, reason="this is that process")
def test_in_a_process_of_their_own():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, _ALONE: "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode()[-4000:]


@in_own_process
def test_optimums_pipelined_classes_train_as_ours(tmp_path):
    for name in ("vit", "bert"):
        ours = trainer_of(name, tmp_path / "a", "simulated")
        ours.train()
        theirs = trainer_of(name, tmp_path / "b", "simulated", pipelining="optimum", save_strategy="epoch")
        theirs.train()
        assert_same_weights(ours, theirs, ROUNDING)
        read = type(ours.model).from_pretrained(str(tmp_path / "b" / f"checkpoint-{theirs.state.global_step}"))
        assert choose_backend("auto").name == "host"  # the program did not ask to be simulated
        assert torch.equal(
            read.state_dict()["classifier.bias" if name == "vit" else "cls.predictions.bias"],
            theirs.model.state_dict()["classifier.bias" if name == "vit" else "cls.predictions.bias"],
        )


@in_own_process
def test_weights_that_a_callback_writes_beside_optimums_class_are_refused(tmp_path):
    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            with torch.no_grad():
                next(model.parameters()).fill_(0.5)

    trainer = trainer_of("bert", tmp_path, "simulated", pipelining="optimum")
    trainer.add_callback(Fill())
    with pytest.raises(ValueError, match="twin of optimum-graphcore's class.*pipelining='generic'"):
        trainer.train()


@in_own_process
@pytest.mark.parametrize("family", CASES)
def test_optimums_class_trains_as_the_host_or_is_refused(tmp_path, family):
    if family in NOT_WITH_OPTIMUM:
        with pytest.raises(ValueError, match=NOT_WITH_OPTIMUM[family]):
            trained(tmp_path, family, "simulated", pipelined=True, pipelining="optimum")
        return
    expected = trained(tmp_path / "host", family, "host", host_micro_batch_size="micro_batch")
    weights = trained(tmp_path / "ipus", family, "simulated", pipelined=True, pipelining="optimum")
    assert_as_host(weights, expected, model_of(family)[0].state_dict())


@in_own_process
@pytest.mark.parametrize("family", ["bart", "whisper"])
def test_optimums_class_is_evaluated_while_it_trains(tmp_path, family):
    """These put copies of their attention in place, and take buffers away, each time they are placed."""
    found = []
    for backend, changes in (
        ("host", {"host_micro_batch_size": "micro_batch"}),
        ("simulated", {"pipelining": "optimum"}),
    ):
        model, samples = model_of(family)
        args = IPUTrainingArguments(
            **compat.training_defaults(
                output_dir=str(tmp_path / backend), max_steps=3, per_device_train_batch_size=MICRO_BATCH,
                per_device_eval_batch_size=MICRO_BATCH, learning_rate=0.05, optim="sgd", max_grad_norm=0.0,
                report_to=[], disable_tqdm=True, save_strategy="steps", save_steps=2, eval_steps=1, use_cpu=True,
                dataloader_pin_memory=False, backend=backend, **{compat.field_name("eval_strategy"): "steps"}, **changes,
            )
        )  # fmt: skip
        config = IPUConfig(gradient_accumulation_steps=ACCUMULATION)
        if backend == "simulated":
            config = config.updated(layers_per_ipu=(2, 2), ipus_per_replica=2)
        trainer = IPUTrainer(model, args, train_dataset=samples, eval_dataset=samples[:8], ipu_config=config)
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        found.append((losses, {name: value.clone() for name, value in trainer.model.state_dict().items()}))
    (expected_losses, expected), (losses, weights) = found
    assert len(losses) == 3
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6, msg=name)


@in_own_process
def test_a_class_that_copies_weights_is_refused_where_inference_is_placed_otherwise(tmp_path):
    model, samples = model_of("bart")
    args = IPUTrainingArguments(
        **compat.training_defaults(
            output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, backend="simulated", pipelining="optimum"
        )
    )
    config = IPUConfig(
        gradient_accumulation_steps=ACCUMULATION,
        layers_per_ipu=(2, 2),
        inference_layers_per_ipu=(3, 1),
        ipus_per_replica=2,
    )
    with pytest.raises(ValueError, match="placed differently from training"):
        IPUTrainer(model, args, train_dataset=samples, ipu_config=config).train()
