import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ipu_trainer.tasks.chest_xray.evaluation import metrics
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss, inverse_frequency, ranking_loss
from ipu_trainer.tasks.chest_xray.report import artifacts as report

FINDINGS = ["Edema", "Mass", "No Finding"]


def example(num_images=200, seed=0):
    generator = np.random.default_rng(seed)
    truth = (generator.random((num_images, 3)) < 0.3).astype(np.float32)
    probability = np.clip(0.3 * truth + 0.7 * generator.random((num_images, 3)), 0, 1)
    table = {
        "file_name": [f"{position}.png" for position in range(num_images)],
        "patient_id": [str(position // 3) for position in range(num_images)],
        "sex": ["F" if position % 2 else "M" for position in range(num_images)],
        "age": [None if position % 10 == 0 else 20 + position % 60 for position in range(num_images)],
        "view": ["PA"] * num_images,
    }
    return truth, probability, table


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 5))
def test_weighted_scores_are_those_of_scikit_learn_ties_included(seed, num_samples, levels):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, num_samples).astype(float)
    y[:2] = [0, 1]
    score = generator.integers(0, levels, num_samples) / levels
    weights = generator.integers(0, 3, (4, num_samples)).astype(float)
    weights[:, :2] = 1
    for row, area, precision in zip(
        weights, metrics.weighted_auroc(y, score, weights), metrics.weighted_average_precision(y, score, weights)
    ):
        assert area == pytest.approx(roc_auc_score(y, score, sample_weight=row))
        assert precision == pytest.approx(average_precision_score(y, score, sample_weight=row))


def test_mean_is_that_of_the_rows_and_no_finding_stands_apart():
    truth, probability, table = example()
    result = metrics.evaluate_predictions(truth, probability, FINDINGS, table, num_bootstrap=50)
    assert set(result["per_finding"]) == {"Edema", "Mass"}
    assert result["mean_auroc_14"] == pytest.approx(np.mean([row["auroc"] for row in result["per_finding"].values()]))
    assert result["no_finding"]["auroc"] == pytest.approx(roc_auc_score(truth[:, 2], probability[:, 2]))
    low, high = result["mean_auroc_14_interval"]
    assert low < result["mean_auroc_14"] < high
    assert result["num_patients"] == 67
    assert sum(group["num_images"] for group in result["subgroups"]["age"].values()) == 200
    assert result["subgroups"]["age"]["unknown"]["num_images"] == 20


def test_a_finding_with_one_class_is_undefined_and_named():
    truth, probability, table = example()
    truth[:, 1] = 0
    result = metrics.evaluate_predictions(truth, probability, FINDINGS, table, num_bootstrap=20)
    assert np.isnan(result["per_finding"]["Mass"]["auroc"])
    assert result["undefined_findings"] == ["Mass"]
    assert result["mean_auroc_14"] == pytest.approx(result["per_finding"]["Edema"]["auroc"])
    assert "undefined (one class only): Mass" in report.metrics_table(result)


def test_intervals_resample_patients_not_images():
    truth, probability, table = example(600)
    # The same image twenty times over is one observation if the patient is the same, twenty if each is a patient.
    few, many = {**table}, {**table}
    repeated = np.arange(600) // 20 * 20
    few["patient_id"] = [str(value) for value in repeated]
    many["patient_id"] = [str(position) for position in range(600)]
    widths = []
    for patients in (few, many):
        low, high = metrics.evaluate_predictions(truth[repeated], probability[repeated], FINDINGS, patients)[
            "mean_auroc_14_interval"
        ]
        widths.append(high - low)
    assert widths[0] > 2.5 * widths[1]


def test_predictions_that_are_not_numbers_are_undefined_not_a_crash(tmp_path):
    truth, probability, table = example(40)
    probability[3, 0] = np.nan
    result = metrics.evaluate_predictions(truth, probability, FINDINGS, table, {"Edema": 0.5}, num_bootstrap=20)
    assert result["undefined_findings"] == ["Edema"]
    report.write_evaluation(tmp_path, result, truth, probability, FINDINGS, table)
    assert json.loads((tmp_path / "metrics.json").read_text())["per_finding"]["Edema"]["auroc"] is None


