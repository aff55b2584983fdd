"""What users of Trainer expect beside the loop, on the host and on simulated IPUs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer
from transformers.training_args import OptimizerNames

from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat

BACKENDS = ("host", "simulated")
SMALL = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


class Sentences(Dataset):
    """Rows of 8 tokens; the label is whether the first is even. `note` is a column that no model takes."""

    def __init__(self, number, seed=0):
        self.ids = torch.randint(2, 32, (number, 8), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index][0] % 2, "note": index}


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[index] for index in range(len(self.rows)))


def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_labels=2, **SMALL))


def arguments(folder, backend, **values):
    defaults = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 3, "report_to": [],
        "optim": "adamw_torch", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    use_cpu = {compat.field_name("use_cpu"): True}
    return IPUTrainingArguments(output_dir=str(folder), backend=backend, **{**defaults, **use_cpu, **values})


def trainer(folder, backend, args=None, data=32, **named):
    rows = named.pop("train_dataset", Sentences(data))
    args = args or arguments(folder, backend)
    return IPUTrainer(model=model(), args=args, train_dataset=rows, **named)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def largest_difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_set_methods_say_the_same_as_arguments(tmp_path, backend):
    args = arguments(tmp_path, backend)
    args = args.set_dataloader(
        train_batch_size=2, eval_batch_size=3, drop_last=True, num_workers=1, pin_memory=False,
        auto_find_batch_size=True, ignore_data_skip=True, sampler_seed=7,
    )  # fmt: skip
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (2, 3)
    assert args.dataloader_drop_last and args.auto_find_batch_size and args.ignore_data_skip
    assert args.dataloader_num_workers == 1 and not args.dataloader_pin_memory and args.data_seed == 7
    args = args.set_optimizer(name="sgd", learning_rate=0.5, weight_decay=0.25)
    assert args.optim == OptimizerNames.SGD and (args.learning_rate, args.weight_decay) == (0.5, 0.25)
    args = args.set_lr_scheduler(name="cosine", max_steps=4, warmup_steps=2)
    assert args.lr_scheduler_type == "cosine" and args.warmup_steps == 2 and args.max_steps == 4
    made = trainer(tmp_path, backend, args.set_dataloader(train_batch_size=2, pin_memory=False))
    made.train()
    assert isinstance(made.lr_scheduler, torch.optim.lr_scheduler.LambdaLR)
    assert made.state.global_step == 4


@pytest.mark.skipif("dataloader_persistent_workers" not in compat.INSTALLED, reason="newer than this transformers")
@pytest.mark.parametrize("backend", BACKENDS)
def test_loading_processes_are_as_asked_for(tmp_path, backend):
    args = arguments(tmp_path, backend).set_dataloader(
        train_batch_size=4, num_workers=1, persistent_workers=True, prefetch_factor=3, pin_memory=False
    )
    loader = trainer(tmp_path, backend, args).get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_samples_is_a_function_of_the_sampler_seed(tmp_path, backend):
    def order(seed, model_seed):
        args = arguments(tmp_path, backend, data_seed=seed, seed=model_seed)
        batches = list(trainer(tmp_path, backend, args).get_train_dataloader())
        return torch.cat([batch["input_ids"] for batch in batches]).tolist()

    assert order(1, 1) == order(1, 1) != order(2, 1)
    assert order(1, 1) == order(1, 2) if hasattr(Trainer, "get_batch_samples") else True


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_that_forward_does_not_take_are_removed(tmp_path, backend):
    import datasets

    rows = Sentences(16)
    table = datasets.Dataset.from_dict({
        "input_ids": rows.ids.tolist(), "labels": [int(ids[0] % 2) for ids in rows.ids], "text": ["x"] * 16,
    }).with_format("torch", columns=["input_ids", "labels"], output_all_columns=True)  # fmt: skip
    made = trainer(tmp_path, backend, train_dataset=table, eval_dataset=table)
    for loader in (made.get_train_dataloader(), made.get_eval_dataloader(), made.get_test_dataloader(table)):
        assert set(next(iter(loader))) == {"input_ids", "labels"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_trains_and_evaluates_as_the_same_rows_in_order(tmp_path, backend):
    made = trainer(tmp_path, backend, train_dataset=Stream(Sentences(12)), eval_dataset=Stream(Sentences(10, 1)))
    made.train()
    assert made.state.global_step == 3
    listed = IPUTrainer(model=made.model, args=made.args, eval_dataset=Sentences(10, 1))
    assert made.evaluate()["eval_loss"] == pytest.approx(listed.evaluate()["eval_loss"], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dict_of_evaluation_sets_is_evaluated_by_name(tmp_path, backend):
    sets = {"near": Sentences(10, 1), "far": Sentences(7, 2)}
    args = arguments(tmp_path, backend, **compat.training_defaults(eval_strategy="steps", eval_steps=3))
    made = trainer(tmp_path, backend, args, eval_dataset=sets, compute_metrics=accuracy)
    made.train()
    told = {name for entry in made.state.log_history for name in entry}
    assert {"eval_near_accuracy", "eval_far_accuracy", "eval_near_loss", "eval_far_loss"} <= told
    for name, rows in sets.items():
        logged = next(e[f"eval_{name}_loss"] for e in made.state.log_history if f"eval_{name}_loss" in e)
        assert made.evaluate(rows)["eval_loss"] == pytest.approx(logged, abs=1e-6)


def accuracy(prediction):
    return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def test_the_two_backends_agree_on_evaluation_and_prediction(tmp_path):
    results = []
    for backend in BACKENDS:
        made = trainer(tmp_path, backend, eval_dataset=Sentences(10, 1), compute_metrics=accuracy)
        made.train()
        predicted = made.predict(Sentences(9, 2))
        results.append((made.evaluate()["eval_accuracy"], predicted.predictions, predicted.metrics["test_loss"]))
    assert results[0][0] == results[1][0]
    assert np.allclose(results[0][1], results[1][1], atol=1e-6) and results[0][2] == pytest.approx(
        results[1][2], abs=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adamw_torch", {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-6}),
        ("sgd", {"lr": 1e-2, "momentum": 0.9}),
    ],
)
def test_an_optimizer_by_name_and_settings_trains_as_one_that_is_made(tmp_path, backend, name, settings):
    kept = arguments(tmp_path, backend, learning_rate=5e-5, max_grad_norm=0.0)
    by_name = trainer(tmp_path, backend, kept, optimizers=(name, settings))
    by_name.train()
    assert kept.learning_rate == 5e-5  # the user's arguments stay as they are
    other = model()
    groups = trainer(tmp_path, "host", arguments(tmp_path, "host", weight_decay=settings.get("weight_decay", 0.0)))
    decayed = {id(p) for p in groups.create_optimizer().param_groups[0]["params"]}
    names = {name for name, p in groups.model.named_parameters() if id(p) in decayed}
    rest = {key: value for key, value in settings.items() if key != "weight_decay"}
    cls = torch.optim.AdamW if name == "adamw_torch" else torch.optim.SGD
    made = cls(
        [
            {
                "params": [p for n, p in other.named_parameters() if n in names],
                "weight_decay": settings.get("weight_decay", 0),
            },
            {"params": [p for n, p in other.named_parameters() if n not in names], "weight_decay": 0.0},
        ],
        **rest,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: max(0.0, 1 - step / 3))
    plain = arguments(tmp_path, "host", max_grad_norm=0.0)
    IPUTrainer(model=other, args=plain, train_dataset=Sentences(32), optimizers=(made, schedule)).train()
    assert largest_difference(weights(by_name.model), weights(other)) < 1e-6


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        (("adamw", {"lr": 1}), "there is no optimizer of this name. There are"),
        (("adamw_torch", {"momentum": 1}), "it has no momentum. It takes lr, betas"),
        (("adamw_torch", 1e-4), "the second is the optimizer's settings"),
    ],
)
def test_a_named_optimizer_that_cannot_be_is_refused_with_what_there_is(tmp_path, optimizers, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, "host", optimizers=optimizers)


def test_an_optimizer_without_a_counterpart_is_refused_on_a_device_with_those_that_have_one(tmp_path):
    made = trainer(tmp_path, "simulated", arguments(tmp_path, "simulated", optim="adagrad"))
    with pytest.raises(ValueError, match="Adagrad has no counterpart on a device.*AdamW, Adam, SGD, RMSprop and LAMB"):
        made.train()


@pytest.mark.parametrize("backend", BACKENDS)
def test_create_optimizer_may_be_overridden(tmp_path, backend):
    class Own(IPUTrainer):
        def create_optimizer(self, *args):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.25)
            return self.optimizer

    made = Own(model=model(), args=arguments(tmp_path, backend, max_grad_norm=0.0), train_dataset=Sentences(32))
    before = weights(made.model)
    made.train()
    host = Own(model=model(), args=arguments(tmp_path, "host", max_grad_norm=0.0), train_dataset=Sentences(32))
    host.train()
    assert largest_difference(before, weights(made.model)) > 1e-4
    assert largest_difference(weights(host.model), weights(made.model)) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_compute_loss_may_be_overridden(tmp_path, backend):
    class Weighted(IPUTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            each = nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
            loss = (each * (1.0 + 2.0 * labels)).mean()
            return (loss, outputs) if return_outputs else loss

    made = Weighted(
        model=model(), args=arguments(tmp_path, backend), train_dataset=Sentences(32), eval_dataset=Sentences(9, 1)
    )
    made.train()
    stock = trainer(tmp_path, backend, eval_dataset=Sentences(9, 1))
    stock.train()
    assert largest_difference(weights(stock.model), weights(made.model)) > 1e-6
    assert made.evaluate()["eval_loss"] != pytest.approx(stock.evaluate()["eval_loss"], abs=1e-4)


def test_get_optimizer_cls_and_kwargs_is_the_stock_table(tmp_path):
    args = arguments(tmp_path, "host", optim="sgd", learning_rate=0.125)
    cls, settings = IPUTrainer.get_optimizer_cls_and_kwargs(args)
    assert cls is torch.optim.SGD and settings["lr"] == 0.125


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_that_were_seen_are_skipped_on_resuming_unless_asked_not_to(tmp_path, backend):
    settings = compat.training_defaults(save_steps=2, max_steps=4, save_strategy="steps")
    whole = trainer(tmp_path, backend, arguments(tmp_path / "run", backend, **settings))
    whole.train()
    resumed = trainer(tmp_path, backend, arguments(tmp_path / "run", backend, **settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert largest_difference(weights(whole.model), weights(resumed.model)) == 0.0
    again = trainer(tmp_path, backend, arguments(tmp_path / "run", backend, ignore_data_skip=True, **settings))
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert largest_difference(weights(whole.model), weights(again.model)) > 0.0


@pytest.mark.skipif(not hasattr(Trainer, "get_batch_samples"), reason="4.29's host carries a rest into the next epoch")
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("rows", [30, 33])
def test_a_mean_loss_that_is_told_the_number_of_labels_counts_a_short_batch_in_full(tmp_path, rows, accumulation):
    """BERT takes num_items_in_batch and ignores it: the device once halved the loss of a micro-batch that was half full."""
    trained = {}
    for backend in BACKENDS:
        args = arguments(
            tmp_path / backend, backend, max_steps=-1, num_train_epochs=2, logging_steps=1, optim="sgd", learning_rate=0.1,
            gradient_accumulation_steps=accumulation, max_grad_norm=0.0,
        )  # fmt: skip
        trained[backend] = trainer(tmp_path / backend, backend, args, data=rows)
        assert trained[backend].model_accepts_loss_kwargs
        trained[backend].train()
    losses = {
        backend: [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        for backend, made in trained.items()
    }
    assert losses["simulated"] == pytest.approx(losses["host"], abs=1e-5)
    assert largest_difference(*(weights(made.model) for made in trained.values())) < 1e-6


def test_a_trainer_keeps_its_precision_when_another_one_is_made(tmp_path):
    """Accelerate keeps one precision a program, the last trainer's: stock Trainer then computes in float32 unasked."""
    seen = []
    made = {
        bf16: trainer(tmp_path, "host", arguments(tmp_path, "host", bf16=bf16, max_steps=1)) for bf16 in (True, False)
    }
    for one in made.values():
        one.model.bert.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_cpu_enabled()))
    for bf16, one in [*made.items(), *made.items()]:
        for compute in (one.train, one.evaluate, one.predict):
            seen.clear()
            arguments(tmp_path, "host")  # without a trainer too it begins anew
            compute(*([] if compute == one.train else [Sentences(8)]))
            assert set(seen) == {bf16}, (bf16, compute.__name__)


@pytest.mark.skipif(not hasattr(Trainer, "create_accelerator_and_postprocess"), reason="there is no accelerator")
def test_an_accelerator_that_is_made_again_is_the_one_that_counts(tmp_path):
    """As for each trial of a search."""
    one = trainer(tmp_path, "host", arguments(tmp_path, "host", bf16=True))
    one.args = arguments(tmp_path, "host")
    one.create_accelerator_and_postprocess()
    one.evaluate(Sentences(8))
    assert one.accelerator.mixed_precision == "no"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("order", [("host", "simulated"), ("simulated", "host")])
def test_a_simulated_run_beside_one_on_the_gpu_moves_neither(tmp_path, order):
    on_gpu = {compat.field_name("use_cpu"): False, "tf32": False, "lr_scheduler_type": "constant"}
    made = {name: trainer(tmp_path / name, name, arguments(tmp_path / name, name, **on_gpu)) for name in order}
    assert made["host"].args.device.type == "cuda"
    for one in made.values():
        one.train()
        one.evaluate(Sentences(8))
    assert next(made["host"].model.parameters()).device.type == "cuda"
    host, simulated = (weights(made[name].model.cpu()) for name in ("host", "simulated"))
    assert largest_difference(host, simulated) < 1e-5
