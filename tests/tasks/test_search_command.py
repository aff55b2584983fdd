"""`ipu-trainer search` and `train --config`: what is varied, what is left, what goes on after an interruption."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.recipe.flags import flags_given, with_config
from ipu_trainer.tasks.search.search_command import Range, _known_directions, parse_range
from ipu_trainer.tasks.task import SearchTask

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [
        json.dumps({"source": f"copy {a} {b}", "target": f"{a} {b}", "group": f"g{a}"})
        for a in range(10)
        for b in range(8)
    ]
    file.write_text("\n".join(lines))
    return file


def words(pairs, output, *more):
    cpu = "--" + compat.field_name("use_cpu")
    return [
        "seq2seq", "--pairs", str(pairs), "--output", str(output), "--model", "t5-nano", "--model_overrides",
        "d_model=16 d_ff=16 d_kv=8 num_layers=1 num_decoder_layers=1 num_heads=2", "--vocab_size", "300",
        "--source_length", "8", "--target_length", "8", "--per_device_train_batch_size", "4",
        "--gradient_accumulation_steps", "2", "--max_steps", "3", "--predict_with_generate", "false", "--backend", "host",
        cpu, "true", "--disable_tqdm", "true", "--report_to", "none", *more,
    ]  # fmt: skip


SPACE = ("--space", "learning_rate=1e-4:1e-1:log", "--space", "micro_batch=2,4")


def rows(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_search_leaves_a_table_plots_and_a_config_that_train_takes(pairs, tmp_path, capsys):
    folder = tmp_path / "search"
    assert main(["search", *words(pairs, folder, *SPACE, "--n-trials", "4")]) == 0
    told = capsys.readouterr().out
    trials = rows(folder)
    assert [row["state"] for row in trials] == ["complete"] * 4
    assert {row["micro_batch"] for row in trials} <= {"2", "4"}
    best = min(trials, key=lambda row: float(row["eval_loss"]))
    assert f"trial {best['trial']}:" in told
    assert (folder / "plots" / "history.png").stat().st_size > 5000
    about = json.loads((folder / "study.json").read_text())
    assert about["best"] == [int(best["trial"])]
    assert sum(about["importance"].values()) == pytest.approx(1)
    config = json.loads((folder / "best.json").read_text())
    flags = config["flags"]
    assert flags["learning_rate"] == float(best["learning_rate"])
    assert flags["per_device_train_batch_size"] * flags["gradient_accumulation_steps"] == 8

    run = tmp_path / "run"
    assert main(["train", "seq2seq", "--config", str(folder / "best.json"), "--output", str(run)]) == 0
    # The same model, seed, data and hyper-parameters: the trial's loss, to the last digits of a sum.
    assert json.loads((run / "metrics.json").read_text())["loss"] == pytest.approx(float(best["eval_loss"]), rel=1e-6)
    used = json.loads((run / "run.json").read_text())["settings"]["training"]
    assert used["learning_rate"] == flags["learning_rate"]
    other = tmp_path / "other"
    again = ["train", "seq2seq", "--config", str(folder / "best.json"), "--output", str(other)]
    assert main([*again, "--learning_rate", "0.5"]) == 0  # what is typed counts
    assert json.loads((other / "run.json").read_text())["settings"]["training"]["learning_rate"] == 0.5


def test_the_same_command_goes_on_and_other_settings_are_refused(pairs, tmp_path, capsys):
    folder = tmp_path / "search"
    assert main(["search", *words(pairs, folder, *SPACE, "--n-trials", "2")]) == 0
    before = rows(folder)
    assert main(["search", *words(pairs, folder, *SPACE, "--n-trials", "3")]) == 0
    after = rows(folder)
    assert after[:2] == before and len(after) == 3
    capsys.readouterr()
    assert main(["search", *words(pairs, folder, *SPACE, "--weight_decay", "0.1")]) == 1
    assert "with other flags" in capsys.readouterr().err
    assert main(["search", *words(pairs, folder, "--space", "seed=1,2")]) == 1
    assert "with other space" in capsys.readouterr().err


def test_two_objectives_leave_the_pareto_front(pairs, tmp_path):
    folder = tmp_path / "search"
    more = ("--objective", "loss,runtime", "--direction", "minimize,maximize", "--space", "learning_rate=1e-4,1e-2")
    assert main(["search", *words(pairs, folder, *more, "--n-trials", "3", "--pruner", "none")]) == 0
    about = json.loads((folder / "study.json").read_text())
    assert about["objectives"] == ["eval_loss", "eval_runtime"]
    for position in range(len(about["best"])):
        assert (folder / ("best.json" if position == 0 else f"best_{position + 1}.json")).is_file()


@pytest.mark.parametrize(
    "more, message",
    [
        (("--n-trials", "0"), "at least 1"),
        (("--space", "learning_rate=1"), None),
        (("--space", "learning_rate=3:1"), "LOW must be below HIGH"),
        (("--space", "learning_rate=0:1:log"), "above 0"),
        (("--space", "learning_rate"), "NAME=LOW:HIGH"),
        (("--space", "vocab_size=100,200"), "not a value that trials may differ in"),
        (("--space", "micro_batch=3,4"), "Give divisors of 8"),
        (("--space", "seed=1,2", "--space", "seed=3,4"), "twice"),
        (("--pruner", "axe"), "not one of median, hyperband, none"),
        (("--objective", "loss,runtime"), "whether eval_runtime is better larger or smaller is not known here"),
        (("--objective", "loss,runtime", "--direction", "minimize"), "one --direction for each"),
        (("--direction", "up"), "'minimize' or 'maximize'"),
        (("--objective", "f1"), "--objective f1: an evaluation gives"),
        (("--objective", "f1", "--direction", "maximize"), "--objective f1: an evaluation gives"),
        (("--no-such-flag", "1"), "unknown flags"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(pairs, tmp_path, capsys, more, message):
    code = main(["search", *words(pairs, tmp_path / "search", "--n-trials", "1", *more)])
    assert code == (0 if message is None else 1)
    if message:
        assert message in capsys.readouterr().err


@given(st.floats(1e-6, 1, allow_nan=False), st.floats(1.001, 1e6), st.booleans())
def test_a_range_is_read_as_it_is_written(low, ratio, log):
    high = low * ratio
    found = parse_range(f"learning-rate={low!r}:{high!r}{':log' if log else ''}")
    assert found == Range("learning_rate", (), low, high, log)


@given(st.lists(st.one_of(st.integers(-9, 9), st.booleans(), st.sampled_from(["cosine", "linear"])), min_size=1))
def test_choices_keep_their_types(values):
    text = ",".join(str(value) for value in values)
    if len({str(value) for value in values}) < len(values):
        return
    unequal = len(set(values)) < len(values)  # 1 and True
    if unequal:
        with pytest.raises(ValueError, match="twice"):
            parse_range(f"x={text}")
        return
    found = parse_range(f"x={text}").choices
    assert list(found) == values and [type(a) for a in found] == [type(b) for b in values]


def test_whole_numbers_have_steps():
    assert parse_range("epochs=1:9:2") == Range("epochs", (), 1, 9, False, 2)
    assert parse_range("epochs=1:9") == Range("epochs", (), 1, 9, False, 1)
    with pytest.raises(ValueError, match="LOW must be below"):
        parse_range("epochs=1:9:0")
    with pytest.raises(ValueError, match="LOW must be below"):
        parse_range("rate=0.1:0.9:2")


def test_flags_are_kept_as_typed_and_a_config_stands_before_them(tmp_path):
    typed = ["--learning-rate=1e-3", "--report_to", "none", "tensorboard", "--fp16", "--model", "a=b"]
    given_flags = flags_given(typed)
    assert given_flags == {
        "learning_rate": "1e-3", "report_to": ["none", "tensorboard"], "fp16": True, "model": "a=b",
    }  # fmt: skip
    file = tmp_path / "best.json"
    file.write_text(json.dumps({"about": {"task": "seq2seq"}, "flags": {**given_flags, "seed": None, "group": False}}))
    found = with_config("seq2seq", ["--config", str(file), "--fp16", "false"])
    assert found == [
        "--learning_rate", "1e-3", "--report_to", "none", "tensorboard", "--fp16", "--model", "a=b", "--group", "False",
        "--fp16", "false",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON"),
        ("[1]", "must hold"),
        ('{"flags": {"seed": {"a": 1}}}', "must hold"),
        ('{"about": {"task": "chest-xray"}, "flags": {}}', "is for chest-xray, not for seq2seq"),
        ('{"flags": {"learning_rat": 1}}', "unknown flags --learning_rat"),
    ],
)
def test_a_config_of_another_form_is_refused(tmp_path, capsys, content, message):
    file = tmp_path / "config.json"
    file.write_text(content)
    assert main(["train", "seq2seq", "--config", str(file), "--output", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err


def test_on_ipus_a_trial_that_cannot_run_is_skipped_with_the_planners_reason(pairs, tmp_path):
    (tmp_path / "ipus.json").write_text(
        json.dumps({"layers_per_ipu": [2, 2], "gradient_accumulation_steps": 8, "output_mode": "sum"})
    )
    given = [
        "d_model=16 d_ff=16 d_kv=8 num_layers=2 num_decoder_layers=2 num_heads=2" if word.startswith("d_model") else word
        for word in words(pairs, tmp_path / "search", "--ipu-config", str(tmp_path / "ipus.json"))
    ]  # fmt: skip
    changes = {"--backend": "simulated", "--per_device_train_batch_size": "1", "--gradient_accumulation_steps": "8"}
    for flag, value in changes.items():
        given[given.index(flag) + 1] = value
    space = ("--space", "micro_batch=1,4", "--n-trials", "4")
    assert main(["search", *given, *space]) == 0
    trials = {row["micro_batch"]: row for row in rows(tmp_path / "search")}
    assert trials["1"]["state"] == "complete" and trials["4"]["state"] == "skipped"
    assert "gradient_accumulation_steps 2 cannot fill the pipeline of 3 stages. Use 5 or more" in str(trials["4"])


def test_the_loss_is_minimized_also_where_the_tasks_metric_is_maximized():
    """`--objective loss` for chest X-rays, whose AUROC is maximized, once searched for the highest loss."""
    task = SearchTask(None, "eval_mean_auroc_14", "maximize", "", {})
    assert _known_directions(["eval_loss", "eval_mean_auroc_14"], task) == ["minimize", "maximize"]
