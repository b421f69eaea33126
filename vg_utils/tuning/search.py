"""The search for settings, with Optuna: a study that can be stopped, resumed and spread over workers.

    python -m vg_utils tune --model clip-hrnet --study first --trials 30

Every trial is a run directory (`OUT/trials/0007`), trained from the one feature cache that all share. The
objective is the best validation mIoU of its epochs, which belongs to the weights that its checkpoint keeps.

- Sampler: multivariate TPE in groups, which knows that some choices exist only beside others. It is seeded by
  the study's seed and the trial's number, so one worker finds the same trials again, also over a restart, and
  two workers never draw the same.
- Pruner: the median of what others had at the same epoch, after five whole trials and a third of the epochs
  (warm-up and a high rate make early epochs a poor guess). Hyperband would split some thirty trials over
  brackets that each know too little; where trials are long and many, it is the better one.
- All trials have the study's seed, so that settings differ and nothing else does. What the seed is worth is
  measured afterwards, on others (`vg_utils.tuning.report`).
- A study counts to the asked number of finished trials: complete, pruned, or failed for a reason of their
  own, which they keep as `error`. A trial whose worker died, or whose disk was full, is queued again
  and does not count.
"""

from __future__ import annotations

import errno
import re
import time
import traceback
import warnings
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from accelerate import PartialState
from accelerate.utils import set_seed
from optuna.exceptions import ExperimentalWarning
from optuna.trial import Trial, TrialState
from tqdm.auto import tqdm

from vg_utils.config import Config, ConfigError, first_difference, set_fields
from vg_utils.data import GroundingExample, Report, load_examples
from vg_utils.files import check_folder, disk_errors, file_lock, write_atomically
from vg_utils.models import build_model
from vg_utils.models.checkpoints import drop_resumable
from vg_utils.training.claims import plain, read_by
from vg_utils.training.engine import fit
from vg_utils.training.loaders import check_splits, load_split, make_loaders
from vg_utils.tuning.objectives import SECOND_OBJECTIVES, second_objective
from vg_utils.tuning.report import write_report
from vg_utils.tuning.spaces import own_parameters, suggest
from vg_utils.tuning.storage import Storage, best_trial, give_back_dead_trials, is_finished, is_lost

STARTUP_TRIALS = 5  # whole ones, before any is pruned
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
POLL_SECONDS = 1.0  # between looks at what other workers do


