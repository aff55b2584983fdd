"""Results of a run that a disk or an editor damaged: the report names the file and the key before it draws anything."""

import json

import pytest
from made_up_runs import FINDINGS, predictions, write_run

from ipu_trainer.atomic import write_json
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.evaluation.metrics import evaluate_predictions
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import load_evaluation
from ipu_trainer.tasks.chest_xray.report.artifacts import write_evaluation
from ipu_trainer.tasks.language_modeling import train as language_modeling
from ipu_trainer.tasks.seq2seq import train as seq2seq


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run"), *predictions(30))
    return {
        name: (folder / name).read_text() for name in ("run.json", "metrics.json", "predictions.csv", "history.json")
    }


def copy(whole, folder):
    for name, text in whole.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "key", "value", "told"),
    [
        ("run.json", "thresholds.Mass", "x", r"run.json: thresholds.Mass is \"x\", not a number"),
        ("run.json", "thresholds", None, r"run.json: thresholds is null, not an object"),
        ("run.json", "findings", [1], r"run.json: findings\[0\] is 1, not a text"),
        ("run.json", "data", [], r"run.json: data is \[\], not an object"),
        ("metrics.json", "per_finding", None, r"metrics.json: per_finding is null"),
        ("metrics.json", "per_finding.Mass", 3, r"metrics.json: per_finding.Mass is 3, not an object"),
        ("metrics.json", "per_finding.Mass.auroc", "high", r"per_finding.Mass.auroc is \"high\""),
        ("metrics.json", "per_finding.Mass.auroc_interval", [0.5], r"auroc_interval of Mass has 1 ends, not 2"),
        ("metrics.json", "subgroups", [1], r"metrics.json: subgroups is \[1\]"),
        ("metrics.json", "num_images", 29, r"predictions.csv has 30 images, and metrics.json beside it 29"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_file(whole, tmp_path, file, key, value, told):
    folder = copy(whole, tmp_path)
    content = json.loads(whole[file])
    *path, last = key.split(".")
    inside = content
    for name in path:
        inside = inside[name]
    inside[last] = value
    write_json(folder / file, content)
    with pytest.raises(UserError, match=told):
        load_evaluation(folder)


def test_predictions_that_are_not_those_of_the_metrics_are_refused(whole, tmp_path):
    folder = copy(whole, tmp_path)
    assert len(load_evaluation(folder).predictions) == 30
    lines = whole["predictions.csv"].splitlines(keepends=True)
    (folder / "predictions.csv").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"predictions.csv has 29 images, and metrics.json beside it 30"):
        load_evaluation(folder)
    cells = lines[1].split(",")
    (folder / "predictions.csv").write_text("".join([lines[0], ",".join([*cells[:-1], "nan\n"]), *lines[2:]]))
    with pytest.raises(UserError, match=r"probability_Pneumothorax holds a value that is no finite number"):
        load_evaluation(folder)


def test_one_changed_digit_of_the_predictions_is_found_by_its_digest(whole, tmp_path):
    folder = copy(whole, tmp_path)
    truth, probability = predictions(30)
    table = {name: [str(i // 3) for i in range(30)] for name in ("file_name", "patient_id", "sex", "age", "view")}
    thresholds = dict.fromkeys(FINDINGS, 0.5)
    metrics = {
        "split": "test",
        **evaluate_predictions(truth, probability, FINDINGS, {**table, "age": [1] * 30}, thresholds, 2),
    }
    write_evaluation(folder, metrics, truth, probability, FINDINGS, table)
    load_evaluation(folder)
    text = (folder / "predictions.csv").read_text()
    (folder / "predictions.csv").write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    with pytest.raises(UserError, match="is not the file of metrics.json beside it"):
        load_evaluation(folder)


@pytest.mark.parametrize("task", [language_modeling, seq2seq], ids=["language-modeling", "seq2seq"])
def test_the_results_of_a_text_run_are_named_too(whole, tmp_path, task):
    folder = copy(whole, tmp_path)
    with pytest.raises(UserError, match=r"metrics.json: num_(tokens|pairs) is missing"):
        task.write_report(folder)
    write_json(
        folder / "metrics.json", {"num_tokens": 3, "perplexity": "low", "num_pairs": 3, "baseline": {}, "bleu": "low"}
    )
    with pytest.raises(UserError, match=r'metrics.json: (perplexity|bleu) is "low", not a number or null'):
        task.write_report(folder)
    write_json(folder / "metrics.json", {"num_tokens": 3, "num_pairs": 3, "baseline": {}})
    with pytest.raises(UserError, match=r"run.json: (masked|settings.recipe.source_length) is missing"):
        task.write_comparison([folder, folder], tmp_path / "both.html")
