"""Labels that are unknown (NaN) count nowhere: loss, sampling, metrics, reports, and evaluation on data with other findings."""

import json
import shutil

import numpy as np
import pyarrow
import pyarrow.ipc
import pytest
import torch
from html_pages import checked_page
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_runs import predictions, write_run
from safetensors.torch import load_file

from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.integrity.digests import digest_of_files, with_digest
from ipu_trainer.tasks.chest_xray.data.integrity.prepared_folder import arrow_files
from ipu_trainer.tasks.chest_xray.data.known_labels import prevalence, without_positive
from ipu_trainer.tasks.chest_xray.data.prepare import MANIFEST
from ipu_trainer.tasks.chest_xray.data.sampler import FindingBatchSampler
from ipu_trainer.tasks.chest_xray.evaluation import metrics
from ipu_trainer.tasks.chest_xray.evaluation.matched_findings import MatchedFindings
from ipu_trainer.tasks.chest_xray.evaluation.radiologist_labels import RadiologistLabels, agreement, scores
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import (
    Predictions,
    load_evaluation,
    predictions_csv,
    read_predictions,
)
from ipu_trainer.tasks.chest_xray.explain.evaluated_images import choose_images
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss, inverse_frequency
from ipu_trainer.tasks.chest_xray.report import artifacts
from ipu_trainer.tasks.chest_xray.report.html_report import paired_difference, write_report
from ipu_trainer.tasks.chest_xray.train import prepare

FINDINGS = ["Edema", "Mass", "No Finding"]
NAN = float("nan")


# The loss ---------------------------------------------------------------------------------------------------------


def batch(seed, rows=6, unknown=0.4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 3, generator=generator).requires_grad_()
    labels = (torch.rand(rows, 3, generator=generator) < 0.5).float()
    labels[torch.rand(rows, 3, generator=generator) < unknown] = NAN
    return logits, labels


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["bce", "asymmetric"]), st.sampled_from([0.0, 0.1]), st.booleans())
def test_loss_and_gradient_are_those_of_the_known_labels_alone(seed, kind, smoothing, weighted):
    logits, labels = batch(seed)
    known = ~torch.isnan(labels)
    assume(known.any())
    weights = (1.0, 2.0, 3.0) if weighted and kind == "bce" else None
    loss = FindingLoss(kind, 0.0, weights, label_smoothing=smoothing, masked=True)(logits, labels)
    # The known labels as a column of their own: today's loss of them, each with the weight of its finding.
    by_finding = []
    for column in range(3):
        chosen = known[:, column]
        of_one = None if weights is None else (weights[column],)
        part = FindingLoss(kind, 0.0, of_one, label_smoothing=smoothing)
        if chosen.any():
            by_finding.append(part(logits[chosen, column, None], labels[chosen, column, None]) * chosen.sum())
    expected = sum(by_finding) / known.sum()
    assert torch.allclose(loss, expected, atol=1e-6)
    found = gradient(loss, logits)
    assert torch.allclose(found, gradient(expected, logits), atol=1e-6)
    assert not found[~known].any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_pairs_of_the_ranking_loss_need_two_known_labels(seed):
    logits, labels = batch(seed)
    ranked = FindingLoss("bce", 0.5, masked=True)(logits, labels)
    pairs = [
        torch.nn.functional.softplus(logits[j, f] - logits[i, f])
        for f in range(3)
        for i in range(6)
        for j in range(6)
        if labels[i, f] == 1 and labels[j, f] == 0
    ]
    ranking = sum(pairs) / len(pairs) if pairs else torch.zeros(())
    expected = 0.5 * FindingLoss("bce", 0.0, masked=True)(logits, labels) + 0.5 * ranking
    assert torch.allclose(ranked, expected, atol=1e-6)
    assert torch.allclose(gradient(ranked, logits), gradient(expected, logits), atol=1e-6)


@pytest.mark.parametrize("kind", ["bce", "asymmetric"])
def test_a_micro_batch_without_known_labels_adds_zero_and_no_nan(kind):
    logits = torch.randn(4, 3, requires_grad=True)
    loss = FindingLoss(kind, 0.5, masked=True)(logits, torch.full((4, 3), NAN))
    assert float(loss.detach()) == 0.0 and torch.equal(gradient(loss, logits), torch.zeros(4, 3))


