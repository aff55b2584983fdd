"""No flag is taken and ignored, and none ends a run after its training: each has a row that is held against what happens."""

import argparse
import ast
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import HfArgumentParser

from ipu_trainer import command_line
from ipu_trainer.cli import main
from ipu_trainer.compat import argument_names as renamed
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.data.augmentation import Augmentation
from ipu_trainer.tasks.chest_xray.recipe_arguments import DEFAULTS as CHEST_DEFAULTS
from ipu_trainer.tasks.chest_xray.recipe_arguments import ChestXrayArguments
from ipu_trainer.tasks.language_modeling.recipe_arguments import DEFAULTS as TEXT_DEFAULTS
from ipu_trainer.tasks.language_modeling.recipe_arguments import LanguageModelingArguments
from ipu_trainer.tasks.recipe.flag_table import ALWAYS, CHEST, NEEDS, PAIRS, RANGES, REFUSED, TEXT
from ipu_trainer.tasks.recipe.flags import parse_flags
from ipu_trainer.tasks.seq2seq.recipe_arguments import DEFAULTS as PAIRS_DEFAULTS
from ipu_trainer.tasks.seq2seq.recipe_arguments import Seq2SeqArguments
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainingArguments

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = {
    CHEST: (ChestXrayArguments, IPUTrainingArguments, CHEST_DEFAULTS),
    TEXT: (LanguageModelingArguments, IPUTrainingArguments, TEXT_DEFAULTS),
    PAIRS: (Seq2SeqArguments, IPUSeq2SeqTrainingArguments, PAIRS_DEFAULTS),
}
NEW = "eval_strategy" in renamed.INSTALLED


