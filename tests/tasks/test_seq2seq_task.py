"""Seq2seq: pairs from code, fixed shapes, and the recipe end to end."""

import json

import numpy as np
import pytest
from html_pages import checked_page

from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.seq2seq.metrics import baseline_texts, text_scores
from ipu_trainer.tasks.seq2seq.pairs import IGNORED, FixedShapePairs, Pair, docstring_pairs, read_pairs
from ipu_trainer.tasks.text.documents import Document
from ipu_trainer.tasks.text.text_models import load_tokenizer, train_tokenizer

CODE = '''
class Table:
    @property
    def num_rows(self):
        """Number of rows of
        this table.

        More about it.
        """
        rows = self.rows
        return len(rows)

    def undocumented(self):
        return 1

    def short(self):
        """Too short."""
        return 1
'''


def words(pairs, output, *more):
    return [
        "--pairs", str(pairs), "--output", str(output), "--vocab-size", "320", "--source-length", "12", "--target-length",
        "8", "--per_device_train_batch_size", "8", "--max_steps", "100", "--logging_steps", "10", "--disable_tqdm", "true",
        "--learning_rate", "5e-3", "--model-overrides", "d_model=32 d_kv=8 d_ff=64", f"--{compat.field_name('use_cpu')}",
        "true", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """Names of numbers to digits, which a tiny model can learn; a group is a block of lines."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    lines = []
    for number in range(200):
        first, second = names[number % 10], names[(number * 7 // 10) % 10]
        record = {
            "source": f"{first} {second} {number}",
            "target": f"{number % 10} {(number * 7 // 10) % 10}",
            "group": f"g{number % 8}",
        }
        lines.append(json.dumps(record))
    file.write_text("\n".join(lines))
    return file


def test_a_function_is_paired_with_the_first_paragraph_of_its_docstring():
    (pair,) = docstring_pairs([Document("pkg", "pkg/table.py", CODE), Document("pkg", "broken.py", "def (")])
    assert pair.target == "Number of rows of this table."
    assert pair.source == "def num_rows(self):\n    rows = self.rows\n    return len(rows)"
    assert pair.group == "pkg" and pair.name == "pkg/table.py:4"


def test_pairs_have_one_shape_and_texts_that_are_cut_keep_their_end():
    tokenizer = train_tokenizer(["a b c d e f"] * 20, 300, "RobertaTokenizer")
    pairs = [Pair("g", "1", "a b", "c"), Pair("g", "2", "a b c d e f " * 5, "c d e f " * 5)]
    rows = FixedShapePairs(pairs, tokenizer, 8, 6, "")
    assert rows.input_ids.shape == (2, 8) and rows.labels.shape == (2, 6)
    assert rows.num_cut == (1, 1)
    assert rows.input_ids[1, -1] == rows.labels[1, -1] == tokenizer.eos_token_id
    assert rows.labels[0, -1] == IGNORED and rows.attention_mask[0].sum() < 8 == rows.attention_mask[1].sum()
    item = rows[0]
    assert np.array_equal(item["input_ids"].numpy(), rows.input_ids[0])


def test_scores_are_full_for_the_references_and_the_baseline_reads_names():
    texts = ["get the number of rows of a table", "write all columns to a file"]
    perfect = text_scores(texts, texts)
    assert (
        perfect["bleu"] == pytest.approx(100) and perfect["chrf"] == pytest.approx(100) and perfect["exact_match"] == 1
    )
    assert text_scores(["a"], ["zzz"])["bleu"] < 1
    named = baseline_texts([Pair("g", "1", "def get_numRows(self):\n    pass", "x"), Pair("g", "2", "plain text", "x")])
    assert named == ["Get num rows.", "plain text"]


@pytest.mark.parametrize("model", ["t5-nano", "bart-nano"])
def test_the_recipe_learns_writes_and_leaves_a_complete_model_folder(pairs_file, tmp_path, model, capsys):
    overrides = (
        "d_model=32 d_kv=8 d_ff=64" if model == "t5-nano" else "d_model=32 encoder_ffn_dim=64 decoder_ffn_dim=64"
    )
    rate = "5e-3" if model == "t5-nano" else "2e-3"
    more = ("--model", model, "--model-overrides", overrides, "--learning_rate", rate, "--max_steps", "200")
    command = words(pairs_file, tmp_path / "run", *more)
    assert main(["train", "seq2seq", *command]) == 0
    assert "BLEU" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["loss"] < 1.6  # 5.8 without knowing anything
    if model == "t5-nano":
        assert metrics["chrf"] > metrics["baseline"]["chrf"]
    assert (tmp_path / "run" / "predictions.csv").read_text().count("\n") == metrics["num_pairs"] + 1
    page = checked_page(tmp_path / "run" / "report.html")
    assert (
        f"{metrics['chrf']:.2f}" in page.sections["at-a-glance"] and "words of the name" in page.sections["at-a-glance"]
    )
    assert "reference: " in page.sections["samples"] and "validation chrF" in page.sections["training"]
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    tokenizer = load_tokenizer(str(tmp_path / "run"))
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer("three four 3", return_tensors="pt")
    assert model.generate(**ids, max_length=8).shape[0] == 1


def test_a_simulated_pipeline_writes_what_the_host_writes(pairs_file, tmp_path):
    from ipu_trainer.tasks.recipe.recipe import train
    from ipu_trainer.tasks.seq2seq.train import prepare

    (tmp_path / "ipu_config.json").write_text(
        json.dumps({"layers_per_ipu": [2, 2], "gradient_accumulation_steps": 8, "output_mode": "sum"})
    )
    results = []
    for backend in ("host", "simulated"):
        more = ("--backend", backend, "--ipu-config", str(tmp_path / "ipu_config.json"), "--max_steps", "3")
        more += ("--per_device_train_batch_size", "2", "--max-validation-pairs", "9", "--precision", "fp32")
        more += ("--per_device_eval_batch_size", "2")
        results.append(train(prepare(words(pairs_file, tmp_path / backend, *more))))
    assert [one["written"] for one in results[0]["examples"]] == [one["written"] for one in results[1]["examples"]]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    assert "predictions and no measurements" in checked_page(tmp_path / "host" / "report.html").sections["on-ipus"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "gpt2-small"), "neither a folder nor one of t5-nano"),
        (("--source-length", "1"), "source_length 1"),
        (
            ("--model", "bart-nano", "--model-overrides", "max_position_embeddings=4"),
            "source_length 12 must be from 2 to",
        ),
        (("--model-overrides", "vocab_size=64"), "the model's vocabulary holds 64"),
        (("--pairs", "nowhere.jsonl"), "nowhere.jsonl is not a file"),
    ],
)
def test_bad_input_is_refused_before_work(pairs_file, tmp_path, more, message, capsys):
    assert main(["train", "seq2seq", *words(pairs_file, tmp_path / "run", *more)]) == 1
    assert message in capsys.readouterr().err


def test_a_line_without_a_target_is_named(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"source": "a", "target": "b"}\n{"source": "a"}\n')
    with pytest.raises(ValueError, match='line 2 has no "source" or no "target"'):
        list(read_pairs(file))
    file.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        list(read_pairs(file))


def test_a_file_of_pairs_may_begin_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"source": "a", "target": "b"}\n', encoding="utf-8-sig")
    assert [pair.source for pair in read_pairs(file)] == ["a"]