def test_thresholds_maximise_sensitivity_plus_specificity():
    y = np.array([[0], [0], [1], [0], [1], [1]])
    score = np.array([[0.1], [0.2], [0.3], [0.4], [0.8], [0.9]])
    thresholds = metrics.choose_thresholds(y, score, ["Mass"])
    assert thresholds["Mass"] in (0.3, 0.8)
    assert np.isnan(metrics.choose_thresholds(np.zeros((6, 1)), score, ["Mass"])["Mass"])
    table = {"patient_id": list("abcdef")}
    row = metrics.evaluate_predictions(y, score, ["Mass"], table, {"Mass": 0.35}, 10)["per_finding"]["Mass"]
    assert (row["sensitivity"], row["specificity"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_calibration_error_of_a_known_case():
    assert metrics.expected_calibration_error(np.array([1, 0, 1, 0]), np.full(4, 0.5)) == pytest.approx(0.0)
    assert metrics.expected_calibration_error(np.array([0, 0]), np.array([0.9, 0.7])) == pytest.approx(0.8)


def test_two_images_and_one_patient_are_enough_for_a_report(tmp_path):
    truth, probability, table = example(2)
    result = metrics.evaluate_predictions(truth, probability, FINDINGS, table, num_bootstrap=10)
    report.write_evaluation(tmp_path, result, truth, probability, FINDINGS, table)
    assert (tmp_path / "plots" / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_shapes_that_do_not_match_are_refused():
    truth, probability, table = example()
    with pytest.raises(ValueError, match="must both be"):
        metrics.evaluate_predictions(truth, probability[:, :2], FINDINGS, table)


def test_ranking_loss_is_the_mean_over_pairs():
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.0], [-1.0, 2.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    pairs = [(1.0, 0.5), (1.0, -1.0), (2.0, 0.0), (2.0, 0.0)]
    expected = np.mean([np.log1p(np.exp(-(positive - negative))) for positive, negative in pairs])
    assert float(ranking_loss(logits, labels)) == pytest.approx(expected)
    assert float(ranking_loss(logits, torch.zeros_like(labels))) == 0.0


def test_losses_reduce_to_their_textbook_forms():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), (torch.rand(6, 4) < 0.5).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert torch.equal(FindingLoss(ranking_weight=0.0)(logits, labels), bce)
    assert torch.allclose(FindingLoss("asymmetric", 0.0, gamma=0.0, margin=0.0)(logits, labels), bce)
    mixed = FindingLoss(ranking_weight=0.25)(logits, labels)
    assert torch.allclose(mixed, 0.75 * bce + 0.25 * ranking_loss(logits, labels))
    weighted = FindingLoss(ranking_weight=0.0, pos_weight=(2.0,) * 4)(logits, labels)
    assert torch.allclose(
        weighted, torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=torch.full((4,), 2.0))
    )
    assert inverse_frequency(np.array([[1, 0], [0, 0], [0, 0], [0, 0]])) == (2.0, 5.0)


@pytest.mark.parametrize(
    "options", [{"kind": "mse"}, {"ranking_weight": 1.0}, {"kind": "asymmetric", "pos_weight": (1.0,)}, {"margin": 1.0}]
)
def test_a_loss_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError):
        FindingLoss(**options)


def test_data_without_patients_are_not_said_to_have_some():
    generator = np.random.default_rng(0)
    truth = (generator.random((12, 2)) < 0.5).astype(np.float32)
    for prefix, text in (("image:", "12 images of unknown patients; intervals resample images"), ("study:", "12 images of 6 studies, patients unknown; intervals resample studies"), ("", "12 images of 6 patients; intervals resample patients")):  # fmt: skip
        ids = [f"{prefix}{row // (1 if prefix == 'image:' else 2)}" for row in range(12)]
        found = metrics.evaluate_predictions(
            truth, generator.random((12, 2)), ["Edema", "Mass"], {"patient_id": ids}, num_bootstrap=5
        )
        assert report.metrics_table(found).splitlines()[-1] == text
