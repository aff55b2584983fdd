"""The report page: whole, safe and small for every kind of run, and comparisons that mean something."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from html_pages import checked_page
from made_up_runs import FINDINGS, predictions, write_run

from ipu_trainer.atomic import write_json
from ipu_trainer.cli import main
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import load_evaluation, read_predictions
from ipu_trainer.tasks.chest_xray.explain.evaluated_images import EvaluatedImages, Saliency, choose_images
from ipu_trainer.tasks.chest_xray.explain.pointing_game import Box
from ipu_trainer.tasks.chest_xray.report import html_report as pages
from ipu_trainer.tasks.chest_xray.report.html_report import paired_difference, write_comparison, write_report
from ipu_trainer.tasks.reporting.html_document import write_page
from ipu_trainer.tasks.reporting.run_comparison import distinct_names


def test_a_report_has_what_ran_curves_intervals_calibration_subgroups_and_thresholds(tmp_path):
    page = checked_page(write_report(write_run(tmp_path / "run", *predictions(300))))
    titles = """at-a-glance auroc-by-finding curves-by-finding calibration thresholds subgroups
        best-and-worst-predictions localisation radiologists-labels training batches all-settings"""
    assert list(page.sections)[1:] == titles.split()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    mean, (low, high) = metrics["mean_auroc_14"], metrics["mean_auroc_14_interval"]
    assert f"{mean:.3f}" in page.sections["at-a-glance"] and f"{low:.3f} – {high:.3f}" in page.sections["at-a-glance"]
    assert "google/vit-small" in page.sections["at-a-glance"] and "f" * 32 in page.sections["at-a-glance"]
    for name in FINDINGS:
        assert name in page.sections["auroc-by-finding"] and name in page.sections["thresholds"]
    assert f"{metrics['per_finding']['Mass']['brier']:.4f}" in page.sections["calibration"]
    assert "sex F" in page.sections["subgroups"] and "view unknown" in page.sections["subgroups"]
    assert "training loss" in page.sections["training"] and "validation AUROC" in page.sections["training"]
    assert "global batch  4" in page.sections["batches"] and "learning_rate" in page.sections["all-settings"]
    assert page.text.count("Not for clinical use.") == 2
    assert "--boxes FILE" in page.text and "--radiologist-labels FILE" in page.text and "--data FOLDER" in page.text


def test_findings_of_one_class_are_named_with_the_reason(tmp_path):
    truth, probability = predictions(60)
    truth[:, FINDINGS.index("Mass")], truth[:, FINDINGS.index("Nodule")] = 0, 1
    page = checked_page(write_report(write_run(tmp_path, truth, probability)))
    assert "Mass (no image has it); Nodule (every image has it)" in page.sections["auroc-by-finding"]
    assert "Mass: AUROC" not in page.sections["curves-by-finding"]
    truth[:] = 0
    page = checked_page(write_report(write_run(tmp_path / "none", truth, probability)))
    assert "there is no curve to draw" in page.sections["curves-by-finding"]
    assert "there are no examples" in page.sections["best-and-worst-predictions"]


def test_probabilities_that_are_no_numbers_are_counted_and_spoil_their_finding_alone(tmp_path):
    truth, probability = predictions(60)
    probability[:7, FINDINGS.index("Mass")] = np.nan
    page = checked_page(write_report(write_run(tmp_path / "some", truth, probability)))
    assert "Mass (7 of 60 probabilities are NaN or infinite)" in page.sections["auroc-by-finding"]
    assert "Nodule: AUROC" in page.sections["curves-by-finding"]
    probability[:] = np.nan
    page = checked_page(write_report(write_run(tmp_path / "all", truth, probability)))
    assert (
        "60 of 60" in page.sections["auroc-by-finding"]
        and "No finding has finite probabilities" in page.sections["calibration"]
    )


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_are_a_report_too(tmp_path, count):
    truth, probability = predictions(count)
    page = checked_page(write_report(write_run(tmp_path, truth, probability)))
    assert f"images{count}of 1 patients" in page.sections["at-a-glance"].replace("\n", "")
    assert "(too few)" in page.sections["subgroups"]


def test_ten_thousand_images_with_the_largest_images_stay_under_five_megabytes(tmp_path):
    """Noise is what JPEG is worst at; boxes on many images, so that the page shows as many as it can."""
    truth, probability = predictions(10_000, NIH_FINDINGS)
    write_run(tmp_path, truth, probability, NIH_FINDINGS, num_bootstrap=2)
    generator = np.random.default_rng(0)
    names = read_predictions(tmp_path / "predictions.csv").file_names

    class Noise(EvaluatedImages):
        def pixels(self, name):
            return generator.integers(0, 256, (224, 224)).astype(np.uint8)

        def saliency(self, names, columns):
            return Saliency(*generator.random((2, len(names), 16, 16), dtype=np.float32))

    images = Noise(SimpleNamespace(table={"file_name": list(names)}))
    boxes = {name: [Box("Mass", 0.1, 0.1, 0.2, 0.2), Box("Nodule", 0.5, 0.5, 0.1, 0.1)] for name in names[:400]}
    write_page(tmp_path / "report.html", pages.evaluation_page(load_evaluation(tmp_path), images, boxes))
    page = checked_page(tmp_path / "report.html")
    assert sum(tag == "img" for tag, name, _ in page.attributes if name == "src") == 3 * (18 + 12)
    assert "400 of the 10,000 evaluated images have boxes, 800 pairs" in page.sections["localisation"]


def test_names_from_files_are_text_and_never_markup_or_formulas(tmp_path):
    nasty = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "$\\frac{1}{$",
        "No Finding",
        "&lt;b&gt; ]]>",
    ]
    truth, probability = predictions(40, nasty)
    names = [f"</h4><script>{i}</script>/{i // 2:03d}_\"'><svg onload=x>.png" for i in range(40)]
    folder = write_run(
        tmp_path / "<b>run</b>", truth, probability, nasty, names, model="<img src=http://x.y/z.png>",
        batch_table="</pre><script>", versions={"ipu_trainer": "<i>"},
    )  # fmt: skip
    page = checked_page(write_report(folder, tmp_path / "page.html"))
    for text in nasty:
        assert text in page.text
    other = write_run(tmp_path / "b", truth, 1 - probability, nasty, names)
    checked_page(write_comparison([folder, other], tmp_path / "comparison.html"))


def test_best_and_worst_images_rank_highest_and_lowest_and_none_is_shown_twice(tmp_path):
    truth, probability = predictions(200)
    write_run(tmp_path, truth, probability)
    found = read_predictions(tmp_path / "predictions.csv")
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)
    chosen = choose_images(found, each=6, each_finding=2)
    rows = [image.row for images in chosen.values() for image in images]
    assert len(rows) == len(set(rows)) == 18
    for kind, images in chosen.items():
        assert [truth[i.row, i.column] for i in images] == [0.0 if kind == "false alarm" else 1.0] * 6
        assert all(found.findings[i.column] != "No Finding" for i in images)
        assert max(sum(i.column == j.column for j in images) for i in images) <= 2
    missed = chosen["missed"][0]
    lowest = min(
        (np.mean(probability[:, c] < probability[r, c]), r, c)
        for r, c in np.argwhere(truth == 1)
        if FINDINGS[c] != "No Finding"
    )
    assert (missed.row, missed.column) == lowest[1:]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "has the columns"),
        ("file_name,patient_id\n", "has the columns"),
        ("file_name,patient_id,truth_A,probability_A\nx,1,0\n", "line 2: 3 cells, the head has 4"),
        ("file_name,patient_id,truth_A,probability_A\nx,1,0,0.5\nx,1,0,high\n", "line 3: could not convert"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_damaged_predictions_file_is_refused_with_its_line(tmp_path, capsys, content, message):
    folder = write_run(tmp_path / "run", *predictions(20))
    (folder / "predictions.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", str(folder)]) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_what_is_no_finished_run_is_refused_with_the_next_move(tmp_path, capsys):
    folder = write_run(tmp_path / "run", *predictions(20))
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    (folder / "metrics.json").write_text("{")
    assert main(["report", str(folder)]) == 1
    assert "metrics.json is not JSON" in capsys.readouterr().err
    (folder / "metrics.json").write_text("{}")
    assert main(["report", str(folder)]) == 1
    assert "num_images is missing. Evaluate the run again." in capsys.readouterr().err
    write_run(folder, *predictions(20), status="running")
    assert main(["report", str(folder)]) == 1
    assert "is not finished" in capsys.readouterr().err


def test_runs_are_compared_on_the_same_resampled_patients(tmp_path):
    truth, good = predictions(400, seed=1, skill=1.6)
    _, noise = predictions(400, seed=2)
    folders = [
        write_run(tmp_path / name, truth, probability, num_bootstrap=200, settings=settings(rate))
        for name, probability, rate in (("a", 0.7 * good + 0.3 * noise, 1e-3), ("b", good, 2e-3))
    ]
    images, difference, (low, high) = paired_difference(*(load_evaluation(folder) for folder in folders))
    own = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert images == 400 and difference == pytest.approx(own[1]["mean_auroc_14"] - own[0]["mean_auroc_14"])
    # On its own each mean is uncertain; that one run is better than the other on these patients is not.
    assert 0 < low < difference < high
    widths = [m["mean_auroc_14_interval"][1] - m["mean_auroc_14_interval"][0] for m in own]
    assert high - low < min(widths)
    assert main(["report", *map(str, folders), "--output", str(tmp_path / "c.html")]) == 0
    page = checked_page(tmp_path / "c.html")
    assert f"{difference:+.3f}" in page.sections["differences"] and "excludes 0" in page.sections["differences"]
    assert "training.learning_rate" in page.sections["what-differs"] and "0.002" in page.sections["what-differs"]
    assert "cannot be compared" not in page.text


def settings(rate):
    training = {"optim": "adamw_torch", "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4}
    training.update(ipu_config_overrides=None, learning_rate=rate)
    return {"recipe": {"ipu_config": None}, "training": training, "ipu_config": IPUConfig().to_dict()}


def test_a_comparison_warns_of_other_data_and_refuses_other_tasks(tmp_path, capsys):
    one = write_run(tmp_path / "one" / "run", *predictions(40))
    names = [f"9{i:07d}_000.png" for i in range(40)]
    other = write_run(tmp_path / "two" / "run", *predictions(40), names=names)
    record = json.loads((other / "run.json").read_text())
    record["data"]["fingerprint"] = "e" * 32
    write_json(other / "run.json", record)
    page = checked_page(write_comparison([one, other], tmp_path / "c.html"))
    assert "cannot be compared" in page.sections["side-by-side"]
    assert "no image and finding in common" in page.sections["differences"]
    assert "one/run" in page.text and "two/run" in page.text
    assert main(["report", str(one), str(other), "--boxes", "b.csv"]) == 1
    assert "--boxes goes with one chest X-ray run" in capsys.readouterr().err
    write_json(other / "run.json", {**record, "task": "seq2seq"})
    assert main(["report", str(one), str(other)]) == 1
    assert "Compare runs of one task" in capsys.readouterr().err


def test_runs_are_called_by_the_shortest_end_that_tells_them_apart(tmp_path):
    assert distinct_names([tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c" / "other"]) == [
        "a/run", "b/run", "other",
    ]  # fmt: skip
    assert distinct_names([tmp_path / "x", tmp_path / "x" / "x"]) == [f"{tmp_path.name}/x", "x/x"]
    assert distinct_names([tmp_path / "run", tmp_path / "a" / ".." / "run"]) == ["run (1)", "run (2)"]


def test_an_ipu_config_brings_the_pipeline_and_a_prediction_that_says_so(tmp_path, phantoms):
    import shutil

    shutil.copytree(phantoms / "model", tmp_path / "run")
    values = settings(1e-3)
    values["training"]["ipu_config_overrides"] = (
        "layers_per_ipu=[1 1 1],ipus_per_replica=3,gradient_accumulation_steps=5"
    )
    write_run(tmp_path / "run", *predictions(20), settings=values)
    page = checked_page(write_report(tmp_path / "run"))
    text = page.sections["on-ipus"]
    assert "predictions and no measurements" in text and "stage 2 on IPU 2" in text and "5 of 5 micro-batches" in text
    # Five micro-batches, three stages: each runs forward and backward, all but the last make forward again.
    assert text.count("forward of micro-batch") == text.count("backward of micro-batch") == 15
    assert text.count("recompute of micro-batch") == 10
    values["training"]["ipu_config_overrides"] = "layers_per_ipu=[1 1],ipus_per_replica=2,gradient_accumulation_steps=5"
    write_run(tmp_path / "run", *predictions(20), settings=values)
    page = checked_page(write_report(tmp_path / "run"))
    assert "No prediction for this model and IPUConfig" in page.sections["on-ipus"]
    assert "places 2 layers" in page.sections["on-ipus"]