def unmasked(logits, labels, kind, ranking_weight, smoothing):
    """The loss of releases before labels could be unknown, operation by operation."""
    targets = labels * (1.0 - smoothing) + 0.5 * smoothing if smoothing else labels
    if kind == "bce":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    else:
        shifted = (torch.sigmoid(logits) - 0.05).clamp(min=0.0)
        negative = (1.0 - targets) * torch.log1p(-shifted) * shifted**2.0
        loss = -(targets * torch.nn.functional.logsigmoid(logits) + negative).mean()
    margin = logits[:, None, :] - logits[None, :, :]
    pairs = labels[:, None, :] * (1.0 - labels[None, :, :])
    ranking = (torch.nn.functional.softplus(-margin) * pairs).sum() / pairs.sum().clamp(min=1.0)
    return (1.0 - ranking_weight) * loss + ranking_weight * ranking if ranking_weight else loss


@pytest.mark.parametrize("kind", ["bce", "asymmetric"])
@pytest.mark.parametrize("ranking_weight, smoothing", [(0.0, 0.0), (0.5, 0.0), (0.5, 0.1)])
def test_known_labels_give_the_same_bits_as_before_and_the_mask_changes_rounding_alone(kind, ranking_weight, smoothing):
    for seed in range(5):
        logits, labels = batch(seed, rows=32, unknown=0.0)
        before = unmasked(logits, labels, kind, ranking_weight, smoothing)
        loss = FindingLoss(kind, ranking_weight, label_smoothing=smoothing)(logits, labels)
        assert torch.equal(loss, before) and torch.equal(gradient(loss, logits), gradient(before, logits))
        masked = FindingLoss(kind, ranking_weight, label_smoothing=smoothing, masked=True)(logits, labels)
        assert torch.allclose(masked, before, atol=1e-6)  # a sum divided by a count, instead of a mean


def test_the_masked_loss_is_traced_without_a_branch_on_values():
    """A branch on a value, as a copy to the host, would fail on the meta device."""
    logits = torch.zeros(4, 3, device="meta", requires_grad=True)
    for kind in ("bce", "asymmetric"):
        assert FindingLoss(kind, 0.5, masked=True)(logits, torch.zeros(4, 3, device="meta")).shape == ()


# What is counted before training ------------------------------------------------------------------------------------

LABELS = np.array([[1, NAN, 0], [0, NAN, NAN], [NAN, NAN, 0], [1, NAN, 0]], dtype=np.float32)


def test_weights_and_prevalence_are_of_the_known_labels():
    assert prevalence(LABELS) == pytest.approx([2 / 3, 0.5, 0.0])
    assert prevalence(LABELS).dtype == np.float32
    assert without_positive(LABELS, FINDINGS) == ["Mass", "No Finding"]
    column = LABELS[:, :1][~np.isnan(LABELS[:, :1])][:, None]
    assert inverse_frequency(LABELS)[0] == inverse_frequency(column)[0]
    assert inverse_frequency(LABELS)[1] == 1.0


def test_a_balanced_sampler_takes_an_unknown_label_for_no_finding():
    labels = np.zeros((40, 2), dtype=np.float32)
    labels[:2, 0], labels[2:30, 0] = 1, NAN  # rare among 12 known labels
    labels[30:, 1] = 1
    sampler = FindingBatchSampler(labels, BatchGeometry(4), balance=1.0)
    weights = sampler._probabilities / sampler._probabilities[5]
    assert weights[[0, 5, 35]] == pytest.approx([6.0, 1.0, 4.0], rel=1e-5)


# Metrics ------------------------------------------------------------------------------------------------------------