def load_script():
    spec = importlib.util.spec_from_file_location("flag_table_script", REPOSITORY / "scripts" / "flag_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
EFFECTIVE, HARMLESS, kind_of = SCRIPT.EFFECTIVE, SCRIPT.HARMLESS, SCRIPT.kind_of


def fields(task):
    return {item.name: item for item in dataclasses.fields(RECIPES[task][1]) if item.init}


def parsed(task, *words):
    recipe, arguments, defaults = RECIPES[task]
    needed = ["--model", "m"] if task == CHEST else []
    return parse_flags(task, recipe, ["--output", "out", *needed, *words], defaults, arguments)[1]


EVERY = [(task, name) for task in RECIPES for name in fields(task)]


@pytest.mark.parametrize("task", RECIPES)
def test_every_field_of_the_installed_release_has_a_row_that_says_what_becomes_of_it(task):
    without = [name for name in fields(task) if kind_of(name, task) is None]
    assert not without, (
        "find out what the tasks do with it, and add a row to scripts/flag_table.py, or to ipu_trainer/tasks/recipe/flag_table.py"
    )


def written(task, name, value):
    """A flag with the value as the release's parser takes it; None where it takes no such text (4.29's dictionaries)."""
    parser = HfArgumentParser([RECIPES[task][1]])
    action = next(action for action in parser._actions if action.dest == name)
    try:
        parser._get_values(action, [value])
    except (argparse.ArgumentError, ValueError):
        return None
    return [f"--{name}", value]


@pytest.mark.parametrize("task", RECIPES)
def test_what_a_task_does_not_read_is_refused_by_name_and_reason(task):
    for name, row in REFUSED.items():
        if name not in fields(task) or task not in row.tasks:
            continue
        words = written(task, name, row.example)
        if words is None:  # refused by the parser already
            with pytest.raises(ValueError, match=name):
                parsed(task, f"--{name}", row.example)
            continue
        with pytest.raises(ValueError, match=f"--{name} ") as error:
            parsed(task, *words)
        assert row.why in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("task", RECIPES)
def test_what_is_read_in_some_circumstances_is_refused_in_others(task, monkeypatch):
    for name, need in NEEDS.items():
        words = written(task, name, need.example) if name in fields(task) else None
        if words is None:
            continue
        others = {
            "eval_steps": ["--" + compat.field_name("eval_strategy"), "epoch"],
            "save_steps": ["--save_strategy", "epoch"], "logging_steps": ["--logging_strategy", "epoch"],
            "eval_delay": ["--" + compat.field_name("eval_strategy"), "no"],
            "generation_max_length": ["--predict_with_generate", "False"],
            "generation_num_beams": ["--predict_with_generate", "False"],
        }.get(name, ["--optim", "sgd"] if name.startswith("adam") else ["--optim", "adamw_torch"])  # fmt: skip
        with pytest.raises(ValueError, match=f"--{name} .*would have no effect: ") as error:
            parsed(task, *words, *others)
        assert need.rule in str(error.value)
        if need.rule.startswith("it is for several"):
            monkeypatch.setenv("WORLD_SIZE", "2")
            parsed(task, *words)
            monkeypatch.delenv("WORLD_SIZE")
        elif "trackio" not in need.rule and "galore" not in need.with_flags:
            parsed(task, *words, *by_installed_names(need.with_flags.split()))


def by_installed_names(words):
    return [word.replace("eval_strategy", compat.field_name("eval_strategy")) for word in words]


@pytest.mark.parametrize("task", RECIPES)
def test_what_is_read_arrives_in_the_arguments(task):
    """Or its hardware or package is missing, which is said before work."""
    plain = parsed(task)
    for name, example in {**EFFECTIVE, **{name: example for name, (example, _) in HARMLESS.items()}}.items():
        if name not in fields(task) or kind_of(name, task) == "refused":
            continue
        words = written(task, name, example)
        if words is None:
            continue
        values = parsed(task, *words) if name != "report_to" else parsed(task, "--report_to", "none")
        if name == "output_dir":
            continue
        assert name in ("report_to", *HARMLESS, *_SAME_ON_SOME) or values[name] != plain[name], name
        more = {"save_strategy": "steps", "load_best_model_at_end": True} if name == "load_best_model_at_end" else {}
        more = {**more, compat.field_name("eval_strategy"): "steps", "eval_steps": 10, "save_steps": 10} if more else {}
        try:
            args = arguments(task, {**values, **more, "report_to": []})
        except (ValueError, OSError) as error:
            assert name in _MAY_BE_MISSING, f"{name}: {error}"
            assert "\n" not in str(error)
            continue
        if name not in _BECOMES_ANOTHER:
            assert getattr(getattr(args, name), "value", getattr(args, name)) == getattr(
                values[name], "value", values[name]
            )


# Defaults differ between GPU and CPU, and between releases.
_SAME_ON_SOME = ("dataloader_pin_memory", "save_safetensors", "disable_tqdm", "log_level", "optim", "logging_dir")
_MAY_BE_MISSING = (
    "fp16", "fp16_full_eval", "tf32", "half", "compile_only", "use_liger_kernel", "deepspeed", "gpu_kernels", "bf16_residual",
    "bf16", "bf16_full_eval", "torch_compile", "local_rank",
)  # fmt: skip
# Parsed from JSON, or settled into other fields.
_BECOMES_ANOTHER = (
    "accelerator_config", "lr_scheduler_kwargs", "include_num_input_tokens_seen", "debug", "dataloader_pin_memory", "report_to",
    "torch_compile_backend", "torch_compile_mode", "push_to_hub_token", "adafactor", "local_rank", "compile",
)  # fmt: skip


def arguments(task, values):
    return RECIPES[task][1](**{**values, "per_device_train_batch_size": values.get("per_device_train_batch_size") or 8})


@pytest.mark.parametrize("task", RECIPES)
def test_numbers_out_of_range_and_words_that_say_no_are_refused(task):
    for name, (low, _) in RANGES.items():
        if name in fields(task):
            strategy = {
                "eval_steps": "eval_strategy",
                "eval_delay": "eval_strategy",
                "save_steps": "save_strategy",
            }.get(name)
            words = [f"--{compat.field_name(strategy)}", "steps"] if strategy else []
            words += ["--dataloader_num_workers", "1"] if name == "dataloader_prefetch_factor" else []
            with pytest.raises(ValueError, match=f"--{name} .* must be (at least|above)"):
                parsed(task, f"--{name}", "-1" if low <= 1 else "0", *words)
    for name in ALWAYS:
        with pytest.raises(ValueError, match=f"--{name} False"):
            parsed(task, f"--{name}", "False")
    for steps in ("0", "-2"):
        with pytest.raises(ValueError, match="max_steps"):
            parsed(task, "--max_steps", steps)
    with pytest.raises(ValueError, match="label_smoothing_factor 1.0 must be at least 0 and below 1"):
        parsed(task, "--label_smoothing_factor", "1.0")
    for name in ("loss_scaling", "max_grad_norm", "num_train_epochs", "ema_decay"):
        for value in ("nan", "inf"):
            with pytest.raises(ValueError, match=f"--{name} {value} must be a finite number"):
                parsed(task, f"--{name}", value)
    for name, value in (("num_train_epochs", "1e308"), ("learning_rate", "1e38")):
        with pytest.raises(ValueError, match=f"--{name} .* at most"):
            parsed(task, f"--{name}", value)


def test_what_the_parser_itself_refuses_is_one_line():
    with pytest.raises(ValueError, match=r"argument --log_level.*invalid choice: 'zzz'") as error:
        parsed(TEXT, "--log_level", "zzz")
    assert "\n" not in str(error.value)


def test_flags_that_precision_replaces_work_and_name_it_once(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "_hinted", set())
    for _ in range(2):
        values = parsed(TEXT, "--bf16", "True", "--fp16", "False")
    assert values["bf16"] and values["precision"] == "auto"
    assert capsys.readouterr().err == "hint: --bf16 is --precision bf16 now\n"


def test_the_page_of_flags_is_made_of_the_table():
    text = "\n".join(SCRIPT.page()) + "\n"
    assert (REPOSITORY / "docs" / "flags.md").read_text() == text, "python scripts/flag_table.py > docs/flags.md"


CPU = "--" + compat.field_name("use_cpu")
QUICK = ["--max_steps", "2", "--disable_tqdm", "True", "--report_to", "none", "--save_strategy", "no", CPU, "True"]


def chest(phantoms, prepared, run, *flags):
    words = ["--data", prepared, "--model", phantoms / "model", "--output", run, "--per_device_train_batch_size", "8"]
    more = ["--num_bootstrap", "2", "--report", "False", "--precision", "fp32", *QUICK]
    return main(["train", "chest-xray", *map(str, words), *more, *flags])


def weights(run):
    return load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def plain(phantoms, prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    assert chest(phantoms, prepared, run) == 0
    return weights(run)


@pytest.mark.parametrize(
    "flags",
    [["--label_smoothing_factor", "0.4"], ["--train_sampling_strategy", "sequential"], ["--data_seed", "7"]],
    ids=str,
)
def test_smoothing_and_order_change_what_a_chest_model_learns(plain, phantoms, prepared, tmp_path, flags):
    if flags[0] == "--train_sampling_strategy" and not NEW:
        pytest.skip("transformers 4.29 has no sequential order, and says so")
    assert chest(phantoms, prepared, tmp_path / "run", *flags) == 0
    other = weights(tmp_path / "run")
    assert any(not plain[name].equal(other[name]) for name in plain)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    smoothed = flags[0] == "--label_smoothing_factor"
    assert ('"label_smoothing": 0.4' in json.dumps(record)) == smoothed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric_for_best_model", "mean_auroc14"], "Did you mean mean_auroc_14?"),
        (["--optim", "adamw_bnb_8bit"], "--optim adamw_bnb_8bit: "),
        (["--num_bootstrap", "-1"], "must be at least 2"),
        (["--num_bootstrap", "1000000000"], "at most 100000"),
        (["--augment", "False", "--gamma", "0.5"], "--augment is False"),
        (["--label_names", "zzz"], "--label_names zzz"),
    ],
    ids=str,
)
def test_what_would_end_a_run_after_its_training_ends_it_before(phantoms, prepared, tmp_path, capsys, flags, message):
    if "adamw_bnb_8bit" in flags and not NEW:
        flags, message = ["--optim", "adamw_apex_fused"], "--optim adamw_apex_fused: "
    assert chest(phantoms, prepared, tmp_path / "run", *flags) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.skipif(not NEW, reason="transformers 4.29 has no lr_scheduler_kwargs")
