"""Writing: whole or not at all, whatever the disk does; one writer at a time; nothing of dead ones stays."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vg_utils import files
from vg_utils.files import FolderLock, check_file, check_folder, sweep, write_atomically

ROOT = Path(__file__).parents[1]


def _torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


WRITES = {
    "bytes": b"0" * 1_000_000,
    "torch": _torch,
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
}


@pytest.fixture
def full_disk():
    """A limit on the size of a file stands for it. Python ignores the signal that would end the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", WRITES)
def test_a_disk_without_room_is_an_os_error_and_the_old_file_stays(tmp_path, full_disk, what):
    path = tmp_path / "results.bin"
    path.write_bytes(b"old")
    with pytest.raises(OSError) as raised:  # noqa: PT011, the number says which
        write_atomically(path, WRITES[what])
    assert (type(raised.value), raised.value.errno) == (OSError, errno.EFBIG)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.bin"]


def test_names_as_long_as_a_disk_allows(tmp_path):
    write_atomically(tmp_path / ("n" * 250), b"a")
    assert (tmp_path / ("n" * 250)).read_bytes() == b"a"


def test_left_overs_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f".a.{files._HOST}-{dead.pid}.part": False,
        f".a.{files._HOST}-{os.getpid()}.part": True,
        ".a.another-machine-1.part": True,
        "a.part": True,
        ".b.part": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    sweep(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names
    os.utime(tmp_path / ".a.another-machine-1.part", (0, 0))
    sweep(tmp_path)
    assert not (tmp_path / ".a.another-machine-1.part").exists()
    sweep(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    left = tmp_path / "folder" / f".b.{files._HOST}-{dead.pid}.part"
    left.touch()
    write_atomically(tmp_path / "folder" / "a", b"whole")  # nobody has to think of it
    assert [path.name for path in left.parent.iterdir()] == ["a"]


def test_paths_that_cannot_be_written_are_told_before(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    check_folder(tmp_path / "new" / "newer")
    check_file(tmp_path / "new" / "file.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]  # nothing was made
    for path in (
        tmp_path / "file",
        tmp_path / "file" / "a",
        tmp_path / ("n" * 300),
        tmp_path / "a" / ("n" * 300),
    ):
        with pytest.raises(OSError, match=r"expected a folder|too long"):
            check_folder(path)
    with pytest.raises(IsADirectoryError, match="expected a file"):
        check_file(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from vg_utils.files import FolderLock

lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_one_writer_at_a_time_and_the_next_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DYING_SECONDS", 0.2)
    command, pipe = [sys.executable, "-c", HOLDER, str(tmp_path / "run")], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path / "run")
        writer.kill()
    monkeypatch.setattr(files, "DYING_SECONDS", 60)
    lock = FolderLock(tmp_path / "run")
    assert lock.still_there()
    (tmp_path / "run").rmdir()
    assert not lock.still_there()
    (tmp_path / "run").mkdir()
    assert not lock.still_there()  # another folder of the name
    lock.release()


PARENT = """
import os, sys, time
import torch
from torch.utils.data import DataLoader
from vg_utils.processes import end_with_parent

class Slow:
    def __len__(self): return 3
    def __getitem__(self, i):
        with open(f"{sys.argv[1]}/{os.getpid()}", "w"): pass
        time.sleep(1200)  # between two items torch's own workers notice by themselves
        return i

for _ in DataLoader(Slow(), num_workers=3, worker_init_fn=end_with_parent):
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_made_them(tmp_path, how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3 or parent.poll() is not None)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 3
    parent.send_signal(how)
    parent.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


def wait_until(holds) -> None:
    """However slow the machine is, up to ten minutes."""
    end = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    """Whether it runs; one that ended and was not collected by its parent does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
