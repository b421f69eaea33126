"""Workers of a search in processes of their own, some to be killed: every one is a fork."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

import optuna

from tests.training.train_jobs import warm_up
from vg_utils.config import Config
from vg_utils.tuning import search as tuning
from vg_utils.tuning import storage as tuning_storage
from vg_utils.tuning.storage import Storage


def quick_fit(config, run_dir, resume=False, progress=True, on_epoch=None, splits=None) -> list[dict]:
    """The curve of a training whose best rate is 1e-3, without the training."""
    run_dir.mkdir(parents=True)
    config.save(run_dir / "config.json")
    miss = abs(math.log10(config.train.lr / 1e-3)) + config.train.warmup
    history = []
    for epoch in range(1, config.train.epochs + 1):
        history.append({"epoch": epoch, "val_miou": 0.8 * (1 - math.exp(-epoch / 3)) / (1 + miss)})
        time.sleep(QUICK_SECONDS)
        on_epoch(history[-1])
    return history


QUICK_SECONDS = 0.0  # an epoch


def search(config: Config, out: Path, trials: int, study: str = "s", **options) -> optuna.Study:
    tuning.tune(config, study, out, trials=trials, report=False, progress=False, **options)
    return open_study(options.get("storage") or str(out / "journal.log"), study)


def open_study(url: str, name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=Storage(url).optuna)


def told(study: optuna.Study) -> list[tuple]:
    return [(t.number, t.state, t.values, t.params, t.user_attrs.get("curve")) for t in study.trials]


def killed_in(number: int, fit, dying: Path):
    """`fit`, but this process dies after the first epoch of its `number`th call, and says so by a file."""
    calls = 0

    def fit_or_die(*args, on_epoch, **kwargs):
        nonlocal calls
        calls += 1

        def then_die(epoch: dict) -> None:
            on_epoch(epoch)
            if calls == number:
                dying.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return fit(*args, on_epoch=then_die, **kwargs)

    return fit_or_die


def after(dying: list[Path], fit):
    """`fit`, but the second call waits for these files: who is fast leaves trials for those to be killed."""
    calls = 0

    def fit_later(*args, **kwargs):
        nonlocal calls
        calls += 1
        while calls == 2 and not all(file.exists() for file in dying):
            time.sleep(0.05)
        return fit(*args, **kwargs)

    return fit_later


def work(job: dict, worker: int) -> None:
    if job["quick"]:
        tuning.fit, tuning.fill_cache = quick_fit, lambda config, progress: {}
    dying = {
        i: Path(job["config"]).with_name(f"dying-{i}") for i, number in enumerate(job["killed_in"]) if number
    }
    if worker in dying:
        tuning.fit = killed_in(job["killed_in"][worker], tuning.fit, dying[worker])
    else:
        tuning.fit = after([*dying.values()], tuning.fit)
    config = Config.load(Path(job["config"]))
    tuning.tune(config, job["study"], job["out"], job["storage"], job["trials"], report=False, progress=False)


def forked(job: dict, worker: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(job, worker)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_workers(job: dict) -> list[int]:
    """The exit codes of the workers; minus the signal for those killed.

    Args:
        job: `config` (a file), `study`, `out`, `storage`, `trials`, `quick` (trainings that only look like
            some) and `killed_in`, a number for each worker: the trial, counted from 1, in which SIGKILL comes
            after its first epoch; 0: never, and then its second trial waits for those that are to die.
    """
    global QUICK_SECONDS
    QUICK_SECONDS, tuning.POLL_SECONDS, tuning_storage.HEARTBEAT_SECONDS = 0.02, 0.2, 1
    tuning_storage.MISSED_BEATS = 10  # a busy machine may well be late by some
    if not job["quick"]:
        warm_up(Config.load(Path(job["config"])))
    pids = [forked(job, worker) for worker in range(len(job["killed_in"]))]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
