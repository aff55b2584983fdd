"""Rates and memory in Trainer's logs, and reporters that are checked before work."""

import logging
from types import SimpleNamespace

import pytest
import torch
from test_trainer import Pictures, arguments, vit
from transformers import TrainerCallback, TrainerState

from ipu_trainer import IPUConfig, IPUTrainer
from ipu_trainer.tasks.language_modeling.recipe_arguments import parse_arguments
from ipu_trainer.tasks.run_record import changed_settings, model_fingerprint, resumable_checkpoint
from ipu_trainer.training import monitor as reporting
from ipu_trainer.training.monitor import Monitor, loss_scale, messages_beside_progress, watch


class Reporter(TrainerCallback):
    """Keeps what a reporter is told."""

    def __init__(self):
        self.told = []

    def on_log(self, args, state, control, logs=None, **_):
        self.told.append(dict(logs))


def trainer_with(folder, config=None, **changes):
    reporter = Reporter()
    trainer = IPUTrainer(
        model=vit(), args=arguments(folder, max_steps=6, logging_steps=2, **changes), train_dataset=Pictures(count=32),
        eval_dataset=Pictures(), ipu_config=config, callbacks=[reporter],
    )  # fmt: skip
    return trainer, reporter


def test_rates_count_steps_after_the_first_and_leave_evaluation_and_saving_out():
    clock = SimpleNamespace(now=0.0, waited=0.0)
    trainer = type("", (), {"data_wait_seconds": property(lambda _: clock.waited)})()
    trainer.backend, trainer.batch_geometry = SimpleNamespace(has_executors=False), SimpleNamespace(global_batch=8)
    scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: 4.0)
    trainer.accelerator = SimpleNamespace(scaler=scaler)
    monitor = Monitor(trainer, tokens_per_sample=10, clock=lambda: clock.now)
    state, args = TrainerState(), SimpleNamespace(device=torch.device("cpu"))

    def happens(event, seconds, **more):
        clock.now += seconds
        getattr(monitor, event)(args, state, None, **more)

    def step(seconds):
        state.global_step += 1
        happens("on_step_end", seconds)

    def logged():
        logs = {"loss": 1.0}
        state.log_history.append({**logs, "step": state.global_step})
        happens("on_log", 0, logs=logs)
        assert state.log_history[-1] == {**logs, "step": state.global_step}
        return logs

    happens("on_train_begin", 0)
    clock.waited += 90  # workers start
    step(100)  # compiles
    first = logged()
    assert "samples_per_second" not in first and first["loss_scale"] == 4.0 and first["memory_bytes"] > 1e6
    for _ in range(4):
        step(2)
    clock.waited += 2
    logs = logged()
    assert logs["samples_per_second"] == 4 * 8 / 8 and logs["data_wait_share"] == 2 / 8
    happens("on_evaluate", 50)
    happens("on_save", 30)
    step(2)
    happens("on_epoch_end", 0)
    happens("on_evaluate", 70)
    step(2)
    logs = logged()
    assert logs["samples_per_second"] == 2 * 8 / 4 and logs["tokens_per_second"] == 40.0
    happens("on_log", 0, logs={"eval_loss": 1.0})
    assert state.log_history[-1]["step"] == 7 and "eval_loss" not in state.log_history[-1]
    happens("on_train_begin", 9)  # a second training begins anew
    assert "samples_per_second" not in logged()


def test_every_reporter_and_the_log_history_have_the_rates_and_a_trainer_without_a_monitor_has_none(tmp_path):
    plain, reporter = trainer_with(tmp_path)
    plain.train()
    assert not any({"samples_per_second", "memory_bytes"} & set(entry) for entry in reporter.told)
    trainer, reporter = trainer_with(tmp_path)
    watch(trainer, tokens_per_sample=3)
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    for entry in losses:
        assert (entry.get("data_wait_share") is None) == (trainer.data_wait_seconds is None)
        assert (
            0 <= entry.get("data_wait_share", 0) <= 1
            and entry["samples_per_second"] > 0
            and entry["memory_bytes"] > 1e7
            and "loss_scale" not in entry
        )
        assert entry["tokens_per_second"] == pytest.approx(3 * entry["samples_per_second"], rel=1e-3)
    assert [entry["samples_per_second"] for entry in reporter.told if "loss" in entry] == [
        entry["samples_per_second"] for entry in losses
    ]
    # The monitor leaves the losses alone.
    assert [entry["loss"] for entry in losses] == [e["loss"] for e in plain.state.log_history if "loss" in e]


def test_on_a_device_a_step_is_a_host_step(tmp_path, monkeypatch):
    from ipu_trainer.training import monitor

    config = IPUConfig(device_iterations=2, gradient_accumulation_steps=2)
    trainer, _ = trainer_with(
        tmp_path, config, backend="simulated", per_device_train_batch_size=2, half=True, loss_scaling=128.0
    )
    assert monitor.samples_per_step(trainer) == 8  # 2 samples x 2 micro-batches x 2 weight updates
    watch(trainer)
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss_scale"] for entry in losses] == [128.0] * 3
    hidden, _ = trainer_with(
        tmp_path, IPUConfig(auto_loss_scaling=True), backend="simulated", half=True, loss_scaling=128.0
    )
    assert loss_scale(hidden) is None  # the device changes it and says nothing


def test_the_scale_of_a_host_in_float16_is_its_scalers():
    class Scaler:
        def is_enabled(self):
            return True

        def get_scale(self):
            return 1024.0

    trainer = SimpleNamespace(
        backend=SimpleNamespace(has_executors=False), accelerator=SimpleNamespace(scaler=Scaler()), args=None
    )
    assert loss_scale(trainer) == 1024.0


