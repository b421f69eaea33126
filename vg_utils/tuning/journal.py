"""Optuna's journal file, such that a full disk or a kill in mid-line does not make a study unreadable.

Optuna appends JSON lines, and can read none any more once one of them is torn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from vg_utils.config import ConfigError
from vg_utils.data.examples import DataError
from vg_utils.data.records import parse_json
from vg_utils.files import file_lock, write_atomically


class Journal(JournalFileBackend):
    """A journal that is whole when it is opened, and stays so.

    Args:
        path: of the file. Torn lines in it are left out, after a copy of it was kept, and told.

    Raises:
        ConfigError: a file that is no journal.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._writing = path, path.with_name(f".{path.name}.append.lock")
        with file_lock(self._writing):
            if path.exists():
                mend(path)
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """As Optuna's, but what could not be written whole is taken back."""
        with file_lock(self._writing):
            _drop_torn_end(self._path)
            end = self._path.stat().st_size
            try:
                super().append_logs(logs)
            except OSError:
                os.truncate(self._path, end)
                raise


def mend(path: Path) -> None:
    """Leave the torn lines of a journal out, and print which; of several writes in a line, keep the last.

    Raises:
        ConfigError: hardly a line is one of Optuna's.
    """
    _drop_torn_end(path)
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line if _is_entry(line) else _last_entry(line) for line in lines]
    torn = [number for number, (line, whole) in enumerate(zip(lines, kept, strict=True), 1) if line != whole]
    if not torn:
        return
    if 2 * len(torn) > len(lines):
        raise ConfigError(f"--storage {path}: expected Optuna's journal, got a file of other lines")
    copy = path.with_name(f"{path.name}.torn")
    write_atomically(copy, b"".join(lines))
    write_atomically(path, b"".join(kept))
    shown = ", ".join(map(str, torn[:5])) + (" ..." if len(torn) > 5 else "")
    print(f"{path}: torn lines are left out: {shown}; the file with them is now {copy.name}")


def _is_entry(line: bytes) -> bool:
    try:
        entry = parse_json(line, "journal", "an entry")
    except DataError:
        return False
    return isinstance(entry, dict) and isinstance(entry.get("op_code"), int)


def _last_entry(line: bytes) -> bytes:
    """What was written behind a torn entry, in the same line; nothing if that is none either."""
    start = line.rfind(b'{"op_code":')
    return line[start:] if start > 0 and _is_entry(line[start:]) else b""


def _drop_torn_end(path: Path) -> None:
    """Cut what stands behind the last end of a line: nobody could have read it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail:
            start = max(0, end - 65536)
            file.seek(start)
            tail = file.read(end - start)
            end = start
        whole = end + tail.rfind(b"\n") + 1
        if whole < size:
            print(f"{path}: its last line was torn and is left out: {size - whole} bytes")
            file.truncate(whole)
