"""`prepare`: where a data set cannot be put is said before anything is read, whatever the data set."""

import errno
import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from vg_utils.cli import main
from vg_utils.data.markers import PHRASES, REFSCENES
from vg_utils.preparing import FLAGS

# What is read is damaged: who reads it before looking at the folder complains of it, and not of the folder.
COMMANDS = {
    "scenes": ["--images", "5", "--size", "32"],
    "phrases": ["--instances", "{damaged}", "--images", "{here}"],
    "jsonl": ["--from", "coco", "{damaged}"],
    **{name: ["--source", "{here}"] for name in ("refcocog", "refcoco", "refcoco+")},
}


def file(root: Path) -> Path:
    root.write_bytes(b"")
    return root


def in_a_file(root: Path) -> Path:
    return file(root) / "data"


def file_in_it(root: Path) -> Path:
    root.mkdir()
    file(root / "images")
    return root


def long_name(root: Path) -> Path:
    return root / ("n" * 300)


def no_place(root: Path) -> Path:
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc, in which nobody can make a folder")
    return Path("/proc/data")


def read_only(root: Path) -> Path:
    root.mkdir(mode=0o500)
    if os.access(root, os.W_OK):
        pytest.skip("root may write everywhere")
    return root


def json_lines(root: Path) -> Path:
    root.mkdir()
    (root / "val.jsonl").write_bytes(b"")
    return root


def marked(name: str, content: bytes = b'{"seed": 77}'):
    def make(root: Path) -> Path:
        root.mkdir()
        (root / name).write_bytes(content)
        return root

    return make


PLACES = {
    "a file": (file, "expected a folder"),
    "a folder in a file": (in_a_file, "expected a folder"),
    "a file where images go": (file_in_it, "expected a folder"),
    "a name too long": (long_name, "File name too long"),
    "no place for folders": (no_place, "nothing can be written there"),
    "read-only": (read_only, "nothing can be written there"),
    "JSON lines": (json_lines, "found val.jsonl"),
    "other RefScenes": (marked(REFSCENES), "RefScenes"),
    "other phrases": (marked(PHRASES), "phrases"),
}


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, capsys):
    """The one line of a `prepare` that has to be refused, having changed nothing."""

    def call(dataset: str, root: Path) -> str:
        (tmp_path / "damaged.json").write_bytes(b"{")
        places = {"damaged": tmp_path / "damaged.json", "here": tmp_path}
        words = [word.format(**places) for word in COMMANDS[dataset]]
        before = tree(tmp_path)
        assert main(["prepare", dataset, "--root", str(root), *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert tree(tmp_path) == before
        return printed.err

    return call


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dataset", FLAGS)
def test_a_root_that_cannot_be_filled_is_refused_first(dataset, place, refused, tmp_path):
    make, message = PLACES[place]
    assert message in refused(dataset, make(tmp_path / "root"))


@pytest.mark.parametrize("name", [REFSCENES, PHRASES])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"images": "many"}', b"[" * 10_000])
def test_damaged_markers_are_refused(name, content, refused, tmp_path):
    root = marked(name, content)(tmp_path / "root")
    assert str(root) in refused("scenes" if name == REFSCENES else "phrases", root)


@pytest.mark.parametrize("dataset", FLAGS)
def test_a_full_disk_is_said_first(dataset, refused, tmp_path, monkeypatch):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    assert "No space left on device" in refused(dataset, tmp_path / "root")


def test_a_disk_without_room_for_the_images_is_said_before_they_are_drawn(refused, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    assert "are needed, 0.0 GB are free" in refused("scenes", tmp_path / "root")


def test_downloads_need_a_worker(tmp_path, capsys):
    assert main(["prepare", "refcocog", "--root", str(tmp_path / "root"), "--workers", "0"]) == 2
    assert "workers: expected 1 or more, got 0" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
