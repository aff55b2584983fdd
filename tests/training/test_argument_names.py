"""One script for all releases of transformers: names of Trainer and its arguments, of either end and between.

transformers_names/ holds what scripts/renamed_arguments.py read from the releases' sources.
"""

import copy
import importlib.util
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import bert
from transformers import Trainer, TrainerCallback

from ipu_trainer import IPUSeq2SeqTrainingArguments, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import argument_names as renamed
from ipu_trainer.compat.stock_trainer import ELSEWHERE, RENAMED_METHODS
from ipu_trainer.tasks.language_modeling.recipe_arguments import LanguageModelingArguments
from ipu_trainer.tasks.recipe.flags import parse_flags

HERE = Path(__file__).resolve().parent
_SPEC = importlib.util.spec_from_file_location("names", HERE.parents[1] / "scripts" / "renamed_arguments.py")
SCRIPT = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(SCRIPT)
NAMES = {path.stem: json.loads(path.read_text()) for path in (HERE / "transformers_names").glob("*.json")}
INSTALLED = SCRIPT.read(Path(transformers.__file__).parent)
NEW = "eval_strategy" in renamed.INSTALLED
# Parameters that methods got or lost, and that nobody has to answer for: what is left out is as in the older release.
_OWN_CHOICE = {
    "Trainer.push_to_hub": {"token", "revision", "private"},  # 4.29 takes any keyword and gives it to the upload
    "TrainingArguments.set_dataloader": {
        "persistent_workers",
        "prefetch_factor",
        "multiprocessing_context",
        "in_order",
    },
    "TrainingArguments.set_push_to_hub": {"always_push", "revision"},
}


def arguments(**values):
    return IPUTrainingArguments(**{"output_dir": "out", "report_to": [], **values})


def test_the_frozen_names_are_those_of_the_release_that_is_installed():
    if transformers.__version__ not in NAMES:
        pytest.skip(f"names of transformers {transformers.__version__} are not frozen; the next test compares them")
    assert NAMES[transformers.__version__] == INSTALLED


@pytest.mark.parametrize("release", sorted(NAMES))
def test_every_name_that_the_installed_release_has_not_is_answered(release):
    unanswered = []
    for row in SCRIPT.compare(NAMES[release], INSTALLED):
        sign, where, *rest = row.split()
        if sign == "+":  # the installed release has it
            continue
        kind, name = rest if len(rest) == 2 else ("parameter", rest[0])
        if where.endswith("TrainingArguments") and kind in ("fields", "attributes"):
            answered = (
                name.startswith("_") or name in renamed.INSTALLED or hasattr(IPUTrainingArguments, name)
                or name in ("deepspeed_plugin", "fsdp_plugin_args", "mixed_precision")  # workings of 5.x, in __post_init__
            )  # fmt: skip
        elif kind == "parameter":
            answered = name in _OWN_CHOICE.get(where, ()) or _takes(where, name)
        else:
            answered = name in ELSEWHERE or name in RENAMED_METHODS or name in ("tokenizer", "processing_class")
            answered = answered or name in INSTALLED["Trainer"]["attributes"]
        if not answered:
            unanswered.append(row)
    assert not unanswered, "add a row to ipu_trainer/compat/argument_names.py or renamed_trainer.py"


def _takes(where, name):
    """Whether IPUTrainer's method, or that of the arguments, takes a parameter that stock's does not."""
    kind, method = where.split(".")
    if method == "__init__":
        return name in ("tokenizer", "processing_class", "compute_loss_func", "optimizer_cls_and_kwargs")
    if method in ELSEWHERE:  # it came and changed between the ends
        return True
    if kind == "TrainingArguments":
        return name in renamed.METHOD_PARAMETERS.get(method, ())
    return (method, name) in {
        ("compute_loss", "num_items_in_batch"), ("training_step", "num_items_in_batch"), ("log", "start_time"),
        ("create_optimizer", "model"), ("get_optimizer_cls_and_kwargs", "model"),
    }  # fmt: skip


