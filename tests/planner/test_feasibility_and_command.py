"""Whether a configuration may run: asked by a search, by a run that is about to begin, and by `ipu-trainer plan`."""

import functools
import json
import subprocess
import sys

import pytest
import torch
import transformers

from ipu_trainer.cli import main
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.machine.hardware import find_system
from ipu_trainer.planner import feasibility as module
from ipu_trainer.planner.feasibility import feasibility, smallest_system, why_not_feasible
from ipu_trainer.planner.workload import measure
from ipu_trainer.tasks.recipe.early_checks import fit_warning
from ipu_trainer.tasks.task import load_task
from ipu_trainer.training.arguments import IPUTrainingArguments

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def test_feasibility_says_what_does_not_fit(vit):
    answer = feasibility(load_profile("vit_base_pod4").config, vit, find_system("pod4"), 256)
    assert not answer.may_run and "Lower the micro-batch" in answer.reasons[0]


def test_a_search_learns_why_a_trial_cannot_run_and_the_model_is_measured_once(monkeypatch):
    config = transformers.ViTConfig(num_labels=14)
    profile = load_profile("vit_base_pod4").config
    measured = []
    monkeypatch.setattr(module, "measure", lambda *args: measured.append(args) or measure(*args))
    module._measured.cache_clear()
    check = functools.partial(why_not_feasible, config, task="image-classification")
    assert check(profile, 1) is None
    assert "is predicted not to fit" in check(profile, 256)
    assert "cannot fill the pipeline of 4 stages. Use 7 or more" in check(
        profile.updated(gradient_accumulation_steps=6), 1
    )
    assert "places 14 layers, but the model has 12" in check(profile.updated(layers_per_ipu=(3, 3, 4, 4)), 1)
    assert "1024 IPUs are more than the 256" in check(profile.updated(replication_factor=256), 1)
    assert len(measured) == 1
    on_pod4 = functools.partial(check, system=find_system("pod4"))
    assert "8 IPUs are more than the 4 of the system pod4" in on_pod4(profile.updated(replication_factor=2), 1)
    small = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=32, patch_size=8, num_labels=14, **SMALL)
    )
    assert why_not_feasible(small, profile.updated(layers_per_ipu=(0, 1, 1, 0)), 1) is None
    with pytest.raises(ValueError, match="Linear has no Transformers config"):
        why_not_feasible(torch.nn.Linear(1, 1), profile, 1)


def test_lengths_change_the_verdict_and_a_measured_workload_takes_none():
    config = transformers.BertConfig()
    ipu_config = IPUConfig(
        layers_per_ipu=(0, 4, 4, 4), gradient_accumulation_steps=16, optimizer_state_offchip=True,
        recompute_checkpoint_every_layer=True,
    )  # fmt: skip
    ask = functools.partial(why_not_feasible, config, ipu_config, 16, task="masked-lm")
    assert ask(sequence_length=32) is None
    assert "is predicted not to fit" in ask(sequence_length=512)
    workload = measure(config, "masked-lm", 32)
    assert why_not_feasible(workload, ipu_config, 16) is None
    with pytest.raises(ValueError, match="cannot change a workload that was measured"):
        why_not_feasible(workload, ipu_config, 16, sequence_length=512)


def test_borderline_memory_may_run(vit):
    config = load_profile("vit_base_pod4").config
    bands = {}
    for micro_batch in range(1, 65):
        answer = feasibility(config, vit, find_system("pod4"), micro_batch)
        bands.setdefault(answer.band, []).append(answer.may_run)
    assert all(bands["fits"]) and all(bands["borderline"]) and not any(bands["does not fit"])


def test_the_smallest_pod_is_found():
    assert [smallest_system(n).name for n in (1, 4, 5, 16, 17, 256)] == [
        "pod4", "pod4", "pod8", "pod16", "pod32", "pod256",
    ]  # fmt: skip
    assert smallest_system(257) is None


class Reached(Exception):
    pass


