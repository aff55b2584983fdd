"""Make notebooks fit to be committed: no outputs but the figures that make the point, no counts, no machine's paths.

    python scripts/clean_notebooks.py [--check] [NOTEBOOK.ipynb ...]

Without names all of notebooks/. A cell tagged "figure" keeps its pictures; all other outputs go. --check changes nothing and
exits with 1 if something is left to clean, or if a figure is missing. Needs nbformat.
"""

import argparse
import re
import sys
from pathlib import Path

try:
    import nbformat
except ImportError:  # told by main, so that --help works without it
    nbformat = None

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
FIGURES = ("image/svg+xml", "image/png")
LARGEST_BYTES = 300_000
# Folders of one machine, in sources and in outputs. A base64 picture cannot match: it has no colon, quote or space before /.
LOCAL_PATH = re.compile(r"""(?:^|[\s"'(=:])((?:/home|/root|/Users|/tmp|/mnt|[A-Z]:\\)[/\\]?[^\s"')]*)""")


def clean(notebook):
    """The notebook as it is committed; changes its argument."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        cell.id = f"cell-{number:02d}"
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = _figures(cell.outputs) if "figure" in tags else []
    return notebook


def problems(path):
    """What is wrong with a committed notebook, a line each."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and "figure" in cell.metadata.get("tags", []) and not _figures(cell.outputs):
            found.append(f"{path.name}: a cell tagged figure has none: run the notebook, then clean it")
        for source in [cell.source, *(str(output) for output in cell.get("outputs", []))]:
            found += [f"{path.name}: a path of one machine: {match[1]}" for match in LOCAL_PATH.finditer(source)]
    if nbformat.writes(clean(notebook)) + "\n" != text:
        found.append(f"{path.name}: outputs, counts or metadata are left: python scripts/clean_notebooks.py")
    if len(text) > LARGEST_BYTES:
        found.append(f"{path.name}: {len(text):,} bytes are more than {LARGEST_BYTES:,}: make its figures smaller")
    return found


def _figures(outputs):
    kept = []
    for output in outputs:
        for kind in FIGURES:
            if kind in output.get("data", {}):
                data = {kind: output["data"][kind]}
                kept.append(nbformat.v4.new_output("display_data", data=data))
                break
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("notebooks", nargs="*", type=Path)
    arguments = parser.parse_args()
    if nbformat is None:
        parser.error("nbformat is missing: pip install nbformat")
    paths = arguments.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    if not arguments.check:
        for path in paths:
            notebook = clean(nbformat.read(path, as_version=4))
            path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    found = [line for path in paths for line in problems(path)]
    print("\n".join(found) or f"{len(paths)} notebooks are clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
