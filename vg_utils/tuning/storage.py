"""Where a study is kept, and how several workers share it without doing anything twice.

Two locks that the system takes back from a killed process carry it all:

- the *claim*: whoever starts a trial holds it from counting the finished ones until the new trial has its
  parameters. So a study ends with exactly the trials asked for, however many workers there are;
- the *presence*: each worker holds a lock on a file of its own for as long as it lives, beside the journal or
  SQLite's file. A trial whose worker's file is free has no one who works on it. (With PostgreSQL, Optuna's
  heartbeats say so.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sqlite3
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError

from vg_utils.config import ConfigError
from vg_utils.files import check_file, file_lock, try_lock
from vg_utils.tuning.journal import Journal

HEARTBEAT_SECONDS, MISSED_BEATS = 10, 6  # of a database: a worker is dead after a minute of silence
SILENCE_SECONDS = 600  # of a worker on another machine: the shared disk may lag, its clock be off
OF_DISKS = {  # what SQLite calls such errors
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}
MAX_RETRIES = 3  # of a trial whose worker died; one that kills every worker must not do so for ever


class Storage:
    """A study's storage with its locks.

    Args:
        url: `sqlite:///FILE`, `postgresql://...`, or the path of a journal file.

    Raises:
        ConfigError: another kind of URL, a missing driver, or a database that does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_journal = "://" not in url
        kind = "journal" if self.is_journal else url.split("://")[0].split("+")[0]
        if kind not in ("journal", "sqlite", "postgresql"):
            kinds = "the path of a journal file, sqlite:///FILE or postgresql://..."
            raise ConfigError(f"--storage: expected {kinds}, got {url!r}")
        self.is_postgresql = kind == "postgresql"
        self.file: Path | None = None  # beside which the locks lie
        if kind != "postgresql":
            name = url if self.is_journal else make_url(url).database
            if not name or name == ":memory:":
                raise ConfigError(f"--storage: {url!r} names no file that other workers could open")
            self.file = Path(name)
            check_file(self.file)
            self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.lock("open"):  # two workers that make a database's tables at once trip over each other
            self.optuna: BaseStorage = _journal(self.file) if self.is_journal else _database(url)
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._presence = try_lock(self._presence_file(self.worker)) if self.file else None
        self._left = threading.Event()
        if self.file:
            threading.Thread(target=self._beat, daemon=True).start()

    @contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold a lock of this storage, on whatever machine its other users are.

        Args:
            name: which of them.
            wait: until it is free.

        Yields:
            whether it is held; always True after a wait.
        """
        if self.is_postgresql:
            with _database_lock(self.url, name, wait) as held:
                yield held
            return
        with file_lock(self.file.with_name(f".{self.file.name}.{name}.lock"), wait) as held:
            yield held

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's worker is certainly gone. To be asked while the claim is held.

        Locks tell it of workers on this machine. Of others (a file on a shared disk; the same container
        under a new name) only the age of their file does.
        """
        worker = trial.user_attrs.get("worker")
        if worker is None:  # it was killed during its claim, or else it would hold the claim now
            return True
        if self.file is None or worker == self.worker:
            return False
        path = self._presence_file(worker)
        if not path.exists():  # a worker that leaves takes its file along
            return True
        if worker.split(":")[0] != socket.gethostname():
            return time.time() - path.stat().st_mtime > SILENCE_SECONDS
        file = try_lock(path)
        if file is not None:
            file.close()
        return file is not None

    def met_full_disk(self, trial: FrozenTrial) -> bool:
        """Whether a trial's worker left because of a full disk, on which it could not write so."""
        worker = trial.user_attrs.get("worker")
        return self.file is not None and worker is not None and self._full_file(worker).exists()

    def close(self, disk_full: bool = False) -> None:
        """Say that this worker has left, and if it was for a full disk: a renamed file takes no room."""
        self._left.set()
        if self._presence is not None:
            file = self._presence_file(self.worker)
            if disk_full:
                file.replace(self._full_file(self.worker))
            file.unlink(missing_ok=True)
            self._presence.close()
            self._presence = None

    def _beat(self) -> None:
        while not self._left.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(FileNotFoundError):  # it has just left
                os.utime(self._presence_file(self.worker))

    def _presence_file(self, worker: str) -> Path:
        return self.file.with_name(f".{self.file.name}.workers") / worker.replace(":", "-")

    def _full_file(self, worker: str) -> Path:
        return self._presence_file(f"{worker}:full")