# Name and value in a script -> attribute and value that it has to have, whatever is installed.
ARRIVES = [
    ("evaluation_strategy", "epoch", "eval_strategy", "epoch"),
    ("eval_strategy", "epoch", "evaluation_strategy", "epoch"),
    ("no_cuda", True, "use_cpu", True),
    ("use_cpu", True, "no_cuda", True),
    ("warmup_ratio", 0.25, "warmup_ratio", 0.25),
    ("warmup_steps", 0.25, "warmup_ratio", 0.25),
    ("warmup_steps", 7, "warmup_steps", 7),
    ("group_by_length", True, "train_sampling_strategy", "group_by_length"),
    ("train_sampling_strategy", "group_by_length", "group_by_length", True),
    ("gradient_checkpointing", True, "activation_checkpointing", True),
    ("activation_checkpointing", True, "gradient_checkpointing", True),
    ("per_gpu_train_batch_size", 3, "per_device_train_batch_size", 3),
    ("per_gpu_eval_batch_size", 3, "per_device_eval_batch_size", 3),
    ("include_inputs_for_metrics", True, "include_for_metrics", ["inputs"]),
    ("include_for_metrics", ["inputs"], "include_inputs_for_metrics", True),
    ("adafactor", True, "optim", "adafactor"),
    ("push_to_hub_token", "t", "hub_token", "t"),
    ("overwrite_output_dir", True, "overwrite_output_dir", True),
    ("logging_dir", "logs", "logging_dir", "logs"),
    ("past_index", -1, "past_index", -1),
    ("fp16_backend", "auto", "fp16_backend", "auto"),
    ("save_safetensors", True, "save_safetensors", True),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("name", "value", "shown", "expected"), ARRIVES)
def test_a_name_of_any_release_is_taken_and_shown_by_all_its_names(name, value, shown, expected):
    assert getattr(arguments(**{name: value}), shown) == expected
    if name not in renamed.INSTALLED:  # else it is the release's own, which may read it once
        other = arguments()
        setattr(other, name, value)  # a search sets values so
        assert getattr(other, shown) == expected


@pytest.mark.skipif(not NEW, reason="transformers 4.29 has these itself")
@pytest.mark.parametrize(
    ("name", "value", "today"),
    [
        ("fp16_backend", "apex", "autocast"), ("fsdp_min_num_params", 5, "fsdp_config"), ("sharded_ddp", "simple", "fsdp"),
        ("push_to_hub_organization", "us", "hub_model_id"), ("save_safetensors", False, "safetensors"),
        ("use_ipex", True, "bf16"), ("jit_mode_eval", True, "torch_compile"), ("past_index", 0, "state"),
        ("tp_size", 2, "parallelism_config"), ("optim", "adamw_hf", "adamw_torch"), ("use_legacy_prediction_loop", True, "evaluation_loop"),
    ],
)  # fmt: skip
def test_a_value_without_a_counterpart_is_refused_with_what_does_its_work(name, value, today):
    with pytest.raises(ValueError, match=name) as error:
        arguments(**{name: value})
    assert today in str(error.value)


@pytest.mark.skipif(NEW, reason="transformers 5 has these")
@pytest.mark.parametrize("name", sorted({*renamed.ADDED_LATER, "gradient_checkpointing_kwargs"}))
def test_what_came_after_4_29_is_taken_as_usual_and_else_refused(name):
    usual = renamed.ADDED_LATER.get(name, (None,))
    for value in usual:
        assert name not in vars(arguments(**{name: value}))
    with pytest.raises(ValueError, match=f"transformers 4.29.2 has no {name}"):
        arguments(**{name: "something"})


def test_two_names_of_one_setting_may_agree_and_must_not_contradict():
    assert arguments(evaluation_strategy="epoch", eval_strategy="epoch").eval_strategy == "epoch"
    assert arguments(warmup_ratio=0.1, warmup_steps=5).warmup_steps == 5  # as in every release
    with pytest.raises(ValueError, match="one setting under two names"):
        arguments(evaluation_strategy="epoch", eval_strategy="steps")


def test_a_misspelt_argument_is_still_an_error():
    with pytest.raises(TypeError, match="evaluation_stratgy"):
        arguments(evaluation_stratgy="epoch")


@pytest.mark.parametrize(
    ("name", "today"), [("n_ipu", "replication_factor"), ("lamb", "LAMB"), ("auto_loss_scaling", "IPUConfig")]
)
def test_arguments_of_optimum_graphcore_are_answered(name, today):
    with pytest.raises(ValueError, match=today):
        arguments(**{name: 4})
    assert not arguments(fp32=True, pad_on_batch_axis=True).half


def test_a_withdrawn_argument_is_answered_with_the_reason():
    for give in (lambda: arguments(fuse_projections=True), lambda: flags("--fuse_projections", "true")):
        with pytest.warns(FutureWarning, match="fuse_projections is an old name.*it gained no time and is gone"):
            give()


@dataclass
class Mine(IPUTrainingArguments):
    extra: int = 0
    overwrite_output_dir: bool = False  # a field of its own counts


