"""Whose a run directory is: that of one run, which only the settings that it began with may resume."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vg_utils.config import Config, ConfigError, first_difference
from vg_utils.data import GroundingExample
from vg_utils.files import FolderLock, sweep
from vg_utils.models import MODELS
from vg_utils.models.checkpoints import with_absolute_paths

GONE = "was deleted or replaced while it was written to"
CHANGES_NOTHING = {  # settings that no result depends on: where things lie, who decodes, what is written when
    "data": ("root", "features", "workers", "strict"),
    "train": ("save_every", "log"),
}


def check_claim(run_dir: Path, config: Config, resume: bool) -> str:
    """Refuse to mix two runs in one directory; nothing is written.

    A resumed run may differ in what changes no result, and may ask for more epochs than before.

    Returns:
        what a person should know of a run that is resumed otherwise than it began; empty if nothing.

    Raises:
        ConfigError: a fresh run where there is one already, or a resumed one with other settings.
    """
    path = run_dir / "config.json"
    if not path.exists():
        return ""
    if not resume:
        raise ConfigError(
            f"{run_dir}: there is a run here already; resume it with --resume or choose another --out"
        )
    before = with_absolute_paths(Config.load(path))
    epochs = before.train.epochs, config.train.epochs
    same_epochs = dataclasses.replace(before.train, epochs=max(epochs))
    before = dataclasses.replace(before, train=same_epochs)
    other = first_difference(what_matters(before), what_matters(config))
    if other:
        raise ConfigError(
            f"{run_dir}: the run here has other settings: {other}; resume it with those, or choose "
            "another --out"
        )
    if epochs[1] > epochs[0]:
        return (
            f"{run_dir}: train.epochs was {epochs[0]} and is {epochs[1]}: from here on the learning rate "
            "follows the warm-up and cosine of them all, so this is not the run that it would have been "
            "with as many from the start"
        )
    return ""


@contextmanager
def claim(run_dir: Path, config: Config, resume: bool, is_main: bool = True) -> Iterator[None]:
    """Hold a run directory for as long as it is written to; what was left there by a killed writer goes.

    Args:
        run_dir, config, resume: see `check_claim`, asked again: another may have been here meanwhile.
        is_main: whether this is the one process of the training that writes.

    Raises:
        ConfigError: another training holds it, or as `check_claim`.
        FileNotFoundError: at the end, when the directory is not the one that it was.
    """
    if not is_main:
        yield
        return
    try:
        lock = FolderLock(run_dir)
    except BlockingIOError:
        raise ConfigError(f"{run_dir}: another training writes there now; choose another --out") from None
    try:
        check_claim(run_dir, config, resume)
        sweep(run_dir)
        yield
        if not lock.still_there():
            raise FileNotFoundError(errno.ENOENT, GONE, str(run_dir))
    finally:
        lock.release()


def check_still_there(run_dir: Path) -> None:
    """Raise a FileNotFoundError if a run directory has gone: what is written next would be half a run."""
    if not (run_dir / "config.json").is_file():
        raise FileNotFoundError(errno.ENOENT, GONE, str(run_dir))


def what_matters(config: Config) -> dict[str, Any]:
    """The settings that can change a run's result, as JSON would give them back."""
    settings = read_by(config.model.name, plain(config))
    del settings["preset"]  # a name
    for part, names in CHANGES_NOTHING.items():
        settings[part] = {name: v for name, v in settings[part].items() if name not in names}
    return settings


def read_by(model: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the parts of other models, which make no difference to this one."""
    parts = ("clip", *MODELS[model].parts) if model in MODELS else settings["model"]
    own = {name: v for name, v in settings["model"].items() if not isinstance(v, dict) or name in parts}
    return settings | {"model": own}


def plain(config: Config) -> dict[str, Any]:
    """The config as JSON would give it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest_of(*splits: Iterable[GroundingExample]) -> str:
    """A hash of what a run learns from and is scored on, wherever it lies."""
    digest = hashlib.sha256()
    for examples in splits:
        for example in examples:
            known = (example.image_id, example.size_wh, example.expressions, example.absent)
            digest.update(repr(known).encode())
    return digest.hexdigest()
