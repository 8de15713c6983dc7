"""Run the notebooks of examples/ and store them with their outputs.

    python scripts/run_notebooks.py                       # all of them, in place
    python scripts/run_notebooks.py examples/search.ipynb

Contract: each notebook runs in an empty folder with a new kernel of this Python, and an error in a cell is an error
here. Stored files hold nothing of the machine: no times, no versions, no absolute paths.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path, folder: Path, *, timeout: int = 300) -> Any:
    """Run a notebook in `folder` with this checkout's clipvid; return it with new outputs and plain metadata."""
    notebook = nbformat.read(path, as_version=4)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, where ipywidgets is not installed
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env=environment)
    return _plain(notebook)


def _plain(notebook: Any) -> Any:
    """Return the notebook without times and versions of the run; lines of one stream are merged."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = nbformat.from_dict({}), f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
        for output in cell.get("outputs", ()):
            if "image/jpeg" in output.get("data", {}):
                del output.data["image/png"]  # the same picture, five times as large
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def _merged(outputs: list[Any]) -> list[Any]:
    """Return outputs in which those of one stream that follow each other are one, however the kernel sent them."""
    merged: list[Any] = []
    for output in outputs:
        if merged and output.output_type == "stream" and output.get("name") == merged[-1].get("name"):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def text_of(notebook: Any) -> list[str]:
    """Return the printed and shown text of each code cell, with every number replaced by #."""
    return [
        re.sub(r"[\s-]*\d+(\.\d+)?", " #", "".join(map(_text, cell.outputs)))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def _text(output: Any) -> str:
    return output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")


def main() -> None:
    """Run the notebooks that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    for path in parser.parse_args().notebooks:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)
        print(f"{path}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