@pytest.mark.parametrize("task", ["chest_xray", "language_modeling", "seq2seq"])
def test_a_run_of_every_task_is_warned_before_it_begins(task, monkeypatch, tmp_path, request):
    """The recipe up to its training, with a model too large for the IPUs that its configuration names."""
    asked = []

    def ask(model, ipu_config, args, *lengths):
        asked.append((type(model).__name__, ipu_config.layers_per_ipu, lengths))
        raise Reached

    monkeypatch.setattr("ipu_trainer.tasks.recipe.recipe.fit_warning", ask)
    words = ["--output", str(tmp_path / "run"), "--backend", "host"]
    (tmp_path / "ipus.json").write_text(
        json.dumps({"layers_per_ipu": [1, 1], "gradient_accumulation_steps": 3, "output_mode": "sum"}), encoding="utf-8"
    )
    words += ["--ipu_config", str(tmp_path / "ipus.json"), "--per_device_train_batch_size", "2"]
    if task == "language_modeling":
        (tmp_path / "text.txt").write_text("one two three four five six\n" * 300, encoding="utf-8")
        (tmp_path / "more.txt").write_text("seven eight nine ten eleven\n" * 300, encoding="utf-8")
        words += ["--corpus", str(tmp_path), "--model", "gpt2-nano", "--vocab_size", "300", "--prompts", ""]
        words += ["--sequence_length", "16", "--validation_fraction", "0.4"]
        expected = ("GPT2LMHeadModel", (1, 1), (16,))
    elif task == "seq2seq":
        pairs = [{"source": f"def f{i}(x)", "target": f"return {i}", "group": f"g{i % 7}"} for i in range(70)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
        words += ["--pairs", str(tmp_path / "pairs.jsonl"), "--vocab_size", "300", "--source_length", "8"]
        words += ["--target_length", "6"]
        expected = ("T5ForConditionalGeneration", (1, 1), (8, 6))
    else:
        words += ["--data", str(request.getfixturevalue("prepared"))]
        words += ["--model", str(request.getfixturevalue("phantoms") / "model")]
        expected = ("ViTForImageClassification", (1, 1), ())
    with pytest.raises(Reached):
        load_task(task.replace("_", "-")).train(words)
    assert asked == [expected]


def test_the_warning_says_what_does_not_fit_and_nothing_where_it_may(tmp_path):
    args = IPUTrainingArguments(str(tmp_path), per_device_train_batch_size=1, backend="host", optim="sgd")
    with torch.device("meta"):
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        t5 = transformers.T5ForConditionalGeneration(transformers.T5Config())
    on_four = IPUConfig(layers_per_ipu=(0, 4, 4, 4), gradient_accumulation_steps=16, optimizer_state_offchip=True)
    assert fit_warning(gpt2, on_four, args, 128) == ""
    args.per_device_train_batch_size = 64
    line = fit_warning(gpt2, on_four, args, 1024)
    assert line.startswith("warning: predicted for IPUs in float16: IPU ") and "is predicted not to fit" in line
    assert "mostly" in fit_warning(t5, on_four, args, 512, 128)
    assert "512 IPUs are more than the largest Pod" in fit_warning(gpt2, on_four.updated(replication_factor=128), args)
    wrong = on_four.updated(layers_per_ipu=(0, 4, 4, 3))
    assert fit_warning(gpt2, wrong, args, 128).startswith("note: no prediction of memory for this run: layers_per_ipu")


@pytest.fixture
def model_folder(tmp_path):
    transformers.ViTConfig(num_labels=14, architectures=["ViTForImageClassification"]).save_pretrained(tmp_path / "m")
    return str(tmp_path / "m")


def test_plan_saves_a_configuration_that_train_takes(model_folder, tmp_path, capsys):
    words = ["plan", "--model", model_folder, "--system", "pod4", "--json", "--save", str(tmp_path / "a.json")]
    assert main([*words, "--dataset_size", "1000", "--epochs", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    best = printed["plans"][0]
    profile = load_profile(str(tmp_path / "a.json"))
    assert profile.config.to_dict() == best["config"] and profile.micro_batch == best["micro_batch"]
    assert best["predicted"]["host_steps"] == 24
    assert best["predicted"]["training_s"] == pytest.approx(24 * best["predicted"]["step_s"])


def test_plan_of_a_given_configuration_explains_its_terms(model_folder, capsys):
    words = ["plan", "--model", model_folder, "--system", "pod4", "--config", "vit_base_pod4", "--explain"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "off-chip optimizer state" in text and "pipeline bubble" in text and "F0" in text
    assert main([*words[:-1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["config"] == load_profile("vit_base_pod4").config.to_dict()


def test_the_table_says_what_tells_plans_apart_and_that_the_host_takes_most(model_folder, capsys):
    words = ["plan", "--model", model_folder, "--system", "pod16", "--top", "9"]
    assert main(words) == 0
    text = capsys.readouterr().out
    lines = [line[3:] for line in text.split("\n\n")[1].splitlines()]
    assert len(lines) == 10 and len(set(lines)) == 10
    assert "each layer" in text and "each stage" in text
    assert "of a host step is the host's own time" in text and "predictions, not results" in text
    assert main([*words, "--device-iterations", "16"]) == 0
    assert "of a host step is the host's own time" not in capsys.readouterr().out


CONFIG = ["--config", "vit_base_pod4"]


@pytest.mark.parametrize(
    "words, message",
    [
        (
            [*CONFIG, "--global_batch", "64"],
            "--global_batch 64 is for a search. With --config vit_base_pod4, its accum",
        ),
        ([*CONFIG, "--device-iterations", "2"], "it has device_iterations. Leave it out"),
        ([*CONFIG, "--top", "3"], "it is the only plan"),
        ([*CONFIG, "--save", "x.json"], "it is a file already"),
        (["--micro_batch", "2"], "--micro_batch 2 belongs to --config"),
        (["--epochs", "2"], "--epochs 2 needs --dataset_size"),
        (["--global_batch", "0"], "--global_batch 0 must be at least 1"),
        (["--target_length", "0"], "--target_length 0 must be at least 1"),
        (["--system", "pod5"], "system 'pod5' is not one of"),
        (["--constants", "none.json"], "No such file"),
        ([*CONFIG, "--system", "pod4", "--target_length", "9"], "reads no decoder's tokens"),
        (["--sequence-length", "9"], "reads images of its configuration's size"),
    ],
)
def test_flags_that_would_be_ignored_or_cannot_be_are_refused(words, message, model_folder, capsys):
    assert main(["plan", "--model", model_folder, "--system", "pod4", *words]) == 1
    assert message in capsys.readouterr().err


def test_plan_refuses_a_configuration_that_breaks_a_rule(model_folder, tmp_path, capsys):
    few = load_profile("vit_base_pod4").config.updated(gradient_accumulation_steps=3)
    (tmp_path / "few.json").write_text(json.dumps(few.to_dict()), encoding="utf-8")
    words = ["plan", "--model", model_folder, "--system", "pod4", "--config", str(tmp_path / "few.json")]
    assert main(words) == 1
    assert "cannot fill the pipeline of 4 stages. Use 7 or more" in capsys.readouterr().err


def test_plan_takes_constants_of_ones_own(model_folder, tmp_path, capsys):
    from ipu_trainer.planner.constants import SHIPPED

    values = SHIPPED.to_dict()
    values["time"]["layer_cycles"] *= 10
    values["memory"]["code_bytes"] *= 2
    (tmp_path / "own.json").write_text(json.dumps(values), encoding="utf-8")
    words = ["plan", "--model", model_folder, "--system", "pod4", *CONFIG, "--json"]
    found = []
    for more in ([], ["--constants", str(tmp_path / "own.json")]):
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["plans"][0]["predicted"])
    assert found[1]["samples_per_s"] < 0.5 * found[0]["samples_per_s"]
    assert found[1]["memory_share"] > found[0]["memory_share"]


def test_help_of_plan_needs_no_torch():
    code = (
        "import sys; from ipu_trainer.cli import main\n"
        "try: main(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "--global_batch" in done.stdout
