"""Workers of a search in processes of their own, some to be killed: `python -m tests.tuning.tune_jobs JSON`.

The argument is an object of `config` (a file), `study`, `out`, `storage`, `trials`, `quick` (trainings that
only look like some) and `killed_in`, a number for each worker: the trial, counted from 1, in which SIGKILL
comes after its first epoch; 0: never. As in `tests.training.train_jobs`, imports happen once and every
worker is a fork.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import optuna
import torch

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


def killed_in(number: int, fit):
    """`fit`, but this process does not survive the first epoch of its `number`th call."""
    calls = 0

    def fit_or_die(*args, on_epoch, **kwargs):
        nonlocal calls
        calls += 1

        def then_die(epoch: dict) -> None:
            on_epoch(epoch)
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return fit(*args, on_epoch=then_die, **kwargs)

    return fit_or_die


def work(job: dict, number: int) -> None:
    if job["quick"]:
        tuning.fit, tuning.fill_cache = quick_fit, lambda config, progress: {}
    tuning.fit = killed_in(number, tuning.fit)
    config = Config.load(Path(job["config"]))
    tuning.tune(config, job["study"], job["out"], job["storage"], job["trials"], report=False, progress=False)


def forked(job: dict, number: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(job, number)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Print the exit codes of the workers, as JSON; minus the signal for those killed."""
    global QUICK_SECONDS
    torch.set_num_threads(1)
    QUICK_SECONDS, tuning.POLL_SECONDS, tuning_storage.HEARTBEAT_SECONDS = 0.02, 0.2, 1
    tuning_storage.MISSED_BEATS = 3
    job = json.loads(sys.argv[1])
    pids = [forked(job, number) for number in job["killed_in"]]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))


if __name__ == "__main__":
    main()
