"""The notebook runs from its first cell to its last, in an empty folder."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "analysis" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_gets_from_images_to_an_exported_model(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("MOIST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "Pareto frontier of digits" in said and "error:" not in said
    assert "is classified as" in said and "photos/3/" in said
    assert (tmp_path / "report.html").stat().st_size > 100_000