@pytest.mark.parametrize("kwargs", ['{"zzz": 1}', '{"num_cycles": "a"}'])  # of these the second fails at a later step
def test_a_schedule_that_cannot_be_made_is_refused_before_work(phantoms, prepared, tmp_path, capsys, kwargs):
    flags = ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", kwargs]
    assert chest(phantoms, prepared, tmp_path / "run", *flags) == 1
    assert f"--lr_scheduler_type cosine --lr_scheduler_kwargs {json.loads(kwargs)}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A corpus and pairs that tiny models read in no time."""
    folder = tmp_path_factory.mktemp("small")
    for package in range(6):
        (folder / "corpus" / f"package{package}").mkdir(parents=True)
        lines = [f"def add_{i}(x):\n    return x + {i + package}\n" for i in range(25)]
        (folder / "corpus" / f"package{package}" / "code.py").write_text("\n".join(lines))
    pairs = [{"source": f"add {i} to {j}", "target": str(i + j), "group": f"g{j}"} for i in range(10) for j in range(6)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def text_task(task, small, run, *flags):
    own = {
        TEXT: ["--corpus", small / "corpus", "--model", "gpt2-nano", "--vocab-size", "300", "--model-overrides",
               "n_embd=16 n_head=2 n_layer=1", "--sequence-length", "32", "--prompts", ""],
        PAIRS: ["--pairs", small / "pairs.jsonl", "--model", "t5-nano", "--vocab-size", "300", "--model-overrides",
                "d_model=16 d_ff=16 num_layers=1 num_decoder_layers=1 num_heads=2 d_kv=8", "--source-length", "12",
                "--target-length", "6"],
    }[task]  # fmt: skip
    words = [*map(str, own), "--output", str(run), "--per_device_train_batch_size", "8", *QUICK]
    return main(["train", task, *words, *flags])


@pytest.mark.parametrize("task", [TEXT, PAIRS])
def test_smoothing_changes_what_a_text_model_learns(task, small, tmp_path):
    for run, flags in (("plain", []), ("smoothed", ["--label_smoothing_factor", "0.4"])):
        assert text_task(task, small, tmp_path / run, *flags) == 0
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "smoothed")
    assert any(not one[name].equal(other[name]) for name in one)


