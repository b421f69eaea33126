"""What a folder was made with: a file in it, by which a command goes on with its own and mixes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from vg_utils.data.examples import DataError
from vg_utils.data.records import Record, read_json, shown
from vg_utils.files import check_folder, write_atomically

REFSCENES, PHRASES = "refscenes.json", "phrases.json"
CONVERTING = "converting.json"  # only until all lines are written: they are a person's own from then on
KINDS = {
    REFSCENES: "RefScenes",
    PHRASES: "phrases made from boxes",
    CONVERTING: "a conversion",
}
WAYS_OUT = "choose another folder, or remove this one to make it anew"


def read_marker(path: Path) -> Record | None:
    """The numbers or settings in a marker; None if there is none. Raises a DataError if it is damaged."""
    if not path.is_file():
        return None
    found = read_json(path, "what the folder was made with, as JSON")
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected what the folder was made with, as an object, got {shown(found)}")
    return found


def write_marker(path: Path, made_with: Record) -> None:
    """Say what a folder is made with, before anything else is in it."""
    write_atomically(path, json.dumps(made_with).encode())


def check_root(root: Path, own: str | None = None) -> None:
    """See whether a command can fill a folder, before it does the work.

    Args:
        root: need not be there.
        own: the marker that may be in it.

    Raises:
        DataError: it holds what another command made: its marker, or JSON lines.
        OSError: it cannot be written to, as `files.check_folder` says.
    """
    for folder in (root, root / "annotations", root / "images"):
        check_folder(folder)
    found = [f"{name}, of {kind}" for name, kind in KINDS.items() if name != own and (root / name).exists()]
    if own != CONVERTING or not (root / CONVERTING).exists():
        found += sorted(path.name for path in root.glob("*.jsonl"))
    if found:
        raise DataError(f"{root}: expected a folder without other data, found {found[0]}; {WAYS_OUT}")


def check_begun(
    root: Path, marker: str, made_with: Record, empty: tuple[str, ...] = ("annotations", "images")
) -> None:
    """As `check_root`; and these folders in it are to be empty, or all was begun with the same settings."""
    check_root(root, marker)
    found = read_marker(root / marker)
    if found not in (None, made_with):
        kind = KINDS[marker]
        raise DataError(f"{root}: expected {kind} made with {made_with}, found {shown(found)}; {WAYS_OUT}")
    if found is None and any(path for name in empty for path in (root / name).glob("*")):
        raise DataError(f"{root}: expected a folder without data, found annotations or images; {WAYS_OUT}")
