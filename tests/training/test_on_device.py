"""IPUTrainer on simulated IPUs: the weights of the host, per parameter, and what a device changes around them."""

import json

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

import ipu_trainer.simulator as poptorch
from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.training.device.host_step import usable_samples

SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {"image_size": 16, "patch_size": 8, "num_labels": 4, **SMALL, **NO_DROPOUT},
    ),
    "bert": ("BertForMaskedLM", "BertConfig", {"vocab_size": 64, "max_position_embeddings": 16, **SMALL, **NO_DROPOUT}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": 4, "n_head": 2,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2,
            "num_heads": 2, "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False,
        },
    ),
}  # fmt: skip


def tiny(name, **changes):
    model_class, config_class, settings = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**{**settings, **changes}))


class Samples(Dataset):
    """Fixed random samples for one of the models; text has masked labels, differently many in each sample."""

    def __init__(self, name, count=64):
        generator = torch.Generator().manual_seed(1)
        if name == "vit":
            pixels = torch.randn(count, 3, 16, 16, generator=generator)
            self.columns = {"pixel_values": pixels, "labels": torch.arange(count) % 4}
            return
        tokens = torch.randint(3, 60, (count, 12), generator=generator)
        labels = torch.randint(3, 60, (count, 8 if name == "t5" else 12), generator=generator)
        labels = tokens.clone() if name == "gpt2" else labels
        for row in range(count):
            labels[row, : 1 + row % 6] = -100
        self.columns = {"input_ids": tokens, "labels": labels}

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


def arguments(folder, cls=IPUTrainingArguments, **changes):
    values = {
        "output_dir": str(folder), "num_train_epochs": 4, "per_device_train_batch_size": 2, "optim": "adamw_torch",
        "learning_rate": 1e-2, "weight_decay": 0.01, "max_grad_norm": 0.5, "warmup_steps": 2, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False, "logging_steps": 1, "seed": 3, "data_seed": 5,
        "save_safetensors": True, "use_cpu": True,
    }  # fmt: skip
    return cls(**compat.training_defaults(**{**values, **changes}))


PIPELINE = IPUConfig(
    layers_per_ipu=(1, 1, 1, 1),
    replication_factor=2,
    inference_replication_factor=2,
    gradient_accumulation_steps=16,
    inference_device_iterations=2,
)


def trainer_of(name, folder, backend, config=PIPELINE, trainer_class=IPUTrainer, model=None, samples=64, **changes):
    return trainer_class(
        model=tiny(name) if model is None else model,
        args=arguments(folder, backend=backend, **changes),
        train_dataset=Samples(name, samples),
        eval_dataset=Samples(name, 21),
        ipu_config=config,
    )


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def assert_same_weights(one, other, tolerance):
    for name, value in weights(one).items():
        difference = float((value - weights(other)[name]).abs().max())
        assert difference <= tolerance, f"{name} differs by {difference}"


# Sums over micro-batches are added in another order: float32 rounding, which Adam's division may enlarge.
ROUNDING = 2e-5


