"""Every command and every block of Python in README.md and docs/ is run, or stands below with the reason why it is not.

A new command fails test_every_command_is_listed until it joins COMMANDS. Three kinds:

    run(...)      runs in a folder where everything that the pages name is there, small; tiny flags are put behind its own
    parsed(...)   its flags are parsed by the real parser, and the reason says why it is not run
    other(...)    no command of ours, or run by another test: the reason says which

Blocks of Python run in order, page by page; SETUP holds what a page takes for granted.
"""

import ast
import gzip
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_data_sets import DATA_SETS

from ipu_trainer import cli, command_line
from ipu_trainer.tasks.search import search_command as search_task

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# Indented lines that begin with one of these are commands too.
PROGRAMS = (
    "ipu-trainer",
    "python",
    "make",
    "pip",
    "torchrun",
    "bash",
    "scripts/",
    "sbatch",
    "kubectl",
    "IPUS=",
    "eval",
)


def run(*flags, alone=False):
    """alone: in a process of its own, because it changes what `import` finds."""
    return "run", list(flags), alone


def parsed(reason):
    return "parsed", reason, False


def other(reason):
    return "other", reason, False


TRAIN = shlex.split(
    "--max_steps 2 --num_bootstrap 10 --per_device_train_batch_size 8 --logging_steps 1 --disable_tqdm true"
)
# A pipeline of four stages needs seven micro-batches; the profile's own accumulation needs more pictures than there are.
POD = [*TRAIN, "--ipu_config_overrides", "gradient_accumulation_steps=8,device_iterations=1,replication_factor=1"]
TEXT = shlex.split(
    "--max_steps 2 --eval_steps 2 --save_steps 2 --vocab_size 400 --sequence_length 32 --sample_tokens 4 --disable_tqdm true "
    "--corpus my_texts"
)
GPT2 = [*TEXT, "--model", "gpt2-nano", "--model_overrides", "n_embd=16 n_head=2"]
T5 = shlex.split(
    "--max_steps 2 --vocab_size 400 --source_length 12 --target_length 8 --disable_tqdm true --pairs pairs.jsonl "
    "--model t5-nano --model_overrides 'd_model=16 d_kv=8 d_ff=16'"
)

