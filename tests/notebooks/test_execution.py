"""Each notebook runs from the top, FAST, in an empty folder and without a network, as a reader's would."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from notebooks.execute import ROOT, execute, notebooks, with_parameters

NOWHERE = "http://127.0.0.1:9"  # whatever asks the network is refused at once
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "all_proxy": NOWHERE, "no_proxy": ""}
OFFLINE |= {name.upper(): value for name, value in OFFLINE.items()}
PREPARING = 3  # code cells: to find the package, parameters, imports
SHOWN = """
Path("made").touch()
print("seen")
plt.figure(figsize=(1, 1))
plt.show()
pd.DataFrame({"a": [1]})
"""


@pytest.mark.slow
def test_a_kernel_runs_the_beginning_of_a_notebook(tmp_path):
    notebook, before = fast(notebooks()[0]), committed()
    places = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells[places[PREPARING] :] = [nbformat.v4.new_code_cell(SHOWN)]
    execute(notebook, tmp_path, timeout=3600, PYTHONPATH=str(ROOT), **OFFLINE)
    kinds = [output.output_type for output in notebook.cells[-1].outputs]
    assert kinds == ["stream", "display_data", "execute_result"]
    assert_only_here(tmp_path, before)


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, forks):
    """In the shell of a kernel, which is in a fork: a kernel's imports take longer than most notebooks."""
    before = committed()
    forks.run(run_cells, [cell.source for cell in fast(path).cells if cell.cell_type == "code"], tmp_path)
    assert_only_here(tmp_path, before)


class Shell(InteractiveShell):
    """A kernel's without the kernel: figures are shown inline, and there is no window to prepare."""

    def enable_gui(self, gui: str | None = None) -> None:
        pass


def run_cells(sources: list[str], folder: Path) -> None:
    """Run code cells from the top in `folder`, to the first that fails, and make what they would display."""
    os.chdir(folder)
    os.environ |= OFFLINE
    with tempfile.TemporaryDirectory() as settings:
        nothing_kept = Config(HistoryManager={"enabled": False})
        shell = Shell.instance(ipython_dir=settings, config=nothing_kept)
    shell.enable_matplotlib("inline")
    shell.display_formatter.active_types = shell.display_formatter.format_types  # images, not only text
    for source in sources:
        with capture_output():
            result = shell.run_cell(source, store_history=True)
        result.raise_error()


def fast(path: Path) -> nbformat.NotebookNode:
    return with_parameters(nbformat.read(path, as_version=4), FAST=True)


def assert_only_here(folder: Path, before: dict[Path, float]) -> None:
    assert list(folder.iterdir()), "what it makes is in the folder it runs in"
    assert committed() == before, "and not in the repository"


def committed() -> dict[Path, float]:
    """Name and time of the figures and of the data that a full run would make."""
    folders = (ROOT / "Visuals", ROOT / "data" / "notebooks")
    return {path: path.stat().st_mtime for folder in folders for path in folder.rglob("*")}
