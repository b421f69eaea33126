"""Each notebook runs from the top, FAST, in an empty folder and without a network, as a reader's would."""

import nbformat
import pytest

from notebooks.execute import ROOT, execute, notebooks, with_parameters

NOWHERE = "http://127.0.0.1:9"  # whatever asks the network is refused at once
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "all_proxy": NOWHERE, "no_proxy": ""}


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = with_parameters(nbformat.read(path, as_version=4), FAST=True)
    before = committed()
    upper = {name.upper(): value for name, value in OFFLINE.items()}
    execute(notebook, tmp_path, timeout=3600, PYTHONPATH=str(ROOT), **OFFLINE, **upper)
    assert list(tmp_path.iterdir()), "what it makes is in the folder it runs in"
    assert committed() == before, "and not in the repository"


def committed():
    """Name and time of the figures and of the data that a full run would make."""
    folders = (ROOT / "Visuals", ROOT / "data" / "notebooks")
    return {path: path.stat().st_mtime for folder in folders for path in folder.rglob("*")}