def masked_example(seed, num_images=60):
    generator = np.random.default_rng(seed)
    truth = (generator.random((num_images, 3)) < 0.4).astype(np.float32)
    probability = np.clip(0.3 * truth + 0.7 * generator.random((num_images, 3)), 0, 1)
    unknown = generator.random(truth.shape) < generator.random(3) * 0.9
    unknown[::3] = False  # each patient keeps an image, so that the same patients are resampled
    truth[unknown] = NAN
    table = {
        "file_name": [f"{position}.png" for position in range(num_images)],
        "patient_id": [str(position // 3) for position in range(num_images)],
        "sex": ["F" if position % 6 < 3 else "M" for position in range(num_images)],
    }
    return truth, probability, table


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_metrics_of_a_finding_are_those_of_the_images_whose_label_is_known(seed):
    truth, probability, table = masked_example(seed)
    thresholds = metrics.choose_thresholds(truth, probability, FINDINGS)
    whole = metrics.evaluate_predictions(truth, probability, FINDINGS, table, thresholds, num_bootstrap=30)
    aurocs = []
    for column, name in enumerate(FINDINGS):
        rows = np.flatnonzero(~np.isnan(truth[:, column]))
        y, score = truth[rows, column : column + 1], probability[rows, column : column + 1]
        part_table = {key: [values[row] for row in rows] for key, values in table.items()}
        assert metrics.choose_thresholds(y, score, [name]) == pytest.approx({name: thresholds[name]}, nan_ok=True)
        alone = metrics.evaluate_predictions(y, score, [name], part_table, thresholds, num_bootstrap=30)
        found = dict(whole["no_finding"] if name == "No Finding" else whole["per_finding"][name])
        assert (found.pop("num_known") == len(rows)) or len(rows) == len(truth)
        expected = alone["no_finding"] if name == "No Finding" else alone["per_finding"][name]
        assert json.dumps(found) == json.dumps(expected)  # to the last bit, NaN included
        for group, values in alone["subgroups"].get("sex", {}).items():
            if name != "No Finding":
                assert json.dumps(whole["subgroups"]["sex"][group]["per_finding"][name]) == json.dumps(
                    values["per_finding"][name]
                )
        aurocs += [expected["auroc"]] if name != "No Finding" and np.isfinite(expected["auroc"]) else []
    assert whole["num_images"] == len(truth)
    assert whole["mean_auroc_14"] == pytest.approx(np.mean(aurocs) if aurocs else NAN, nan_ok=True)
    assert metrics.mean_auroc(truth, probability, FINDINGS) == pytest.approx(whole["mean_auroc_14"], nan_ok=True)


def test_known_labels_alone_add_no_key():
    truth, probability, table = masked_example(0)
    rows = metrics.evaluate_predictions(np.nan_to_num(truth), probability, FINDINGS, table, None, 10)["per_finding"]
    assert all("num_known" not in row for row in rows.values())


def test_a_finding_without_known_labels_is_undefined_and_named_apart_from_one_class():
    truth, probability, table = masked_example(0)
    findings = ["Edema", "Mass", "Nodule"]
    truth[:, 1], truth[:, 2] = NAN, 0
    result = metrics.evaluate_predictions(truth, probability, findings, table, None, 10)
    assert result["undefined_findings"] == ["Mass", "Nodule"]
    assert result["mean_auroc_14"] == result["per_finding"]["Edema"]["auroc"]
    text = artifacts.metrics_table(result)
    assert "undefined (one class only): Nodule" in text and "undefined (no known label): Mass" in text
    assert text.splitlines()[0].endswith("known") and text.splitlines()[2].split()[-1] == "0"


# Files and reports --------------------------------------------------------------------------------------------------


def test_an_unknown_label_is_an_empty_cell_of_predictions_and_comes_back_as_nan(tmp_path):
    truth, probability, table = masked_example(3)
    (tmp_path / "predictions.csv").write_text(predictions_csv(truth, probability, FINDINGS, table))
    read = read_predictions(tmp_path / "predictions.csv")
    assert np.array_equal(read.truth, truth, equal_nan=True)
    (tmp_path / "predictions.csv").write_text("file_name,patient_id,truth_Mass,probability_Mass\na,1,1,\n")
    with pytest.raises(UserError, match="line 2"):  # a probability is never missing
        read_predictions(tmp_path / "predictions.csv")


def made_up(num_images=90, seed=0):
    truth, probability = predictions(num_images, seed=seed)
    generator = np.random.default_rng(seed + 1)  # with the same one, exactly the positives would be unknown
    truth[generator.random(truth.shape) < 0.3] = NAN
    truth[:, 1] = NAN  # Mass
    return truth, probability


def test_a_report_counts_known_labels_alone(tmp_path):
    truth, probability = made_up()
    run = write_run(tmp_path / "run", truth, probability)
    page = checked_page(write_report(run))
    assert "Mass(noknownlabel)" in page.sections["auroc-by-finding"].replace(" ", "")
    assert "knownlabels" in page.sections["auroc-by-finding"].replace(" ", "")
    evaluation = load_evaluation(run)
    y, score = evaluation.known("Effusion")
    assert len(y) == int((~np.isnan(truth[:, 0])).sum()) and np.isfinite(y).all() and len(score) == len(y)
    known = int((~np.isnan(truth[:, [0, 3, 4]])).sum())
    assert f"{known:,}predictions" in page.sections["calibration"].replace(" ", "")
    assert "nan" not in page.sections["calibration"].lower() + page.sections["thresholds"].lower()
    examples = [e for found in choose_images(evaluation.predictions).values() for e in found]
    assert examples and all(np.isfinite(truth[e.row, e.column]) for e in examples)
    assert "of5unknown" in page.sections["best-and-worst-predictions"].replace(" ", "")


def test_two_runs_are_compared_on_known_labels_and_by_synonyms(tmp_path):
    truth, probability = made_up()
    names = ("Effusion", "Mass", "No Finding", "Nodule", "Pneumothorax")
    others = ("Pleural Effusion", "Lung Mass", "No Finding", "Nodule", "Pneumothorax")
    better = np.clip(probability + 0.2 * np.nan_to_num(truth), 0, 1)
    first = load_evaluation(write_run(tmp_path / "a", truth, probability, names))
    other = load_evaluation(write_run(tmp_path / "b", truth, better, others))
    images, difference, (low, high) = paired_difference(first, other)
    assert images == len(truth) and low <= difference <= high
    means = [evaluation.metrics["mean_auroc_14"] for evaluation in (first, other)]
    assert difference == pytest.approx(means[1] - means[0], abs=1e-6) and difference > 0


def test_radiologists_are_compared_where_the_mined_label_is_known():
    names = tuple(f"{position}.png" for position in range(6))
    truth = np.array([[1, NAN], [0, NAN], [0, 0], [NAN, 0], [0, 1], [NAN, NAN]], dtype=np.float64)
    values = {name: np.array([1.0]) if row in (0, 4, 5) else np.array([0.0]) for row, name in enumerate(names)}
    labels = RadiologistLabels(("Nodule or mass",), values)
    (row,) = agreement(names, truth, ("Mass", "Nodule"), labels)
    # Known: image 0 (Mass), 2 (neither) and 4 (Nodule). Of the others nobody knows whether they have one of the two.
    assert (row.num_images, row.radiologist_positive, row.mined_positive, row.both_positive) == (3, 2, 2, 2)
    assert row.kappa == 1.0
    made = Predictions(names, names, ("Mass", "Nodule"), truth, np.linspace(0, 1, 12).reshape(6, 2))
    (scored,) = scores(made, labels, 10)
    assert scored.num_images == 3
    assert agreement(names, np.full((6, 2), NAN), ("Mass", "Nodule"), labels) == []


# Another data set ---------------------------------------------------------------------------------------------------


def test_findings_of_another_data_set_are_matched_by_spelling_and_synonym():
    matched = MatchedFindings.of(["Effusion", "Mass", "No Finding"], ["pleural effusion", "Fracture", "Normal"])
    assert matched.of_data == {"Effusion": "pleural effusion", "No Finding": "Normal"} == matched.renamed
    assert matched.unknown_to_the_model == ["Fracture"] and matched.unknown_to_the_data == ["Mass"]
    truth = matched.truth(np.array([[1, 0, NAN], [0, 1, 1]]))
    assert np.array_equal(truth, [[1, NAN, NAN], [0, NAN, 1]], equal_nan=True)
    with pytest.raises(UserError, match="the model knows Mass; the data have Fracture: no finding in common"):
        MatchedFindings.of(["Mass"], ["Fracture"])


# End to end -----------------------------------------------------------------------------------------------------------

CPU = "--" + compat.field_name("use_cpu")


def changed_copy(prepared, folder, change, rename=None):
    """The prepared folder with labels changed in place by change(labels, splits), and findings renamed."""
    shutil.copytree(prepared, folder)
    state = json.loads((folder / "metadata" / "state.json").read_text())
    (name,) = [item["filename"] for item in state["_data_files"]]
    table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(prepared / "metadata" / name))).read_all()
    labels = np.array(table.column("labels").to_pylist(), dtype=np.float32)
    manifest = json.loads((folder / MANIFEST).read_text())
    change(labels, np.array(table.column("split").to_pylist()))
    position = table.column_names.index("labels")
    column = pyarrow.array(labels.tolist(), type=table.schema.field("labels").type)
    table = table.set_column(position, table.schema.field("labels"), column)
    (folder / "metadata" / name).unlink()
    with pyarrow.ipc.new_stream(str(folder / "metadata" / name), table.schema) as file:
        file.write_table(table)
    manifest["findings"] = [(rename or {}).get(finding, finding) for finding in manifest["findings"]]
    about = {name: value for name, value in manifest.items() if name not in ("digest", "sources")}
    digests = {**manifest["digests"], "metadata": digest_of_files(arrow_files(folder))}
    (folder / MANIFEST).write_text(json.dumps(with_digest({**about, "digests": digests})))
    return folder