SMALL = ["--size", "32", "--workers", "1"]
PREPARE = "ipu-trainer prepare chest-xray --csv Data_Entry_2017_v2020.csv"
LISTS = "--train_val_list train_val_list.txt --test_list test_list.txt"
PREPARED = "ipu-trainer train chest-xray --data prepared --model model --output run"
COMMANDS = {
    # docs/models.md
    f"{PREPARE} --images images --output prepared518 --size 518 --resample bicubic": run(
        "--workers", "1", "--validation_fraction", "0.2", "--size", "32"
    ),
    f"{PREPARE} --images images --output prepared224 --size 224 --resample bicubic": run(
        "--workers", "1", "--validation_fraction", "0.2", "--size", "32"
    ),
    "ipu-trainer train chest-xray --data prepared518 --model microsoft/rad-dino --output run-dino": other(
        "tests/chest_xray/test_image_architectures.py: "
        "test_a_run_from_a_checkpoint_of_another_size_says_what_it_changed_and_is_evaluated_and_reported"
    ),
    "ipu-trainer train chest-xray --data prepared224 --model timm/densenet121.ra_in1k --output run-densenet": other(
        "tests/chest_xray/test_timm_models.py: test_models_of_timm trains a tiny one"
    ),
    "pip install 'ipu-trainer[timm,explain]'": other("installs the package itself, with extras of setup.cfg"),
    # README.md
    "make demo": other("test_the_demo_runs_as_make_says"),
    "make test": other("it is what runs this test"),
    "make demo NIH_CSV=Data_Entry_2017_v2020.csv NIH_IMAGES=images MODEL=google/vit-base-patch16-224-in21k": other(
        "test_the_demo_runs_as_make_says"
    ),
    f"{PREPARE} --images images --output prepared {LISTS}": run("--workers", "1", "--validation_fraction", "0.2"),
    "ipu-trainer train chest-xray --data prepared --model google/vit-base-patch16-224-in21k --output run": run(*TRAIN),
    "ipu-trainer evaluate chest-xray --run run --data prepared --split test --output results": run("--num_bootstrap", "10"),
    "ipu-trainer predict run films --output predictions.csv --html predictions.html": run(),
    "torchrun --nproc_per_node=2 -m ipu_trainer.cli train chest-xray --data prepared --model model --output run": parsed(
        "tests/chest_xray/test_recipe.py: test_two_processes_train_the_recipe_to_the_weights_of_one"
    ),
    f"{PREPARED} --ipu_config vit_base_pod4": run(*POD),
    "ipu-trainer profiles list": run(),
    "ipu-trainer profiles check vit_base_pod4 --model model": run(),
    "ipu-trainer doctor": run(),
    f"{PREPARED} --ipu_config vit_base_pod4 --backend simulated": run(*POD),
    f"{PREPARED} --ipu_config vit_base_pod4 --backend host": run(*POD),
    "ipu-trainer simulate --trace trace scripts/simulate_pipeline.py --steps 20": run("--steps", "2", alone=True),
    # docs/chest_xray.md
    f"{PREPARE}.gz --images images --output prepared {LISTS} --only_present --workers 8": run("--workers", "1", "--validation_fraction", "0.2"),
    f"{PREPARED} --learning_rate 2e-4 --num_train_epochs 30": run(*TRAIN),
    f"{PREPARED} --loss asymmetric --ranking_weight 0 --ema_decay 0.999": run(*TRAIN),
    f"{PREPARED} --balance 0.3 --horizontal_flip True --precision fp32": run(*TRAIN),
    # docs/data_formats.md
    "ipu-trainer prepare chest-xray --images tutorial/images --output prepared_tutorial": run(*SMALL),
    "ipu-trainer prepare chest-xray --images my_films --output prepared_films": run(*SMALL),
    "ipu-trainer prepare chest-xray --images CheXpert-v1.0-small --output prepared_chexpert --uncertain ignore": run(*SMALL),
    "ipu-trainer prepare chest-xray --csv chexpert-plus/df_chexpert_plus_240401.csv --images chexpert-plus/PNG --output prepared_plus": run(
        *SMALL
    ),
    "ipu-trainer prepare chest-xray --images mimic-cxr-jpg --output prepared_mimic": run(*SMALL),
    "ipu-trainer prepare chest-xray --csv vindr-cxr/annotations/image_labels_train.csv --images vindr-cxr --output prepared_vindr": run(
        *SMALL
    ),
    "ipu-trainer prepare chest-xray --csv vinbigdata/train.csv --images vinbigdata/train --output prepared_vinbigdata": run(*SMALL),
    "ipu-trainer prepare chest-xray --images padchest --output prepared_padchest --findings Effusion,Cardiomegaly,Edema": run(*SMALL),
    "ipu-trainer prepare chest-xray --images rsna --output prepared_rsna": run(*SMALL),
    "ipu-trainer prepare chest-xray --dataset my_dataset --output prepared_dataset": run(*SMALL),
    # docs/dicom.md
    'pip install -e ".[dicom]"': other("test_installation_names_what_is_there"),
    "ipu-trainer prepare chest-xray --csv table.csv --images films --output prepared": other(
        "tests/chest_xray/test_dicom.py: test_a_folder_of_films_is_prepared_with_the_window_and_its_pixels_are_those_of_decoding"
    ),
    "ipu-trainer evaluate chest-xray --run run --data chexpert --split all --output on_chexpert": other(
        "tests/chest_xray/test_masked_labels.py: test_a_run_is_evaluated_on_data_that_name_findings_otherwise"
    ),
    # docs/ipu.md
    "python3.8 -m venv env && . env/bin/activate": other("an environment on the Pod's own machine"),
    "pip install -c constraints-pod.txt torch": other("make test-pod installs so; test_installation_names_what_is_there"),
    "pip install $POPLAR_SDK/poptorch-*.whl": other("the SDK's wheel is on no package index"),
    'pip install -c constraints-pod.txt -e ".[ipu]"': other("test_installation_names_what_is_there"),
    f"{PREPARED} --ipu_config vit_base_pod4 --compile_only true": parsed("compiling needs the SDK's poptorch"),
    "IPUS=16 INSTANCES=2 PARTITION=p16 scripts/poprun_chest_xray.sh --data prepared --model model --output run --ipu_config "
    "vit_base_pod16": other("tests/test_pod_scripts.py: test_poprun_gets_the_replicas_of_the_config_and_flags_that_exist"),
    "IPUS=16 sbatch --ipus=16 scripts/slurm_chest_xray.sbatch --data prepared --model model --output run --ipu_config "
    "vit_base_pod16": other("tests/test_pod_scripts.py: test_slurm_hands_its_partition_and_a_lasting_cache_to_poprun"),
    "kubectl create -f scripts/ipujob_chest_xray.yaml": other(
        "tests/test_pod_scripts.py: test_the_ipujob_asks_for_the_ipus_of_its_config_and_mounts_what_it_names"
    ),
    # docs/notebooks.md
    'pip install -e ".[notebooks,fast]"': other("test_installation_names_what_is_there"),
    "jupyter lab notebooks": other("tests/test_notebooks.py: test_a_notebook_runs_from_a_fresh_kernel"),
    "ipu-trainer prepare chest-xray": other(
        "tests/tasks/test_folders.py: test_prepare_train_and_evaluate_without_a_folder_and_nothing_is_written_on_the_mount"
    ),
    "ipu-trainer train chest-xray --model google/vit-base-patch16-224-in21k": other("the same test of test_folders.py"),
    "ipu-trainer evaluate chest-xray": other("the same test of test_folders.py"),
    "bash scripts/setup_notebook.sh jupyter lab --allow-root --ip=0.0.0.0 --no-browser notebooks": other(
        "tests/test_pod_scripts.py: test_the_setup_script_makes_folders_and_runs_a_command_with_them"
    ),
    # docs/planner.md
    "ipu-trainer plan --model PATH --system pod4 --global_batch 128 --explain --save best.json": run(),
    "ipu-trainer plan --model PATH --system pod4 --config vit_base_pod4": run(),
    "python -m ipu_trainer.planner.calibrate --write --document": other(
        "tests/planner/test_published_rows.py: test_table_and_plot_in_the_documentation_are_current"
    ),
    "python -m ipu_trainer.planner.calibrate own.csv --write own.json && ipu-trainer plan --constants own.json ...": other(
        "tests/planner/test_published_rows.py: test_rows_of_ones_own_change_the_constants_that_plan_uses"
    ),
    "python -m ipu_trainer.planner.calibrate --check other.csv": other(
        "it needs rows that nobody has published; tests/planner/test_published_rows.py: test_rows_without_a_column_are_refused_by_line"
    ),
    # docs/predict.md
    "ipu-trainer predict run films --output predictions.csv": run(),
    "ipu-trainer export run --to onnx": run(),
    # docs/reliability.md
    "ipu-trainer check run": parsed("tests draw no plots, which it misses; tests/chest_xray/test_check.py runs it"),
    # docs/report.md
    "ipu-trainer report run": run(),
    "ipu-trainer report run --boxes BBox_List_2017.csv --radiologist_labels google2019_nih-chest-xray-labels.csv.gz": run(),
    "ipu-trainer report run --data prepared --output for_the_radiologist.html": run(),
    "ipu-trainer report run_a run_b run_c --output comparison.html": run(),
    "ipu-trainer train chest-xray --data prepared --model model --output run --report_to tensorboard": other(
        "tests/training/test_monitor.py: "
        "test_every_reporter_and_the_log_history_have_the_rates_and_a_trainer_without_a_monitor_has_none"
    ),
    "ipu-trainer train language-modeling --output run --report_to trackio": other(
        "trackio is no dependency; tests/training/test_monitor.py: test_a_reporter_that_cannot_report_is_refused_before_work"
    ),
    # docs/simulator.md
    "ipu-trainer simulate train.py --epochs 1": run(alone=True),
    "ipu-trainer simulate --coalesce train.py": run(alone=True),
    "ipu-trainer simulate -m package.train --epochs 1": run(alone=True),
    "ipu-trainer simulate --device cuda train.py": parsed("needs a GPU; tests/simulator/test_on_cuda.py runs where there is one"),
    # docs/search.md
    "ipu-trainer search chest-xray --output search --data prepared --model vit --storage study.journal --n_trials 40": run(
        "--n_trials", "2", "--max_steps", "1", "--disable_tqdm", "true"
    ),
    # docs/tasks.md
    "ipu-trainer train language-modeling --output run": run(*GPT2),
    "ipu-trainer train language-modeling --output run --corpus my_texts --model gpt2-small --tokenizer gpt2": run(
        *(word for word in GPT2 if word not in ("--vocab_size", "400"))  # the tokenizer is there
    ),
    "ipu-trainer train language-modeling --output run --model roberta-mini": run(
        *TEXT, "--model_overrides", "hidden_size=16 num_attention_heads=2 intermediate_size=16"
    ),
    "ipu-trainer train seq2seq --output run": run(*T5),
    "ipu-trainer train seq2seq --output run --pairs pairs.jsonl --model t5-small": run(*T5),
    "ipu-trainer search chest-xray --output search --data prepared --model vit --num_train_epochs 5 "
    "--space learning_rate=1e-5:1e-3:log --space weight_decay=0:0.3 --space micro_batch=8,16,32 --n_trials 20": run(
        "--n_trials", "2", "--max_steps", "1", "--disable_tqdm", "true"
    ),
    "ipu-trainer train chest-xray --config search/best.json --output run": run("--num_bootstrap", "10"),
}  # fmt: skip

