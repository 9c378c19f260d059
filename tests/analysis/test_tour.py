"""The notebook runs from its first cell to its last, in an empty folder."""

import os
import sys
from pathlib import Path

import forked
import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "analysis" / "tour.ipynb"


KERNEL = """
from multiprocessing import util
import forked
util.spawnv_passfds = forked.forks_for  # its workers are no forks of its threads and streams
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


class Kernel(AsyncKernelManager):
    """An IPython kernel that is forked; so are its workers."""

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        forked.server()
        words = ["-c", KERNEL, "-f", self.connection_file]
        return [sys.executable, forked.__file__, *words]


@pytest.mark.slow
def test_the_tour_gets_from_images_to_an_exported_model(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("MOIST_HOME", str(tmp_path / "home"))
    commands = forked.virtual_environment(tmp_path / "venv")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    resources = {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, resources=resources, kernel_manager_class=Kernel).execute()
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "Pareto frontier of digits" in said and "error:" not in said
    assert "is classified as" in said and "photos/3/" in said
    assert (tmp_path / "report.html").stat().st_size > 80_000
