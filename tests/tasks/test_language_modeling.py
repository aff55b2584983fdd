"""Language modelling: rows without waste, perplexity that counts each token once, and the recipe end to end."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from html_pages import checked_page
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ipu_trainer.cli import main
from ipu_trainer.tasks.language_modeling.corpus import (
    IGNORED,
    PackedRows,
    RowCollator,
    row_starts,
    token_stream,
    unigram_perplexity,
)
from ipu_trainer.tasks.language_modeling.model import NO_DROPOUT, SIZES, build_model
from ipu_trainer.tasks.language_modeling.samples import perplexity, token_losses
from ipu_trainer.tasks.language_modeling.train import prepare
from ipu_trainer.tasks.recipe.recipe import train
from ipu_trainer.tasks.run_record import read_run
from ipu_trainer.tasks.text.documents import Document
from ipu_trainer.tasks.text.text_models import (
    ModelChoice,
    find_config,
    load_tokenizer,
    parse_overrides,
    save_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten small 'packages' of arithmetic, which a tiny model can learn."""
    folder = tmp_path_factory.mktemp("corpus")
    for package in range(10):
        (folder / f"package{package}").mkdir()
        lines = [f"def add_{i}(x):\n    return x + {i + package}\n" for i in range(40)]
        (folder / f"package{package}" / "code.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def add(x):\n    return x + 1\n"] * 20, 300, "GPT2Tokenizer")


def words(corpus, output, *more):
    return [
        "--corpus", str(corpus), "--output", str(output), "--model", "gpt2-nano", "--vocab-size", "320",
        "--model-overrides", "n_embd=32 n_head=2", "--sequence-length", "32", "--prompts", "def add_1", "--sample-tokens",
        "8", "--per_device_train_batch_size", "8", "--max_steps", "30", "--eval_steps", "15", "--save_steps", "15",
        "--logging_steps", "5", "--learning_rate", "5e-3", "--use_cpu" if hasattr_field("use_cpu") else "--no_cuda", "true",
        "--disable_tqdm", "true", *more,
    ]  # fmt: skip


def hasattr_field(name):
    from ipu_trainer.compat import transformers_versions as compat

    return compat.field_name(name) == name