TINY_BERT = """
import torch
from transformers import BertConfig, BertForSequenceClassification
from ipu_trainer import IPUTrainer, IPUTrainingArguments

def model_init():
    return BertForSequenceClassification(BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=12, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=8))

train_dataset = [{"input_ids": torch.tensor([i % 20, 1, 2]), "labels": torch.tensor(i % 2)} for i in range(128)]
"""
A_RUN = """
from pathlib import Path
from ipu_trainer.cli import main

for command in (
    "phantoms chest-xray --output . --num_images 60 --size 32 --model_size 32",
    "prepare chest-xray --csv phantoms.csv --images images --output prepared --size 32 --validation_fraction 0.3 --workers 1",
    "train chest-xray --data prepared --model model --output run --max_steps 2 --per_device_train_batch_size 8 --num_bootstrap 10",
):
    assert main(command.split()) == 0
Path("images").rename("films")
"""
SETUP = {
    "docs/predict.md": A_RUN,
    "README.md": TINY_BERT + "model = model_init()",
    "docs/report.md": TINY_BERT
    + """
args = IPUTrainingArguments(output_dir="run", report_to=[], save_strategy="no")
trainer = IPUTrainer(args=args, model_init=model_init, train_dataset=train_dataset)
""",
    # Ray by itself takes all CPUs: each trial would import torch and transformers in a process of its own, both at once.
    "docs/search.md": TINY_BERT
    + """
import tempfile
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
default_model = model_init
args = IPUTrainingArguments(output_dir="search", per_device_train_batch_size=2, max_steps=1, report_to=[], save_strategy="no",
    disable_tqdm=True)
train_dataset, eval_dataset, results = train_dataset[:8], train_dataset[:4], tempfile.mkdtemp()

def new_model(num_hidden_layers):
    model = default_model()
    model.bert.encoder.layer = model.bert.encoder.layer[:num_hidden_layers]
    return model
""",
    "docs/tasks.md": TINY_BERT
    + """
args = IPUTrainingArguments(output_dir="search", per_device_train_batch_size=2, max_steps=1, report_to=[], save_strategy="no",
    disable_tqdm=True)
trainer = IPUTrainer(args=args, model_init=model_init, train_dataset=train_dataset[:8], eval_dataset=train_dataset[:4],
    ipu_config="one_ipu")
""",
}