@pytest.mark.parametrize("device_iterations", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_weights_equal_the_hosts_per_parameter(tmp_path, name, device_iterations):
    """Four stages, two replicas, accumulation, and with two device iterations updates in pairs; masked labels."""
    config = PIPELINE.updated(device_iterations=device_iterations)
    host = trainer_of(name, tmp_path / "h", "host", config, samples=64, per_device_train_batch_size=1)
    device = trainer_of(name, tmp_path / "d", "simulated", config, samples=64, per_device_train_batch_size=1)
    before = weights(device)
    host.train()
    device.train()
    assert host.state.global_step == 8
    assert device.state.global_step == 8 // device_iterations
    assert any(not torch.equal(before[n], value) for n, value in weights(device).items())
    assert_same_weights(host, device, ROUNDING)
    assert device.evaluate()["eval_loss"] == pytest.approx(host.evaluate()["eval_loss"], abs=1e-5)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_logs_are_the_hosts_but_for_the_gradient_norm(tmp_path):
    config = PIPELINE.updated(output_mode="all")
    host, device = (trainer_of("gpt2", tmp_path / b, b, config) for b in ("host", "simulated"))
    host.train()
    device.train()
    assert losses(device) == pytest.approx(losses(host), abs=1e-4)
    rates = [
        [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        for trainer in (host, device)
    ]
    assert rates[0] == pytest.approx(rates[1])
    assert not any("grad_norm" in entry for entry in device.state.log_history)


def test_the_ragged_last_batch_of_evaluation_counts_each_sample_once(tmp_path):
    """21 samples, evaluation micro-batch 2, 2 replicas, 2 device iterations: 10 micro-batches and one sample."""
    results = {}
    for backend in ("host", "simulated"):
        trainer = trainer_of("vit", tmp_path / backend, backend, per_device_eval_batch_size=2)
        output = trainer.predict(trainer.eval_dataset)
        results[backend] = (output, trainer.evaluate()["eval_loss"])
    host, device = results["host"], results["simulated"]
    assert device[0].predictions.shape == (21, 4)
    np.testing.assert_allclose(device[0].predictions, host[0].predictions, atol=1e-6)
    np.testing.assert_array_equal(device[0].label_ids, host[0].label_ids)
    assert device[0].metrics["test_loss"] == pytest.approx(host[0].metrics["test_loss"], abs=1e-6)
    assert device[1] == pytest.approx(host[1], abs=1e-6)


@pytest.mark.parametrize("stop_at, precision", [(1, {}), (3, {}), (2, {"half": True})])
def test_resuming_gives_the_weights_of_the_uninterrupted_run(tmp_path, stop_at, precision):
    """With dropout: the device's generators are in the checkpoint, as are the optimizer's state and the loss scale."""
    config = PIPELINE.updated(auto_loss_scaling=bool(precision))
    model = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    whole = trainer_of("vit", tmp_path / "a", "simulated", config, model=tiny("vit", **model), **precision)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_save = control.should_training_stop = state.global_step == stop_at

    first = trainer_of("vit", tmp_path / "b", "simulated", config, model=tiny("vit", **model), **precision)
    first.add_callback(Stop())
    first.train()
    second = trainer_of("vit", tmp_path / "b", "simulated", config, model=tiny("vit", **model), **precision)
    second.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{stop_at}"))
    assert second.state.global_step == whole.state.global_step == 4
    assert_same_weights(whole, second, 0.0)


def test_a_checkpoint_is_a_plain_hugging_face_checkpoint(tmp_path):
    config = PIPELINE.updated(projection_serialization_factor=4, embedding_serialization_factor=4)
    trainer = trainer_of("gpt2", tmp_path, "simulated", config, save_strategy="epoch", save_total_limit=1)
    names = set(trainer.model.state_dict())
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    read, report = type(trainer.model).from_pretrained(str(folder), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert set(trainer.model.state_dict()) == names
    assert type(trainer.model).__name__ == "GPT2LMHeadModel"
    assert not any("BeginBlock" in repr(module) for module in trainer.model.modules())
    for name, value in read.named_parameters():
        assert torch.equal(value, dict(trainer.model.named_parameters())[name])


def test_weights_are_copied_only_when_something_reads_them(tmp_path):
    seen = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(trainer.execution.current_run.num_weight_copies + int(not executor()._dirty_host_weights))

    def executor():
        return trainer.execution.current_run._trainer

    trainer = trainer_of("gpt2", tmp_path, "simulated")
    trainer.add_callback(Count())
    trainer.train()
    assert seen == [0, 0, 0, 0]


def test_a_data_set_smaller_than_a_host_step_is_refused_where_no_step_may_be_filled_up(tmp_path):
    trainer = trainer_of("vit", tmp_path, "simulated", samples=63, dataloader_drop_last=True)
    with pytest.raises(ValueError, match="63 samples are fewer than the 64 of one host step"):
        trainer.train()


def test_auto_find_batch_size_keeps_the_global_batch(tmp_path):
    failed = []

    class Small(IPUTrainer):
        def training_step(self, model, inputs, *rest):
            rows = inputs["pixel_values"].shape[0]
            micro_batch = self.batch_geometry.micro_batch
            if micro_batch > 2:
                failed.append((micro_batch, rows))
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *rest)

    for backend in ("host", "simulated"):
        config = IPUConfig(gradient_accumulation_steps=2)
        trainer = trainer_of(
            "vit", tmp_path / backend, backend, config, Small, auto_find_batch_size=True,
            per_device_train_batch_size=8, num_train_epochs=1,
        )  # fmt: skip
        seen = []

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, trainer=trainer, seen=seen, **_):
                seen.append((trainer.batch_geometry.micro_batch, trainer.batch_geometry.global_batch))

        trainer.add_callback(Look())
        trainer.train()
        assert set(seen) == {(2, 16)}
        assert trainer.state.global_step == 4
    assert failed


class OldStyle(IPUTrainer):
    """As subclasses were written for transformers 4.29."""

    logged = 0

    def compute_loss(self, model, inputs, return_outputs=False):
        outputs = model(**inputs)
        loss = 2.0 * outputs["loss"]
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs):
        return super().training_step(model, inputs)

    def log(self, logs):
        self.logged += 1
        super().log(logs)


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_subclasses_with_old_signatures_work_on_both_backends(tmp_path, name):
    host, device = (
        trainer_of(name, tmp_path / b, b, trainer_class=OldStyle, optim="sgd") for b in ("host", "simulated")
    )
    host.train()
    device.train()
    assert host.logged and device.logged
    assert_same_weights(host, device, ROUNDING)