def test_subclasses_copies_and_pickles_of_arguments_keep_old_names():
    mine = Mine(
        output_dir="out",
        report_to=[],
        extra=2,
        evaluation_strategy="epoch",
        logging_dir="logs",
        overwrite_output_dir=True,
    )
    for args in (mine, copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert (args.extra, args.eval_strategy, args.logging_dir, args.overwrite_output_dir) == (
            2,
            "epoch",
            "logs",
            True,
        )
    assert mine.to_dict()["extra"] == 2
    of_pairs = IPUSeq2SeqTrainingArguments(output_dir="out", report_to=[], predict_with_generate=True, no_cuda=True)
    assert of_pairs.use_cpu and of_pairs.predict_with_generate


def test_warming_up_for_the_whole_training_is_not_one_step():
    assert arguments(warmup_ratio=1.0).get_warmup_steps(1000) == 1000


@pytest.mark.parametrize(
    ("method", "named", "shown", "expected"),
    [
        ("set_lr_scheduler", {"warmup_ratio": 0.2}, "warmup_ratio", 0.2),
        ("set_training", {"gradient_checkpointing": True}, "activation_checkpointing", True),
        ("set_training", {"activation_checkpointing": True}, "gradient_checkpointing", True),
        ("set_evaluate", {"jit_mode": False, "strategy": "epoch"}, "eval_strategy", "epoch"),
        ("set_testing", {"jit_mode": False, "batch_size": 3}, "per_device_eval_batch_size", 3),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_set_methods_take_the_names_of_any_release(method, named, shown, expected):
    args = arguments()
    assert getattr(args, method)(**named) is args
    assert getattr(args, shown) == expected


def test_a_share_of_warmup_steps_is_one_in_every_release():
    assert arguments().set_lr_scheduler(warmup_steps=0.2).get_warmup_steps(50) == 10
    assert arguments(warmup_steps=0.2).get_warmup_steps(50) == 10
    assert arguments(warmup_steps=7).get_warmup_steps(50) == 7


def flags(*words):
    return parse_flags("language-modeling", LanguageModelingArguments, ["--output", "out", *words], {})[1]


@pytest.mark.parametrize(
    ("words", "shown", "expected"),
    [
        (["--evaluation_strategy=epoch"], "eval_strategy", "epoch"),
        (["--evaluation-strategy", "epoch"], "eval_strategy", "epoch"),
        (["--eval_strategy", "epoch"], "eval_strategy", "epoch"),
        (["--warmup_ratio", "0.25"], "warmup_ratio", 0.25),
        (["--warmup_steps", "0.25"], "warmup_ratio", 0.25),
        (["--no_cuda", "--seed", "3"], "use_cpu", True),
        (["--use_cpu", "true"], "no_cuda", True),
        (["--group_by_length"], "train_sampling_strategy", "group_by_length"),
        (["--logging_dir", "logs"], "logging_dir", "logs"),
    ],
)
def test_a_task_takes_flags_by_the_names_of_any_release(words, shown, expected):
    args = IPUTrainingArguments(**{**flags(*words), "report_to": []})
    assert getattr(args, shown) == expected
    assert args.seed == (3 if "--seed" in words else 42)


def test_a_task_refuses_flags_that_contradict_each_other():
    with pytest.raises(ValueError, match="one setting under two names"):
        flags("--evaluation_strategy", "epoch", "--eval_strategy", "steps")


ROWS = [{"input_ids": torch.arange(8) % 50, "labels": 0}, {"input_ids": torch.arange(8) % 7, "labels": 1}] * 4


def trainer(kind=IPUTrainer, callbacks=None, **named):
    args = arguments(
        max_steps=2, use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1, **named.pop("args", {})
    )
    return kind(model=bert(), args=args, train_dataset=ROWS, callbacks=callbacks, **named)


class Tokenizer:
    def save_pretrained(self, folder):
        pass


def test_a_trainer_shows_its_tokenizer_by_both_names():
    tokenizer = Tokenizer()
    for name in ("tokenizer", "processing_class"):
        made = trainer(**{name: tokenizer})
        assert made.tokenizer is tokenizer and made.processing_class is tokenizer
        other = Tokenizer()
        setattr(made, "processing_class" if name == "tokenizer" else "tokenizer", other)
        assert getattr(made, name) is other
    with pytest.raises(ValueError, match="one argument under two names"):
        trainer(tokenizer=Tokenizer(), processing_class=Tokenizer())


def test_attributes_of_other_releases_say_what_does_their_work():
    made = trainer()
    with pytest.raises(AttributeError, match="Instead: optimizer.param_groups"):
        _ = made.get_optimizer_group if not hasattr(Trainer, "get_optimizer_group") else pytest.skip("it is there")
    assert not hasattr(made, "misspelt")
    assert callable(made.prediction_loop) and callable(made.init_hf_repo) and callable(made.init_git_repo)


def test_arguments_whose_places_moved_between_releases_need_their_names():
    with pytest.raises(TypeError, match="positional arguments"):
        IPUTrainer(bert(), arguments(), None, ROWS, ROWS, None, None, lambda prediction: {})


@pytest.mark.skipif(NEW, reason="transformers 5 takes these")
def test_arguments_of_a_trainer_that_came_later_are_refused_unless_none():
    with pytest.raises(ValueError, match=r"came with transformers 4.46.*override compute_loss"):
        trainer(compute_loss_func=lambda outputs, labels, num_items_in_batch: 0)
    assert trainer(compute_loss_func=None, optimizer_cls_and_kwargs=None)


class WrittenForToday(IPUTrainer):
    """Overrides with today's signatures, which pass on all that they get."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs, start_time=None):
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        return super().create_optimizer(model)


class WrittenThen(IPUTrainer):
    """The same with the signatures of 4.29."""

    def compute_loss(self, model, inputs, return_outputs=False):
        return super().compute_loss(model, inputs, return_outputs)

    def training_step(self, model, inputs):
        return super().training_step(model, inputs)

    def log(self, logs):
        super().log(logs)

    def create_optimizer(self):
        return super().create_optimizer()

    def _get_train_sampler(self):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Losses(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **_):
        self.seen += [logs["loss"]] if "loss" in logs else []


@pytest.mark.parametrize("kind", [WrittenForToday, WrittenThen])
def test_overrides_of_either_end_train(kind):
    losses = Losses()
    trainer(kind, callbacks=[losses]).train()
    assert len(losses.seen) == 2


def test_an_override_that_cannot_take_what_the_loop_gives_is_refused_before_work():
    class Early(IPUTrainer):
        def evaluation_loop(self, dataloader):
            raise AssertionError

    with pytest.raises(
        ValueError, match="evaluation_loop takes dataloader, but .* calls it with dataloader, description"
    ):
        trainer(Early)


def test_smoothing_that_stock_leaves_out_with_a_warning_is_refused():
    def multi_label(args):
        model = bert()
        model.config.problem_type = "multi_label_classification"
        return IPUTrainer(model=model, args=args, train_dataset=ROWS)

    with pytest.raises(
        ValueError, match=r"label_smoothing_factor=0.1 .*multi_label_classification.*Override compute_loss"
    ):
        multi_label(arguments(label_smoothing_factor=0.1, use_cpu=True))
    if NEW:  # stock's own arguments stay stock's
        with pytest.warns(UserWarning, match="Label smoothing is not compatible"):
            multi_label(transformers.TrainingArguments(output_dir="out", label_smoothing_factor=0.1, use_cpu=True))


def test_logging_dir_is_where_tensorboard_writes(tmp_path):
    pytest.importorskip("tensorboard")
    made = trainer(
        args={"report_to": ["tensorboard"], "logging_dir": str(tmp_path / "logs"), "output_dir": str(tmp_path / "out")}
    )
    made.train()
    assert list((tmp_path / "logs").glob("events.out.tfevents*"))


@pytest.mark.parametrize("ratio", [2, -0.1])
def test_a_ratio_of_warm_up_beyond_the_training_is_refused_and_no_number_of_steps(tmp_path, ratio):
    with pytest.raises(ValueError, match="warmup_ratio|warmup_steps"):
        IPUTrainingArguments(str(tmp_path), warmup_ratio=ratio)


@pytest.mark.skipif(not NEW, reason="transformers 4.29 has these names itself")
def test_a_default_under_an_old_name_changes_nothing_that_was_set():
    args = arguments(warmup_steps=100, optim="sgd")
    args.warmup_ratio, args.adafactor = 0.0, False
    assert args.warmup_steps == 100 and args.optim == "sgd"
    args.set_lr_scheduler(name="linear", warmup_steps=50, warmup_ratio=0.0)
    assert args.warmup_steps == 50
    assert arguments(adafactor=False).optim == arguments().optim
    assert arguments(warmup_ratio=None).warmup_steps == arguments().warmup_steps


@pytest.mark.skipif(not NEW, reason="transformers 4.29 has no accelerator_config")
def test_a_setting_of_the_accelerator_is_set_under_its_old_name_and_the_others_stay():
    args = arguments(accelerator_config={"non_blocking": True})
    args.split_batches, args.dispatch_batches = True, False
    assert args.split_batches is True and args.dispatch_batches is False
    assert args.accelerator_config.non_blocking is True


def test_callbacks_get_the_tokenizer_under_both_names(tmp_path):
    seen = []

    class Both(TrainerCallback):
        def on_train_begin(self, args, state, control, tokenizer, processing_class, **_):
            seen.append((tokenizer, processing_class))

    tokenizer = object()
    model = bert()
    trainer = IPUTrainer(model, arguments(output_dir=str(tmp_path)), callbacks=[Both()], tokenizer=tokenizer)
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert seen == [(tokenizer, tokenizer)]