def name_of(page):
    return page.relative_to(REPOSITORY).as_posix()


def fences(page):
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page):
    """Commands of fences without a language (or of a shell's), and of indented lines, each on one line without its comment."""
    outside = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    indented = "\n".join(line[4:] for line in outside.splitlines() if line.startswith("    "))
    found = [text for language, text in fences(page) if language in ("", "bash", "sh", "console", "shell")]
    lines = "\n".join(found).replace("\\\n", " ").splitlines()
    lines += [line for line in indented.replace("\\\n", " ").splitlines() if line.startswith(PROGRAMS)]
    return [snake_case(" ".join(line.split(" #")[0].split())) for line in lines if line.split(" #")[0].strip()]


def snake_case(command):
    """Our commands with one spelling of flags; test_flags_have_one_spelling asks for it."""
    ours = "ipu-trainer" in command or "ipu_trainer" in command or "_chest_xray." in command
    return " ".join(command_line.snake_case(command.split())) if ours else command


def words_of(command):
    """The words behind `ipu-trainer`, or behind `torchrun ... -m ipu_trainer.cli`."""
    words = shlex.split(command)
    return words[1:] if words[0] == "ipu-trainer" else words[words.index("ipu_trainer.cli") + 1 :]


ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


def test_every_command_is_listed():
    missing = [command for command in ALL if command not in COMMANDS]
    assert not missing, "add to COMMANDS, with run(...), parsed(reason) or other(reason):\n" + "\n".join(missing)
    stale = [command for command in COMMANDS if command not in ALL]
    assert not stale, "on no page any more, take out of COMMANDS:\n" + "\n".join(stale)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_have_one_spelling(page):
    """--snake_case, as Trainer has it; --kebab-case is taken, and no page writes it."""
    others = (
        "warm-up|num-synthetic|without-pngs|micro-batches|no-browser|allow-root"  # of benchmarks and other programs
    )
    assert not re.findall(rf"(?<![-\w])--(?!(?:{others})\b)[a-z]+-[a-z-]+", page.read_text(encoding="utf-8"))