def test_optimizers_and_schedulers_that_are_given_are_used(tmp_path):
    """A torch optimizer of one's own with a scheduler on it: the device follows its learning rate."""
    trainers = []
    for backend in ("host", "simulated"):
        model = tiny("vit")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        trainers.append(
            IPUTrainer(
                model=model,
                args=arguments(tmp_path / backend, backend=backend),
                train_dataset=Samples("vit"),
                ipu_config=PIPELINE,
                optimizers=(optimizer, scheduler),
            )
        )
        trainers[-1].train()
    assert_same_weights(*trainers, ROUNDING)


def test_evaluation_during_training_changes_nothing(tmp_path):
    plain = trainer_of("vit", tmp_path / "a", "simulated")
    watched = trainer_of("vit", tmp_path / "b", "simulated", eval_strategy="steps", eval_steps=1)
    plain.train()
    watched.train()
    assert_same_weights(plain, watched, 0.0)
    found = [entry["eval_loss"] for entry in watched.state.log_history if "eval_loss" in entry]
    assert len(found) == 4 and len(set(found)) == 4


def test_load_best_model_at_end_brings_the_best_weights_home(tmp_path):
    trainer = trainer_of(
        "vit", tmp_path, "simulated", eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_metric
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bf16": True}, "IPUs have no bfloat16"),
        ({"optim": "adafactor"}, "no counterpart on a device"),
        ({"optim": "rmsprop"}, "max_grad_norm 0.5 cannot be honoured"),
        ({"ema_decay": 0.9}, "weight average"),
    ],
)
def test_what_a_device_cannot_honour_is_refused(tmp_path, changes, message):
    if changes.get("optim") not in {None, *(name.value for name in OptimizerNames)}:
        pytest.skip("this transformers does not have the optimizer")
    with pytest.raises(ValueError, match=message):
        trainer_of("vit", tmp_path, "simulated", **changes).train()


def test_plain_training_arguments_stay_on_the_host_without_an_ipu(tmp_path):
    trainer = IPUTrainer(
        model=tiny("vit"),
        args=arguments(tmp_path, TrainingArguments),
        train_dataset=Samples("vit"),
        ipu_config=PIPELINE,
    )
    assert trainer.backend.name == "host"
    assert "poptorch is not installed" in trainer.backend.reason or "no IPU" in trainer.backend.reason