@given(st.integers(2, 300), st.integers(2, 40), st.booleans())
def test_every_token_is_in_a_row_and_validation_predicts_each_once(num_tokens, row, causal):
    if num_tokens < row:
        with pytest.raises(ValueError, match="fewer than one row"):
            row_starts(num_tokens, row, 0)
        return
    stream = np.arange(num_tokens, dtype=np.uint16)
    rows = PackedRows(stream, row, causal)
    assert len(rows) == -(-num_tokens // row)
    assert set(torch.cat([item["input_ids"] for item in rows_of(rows)]).tolist()) == set(range(num_tokens))
    predicted = []
    for item in rows_of(PackedRows(stream, row, causal, once=True)):
        first = max(int(item["num_seen"]), 1 if causal else 0)
        predicted += item["input_ids"][first:].tolist()
    assert predicted == list(range(1 if causal else 0, num_tokens))


def rows_of(rows):
    return [rows[index] for index in range(len(rows))]


def test_documents_end_with_the_end_of_text_token_which_is_learnt(tokenizer):
    stream = token_stream([Document("a", "1", "x + 1"), Document("a", "2", "x")], tokenizer)
    assert (stream == tokenizer.eos_token_id).sum() == 2 and stream[-1] == tokenizer.eos_token_id
    collator = RowCollator(tokenizer, masked=False, mlm_probability=0.15, seed=0)
    batch = collator([PackedRows(stream, len(stream), True)[0]])
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_masking_of_validation_rows_is_the_same_each_time_and_whatever_the_batch():
    tokenizer = train_tokenizer(["def add(x): return x + 1"] * 20, 300, "RobertaTokenizer")
    rows = rows_of(PackedRows(np.arange(10, 210, dtype=np.uint16), 50, False, once=True))
    collator = RowCollator(tokenizer, masked=True, mlm_probability=0.3, seed=3)
    state = torch.get_rng_state()
    together, again = collator(rows), collator(rows)
    alone = [collator([row]) for row in rows]
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("input_ids", "labels"):
        assert torch.equal(together[name], again[name])
        assert torch.equal(together[name], torch.cat([batch[name] for batch in alone]))
    share = (together["labels"] != IGNORED).float().mean()
    assert 0.15 < share < 0.45


def test_perplexity_equals_one_pass_over_all_tokens_for_any_batches():
    torch.manual_seed(0)
    stream = np.random.default_rng(0).integers(0, 20, 101).astype(np.uint16)
    table = torch.randn(20, 20)  # logits of the next token given this one
    whole = torch.from_numpy(stream.astype(np.int64))
    truth = functional.cross_entropy(table[whole[:-1]], whole[1:]).item()
    rows = PackedRows(stream, 16, True, once=True)
    reduced = []
    for start in range(0, len(rows), 3):
        items = rows_of(rows)[start : start + 3]
        ids = torch.stack([item["input_ids"] for item in items])
        labels = ids.clone()
        for label, item in zip(labels, items):
            label[: int(item["num_seen"])] = IGNORED
        reduced.append(token_losses(causal=True)(table[ids], labels))
    told = perplexity(SimpleNamespace(predictions=torch.cat(reduced).numpy()))
    assert told["num_tokens"] == 100
    assert told["nats_per_token"] == pytest.approx(truth, rel=1e-5)
    assert told["perplexity"] == pytest.approx(math.exp(truth), rel=1e-5)


def test_the_unigram_baseline_is_the_entropy_of_known_frequencies():
    train_stream = np.array([0] * 7 + [1] * 3, dtype=np.uint16)
    found, nats = unigram_perplexity(train_stream, np.array([0, 0, 1, 2], dtype=np.uint16), 3)
    expected = -(2 * math.log(8 / 13) + math.log(4 / 13) + math.log(1 / 13)) / 4
    assert nats == pytest.approx(expected) and found == pytest.approx(math.exp(expected))


def test_small_gpt2_has_its_published_number_of_parameters():
    with torch.device("meta"):
        config = find_config("gpt2-small", SIZES, NO_DROPOUT)
        tokenizer = SimpleNamespace(bos_token_id=50256, eos_token_id=50256, pad_token_id=None)
        tokenizer = type("T", (), {"__len__": lambda self: 50257, **vars(tokenizer)})()
        model = build_model("gpt2-small", ModelChoice(config, True, {}, ""), tokenizer, 1024, False)
    model.tie_weights()  # transformers 5.0 leaves that out on the meta device
    assert model.num_parameters() == 124_439_808
    assert model.config.vocab_size == 50257 and model.config.eos_token_id == model.config.bos_token_id == 50256


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "RobertaTokenizer"])
def test_a_trained_tokenizer_writes_any_text_and_is_saved_in_files_that_both_stacks_read(tmp_path, kind):
    trained = train_tokenizer(["def add(x):\n    return x + 1\n"] * 20, 320, kind)
    save_tokenizer(trained, tmp_path)
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} == {path.name for path in tmp_path.iterdir()}
    read = load_tokenizer(str(tmp_path))
    text = "def naïve():\n\treturn '日本' # ✓"
    ids = read(text, add_special_tokens=False)["input_ids"]
    assert ids == trained(text, add_special_tokens=False)["input_ids"] and read.decode(ids) == text
    assert read.eos_token_id == trained.eos_token_id and len(read) == len(trained)


def test_the_recipe_learns_and_leaves_a_complete_model_folder(corpus, tmp_path, capsys):
    assert main(["train", "language-modeling", *words(corpus, tmp_path / "run", "--max_steps", "90")]) == 0
    out = capsys.readouterr().out
    assert "unigram perplexity" in out and ">>> def add_1" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["perplexity"] < 0.6 * metrics["unigram_perplexity"]
    assert metrics["bits_per_byte"] < 8
    record = read_run(tmp_path / "run")
    assert record["task"] == "language-modeling" and record["data"]["validation"]["groups"]
    assert (tmp_path / "run" / "plots" / "training.png").stat().st_size > 1000
    page = checked_page(tmp_path / "run" / "report.html")
    assert f"{metrics['perplexity']:.3f}" in page.sections["at-a-glance"] and "def add_1" in page.sections["samples"]
    assert "mathdefault" not in page.text  # labels of a logarithmic axis are numbers
    assert "tokens per second" in page.sections["training"] and "validation perplexity" in page.sections["training"]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokens = load_tokenizer(str(tmp_path / "run"))
    assert model.config.vocab_size == len(tokens)
    assert main(["train", "language-modeling", *words(corpus, tmp_path / "run")]) == 1  # finished: not overwritten
    assert "finished run" in capsys.readouterr().err


