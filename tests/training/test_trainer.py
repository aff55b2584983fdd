import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
from two_processes import call_in_two

import ipu_trainer
from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.backends import choose_backend
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.training.acceleration.choices import choose_precision
from ipu_trainer.training.layers import head_parameters, layer_stacks, parameter_depths
from ipu_trainer.training.state.checkpoints import last_complete_checkpoint


class Pictures(Dataset):
    """16 random pictures with float labels of shape (4,), or class numbers."""

    def __init__(self, multi_label=True, count=16):
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(count, 3, 16, 16, generator=generator)
        self.labels = (
            (torch.rand(count, 4, generator=generator) < 0.5).float() if multi_label else torch.arange(count) % 4
        )

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def vit(multi_label=True):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
    )
    return ViTForImageClassification(config)


def arguments(folder, cls=IPUTrainingArguments, **changes):
    # SGD: an update is proportional to the gradient, so a wrong scale cannot hide behind Adam's normalisation.
    values = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
    }
    return cls(**compat.training_defaults(**{**values, **changes}))


def trained(
    folder, config=None, multi_label=True, model=None, trainer_class=IPUTrainer, cls=IPUTrainingArguments, **changes
):
    named = {} if trainer_class is Trainer else {"ipu_config": config}
    trainer = trainer_class(
        model=model or vit(multi_label),
        args=arguments(folder, cls, **changes),
        train_dataset=Pictures(multi_label),
        **named,
    )
    trainer.train()
    return trainer


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def largest_difference(one, other):
    return max(float((weights(one)[name] - weights(other)[name]).abs().max()) for name in weights(one))


@pytest.mark.parametrize("multi_label", [True, False])
def test_without_a_configuration_the_weights_are_those_of_trainer_bit_for_bit(tmp_path, multi_label):
    stock = trained(tmp_path / "a", multi_label=multi_label, trainer_class=Trainer, cls=TrainingArguments)
    ours = trained(tmp_path / "b", multi_label=multi_label)
    assert largest_difference(stock, ours) == 0.0


def test_operations_are_counted_as_trainer_counts_them_and_parameters_once_a_shape(tmp_path, monkeypatch):
    counts = []
    count = ViTForImageClassification.num_parameters
    monkeypatch.setattr(
        ViTForImageClassification, "num_parameters", lambda *given, **named: counts.append(1) or count(*given, **named)
    )
    stock = trained(tmp_path / "a", trainer_class=Trainer, cls=TrainingArguments)
    counts.clear()
    ours = trained(tmp_path / "b")
    assert ours.state.total_flos == stock.state.total_flos > 0
    assert len(counts) == 1
    for rows in (8, 3, 8):
        inputs = {"pixel_values": torch.zeros(rows, 3, 16, 16)}
        assert ours.floating_point_ops(inputs) == stock.floating_point_ops(inputs)
    small = ours.model
    large = ViTForImageClassification(ViTConfig(**{**small.config.to_dict(), "hidden_size": 32}))
    for model in (large, small):
        ours.model = stock.model = model
        assert ours.floating_point_ops(inputs) == stock.floating_point_ops(inputs)


