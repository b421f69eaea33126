"""Writing files so that a reader sees the old one or the new one, and one writer at a time does so."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

FORGOTTEN_SECONDS = 24 * 3600  # after which a temporary file is nobody's, whatever machine made it
DYING_SECONDS = 3  # which the workers of a killed writer, who hold its locks too, are given to end
_LONGEST_STEM = 100  # of a temporary file's name, so that it is no longer than a disk allows
_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())[:40]


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write to a temporary name in the same folder, then rename.

    The first time in a folder, what killed writers left there is removed.

    Args:
        path: the file; its folder is made if it is missing.
        content: its bytes, or a function that writes them to the path that it is given.

    Raises:
        OSError: the disk is full, or not for writing; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent.absolute())
    temporary = path.with_name(f".{path.name[:_LONGEST_STEM]}.{_HOST}-{os.getpid()}.part")
    try:
        with disk_errors():
            if callable(content):
                content(temporary)
            else:
                temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files in a folder of writers that were killed: on this machine, or a day ago."""
    for path in folder.glob(".*.part"):
        writer = re.fullmatch(r".*\.(.+)-(\d+)\.part", path.name)
        try:
            old = time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS
            if old or (writer and writer[1] == _HOST and not _is_running(int(writer[2]))):
                path.unlink()
        except OSError:  # its writer was quicker
            continue


_sweep_once = cache(sweep)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def disk_errors() -> Iterator[None]:
    """What torch and safetensors raise because a disk is full becomes the OSError that it was."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = _system_error(error)
        if found is None:
            raise
        raise found from error


def _system_error(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError):
            return error
        if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors, whose errors are Rust's
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__ or error.__context__
    return None


def check_folder(path: Path) -> None:
    """See whether a folder is there or can be made, and written to; nothing stays in it.

    Raises:
        OSError: the disk is full, or which part of the path is no folder, cannot be written to or has too
            long a name.
    """
    _check_names(path / "file")


def _check_names(path: Path) -> None:
    """Raise an OSError unless a file of this path can be made, with the folders that are missing."""
    path = Path(os.path.abspath(path))
    there = path.parent
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "expected a folder, there is a file", str(there))
    for name in path.relative_to(there).parts:
        if len(os.fsencode(name)) > os.pathconf(there, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    try:  # not `os.access`, which knows of no full disk, nor of folders where even root can make nothing
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(error.errno, f"nothing can be written there: {error.strerror}", str(there)) from None


def check_room(path: Path, needed: float) -> None:
    """Raise an OSError unless the disk of a path, which need not be there, has so many bytes free."""
    there = Path(os.path.abspath(path))
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        about = f"about {needed / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {about}", str(path))


def check_file(path: Path) -> None:
    """See whether a file can be written there; nothing stays. Raises OSError as `check_folder`."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "expected a file, there is a folder", str(path))
    _check_names(path)


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a file, which is made if it is missing; yields whether it is held.

    The system takes it back from a process that dies. The file stays: one that were removed could be locked
    by two, each by its own file of that name.
    """
    file = _open(path)
    try:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield wait or _flock(file)
    finally:
        file.close()


def try_lock(path: Path) -> IO | None:
    """The file, locked until it is closed; None if someone else holds it."""
    file = _open(path)
    if _flock(file):
        return file
    file.close()
    return None


class FolderLock:
    """One writer's hold on a folder, which is made if it is missing; the system takes it back when it ends.

    The folder itself is locked, so nothing is left in it.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(folder, os.O_RDONLY)
        patience = time.monotonic() + DYING_SECONDS
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > patience:
                    os.close(self._handle)
                    raise
                time.sleep(0.1)
            except OSError:  # some disks on a network know no locks of folders
                return

    def still_there(self) -> bool:
        """Whether the folder of this name is the one that was locked."""
        try:
            return os.path.samestat(os.stat(self.folder), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of it."""
        os.close(self._handle)


def is_vacant(folder: Path) -> bool:
    """Whether nobody's files are in a folder: there is none, or it is empty but for hidden ones."""
    return not folder.exists() or (folder.is_dir() and all(p.name.startswith(".") for p in folder.iterdir()))


def _open(path: Path) -> IO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _flock(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