@pytest.mark.parametrize(
    "name, message",
    [
        ("tensorbord", "Nearest: tensorboard"),
        ("wandb", "pip install wandb"),
        ("comet_ml", "pip install comet-ml"),
    ],
)
def test_a_reporter_that_cannot_report_is_refused_before_work(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(reporting, "get_available_reporting_integrations", lambda: ["mlflow"])
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--output", str(tmp_path), "--report_to", name])
    reporting.check_reporters(["mlflow"])
    for fine in ("none", "all", [], None):
        reporting.check_reporters(fine)


def test_tensorboard_is_the_default_where_it_is_installed_and_the_run_says_how_to_look(monkeypatch):
    monkeypatch.setattr(reporting, "get_available_reporting_integrations", lambda: ["tensorboard", "wandb"])
    assert reporting.default_reporters() == ["tensorboard"]
    monkeypatch.setattr(reporting, "get_available_reporting_integrations", lambda: ["wandb"])
    assert reporting.default_reporters() == ["none"]
    assert reporting.experiment_tracker_hint(["tensorboard", "wandb"], "run") == "tensorboard --logdir run/runs, wandb"
    assert reporting.experiment_tracker_hint([], "run").startswith("none (--report_to tensorboard")


def test_an_interrupted_run_goes_on_with_another_reporter(tmp_path):
    from ipu_trainer.atomic import write_json

    recipe, training = {"model": "m", "report": True}, {"report_to": [], "learning_rate": 1.0, "disable_tqdm": False}
    record = {"status": "running", "data": {"fingerprint": "f"}, "settings": {"recipe": recipe, "training": training}}
    write_json(tmp_path / "run.json", record)
    args = SimpleNamespace(resume_from_checkpoint=None)
    now = {"recipe": {"model": "m"}, "training": {**training, "report_to": ["tensorboard"]}}
    assert resumable_checkpoint(tmp_path, args, {"data": record["data"], "settings": now}).path is None
    now["training"]["learning_rate"] = 2.0
    with pytest.raises(ValueError, match=r"other settings \(learning_rate\)"):
        resumable_checkpoint(tmp_path, args, {"data": record["data"], "settings": now})


def test_settings_of_evaluation_and_paths_of_the_same_content_may_differ_when_a_run_is_resumed(tmp_path, monkeypatch):
    def record(of_model="m", of_data="f", replicas=1, **flags):
        training = {"output_dir": "run", "eval_strategy": "epoch", "learning_rate": 1.0, "model": "a", **flags}
        settings = {"recipe": {}, "training": training, "ipu_config": {"replication_factor": replicas}}
        return {"model_fingerprint": of_model, "data": {"fingerprint": of_data}, "settings": settings}

    for name in ("a", "tokens"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    may_differ = {
        "output_dir": "moved", "num_bootstrap": 7, "eval_steps": 9, "eval_strategy": "no", "prediction_loss_only": True, "label_names": ["x"],
        "report": False, "data": "moved", "corpus": "moved", "pairs": "moved", "ipu_config": "x.json", "model": "renamed",
    }  # fmt: skip
    for name, value in may_differ.items():
        assert changed_settings(record(), record(**{name: value})) == [], name
    assert changed_settings(record(tokenizer="tokens"), record(tokenizer=str(tmp_path / "tokens"))) == []
    assert changed_settings(record(tokenizer="tokens"), record(tokenizer="a")) == ["tokenizer"]
    assert changed_settings(record(None), record("m", model=str(tmp_path / "a"))) == []  # an earlier release's
    for fingerprint in (None, "other"):
        assert changed_settings(record(fingerprint), record(model="other")) == ["model"]
    for name in ("load_best_model_at_end", "lr_scheduler_type", "save_strategy"):
        value = {"lr_scheduler_type": "reduce_lr_on_plateau", "save_strategy": "best"}.get(name, True)
        assert changed_settings(record(**{name: value}), record(**{name: value}, eval_steps=9)) == ["eval_steps"]
    assert changed_settings(record(), record(learning_rate=2.0)) == ["learning_rate"]
    assert changed_settings(record(), record(of_data="g")) == ["data"]
    assert changed_settings(record(), record(replicas=2)) == ["ipu_config"]


def test_a_model_is_known_by_its_files(tmp_path):
    assert model_fingerprint("google/vit-base") is None and model_fingerprint(str(tmp_path)) is None
    for name, content in (("a", b"1" * 9), ("b", b"1" * 9), ("c", b"2" * 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, same, other = (model_fingerprint(str(tmp_path / name)) for name in "abc")
    assert one == same != other


def test_messages_stand_above_the_progress_bar_and_an_error_closes_it(capsys):
    from tqdm import tqdm

    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[SimpleNamespace(training_bar=tqdm(total=9))]))
    with pytest.raises(RuntimeError), messages_beside_progress(trainer):
        logging.getLogger("ipu_trainer.somewhere").warning("a message")
        raise RuntimeError
    written = capsys.readouterr().err
    message = next(line for line in written.replace("\r", "\n").splitlines() if "a message" in line)
    assert message == "a message" and written.endswith("\n")


def test_tensorboard_gets_the_rates(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, _ = trainer_with(tmp_path, report_to=["tensorboard"])
    watch(trainer)
    trainer.train()
    folders = list((tmp_path / "runs").iterdir()) if (tmp_path / "runs").is_dir() else []
    assert len(folders) == 1
    read = EventAccumulator(str(folders[0]))
    read.Reload()
    assert {"train/loss", "train/samples_per_second", "train/memory_bytes"} <= set(read.Tags()["scalars"])