def test_languages_of_blocks_are_known():
    assert {language for page in PAGES for language, _ in fences(page)} <= {
        "",
        "bash",
        "python",
        "json",
        "yaml",
        "text",
    }


def test_reasons_name_tests_that_are_there():
    for kind, reason, _ in COMMANDS.values():
        for name in re.findall(r"\btest_\w+(?!\w*\.py)", reason) if kind != "run" else []:
            file = re.search(r"tests/[\w/]+\.py", reason)
            text = (REPOSITORY / file.group() if file else Path(__file__)).read_text(encoding="utf-8")
            assert name in {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)} | {
                Path(file.group()).stem if file else ""
            }, name


@pytest.fixture(scope="module")
def named_things(tmp_path_factory):
    """A folder with everything that the pages name."""
    import csv

    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from ipu_trainer.tasks.chest_xray.data.phantoms import PhantomSettings, write_phantoms
    from ipu_trainer.tasks.text.text_models import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("pages")
    table = write_phantoms(folder, PhantomSettings(num_images=160, size=32, seed=1), progress=False)
    table = table.rename(folder / "Data_Entry_2017_v2020.csv")
    (folder / "films").mkdir()
    for path in sorted((folder / "images").iterdir())[:5]:
        shutil.copy(path, folder / "films")
    (folder / "boxes.csv").rename(folder / "BBox_List_2017.csv")
    (folder / "Data_Entry_2017_v2020.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, tested in (("train_val_list.txt", False), ("test_list.txt", True)):
        chosen = [row["Image Index"] for row in rows if (int(row["Patient ID"]) % 4 == 0) == tested]
        (folder / name).write_text("\n".join(chosen))
    read = "\n".join(
        ["Image ID,Pneumothorax", *(f"{row['Image Index']},{'NO' if i % 2 else 'YES'}" for i, row in enumerate(rows))]
    )
    (folder / "google2019_nih-chest-xray-labels.csv.gz").write_bytes(gzip.compress(read.encode()))
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=12, num_attention_heads=2, intermediate_size=12, image_size=224, patch_size=56,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    for name in ("model", "vit", "PATH", "google/vit-base-patch16-224-in21k"):
        ViTForImageClassification(config).save_pretrained(folder / name)
        ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder / name)
    for package in ("one", "two", "three"):
        (folder / "my_texts" / package).mkdir(parents=True)
        text = "\n".join(f"def {package}_{i}(x):\n    return x + {i}\n" for i in range(40))
        (folder / "my_texts" / package / "code.py").write_text(text)
    save_tokenizer(train_tokenizer([text] * 4, 400, "GPT2Tokenizer"), folder / "gpt2")
    pairs = [{"source": f"copy {i} {i % 7}", "target": f"{i} {i % 7}", "group": f"g{i % 5}"} for i in range(60)]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    for name, write in DATA_SETS.items():
        write(folder / name)
    (folder / "scripts").mkdir()
    shutil.copy(str(REPOSITORY / "scripts" / "simulate_pipeline.py"), str(folder / "scripts"))
    for program in ("train.py", "package/train.py"):
        (folder / program).parent.mkdir(exist_ok=True)
        (folder / program).write_text(
            "import argparse, poptorch, torch\n"
            "parser = argparse.ArgumentParser(); parser.add_argument('--epochs', type=int, default=1)\n"
            "model = poptorch.inferenceModel(torch.nn.Linear(2, 1))\n"
            "for _ in range(parser.parse_args().epochs): print(model(torch.ones(1, 2)))\n"
        )
    return folder


def execute(command, flags, alone, folder):
    words = words_of(command)
    if "--output" in words:  # left by a command before
        shutil.rmtree(folder / words[words.index("--output") + 1], ignore_errors=True)
    if alone:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-m", "ipu_trainer.cli", *words, *flags], cwd=str(folder), env=environment, timeout=120
        )
        return done.returncode
    return cli.main([*words, *flags])


