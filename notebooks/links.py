"""The repository's address: one place, `pyproject.toml`, and everything that repeats it.

Badges, clone commands and links to files have to be written out in README.md and in the notebooks, where no
code runs. This prints what disagrees with `pyproject.toml`; with an address it moves everything there:

    python notebooks/links.py
    python notebooks/links.py https://github.com/me/my-fork
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from vg_utils.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "[!.]*/README.md", "docs/*.md", "notebooks/*.ipynb")  # hidden folders are no part of it
_ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
_COLAB = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/[\w.-]+/([^\s)\"'\\]+)")
_FILE = re.compile(r"(?<!src=)https://github\.com/([\w.-]+/[\w.-]+)/(?:blob|tree)/[\w.-]+/([^\s)\"'\\#]+)")
_CLONED = re.compile(r"^REPOSITORY = \"([^\"]*)\"", re.MULTILINE)


def repository(root: Path = ROOT) -> str:
    """The address in `pyproject.toml`, such as https://github.com/OWNER/NAME."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def slug(address: str) -> str:
    """OWNER/NAME of an address.

    Raises:
        ValueError: not the address of a repository on GitHub, which Colab could open.
    """
    match = _ADDRESS.fullmatch(address.strip())
    if match is None:
        raise ValueError(f"expected https://github.com/OWNER/NAME, got {address!r}")
    return match[1]


def pages(root: Path = ROOT) -> list[Path]:
    """The files that may name the repository."""
    return sorted(path for pattern in PAGES for path in root.glob(pattern))


def move(address: str, root: Path = ROOT) -> list[Path]:
    """Rewrite the repository's address wherever it stands; returns the files that changed.

    Links to other repositories stay as they are.

    Raises:
        ValueError: see `slug`.
    """
    new, old = slug(address), slug(repository(root))
    ours = re.compile(rf"(github\.com/|/github/){re.escape(old)}(?![\w-])", re.IGNORECASE)
    changed = []
    for path in [root / "pyproject.toml", *pages(root)]:
        text = path.read_text(encoding="utf-8")
        moved = ours.sub(lambda match: match[1] + new, text)
        if moved != text:
            write_atomically(path, moved.encode())
            changed.append(path)
    return changed


def disagreements(root: Path = ROOT) -> Iterator[str]:
    """One line for each badge, clone command or link to a file that does not fit `pyproject.toml`."""
    address = repository(root)
    ours = slug(address)
    for path in pages(root):
        name = path.relative_to(root).as_posix()
        text = _text(path)
        for theirs, target in _COLAB.findall(text):
            if theirs != ours or not (root / target).is_file():
                yield f"{name}: the Colab link opens {theirs}, {target}"
        for theirs, target in _FILE.findall(text):
            if theirs == ours and not (root / target).exists():
                yield f"{name}: links to {target}, which does not exist"
        for cloned in _CLONED.findall(text):
            if cloned != address:
                yield f"{name}: clones {cloned}"
        badge = f"colab.research.google.com/github/{ours}/blob/main/{name}"
        if path.suffix == ".ipynb" and badge not in text:
            yield f"{name}: no Colab badge that opens it"


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: all agree. 1: some do not. 2: not an address."""
    parser = argparse.ArgumentParser(prog="python notebooks/links.py", description=__doc__.split("\n")[0])
    parser.add_argument("address", nargs="?", help="https://github.com/OWNER/NAME to move everything to")
    address = parser.parse_args(arguments).address
    if address:
        try:
            changed = move(address)
        except ValueError as error:
            parser.error(str(error))
        print("\n".join(f"changed {path.relative_to(ROOT)}" for path in changed) or "nothing to change")
    wrong = list(disagreements())
    print("\n".join(wrong) or f"everything agrees with {repository()}", file=sys.stderr if wrong else None)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
