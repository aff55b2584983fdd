"""Every notebook, from a fresh kernel, on tiny settings and offline; and that it is committed clean."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat, nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="notebooks need nbformat, nbclient and ipykernel")
pytest.importorskip("ipykernel", reason="notebooks need nbformat, nbclient and ipykernel")

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NAMES = [
    "1_simulate_a_pipeline",
    "2_plan_a_run",
    "3_chest_xray",
    "4_gpt2_from_scratch",
    "5_seq2seq_and_search",
    "6_same_run_on_three_backends",
]


def cleaner():
    spec = importlib.util.spec_from_file_location("clean_notebooks", REPOSITORY / "scripts" / "clean_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebooks_are_those_that_are_promised():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_clean(path):
    assert cleaner().problems(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_outputs_counts_and_local_paths_are_found(tmp_path):
    v4 = nbformat.v4
    stray = v4.new_code_cell("print(1)", outputs=[v4.new_output("stream", text="1\n")], execution_count=3)
    local = v4.new_code_cell('data = "/home/somebody/xrays"')
    figure = v4.new_code_cell("plot()", metadata={"tags": ["figure"]})
    path = tmp_path / "dirty.ipynb"
    path.write_text(nbformat.writes(v4.new_notebook(cells=[stray, local, figure])) + "\n", encoding="utf-8")
    found = "\n".join(cleaner().problems(path))
    assert "outputs, counts or metadata" in found and "/home/somebody/xrays" in found and "tagged figure" in found


def test_cleaning_keeps_pictures_of_tagged_cells_only(tmp_path):
    v4 = nbformat.v4
    picture = v4.new_output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure at 0x7f>"})
    cells = [
        v4.new_code_cell("plot()", metadata={"tags": ["figure"]}, outputs=[picture], execution_count=1),
        v4.new_code_cell("plot()", outputs=[picture], execution_count=2),
    ]
    kept, dropped = cleaner().clean(v4.new_notebook(cells=cells)).cells
    assert kept.outputs[0].data == {"image/png": "aGk="} and kept.execution_count is None
    assert dropped.outputs == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_fresh_kernel(path, tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(str(path), str(folder))
    for name in ("PUBLIC_DATASETS_DIR", "DATASETS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("IPU_TRAINER_TINY", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    before = json.loads(path.read_text(encoding="utf-8"))
    notebook = nbformat.read(folder / path.name, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        startup_timeout=300,  # a busy machine took more than the default of 60 seconds to start a kernel
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell in notebook.cells:
        if "figure" in cell.metadata.get("tags", []):
            assert any("image" in kind for output in cell.outputs for kind in output.get("data", {})), cell.source
    assert sorted(item.name for item in folder.iterdir()) == [path.name]  # results went to CHECKPOINT_DIR
    assert json.loads(path.read_text(encoding="utf-8")) == before