# Sums over micro-batches are added in another order than over one batch: float32 rounding, not more.
ROUNDING = 1e-6


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("micro_batch, accumulation, replicas", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2)])
def test_weight_updates_depend_on_the_global_batch_alone(tmp_path, multi_label, micro_batch, accumulation, replicas):
    reference = trained(tmp_path / "a", multi_label=multi_label)
    config = IPUConfig(gradient_accumulation_steps=accumulation, replication_factor=replicas)
    other = trained(tmp_path / "b", config, multi_label, per_device_train_batch_size=micro_batch)
    assert other.batch_geometry.global_batch == 8
    assert largest_difference(reference, other) < ROUNDING
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (reference, other)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.skipif(not hasattr(Trainer, "get_batch_samples"), reason="this transformers does not count labels")
def test_stock_trainer_scales_multi_label_gradients_by_the_accumulation(tmp_path):
    """Why get_batch_samples is overridden. When this fails, transformers has mended it and the override can go."""
    whole = trained(tmp_path / "a", trainer_class=Trainer, cls=TrainingArguments)
    parts = trained(
        tmp_path / "b",
        trainer_class=Trainer,
        cls=TrainingArguments,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    assert largest_difference(whole, parts) > 100 * ROUNDING


def test_accumulation_of_the_arguments_takes_the_place_of_the_configurations(tmp_path):
    trainer = IPUTrainer(
        model=vit(),
        args=arguments(tmp_path, gradient_accumulation_steps=4, ipu_config_overrides="replication_factor=2"),
        train_dataset=Pictures(),
        ipu_config=IPUConfig(gradient_accumulation_steps=16),
    )
    geometry = trainer.batch_geometry
    assert (geometry.gradient_accumulation, geometry.replicas, geometry.global_batch) == (4, 2, 64)


def test_the_loop_sees_the_accumulation_and_the_arguments_get_theirs_back(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            seen.append(args.gradient_accumulation_steps)

    config = IPUConfig(gradient_accumulation_steps=2, replication_factor=2)
    args = arguments(
        tmp_path,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=3,
        host_micro_batch_size="micro_batch",
    )
    trainer = IPUTrainer(model=vit(), args=args, train_dataset=Pictures(), ipu_config=config, callbacks=[Look()])
    trainer.train()
    assert set(seen) == {4}
    saved = torch.load(tmp_path / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert saved.gradient_accumulation_steps == 1
    assert trainer.args is args and args.gradient_accumulation_steps == 1


def test_one_learning_rate_serves_all_updates_of_a_host_step(tmp_path):
    rates = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **_):
            rates.append(optimizer.param_groups[0]["lr"])

    args = arguments(tmp_path, max_steps=4)
    config = IPUConfig(device_iterations=2)
    IPUTrainer(model=vit(), args=args, train_dataset=Pictures(), ipu_config=config, callbacks=[Look()]).train()
    assert rates[0] == rates[1] != rates[2] == rates[3]
    with pytest.raises(ValueError, match="device_iterations=1"):
        IPUTrainer(
            model=vit(),
            args=arguments(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch"),
            train_dataset=Pictures(),
            eval_dataset=Pictures(),
            ipu_config=IPUConfig(device_iterations=2),
        ).train()


def test_learning_rates_fall_with_depth_and_the_head_has_its_own(tmp_path):
    model = vit()
    trainer = IPUTrainer(
        model=model,
        args=arguments(tmp_path, layer_decay=0.5, head_learning_rate_factor=3.0, weight_decay=0.1, learning_rate=1.0),
        train_dataset=Pictures(),
    )
    optimizer = trainer.create_optimizer()
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rate[id(p)] for name, p in model.named_parameters()}
    depths, deepest = parameter_depths(model)
    assert deepest == 4
    assert by_name["classifier.weight"] == 3.0
    assert by_name["vit.layernorm.weight"] == 1.0
    assert by_name["vit.embeddings.cls_token"] == 0.5**4
    layer = [name for name in by_name if depths[name] == 2 and name not in head_parameters(model)]
    assert layer and all(by_name[name] == 0.5**2 for name in layer)
    assert decay[id(model.classifier.weight)] == 0.1 and decay[id(model.classifier.bias)] == 0.0


def test_layers_are_found_and_a_model_without_any_is_refused(tmp_path):
    assert [len(layers) for _, layers in layer_stacks(vit())] == [3]
    with pytest.raises(ValueError, match="no repeated layers"):
        parameter_depths(torch.nn.Linear(2, 2))


def test_weight_average_follows_its_formula_and_is_what_remains(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            seen.append(model.classifier.weight.detach().clone())

    model = vit()
    average = model.classifier.weight.detach().clone()
    trainer = IPUTrainer(
        model=model, args=arguments(tmp_path, ema_decay=0.5), train_dataset=Pictures(), callbacks=[Look()]
    )
    trainer.train()
    for update, value in enumerate(seen, start=1):
        average = average + (1 - min(0.5, (1 + update) / (10 + update))) * (value - average)
    assert torch.allclose(trainer.model.classifier.weight, average, atol=1e-7)
    assert not torch.allclose(trainer.model.classifier.weight, seen[-1], atol=1e-7)


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path):
    options = {"optim": "adamw_torch", "learning_rate": 0.01, "drop_path": 0.3, "ema_decay": 0.9, "layer_decay": 0.7}
    options.update(max_steps=6, save_strategy="steps", save_steps=2, per_device_train_batch_size=4)
    whole = trained(tmp_path / "a", **options)
    checkpoint = tmp_path / "a" / "checkpoint-4"
    assert last_complete_checkpoint(tmp_path / "a").endswith("checkpoint-6")
    resumed = IPUTrainer(model=vit(), args=arguments(tmp_path / "b", **options), train_dataset=Pictures())
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert largest_difference(whole, resumed) == 0.0


def test_the_best_checkpoint_is_loaded_although_its_tensors_were_renamed(tmp_path):
    kept = []

    class Keep(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **_):
            kept.append({name: value.detach().clone() for name, value in model.named_parameters()})

    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options.update(load_best_model_at_end=True, metric_for_best_model="first", greater_is_better=True)
    scores = iter([3.0, 2.0, 1.0])
    trainer = IPUTrainer(
        model=vit(),
        args=arguments(tmp_path, **options),
        train_dataset=Pictures(),
        eval_dataset=Pictures(),
        compute_metrics=lambda prediction: {"first": next(scores)},
        callbacks=[Keep()],
    )
    trainer.train()
    assert all(torch.equal(value, kept[0][name]) for name, value in weights(trainer).items())
    assert not torch.equal(kept[0]["classifier.weight"], kept[2]["classifier.weight"])


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trained(tmp_path / "a", save_strategy="steps", save_steps=3)
    other = vit()
    other.config.num_hidden_layers = 4
    other = ViTForImageClassification(other.config)
    with pytest.raises(ValueError, match="does not hold the weights|match the size"):
        trained(tmp_path / "b", model=other).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    trained(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:20])
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-2")
    random_state = tmp_path / "checkpoint-2" / "rng_state.pth"
    random_state.write_bytes(random_state.read_bytes()[:-50])
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_what_cannot_work_is_refused_before_work(tmp_path):
    with pytest.raises(ValueError, match="Give an IPUConfig"):
        IPUTrainer(model=vit(), args=arguments(tmp_path), ipu_config={"replication_factor": 2})
    with pytest.raises(ValueError, match="not one of auto, sdk, simulated, host"):
        arguments(tmp_path, backend="tpu")
    with pytest.raises(ValueError, match="layer_decay"):
        arguments(tmp_path, layer_decay=0.0)
    with pytest.raises(ValueError, match="drop_path"):
        arguments(tmp_path, drop_path=1.0)
    with pytest.raises(ValueError, match="not one of auto, fp32, bf16, fp16"):
        choose_precision("fp8", True)


@pytest.mark.parametrize("name", ["bf16", "bf16_full_eval"])
def test_bfloat16_asks_for_the_cpu_by_itself_where_there_is_nothing_else(tmp_path, monkeypatch, name):
    values = {compat.field_name("use_cpu"): False, name: True, "report_to": []}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = IPUTrainingArguments(str(tmp_path), **values)
    assert getattr(args, compat.field_name("use_cpu")) and args.device.type == "cpu"
    assert choose_precision("auto", True).name == choose_precision("auto", False).name == "fp32"


def test_learning_rates_by_depth_and_an_optimizer_of_the_users_own_exclude_each_other(tmp_path):
    model = vit()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers= brings its own"):
        IPUTrainer(model=model, args=arguments(tmp_path, layer_decay=0.5), optimizers=(own, None))
    assert IPUTrainer(model=model, args=arguments(tmp_path), optimizers=(own, None)).optimizer is own


def test_a_profile_by_name_and_plain_training_arguments_are_taken(tmp_path):
    trainer = IPUTrainer(model=vit(), args=arguments(tmp_path, TrainingArguments), ipu_config="vit_base_pod4")
    assert trainer.batch_geometry.gradient_accumulation == 128
    assert (trainer.backend.name, choose_backend("host").reason) == ("host", "asked for")


def test_the_package_is_imported_lazily():
    program = "import sys, ipu_trainer; assert 'torch' not in sys.modules; ipu_trainer.IPUConfig; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="Public names"):
        ipu_trainer.nothing  # noqa: B018


def train_two_replicas(folder, file):
    # The data of one update is the same set, whichever process computes it; drop_last keeps the last update whole.
    args = arguments(folder, per_device_train_batch_size=2, max_steps=2)
    config = IPUConfig(gradient_accumulation_steps=2, replication_factor=2)
    trainer = IPUTrainer(model=vit(), args=args, train_dataset=Pictures(), ipu_config=config)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(weights(trainer), file)


@pytest.mark.skipif(
    not hasattr(Trainer, "create_accelerator_and_postprocess"),
    reason="this transformers shuffles differently per process",
)
def test_two_processes_share_the_replicas_and_give_the_same_weights(tmp_path):
    train_two_replicas(tmp_path, tmp_path / "1.pt")
    call_in_two(train_two_replicas, tmp_path, tmp_path / "2.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("1.pt", "2.pt"))
    # Gradients of the two processes are averaged by all-reduce, in another order than one process adds them.
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < ROUNDING