def give_back_dead_trials(study: optuna.Study, storage: Storage) -> list[int]:
    """Mark the trials of dead workers as failed and queue them again; the claim has to be held.

    As Optuna's `RetryHeartbeatStaleTrialCallback`, but for journals too, and for a trial that was killed
    between its start and its first heartbeat, or stopped by Ctrl-C.

    Returns:
        numbers of the trials that were queued again.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if storage.is_dead(trial):
            if storage.met_full_disk(trial):
                storage.optuna.set_trial_user_attr(trial._trial_id, "disk_full", True)
            study.tell(trial.number, state=TrialState.FAIL)
    optuna.storages.fail_stale_trials(study)  # by heartbeat; does nothing for a journal
    trials = study.get_trials(deepcopy=False)
    retried = {number for trial in trials for number in trial.user_attrs.get("retry_of", [])}
    queued = []
    for trial in trials:
        if is_lost(trial) and trial.number not in retried:
            parameters = trial.system_attrs.get("fixed_params", {}) | trial.params
            history = [*trial.user_attrs.get("retry_of", []), trial.number]
            deaths = trial.user_attrs.get("deaths", 0) + _killed_its_worker(trial)
            study.enqueue_trial(parameters, user_attrs={"retry_of": history, "deaths": deaths})
            queued.append(trial.number)
    return queued


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended because its worker or its disk did, not because of what it tried.

    It is tried again: without end where the disk was full, else as long as it may not be what kills workers.
    """
    if trial.state != TrialState.FAIL or "error" in trial.user_attrs:
        return False
    return not _killed_its_worker(trial) or trial.user_attrs.get("deaths", 0) < MAX_RETRIES


def _killed_its_worker(trial: FrozenTrial) -> bool:
    """Whether a lost trial may be why its worker died: it had begun, and its disk was not full."""
    return "worker" in trial.user_attrs and "disk_full" not in trial.user_attrs


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial counts: complete, pruned, or failed for a reason of its own."""
    return trial.state.is_finished() and not is_lost(trial)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The whole trial with the best validation mIoU, the earlier one of equals; None if there is none."""
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(whole, key=lambda trial: trial.values[0], default=None)


def _journal(path: Path) -> JournalStorage:
    try:
        return JournalStorage(Journal(path))
    except (ConfigError, OSError):
        raise
    except Exception as error:  # entries that do not follow from each other
        reason = repr(error)[:200]
        raise ConfigError(f"--storage {path}: expected Optuna's journal, its replay gave: {reason}") from None


def _database(url: str) -> RDBStorage:
    grace = HEARTBEAT_SECONDS * MISSED_BEATS
    with _clear_errors(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are, since 2021
        storage = _Database(url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=grace)
    event.listen(storage.engine, "handle_error", _as_disk_error)
    return storage


class _Database(RDBStorage):
    """Optuna's, whose thread of heartbeats a full disk does not end."""

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(OSError):
            super().record_heartbeat(trial_id)


def _as_disk_error(context: ExceptionContext) -> None:
    """Raise what SQLite says of its disk as the OSError that it is, which is what a journal's disk raises."""
    code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF  # of an extended code the kind
    if code in OF_DISKS:
        raise OSError(OF_DISKS[code], os.strerror(OF_DISKS[code]), context.engine.url.database)


@contextmanager
def _database_lock(url: str, name: str, wait: bool) -> Iterator[bool]:
    """A lock that PostgreSQL gives back when the connection ends, however it does."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    statement = text(f"select {function}(hashtext(:name))")
    with _clear_errors(url):
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        connection = engine.connect()
    with connection:
        held = connection.execute(statement, {"name": f"vg_utils tuning {name}"}).scalar()
        yield wait or bool(held)


@contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    shown = make_url(url).render_as_string(hide_password=True)
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"--storage {shown}: {str(error).splitlines()[0]}; for PostgreSQL: pip install 'psycopg[binary]'"
        ) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        raise ConfigError(f"--storage {shown}: {str(error).splitlines()[0]}") from None