def tune(
    config: Config,
    study_name: str,
    out: Path | str,
    storage: str | None = None,
    trials: int = 30,
    timeout: float | None = None,
    objective: str | None = None,
    report: bool = True,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Search, then retrain the best on other seeds and compare it with the preset on test.

    Several workers may call this with the same study and storage; the one that is first at the end writes the
    report. Called again, it goes on to `trials` finished ones.

    Args:
        config: the run without a search; its seed is the study's.
        study_name: by which workers join.
        out: folder of the trials' runs and of the results.
        storage: see `Storage`; by default a journal file in `out`.
        trials: finished trials that the study shall have in the end.
        timeout: seconds after which this worker starts no more trials.
        objective: second one, "latency" (ms a question) or "parameters" (millions); None: mIoU alone.
        report: also write the report.
        progress: show a bar with the best so far.

    Returns:
        the results, as `OUT/results.pkl` has them; None without a report, or where another worker writes it.

    Raises:
        ConfigError: a model without a space, a study of other settings, or a storage that cannot be used.
        DataError, WeightsError, ConfigError: what every trial, or the report, would fail of. Nothing of the
            study has been written then.
        OSError: the disk is full or cannot be written to; a search goes on once there is space.
    """
    out = Path(out)
    check_folder(out)
    config = set_fields(config, train__similarity_images=0)  # nothing here reads them
    check_names(study_name, objective)
    own_parameters(config)  # a model without a space is an error before minutes of reading
    splits = fill_cache(config, progress)  # and what every trial would fail of, before any file of the study
    if report:
        check_test(config)
    worker = Worker(config, study_name, out, storage or str(out / "journal.log"), objective, splits)
    try:
        worker.search(trials, timeout, progress)
        if not report:
            return None
        with worker.storage.lock(f"{study_name}.report", wait=False) as mine:
            if not mine:
                print(f"study {study_name}: another worker is writing the report")
                return None
            return write_report(worker.study, config, out, progress)
    finally:
        worker.storage.close(disk_full=worker.disk_error is not None)


class Worker:
    """One process that works on a study: `study` is Optuna's, `storage` has the locks that workers share.

    Args:
        splits: `train` and `val`, or each trial reads them; for the others see `tune`.
    """

    def __init__(
        self,
        config: Config,
        study_name: str,
        out: Path,
        storage: str,
        objective: str | None = None,
        splits: dict[str, list[GroundingExample]] | None = None,
    ) -> None:
        self.config, self.name, self.out, self.objective = config, study_name, out, objective
        self.splits = splits
        self.disk_error: OSError | None = None  # that ended this worker's search
        parameters = own_parameters(config)
        self.storage = Storage(storage)
        try:
            with self._claim():
                self.study = self._join(parameters)
        except BaseException:
            self.storage.close()
            raise

    def search(self, trials: int, timeout: float | None = None, progress: bool = True) -> None:
        """Work until the study has so many finished trials, whoever runs them, or the time is over."""
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # the bar says it shorter
        bar = tqdm(total=trials, desc=f"study {self.name}", unit="trial", disable=not progress)
        try:
            while time.monotonic() < deadline and not self._step(trials, bar):
                pass
        finally:
            bar.close()
            optuna.logging.set_verbosity(verbosity)

    def _step(self, trials: int, bar: tqdm) -> bool:
        """Run one trial, or wait for those of others; returns whether the study has what was asked for."""
        with ExitStack() as claim, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            claim.enter_context(self._claim())
            for number in give_back_dead_trials(self.study, self.storage):
                tqdm.write(f"trial {number}: its worker is gone, it is queued again")
            known = self.study.get_trials(deepcopy=False)
            finished = sum(map(is_finished, known))
            running = sum(trial.state == TrialState.RUNNING for trial in known)
            self._show(bar, finished, running)
            if finished >= trials:
                return True
            if finished + running < trials:
                told = sum(not is_lost(t) and t.state != TrialState.WAITING for t in known)
                self.study.sampler = _sampler(self.config.train.seed, told)
                self._run_trial(claim)
                return False
        time.sleep(POLL_SECONDS)  # others run the last ones; should they die, these are ours to retry
        return False

    def _run_trial(self, claim: ExitStack) -> None:
        """One trial, through Optuna's own loop, which sends heartbeats and records how it ends."""
        numbers: list[int] = []

        def objective(trial: Trial) -> float | tuple[float, float]:
            numbers.append(trial.number)
            try:
                return self._objective(trial, claim)
            except OSError as error:
                if error.errno in DISK_ERRORS:  # not of what was tried, which will be tried again
                    self.disk_error = error
                    with suppress(OSError):
                        trial.set_user_attr("disk_full", True)
                raise

        try:
            with disk_errors():  # of a journal that cannot be written, Optuna makes an AssertionError
                self.study.optimize(objective, n_trials=1, catch=(Exception,))
        except OSError as error:
            self.disk_error = error
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            # Silent for too long (a laptop asleep), given up for dead, and queued again: not ours any more.
            if not numbers or not self._trial(numbers[0]).state.is_finished():
                raise
            tqdm.write(f"trial {numbers[0]}: was given up for dead meanwhile; its result is not used")
            return
        if self.disk_error is not None:  # every further trial would fail of it
            raise self.disk_error
        trial = self._trial(numbers[0])
        if "error" in trial.user_attrs:
            tqdm.write(f"trial {trial.number} failed: {trial.user_attrs['error']}")

    def _objective(self, trial: Trial, claim: ExitStack) -> float | tuple[float, float]:
        """Train what the trial chose.

        Returns:
            the best validation mIoU of its epochs and, where there is one, the second objective.
        """
        run_dir = self.out / "trials" / f"{trial.number:04d}"
        curve: list[float] = []

        def on_epoch(epoch: dict) -> None:
            curve.append(epoch["val_miou"])
            if self.objective is None:  # Optuna cannot prune for two objectives
                trial.report(epoch["val_miou"], epoch["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned(f"epoch {epoch['epoch']}: below the median")

        try:
            config = suggest(self.config, trial)
            trial.set_user_attr("worker", self.storage.worker)
            claim.close()  # the trial has its parameters: the next worker may choose the next one's
            trial.set_user_attr("seed", config.train.seed)
            trial.set_user_attr("config", plain(config))
            trial.set_user_attr("run_dir", str(run_dir))
            fit(config, run_dir, progress=False, on_epoch=on_epoch, splits=self.splits)
            if self.objective is None:
                return max(curve)
            return max(curve), second_objective(self.objective, run_dir)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
                trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                write_atomically(run_dir / "error.txt", traceback.format_exc().encode())
            raise
        finally:
            trial.set_user_attr("curve", curve)
            drop_resumable(run_dir)

    def _join(self, parameters: dict[str, Any]) -> optuna.Study:
        """The study, made by the first worker, checked by all others."""
        directions = ["maximize"] if self.objective is None else ["maximize", "minimize"]
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self.storage.optuna,
            study_name=self.name,
            directions=directions,
            load_if_exists=True,
            pruner=_pruner(self.config.train.epochs),
        )
        optuna.logging.set_verbosity(verbosity)
        asked = {"objective": self.objective} | _portable(self.config)
        if "asked" not in study.user_attrs:
            if any((self.out / "trials").glob("*")):
                raise ConfigError(
                    f"{self.out}: has the trials of another study; choose another --out, or its --storage"
                )
            study.set_user_attr("asked", asked)
            study.enqueue_trial(parameters, user_attrs={"preset": True})
        model = self.config.model.name
        other = first_difference(read_by(model, study.user_attrs["asked"]), read_by(model, asked))
        if other:
            raise ConfigError(f"study {self.name} is of other settings: {other}; choose another --study")
        return study

    def _claim(self) -> AbstractContextManager:
        return self.storage.lock(f"{self.name}.claim")

    def _trial(self, number: int) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _show(self, bar: tqdm, finished: int, elsewhere: int) -> None:
        bar.n, best = finished, best_trial(self.study)
        notes = [f"best val mIoU {best.values[0]:.4f} (trial {best.number})"] if best else []
        notes += [f"{elsewhere} running elsewhere"] if elsewhere else []
        bar.set_postfix_str(", ".join(notes))


def fill_cache(config: Config, progress: bool = True) -> dict[str, list[GroundingExample]]:
    """Read the data, once for all trials, and make what is missing of the feature cache.

    Returns:
        the splits `train` and `val`.

    Raises:
        DataError, WeightsError, ConfigError: what every trial would fail of.
    """
    splits = {name: load_split(config, name) for name in ("train", "val")}
    set_seed(config.train.seed)  # as `fit` does: backbones without weights are drawn from it
    model = build_model(config.model.name, config.model)
    check_splits(config, model, splits["train"], splits["val"])
    if config.train.cached:
        with file_lock(Path(config.data.features) / ".tuning.lock"):  # one makes it, the others wait
            make_loaders(config, model, splits["train"], splits["val"], PartialState(), progress)
    return splits


def check_names(study_name: str, objective: str | None) -> None:
    """Raise a ConfigError unless a study can be called so and have this second objective."""
    if not re.fullmatch(r"[\w.-]+", study_name):
        raise ConfigError(f"--study: expected letters, digits, '.', '-' and '_', got {study_name!r}")
    if objective not in (None, *SECOND_OBJECTIVES):
        known = " or ".join(SECOND_OBJECTIVES)
        raise ConfigError(f"--objective: expected {known} beside mIoU, got {objective!r}")


def check_test(config: Config) -> None:
    """Raise a DataError unless there is the split that the report will ask; nothing of it is kept."""
    data = config.data
    load_examples(data.root, "test", data.partition or None, False, Report(), require_images=False)


def _portable(config: Config) -> dict[str, Any]:
    """The settings that have to be the same for all workers; where things lie may differ by machine."""
    settings = plain(config)
    for name in ("root", "features", "workers", "resident"):
        settings["data"].pop(name)
    settings["train"].pop("log")
    return settings


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial. One that lived on would start from its first draw again after a restart."""
    drawn = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    return optuna.samplers.TPESampler(seed=int(drawn), multivariate=True, group=True)


def _pruner(epochs: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(
        n_startup_trials=STARTUP_TRIALS, n_warmup_steps=max(1, epochs // 3), n_min_trials=STARTUP_TRIALS
    )
