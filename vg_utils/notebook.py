"""What the notebooks have in common: packages that are missing, and results that one hands to the next."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from vg_utils.pickles import read_pickle, write_pickle

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
NEVER = ("torch", "torchvision")  # Colab's and Kaggle's fit their GPU: what is installed stays
NOT_FOR_NOTEBOOKS = ("jupyterlab", "pytest", "pytest-xdist", "ruff", "tensorboard", "nbmake", "nbclient")


def install_missing(requirements: Path = REQUIREMENTS) -> None:
    """Install what `requirements.txt` asks for and is missing or too old.

    An installed torch or torchvision is never touched, not even for the sake of another package. Nothing is
    asked of the network where all is there.
    """
    if not requirements.is_file():  # the package was installed by pip, with all that it needs
        return
    wanted = missing(requirements.read_text())
    if wanted:
        print("installing", ", ".join(wanted), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            keep = Path(folder) / "keep.txt"
            keep.write_text("".join(f"{name}=={v}\n" for name in NEVER if (v := installed(name))))
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(keep)]
            subprocess.run([*command, *wanted], check=True)
        importlib.invalidate_caches()


def missing(requirements: str) -> list[str]:
    """The lines `name>=version` that a notebook needs and that are not satisfied here."""
    wanted = []
    for line in requirements.splitlines():
        requirement = line.split("#")[0].strip()
        if not requirement:
            continue
        name, _, least = requirement.partition(">=")
        have = installed(name)
        if name in NOT_FOR_NOTEBOOKS or (have and (name in NEVER or _numbers(have) >= _numbers(least))):
            continue
        wanted.append(requirement)
    return wanted


def installed(name: str) -> str | None:
    """The version of an installed package, else None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])]


def hand_over(folder: Path, name: str, value: Any) -> Path:
    """Pickle a result for the notebooks that come after, a frame as a dict of its columns."""
    path = Path(folder) / f"{name}.pkl"
    write_pickle(path, value)
    return path


def take_over(folder: Path, name: str, made_by: str) -> Any:
    """What the notebook `made_by` handed over, or None after a line that says how to get it."""
    path = Path(folder) / f"{name}.pkl"
    if path.is_file():
        return read_pickle(path)
    print(f"{path.name} is not in {path.parent.name}/: run {made_by}.ipynb to get it. Going on without it.")
    return None