def forget(labels, _splits):
    generator = np.random.default_rng(5)
    labels[generator.random(labels.shape) < 0.4] = NAN
    labels[7] = NAN
    labels[:, 0] = NAN


@pytest.fixture(scope="module")
def masked(prepared, tmp_path_factory):
    return changed_copy(prepared, tmp_path_factory.mktemp("masked") / "data", forget)


def train_words(data, phantoms, run, *more):
    flags = f"--num_train_epochs 1 --per_device_train_batch_size 4 {CPU} True --disable_tqdm True --precision fp32"
    flags += " --num_bootstrap 20 --drop_path 0 --ema_decay 0 --optim sgd --learning_rate 0.5"
    paths = ["--data", str(data), "--model", str(phantoms / "model"), "--output", str(run)]
    return ["train", "chest-xray", *paths, *flags.split(), *more]


@pytest.fixture(scope="module")
def run(masked, phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked-run") / "run"
    assert main(train_words(masked, phantoms, folder, "--ranking_weight", "0.3", "--pos_weight", "True")) == 0
    return folder


def test_data_with_unknown_labels_are_trained_evaluated_and_reported(run, masked, tmp_path, capsys):
    assert all(torch.isfinite(value).all() for value in load_file(run / "model.safetensors").values())
    record, found = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    assert record["settings"]["loss"]["masked"] is True
    test = load_prepared(masked).split("test")
    first, second = record["findings"][:2]
    assert found["per_finding"][first]["num_known"] == 0 and first in found["undefined_findings"]
    assert found["per_finding"][second]["num_known"] == int((~np.isnan(test.labels[:, 1])).sum()) < len(test)
    assert found["validation_mean_auroc_14"] is not None
    assert "no known label" in (run / "README.md").read_text()
    page = checked_page(run / "report.html")
    assert "knownlabels" in page.sections["auroc-by-finding"].replace(" ", "")
    command = ["evaluate", "chest-xray", "--run", str(run), "--data", str(masked), "--num_bootstrap", "20"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert again["per_finding"] == found["per_finding"]
    assert again["findings_unknown_to_the_data"] == [] == again["findings_unknown_to_the_model"]


def test_the_head_of_a_run_says_how_many_labels_are_unknown_and_what_is_not_learned(masked, phantoms, tmp_path):
    job = prepare(train_words(masked, phantoms, tmp_path)[2:])
    rows = dict(job.describe())
    labels = load_prepared(masked).everything.labels
    assert rows["labels"].startswith(f"{int(np.isnan(labels).sum()):,} of {labels.size:,} unknown")
    assert load_prepared(masked).findings[0] in rows["no positive"] and "over known labels" in rows["loss"]
    bias = job.new_model().classifier.bias
    assert torch.isfinite(bias).all() and float(bias[0].detach()) == 0.0


def test_training_data_without_any_known_label_are_refused(prepared, phantoms, tmp_path):
    def forget_training(labels, splits):
        labels[splits == "train"] = NAN

    data = changed_copy(prepared, tmp_path / "data", forget_training)
    with pytest.raises(UserError, match="no known label in its training split"):
        prepare(train_words(data, phantoms, tmp_path / "run")[2:])


def test_unknown_validation_labels_alone_mask_the_loss_too(prepared, phantoms, tmp_path):
    def forget_validation(labels, splits):
        labels[splits == "validation", 1] = NAN

    data = changed_copy(prepared, tmp_path / "data", forget_validation)
    assert main(train_words(data, phantoms, tmp_path / "run", "--report", "False")) == 0
    losses = [
        row["eval_loss"] for row in json.loads((tmp_path / "run" / "history.json").read_text()) if "eval_loss" in row
    ]
    assert losses and all(np.isfinite(loss) for loss in losses)


def test_a_simulated_pod_gives_the_weights_of_the_host_and_host_micro_batches_stay_apart(masked, phantoms, tmp_path):
    """Pipelined over two IPUs. A mean over known labels is one of its micro-batch, so the host computes them one by one."""
    config = {"gradient_accumulation_steps": 4, "layers_per_ipu": [1, 2], "ipus_per_replica": 2}
    (tmp_path / "ipu_config.json").write_text(json.dumps(config))
    more = ["--ranking_weight", "0.3", "--ipu_config", str(tmp_path / "ipu_config.json"), "--report", "False"]
    for backend in ("host", "simulated"):
        assert main(train_words(masked, phantoms, tmp_path / backend, *more, "--backend", backend)) == 0
    host, device = (load_file(tmp_path / name / "model.safetensors") for name in ("host", "simulated"))
    assert all(torch.isfinite(value).all() for value in host.values())
    assert max(float((host[name] - device[name]).abs().max()) for name in host) < 1e-5  # float32 rounding, as unmasked
    record = json.loads((tmp_path / "host" / "run.json").read_text())
    assert record["execution"]["host_micro_batch_size"] == 4


def test_micro_batches_are_not_coalesced_even_where_the_first_ones_are_fully_known(prepared, phantoms, tmp_path):
    def forget_one(labels, splits):
        labels[np.flatnonzero(splits == "test")[0], 1] = NAN

    data = changed_copy(prepared, tmp_path / "data", forget_one)
    (tmp_path / "ipu_config.json").write_text(json.dumps({"gradient_accumulation_steps": 4}))
    more = ["--ranking_weight", "0", "--ipu_config", str(tmp_path / "ipu_config.json"), "--report", "False"]
    sizes = []
    for folder in (prepared, data):
        run = tmp_path / f"run-{len(sizes)}"
        assert main(train_words(folder, phantoms, run, *more, "--backend", "host")) == 0
        sizes.append(json.loads((run / "run.json").read_text())["execution"]["host_micro_batch_size"])
    assert sizes == [16, 4]


def test_a_run_is_evaluated_on_data_that_name_findings_otherwise(run, prepared, tmp_path, capsys):
    findings = load_prepared(prepared).findings
    assert {"Effusion", "Mass", "No Finding"} <= set(findings)
    rename = {"Effusion": "Pleural Effusion", "Mass": "Fracture", "No Finding": "Normal"}
    other = changed_copy(prepared, tmp_path / "other", lambda labels, _: None, rename)
    command = ["evaluate", "chest-xray", "--run", str(run), "--num_bootstrap", "20", "--split", "all"]
    outputs = {}
    for name, data in (("own", prepared), ("other", other)):
        assert main([*command, "--data", str(data), "--output", str(tmp_path / name / "out")]) == 0
        outputs[name] = json.loads((tmp_path / name / "out" / "metrics.json").read_text())
    shown = capsys.readouterr()
    assert "the model has no output for 'Fracture'" in shown.err and "the data have no labels of 'Mass'" in shown.err
    own, found = outputs["own"], outputs["other"]
    assert found["findings_unknown_to_the_model"] == ["Fracture"] and found["findings_unknown_to_the_data"] == ["Mass"]
    assert found["findings_renamed"] == {"Effusion": "Pleural Effusion", "No Finding": "Normal"}
    effusion = found["per_finding"]["Effusion"]
    assert effusion.pop("num_known") == 120 and effusion == own["per_finding"]["Effusion"]
    assert found["no_finding"]["auroc"] == own["no_finding"]["auroc"]
    mass = found["per_finding"]["Mass"]
    assert (mass["num_known"], mass["auroc"], mass["prevalence"], mass.get("specificity")) == (0, None, None, None)
    text = checked_page(tmp_path / "other" / "out" / "report.html").sections["auroc-by-finding"].replace(" ", "")
    assert "FindingsthatthedatadonotlabelMass".lower() in text.replace(":", "").lower()
    assert "Fracture" in text and "Effusion(inthedata:PleuralEffusion)" in text


def test_data_without_a_common_finding_or_a_known_label_are_refused_before_work(run, prepared, tmp_path, capsys):
    others = {finding: f"Thing {number}" for number, finding in enumerate(load_prepared(prepared).findings)}
    foreign = changed_copy(prepared, tmp_path / "foreign", lambda labels, _: None, others)

    def forget_test(labels, splits):
        labels[splits == "test"] = NAN

    empty = changed_copy(prepared, tmp_path / "empty", forget_test)
    for data, message in ((foreign, "no finding in common"), (empty, "no image in the test split")):
        command = ["evaluate", "chest-xray", "--run", str(run), "--data", str(data), "--output", str(tmp_path / "out")]
        assert main(command) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