def test_masked_models_learn_too_and_go_on_from_their_own_folder(corpus, tmp_path):
    more = (
        "--max_steps",
        "120",
        "--eval_steps",
        "60",
        "--save_steps",
        "60",
        "--model",
        "roberta-mini",
        "--model-overrides",
        "hidden_size=32 num_attention_heads=2 intermediate_size=64",
    )
    metrics = train(prepare(words(corpus, tmp_path / "run", *more)))
    assert metrics["perplexity"] < metrics["unigram_perplexity"] and "truth" in metrics["samples"][0]
    again = ("--model", str(tmp_path / "run"), "--model-overrides", "", "--max_steps", "2", "--learning_rate", "1e-5")
    again += ("--vocab-size", "8192")  # left at its default: the folder has a tokenizer
    further = train(prepare(words(corpus, tmp_path / "further", *again)))
    assert further["perplexity"] < 1.2 * metrics["perplexity"]


def test_a_simulated_pipeline_gives_the_hosts_perplexity(corpus, tmp_path):
    (tmp_path / "ipu_config.json").write_text(
        json.dumps({"layers_per_ipu": [1, 1], "gradient_accumulation_steps": 8, "output_mode": "sum"})
    )
    results = []
    for backend in ("host", "simulated"):
        more = ("--backend", backend, "--ipu-config", str(tmp_path / "ipu_config.json"), "--max_steps", "4")
        more += ("--per_device_train_batch_size", "2", "--eval_steps", "4", "--precision", "fp32")
        results.append(train(prepare(words(corpus, tmp_path / backend, *more))))
    assert results[0]["nats_per_token"] == pytest.approx(results[1]["nats_per_token"], rel=1e-5)
    assert results[0]["samples"] == results[1]["samples"]
    assert "predictions and no measurements" in checked_page(tmp_path / "host" / "report.html").sections["on-ipus"]
    runs = [str(tmp_path / backend) for backend in ("host", "simulated")]
    assert main(["report", *runs, "--output", str(tmp_path / "both.html")]) == 0
    page = checked_page(tmp_path / "both.html")
    assert (
        "hostsimulated" in page.sections["what-differs"].replace("\n", "")
        and "perplexity" in page.sections["side-by-side"]
    )


def test_an_interrupted_run_reads_the_same_tokens_and_ends_the_same(corpus, tmp_path):
    class Interruption(Exception):
        pass

    whole = train(prepare(words(corpus, tmp_path / "whole")))
    job = prepare(words(corpus, tmp_path / "cut"))
    from ipu_trainer.training.trainer import IPUTrainer

    step = IPUTrainer.training_step
    calls = []

    def interrupted(self, *positional, **named):
        calls.append(1)
        if len(calls) > 20:
            raise Interruption
        return step(self, *positional, **named)

    IPUTrainer.training_step = interrupted
    try:
        with pytest.raises(Interruption):
            train(job)
    finally:
        IPUTrainer.training_step = step
    resumed = train(prepare(words(corpus, tmp_path / "cut")))
    assert resumed["nats_per_token"] == whole["nats_per_token"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--sequence-length", "5000"), "longer than the model's 1024 positions"),
        (("--sequence-length", "1"), "leaves nothing to predict"),
        (("--model-overrides", "vocab_size=100"), "the tokenizer has 320 tokens, but the model's vocabulary holds 100"),
        (("--model-overrides", "n_layers=2"), "GPT2Config has no 'n_layers'"),
        (("--model-overrides", "wide"), "is not NAME=VALUE"),
        (("--model", "gpt2-tiny"), "Nearest: gpt2"),
        (("--vocab-size", "100"), "vocab_size 100 is too small"),
        (("--validation-fraction", "1.5"), "validation_fraction 1.5"),
        (("--objective", "both"), "objective 'both'"),
        (("--files", "some"), "files 'some'"),
        (("--mlm-probability", "0"), "mlm_probability 0.0"),
        (("--corpus", "nowhere"), "nowhere does not exist"),
        (("--max-megabytes", "0.000001"), "the corpus is empty"),
    ],
)
def test_bad_input_is_refused_before_work_with_the_values(corpus, tmp_path, more, message, capsys):
    assert main(["train", "language-modeling", *words(corpus, tmp_path / "run", *more)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_unknown_optimizer_is_refused_with_those_that_there_are(corpus, tmp_path, capsys):
    assert main(["train", "language-modeling", *words(corpus, tmp_path / "run", "--optim", "adamw")]) == 1
    error = capsys.readouterr().err.strip()
    assert "--optim" in error and "adamw_torch" in error and "\n" not in error


def test_a_folder_without_text_is_an_empty_corpus(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["train", "language-modeling", *words(tmp_path / "empty", tmp_path / "run")]) == 1
    assert "holds no text" in capsys.readouterr().err


def test_overrides_are_numbers_words_and_truth_values():
    assert parse_overrides("n_layer=6, x=0.5 flag=true act=gelu") == {
        "n_layer": 6,
        "x": 0.5,
        "flag": True,
        "act": "gelu",
    }
