"""The log of a training for TensorBoard or Weights & Biases, kept by Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from vg_utils.config import Config, ConfigError
from vg_utils.training.claims import plain

PROJECTS = {"tensorboard": "tensorboard", "wandb": "vg_utils"}  # a folder in the run's; a project's name


def check_log(log: str) -> None:
    """Raise a ConfigError if `train.log` names a package that is missing: Accelerate would log nothing."""
    if log != "no" and log not in map(str, get_available_trackers()):
        raise ConfigError(f"train.log: expected the package {log}: pip install {log}")


@contextmanager
def logged(accelerator: Accelerator, config: Config, run_dir: Path, epochs: int) -> Iterator[None]:
    """Open the log for `accelerator.log`, where the main process alone writes, and close it at the end.

    Args:
        accelerator: made with `log_with` and the run directory.
        config, run_dir: of the run.
        epochs: those that are finished: what a killed run logged of the next one is logged anew.

    Raises:
        ConfigError: wandb cannot start, for example because nobody is logged in.
    """
    log = config.train.log
    if log == "no":
        yield
        return
    options = {
        "tensorboard": {"purge_step": epochs + 1},
        "wandb": {
            "dir": run_dir,
            "name": run_dir.name,
            "config": plain(config),
            "id": _wandb_id(run_dir),
            "resume": "allow",
        },
    }
    try:
        accelerator.init_trackers(PROJECTS[log], init_kwargs=options)
    except Exception as error:  # of many kinds, none of which is there without the package
        raise ConfigError(f"train.log: {log} cannot start: {str(error)[:300]}") from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:  # `end_training` would end the group of processes, too
            tracker.finish()


def _wandb_id(run_dir: Path) -> str | None:
    """Of the log that a resumed run goes on in, from its folder `run-DATE_TIME-ID`; None: a new one."""
    found = sorted((run_dir / "wandb").glob("*run-*-*"), key=lambda folder: folder.name.split("-")[-2])
    return found[-1].name.split("-")[-1] if found else None