def test_half_precision_trains_and_comes_home_in_float32(tmp_path):
    trainer = trainer_of("vit", tmp_path, "simulated", half=True, loss_scaling=128.0, num_train_epochs=8)
    trainer.train()
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float32}
    assert min(losses(trainer)) < losses(trainer)[0] - 0.02
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_a_poptorch_optimizer_is_used_as_it_is(tmp_path):
    model = tiny("vit")
    optimizer = poptorch.optim.LAMB(model.parameters(), lr=1e-2)
    trainer = IPUTrainer(
        model=model,
        args=arguments(tmp_path, backend="simulated"),
        train_dataset=Samples("vit"),
        ipu_config=PIPELINE,
        optimizers=(optimizer, None),
    )
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(before[n], value) for n, value in weights(trainer).items())


def test_compile_only_compiles_and_trains_nothing(tmp_path):
    trainer = trainer_of("gpt2", tmp_path, "simulated", compile_only=True)
    before = weights(trainer)
    output = trainer.train()
    assert output.global_step == 0 and output.metrics["train_compile_seconds"] > 0
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_another_shape_compiles_again_and_says_so(tmp_path, caplog):
    """Padding to the longest of a batch works, and costs a compiling each time: the warning says what to change."""

    class Growing(IPUTrainer):
        steps = 0

        def training_step(self, model, inputs, *rest):
            self.steps += 1
            return super().training_step(model, {k: v[:, : 6 + self.steps] for k, v in inputs.items()}, *rest)

    trainers = [
        trainer_of("gpt2", tmp_path / b, b, IPUConfig(gradient_accumulation_steps=1), Growing, max_steps=3)
        for b in ("host", "simulated")
    ]
    for trainer in trainers:
        trainer.train()
    assert_same_weights(*trainers, ROUNDING)
    assert not hasattr(transformers.Trainer, "get_batch_samples") or trainers[1].steps == 3


@pytest.mark.skipif(transformers.__version__ < "5", reason="4.29 wants a CUDA device for this argument")
def test_fp16_full_eval_runs_in_float16(tmp_path):
    trainer = trainer_of("vit", tmp_path, "simulated", fp16_full_eval=True)
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions.dtype == np.float16
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float16}


def test_recomputation_stands_in_for_gradient_checkpointing(tmp_path):
    plain = trainer_of("gpt2", tmp_path / "a", "simulated")
    plain.train()
    recomputed = trainer_of("gpt2", tmp_path / "b", "simulated", gradient_checkpointing=True)
    recomputed.train()
    assert not recomputed.model.is_gradient_checkpointing
    assert_same_weights(plain, recomputed, 0.0)