def only_new(*values):
    return pytest.param(
        *values, marks=pytest.mark.skipif(not NEW, reason="transformers 4.29 has no such flag or optimizer")
    )


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        (TEXT, ["--metric_for_best_model", "perplexty"], "Did you mean perplexity?"),
        (PAIRS, ["--metric_for_best_model", "eval_zzz"], "an evaluation gives bleu, chrf"),
        (PAIRS, ["--metric_for_best_model", "bleu", "--predict_with_generate", "False"], "an evaluation gives loss"),
        (TEXT, ["--mlm_probability", "0.3"], "masks no tokens"),
        (TEXT, ["--files", "all"], "Give one"),
        (TEXT, ["--validation_fraction", "1.5"], "below 1"),
        (PAIRS, ["--target_length", "0"], "at least 1"),
        (TEXT, ["--prompts", "", "--sample_tokens", "9"], "would have no effect: there are no prompts"),
        (TEXT, ["--per_device_train_batch_size", "0"], "must be at least 1, or left out"),
        only_new(TEXT, ["--lr_scheduler_kwargs", "{a}"], "--lr_scheduler_kwargs {a} is not JSON"),
        only_new(TEXT, ["--lr_scheduler_kwargs", "[1]"], "--lr_scheduler_kwargs [1] must be a JSON object"),
        only_new(TEXT, ["--accelerator_config", "none.json"], "No such file or directory: 'none.json'"),
        (TEXT, ["--optim", "sgd", "--optim_args", "zzz"], "--optim_args zzz must be NAME=VALUE"),
        (TEXT, ["--optim", "sgd", "--optim_args", "zzz=1"], "--optim_args zzz=1 would have no effect"),
        only_new(PAIRS, ["--optim", "lomo", "--adam_beta1", "0.5"], "Adam's betas"),
        only_new(PAIRS, ["--optim", "lion_32bit", "--adam_epsilon", "0.1"], "Adam's epsilon"),
    ],
    ids=str,
)
def test_what_a_text_task_would_not_read_ends_it_before_work(task, small, tmp_path, capsys, flags, message):
    assert text_task(task, small, tmp_path / "run", *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("task", RECIPES)
def test_every_flag_of_a_recipe_is_read_by_its_task(task):
    """By the code of the task, or of what tasks share: the recipe's attribute of that name."""
    recipe = RECIPES[task][0]
    folder = Path(sys.modules[recipe.__module__].__file__).parent
    sources = [*folder.glob("*.py"), *folder.parent.glob("text/*.py")]
    read = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    named = {item.name for item in dataclasses.fields(recipe)}
    if task == CHEST:  # read together, as Augmentation's fields
        named -= {item.name for item in dataclasses.fields(Augmentation)}
    assert named <= read


def test_a_model_with_a_tokenizer_of_its_own_reads_no_size_of_a_vocabulary(small, tmp_path, capsys):
    assert text_task(TEXT, small, tmp_path / "first", "--max_steps", "1") == 0
    again = ["--model", str(tmp_path / "first"), "--vocab_size", "500"]
    assert text_task(TEXT, small, tmp_path / "second", *again) == 1
    assert "--vocab_size 500 would have no effect: the tokenizer of" in capsys.readouterr().err


def test_a_search_for_a_metric_that_nobody_computes_is_refused_before_a_trial(small, tmp_path, capsys):
    pytest.importorskip("optuna")
    words = [
        "--corpus",
        str(small / "corpus"),
        "--model",
        "gpt2-nano",
        "--vocab-size",
        "300",
        "--output",
        str(tmp_path),
        "--sequence-length",
        "32",
    ]
    assert main(["search", TEXT, *words, "--objective", "perplexty", "--n-trials", "1", "--max_steps", "1"]) == 1
    assert "--objective perplexty: an evaluation gives perplexity" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.db"))