def prepare_once(folder):
    if not (folder / "prepared").exists():
        first = f"{PREPARE} --images images --output prepared {LISTS}"
        assert execute(first, ["--workers", "1", "--validation_fraction", "0.2"], False, folder) == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_the_commands_of_a_page_run(page, named_things, monkeypatch, capsys, request):
    if name_of(page) != "docs/report.md":
        request.getfixturevalue("plots_are_drawn_fast")
    monkeypatch.chdir(named_things)
    for name in ("PUBLIC_DATASETS_DIR", "DATASETS_DIR", "CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)
    if re.search("prepared|load_run", page.read_text(encoding="utf-8")):
        prepare_once(named_things)
    if name_of(page) in ("docs/tasks.md", "docs/search.md"):
        pytest.importorskip("optuna")
    if name_of(page) in ("docs/report.md", "docs/predict.md"):  # they speak of finished runs
        assert execute(PREPARED, TRAIN, False, named_things) == 0
    if name_of(page) == "docs/report.md":
        for name in ("run_a", "run_b", "run_c"):
            shutil.copytree(str(named_things / "run"), str(named_things / name))
    for command in dict.fromkeys(commands(page)):
        kind, flags, alone = COMMANDS[command]
        if kind != "run":
            continue
        code = execute(command, flags, alone, named_things)
        assert code == 0, f"{command}\n{capsys.readouterr().err[-2000:]}"
        words = words_of(command)
        if "--output" in words:
            made = named_things / words[words.index("--output") + 1]
            assert any(made.iterdir()) if made.is_dir() else made.stat().st_size, command


def parse(words):
    """What the command would read of its flags. Raises SystemExit or ValueError for one that it does not know."""
    if words[0] in ("train", "search") and len(words) > 1:
        rest = words[2:]
        if words[0] == "search":
            own, rest = search_task._parser(words[1]).parse_known_args(rest)
            rest = ["--output", own.output, *rest]
        module = f"ipu_trainer.tasks.{words[1].replace('-', '_')}.recipe_arguments"
        return importlib.import_module(module).parse_arguments(rest)
    return cli._parser().parse_args(words)


@pytest.mark.parametrize("command", [command for command, (kind, *_) in COMMANDS.items() if kind == "parsed"])
def test_flags_of_commands_that_are_not_run_exist(command, named_things, monkeypatch):
    monkeypatch.chdir(named_things)
    prepare_once(named_things)
    words = words_of(command)
    if "--compile_only" in words:  # with auto it looks for poptorch already when the flags are read
        words += ["--backend", "simulated"]
    parse(words)
    with pytest.raises((ValueError, SystemExit)):
        parse([words[0], "--no-such-flag", *words[1:]] if words[0] == "simulate" else [*words, "--no-such-flag", "1"])


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "python" in dict(fences(page))], ids=name_of)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    for needed in {"docs/tasks.md": ["optuna"], "docs/search.md": ["optuna", "ray"]}.get(name_of(page), []):
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    exec(SETUP.get(name_of(page), ""), namespace)
    for number, (language, text) in enumerate(fences(page)):
        if language == "python":
            exec(compile(text, f"{page.name}, block {number}", "exec"), namespace)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def test_the_demo_runs_as_make_says():
    """With the flags that tests/test_package.py runs it with."""

    def recipe(*words):
        done = subprocess.run(
            ["make", "-n", "-C", str(REPOSITORY), *words], stdout=subprocess.PIPE, check=True, text=True
        )
        return done.stdout

    assert "scripts/demo_chest_xray.py --output demo" in " ".join(recipe("demo").split())
    own = " ".join(recipe("demo", "NIH_CSV=labels.csv", "NIH_IMAGES=images", "MODEL=vit").split())
    assert '--csv "labels.csv" --images "images" --model "vit"' in own
    assert "-m pytest" in recipe("test")


def test_installation_names_what_is_there():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(str(REPOSITORY / "setup.cfg"))
    extras = set(setup["options.extras_require"])
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for names in re.findall(r'"?\.\[([\w,]+)\]"?', text):
            assert set(names.split(",")) <= extras, names
        for file in re.findall(r"-c (\S+\.txt)", text):
            assert (REPOSITORY / file).is_file(), file


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(
        r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    ):
        assert target.startswith("https://") or (page.parent / target).exists(), target
