import subprocess
import sys
from pathlib import Path

import pytest

from vg_utils import notebook

HAVE = {"torch": "2.6.0+cu124", "timm": "1.0.20", "tyro": "0.9.31"}
TEXT = "# bounds\ntorch>=2.8\ntorchvision>=0.23\ntimm>=1.0.20  # HRNet\ntyro>=1.0\noptuna>=4.5\npytest>=8\n"


@pytest.fixture
def machine(monkeypatch):
    """A machine that has `HAVE`, and remembers what pip was told."""
    told = []

    def run(command, check):
        assert check
        constraints = Path(command[command.index("--constraint") + 1]).read_text()
        told.append((command, constraints))

    monkeypatch.setattr(notebook, "installed", HAVE.get)
    monkeypatch.setattr(subprocess, "run", run)
    return told


def test_missing_and_too_old_are_wanted_and_torch_stays(machine):
    assert notebook.missing(TEXT) == ["torchvision>=0.23", "tyro>=1.0", "optuna>=4.5"]


def test_pip_may_not_touch_the_installed_torch(machine, tmp_path):
    (tmp_path / "requirements.txt").write_text(TEXT)
    notebook.install_missing(tmp_path / "requirements.txt")
    (command, constraints), *others = machine
    assert not others
    assert command[0] == sys.executable
    assert command[-3:] == ["torchvision>=0.23", "tyro>=1.0", "optuna>=4.5"]
    assert constraints == "torch==2.6.0+cu124\n"


def test_where_all_is_there_pip_is_not_run(machine, tmp_path):
    (tmp_path / "requirements.txt").write_text("timm>=1.0\n")
    notebook.install_missing(tmp_path / "requirements.txt")
    notebook.install_missing(tmp_path / "none.txt")
    assert machine == []


def test_this_environment_lacks_nothing():
    assert notebook.missing(notebook.REQUIREMENTS.read_text()) == []


def test_installed():
    assert notebook.installed("torch")
    assert notebook.installed("no-such-package-here") is None


def test_results_are_handed_on(tmp_path, capsys):
    value = {"box": [0.1, 0.2], "name": "constant"}
    notebook.hand_over(tmp_path / "data", "01_box", value)
    assert notebook.take_over(tmp_path / "data", "01_box", "01_data_exploration") == value
    assert capsys.readouterr().out == ""


def test_a_missing_result_says_how_to_get_it(tmp_path, capsys):
    assert notebook.take_over(tmp_path / "data", "01_box", "01_data_exploration") is None
    assert "run 01_data_exploration.ipynb" in capsys.readouterr().out