@pytest.mark.parametrize("written, resumed", [("host", "simulated"), ("simulated", "host")])
def test_an_optimizer_state_of_the_other_backend_is_refused(tmp_path, written, resumed):
    first = trainer_of("vit", tmp_path, written, save_strategy="steps", save_steps=2, max_steps=2)
    first.train()
    second = trainer_of("vit", tmp_path, resumed)
    with pytest.raises(ValueError, match="keeps it in another form"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_training_step_of_ones_own_is_refused_with_what_to_override(tmp_path):
    class Own(IPUTrainer):
        def training_step(self, model, inputs, *rest):
            loss = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    with pytest.raises(ValueError, match="Override compute_loss, which runs on the device"):
        trainer_of("vit", tmp_path, "simulated", trainer_class=Own).train()


def test_a_pipeline_that_the_accumulation_does_not_fill_is_refused_before_work(tmp_path):
    trainer = trainer_of("gpt2", tmp_path, "simulated", PIPELINE.updated(gradient_accumulation_steps=8))
    with pytest.raises(
        ValueError, match=r"(?s)pipeline of 5 stages.*= 9 micro-batches.*IPU 0  stem, transformer.h.0, lm_head"
    ):
        trainer.train()
    assert not any("BeginBlock" in repr(module) for module in trainer.model.modules())


@pytest.mark.skipif(transformers.__version__ < "5", reason="4.29's host carries such a rest into the next epoch")
@pytest.mark.parametrize("name", ["vit", "gpt2"])
@pytest.mark.parametrize("samples", [80, 83, 126])
def test_a_last_batch_that_is_not_full_trains_as_on_the_host(tmp_path, name, samples):
    """Micro-batch 2: an even rest fills whole micro-batches, one sample more is a micro-batch that holds it twice."""
    trainers = [
        trainer_of(name, tmp_path / backend, backend, samples=samples, num_train_epochs=2)
        for backend in ("host", "simulated")
    ]
    for trainer in trainers:
        trainer.train()
    assert [trainer.state.global_step for trainer in trainers] == [4, 4]
    assert_same_weights(*trainers, ROUNDING)


@pytest.mark.skipif(transformers.__version__ < "5", reason="4.29's host carries such a rest into the next epoch")
@pytest.mark.parametrize("limit", [{"num_train_epochs": 3}, {"max_steps": 3}])
def test_a_data_set_smaller_than_a_host_step_is_one_update_an_epoch_as_on_the_host(tmp_path, caplog, limit):
    trainers = [
        trainer_of("vit", tmp_path / backend, backend, samples=39, learning_rate=0.1, optim="sgd", **limit)
        for backend in ("host", "simulated")
    ]
    before = weights(trainers[0])
    for trainer in trainers:
        trainer.train()
    assert [trainer.state.global_step for trainer in trainers] == [3, 3]
    assert any(not torch.equal(before[name], value) for name, value in weights(trainers[0]).items())
    assert_same_weights(*trainers, ROUNDING)
    assert "39 samples are fewer than the 64 of one host step" in caplog.text


def test_samples_that_cannot_be_used_exactly_are_left_out_and_counted(tmp_path, caplog):
    assert [usable_samples(n, BatchGeometry(8)) for n in (3, 5, 8, 13, 15)] == [2, 4, 8, 12, 12]
    trainer = trainer_of("vit", tmp_path, "simulated", samples=70, dataloader_drop_last=True, num_train_epochs=1)
    trainer.train()
    assert trainer.state.global_step == 1
    assert "samples dropped" in trainer.batch_table(trainer.execution.epoch_plan())


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, samples):
        self.samples, self.length = samples, len(samples)

    def __iter__(self):
        return (self.samples[index] for index in range(self.length))


def test_a_data_set_without_length_trains_as_on_the_host(tmp_path, caplog):
    """The host would carry what is left at the end into the next epoch's first update, so there the stream ends before."""
    trained = {}
    for backend, num_samples in (("host", 128), ("simulated", 138)):
        trainer = trainer_of("gpt2", tmp_path / backend, backend, learning_rate=0.1, max_steps=3, optim="sgd")
        trainer.train_dataset, trainer.eval_dataset = Stream(Samples("gpt2", 138)), Stream(Samples("gpt2", 21))
        trainer.train_dataset.length = num_samples
        before = weights(trainer)
        trainer.train()
        assert any(not torch.equal(before[name], value) for name, value in weights(trainer).items())
        trained[backend] = trainer
    assert_same_weights(trained["host"], trained["simulated"], ROUNDING)
    losses = [trainer.evaluate()["eval_loss"] for trainer in trained.values()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert "10 samples at the end" in caplog.text


def test_a_stream_that_does_not_fill_a_host_step_is_refused(tmp_path):
    trainer = trainer_of("gpt2", tmp_path, "simulated", max_steps=2, dataloader_drop_last=True)
    trainer.train_dataset = Stream(Samples("gpt2", 10))
    with pytest.raises(ValueError, match="ended after 10 samples, but a host step takes 64"):
        trainer.train()


def test_training_twice_starts_the_schedule_again_as_on_the_host(tmp_path):
    """The device's saved optimizer state once brought the last learning rate of the first run into the second."""
    trained = {}
    for backend in ("host", "simulated"):
        trainer = trained[backend] = trainer_of("vit", tmp_path / backend, backend, optim="sgd", learning_rate=0.1)
        trainer.train()
        first = weights(trainer)
        trainer.evaluate()
        trainer.train()
        went_on = any(not torch.equal(first[name], value) for name, value in weights(trainer).items())
        # 4.29's Trainer keeps the scheduler of the first run, which has arrived at 0.
        assert went_on == (transformers.__version__ >= "5")
    assert_same_weights(trained["host"], trained["simulated"], 1e-6)
