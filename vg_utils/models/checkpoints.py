"""Run directories: what is written, so that nothing is lost and nothing half-written is ever read.

A run directory holds `config.json`, `history.pkl` and `.jsonl`, `results.pkl` and `checkpoint/`:

- `model.safetensors`: the weights with the best validation score, what `Grounder.load` reads;
- `last.safetensors` and `state.pt`: the weights and the state of the optimizer at the last save, to resume;
- `average.safetensors`: the moving average of the weights, where `train.ema` asks for one.

What is frozen in a backbone is left out (RN50 and HRNet would be 450 MB, the head is 10), unless it is
random: it is loaded from where it came, and its fingerprint has to be the one that the checkpoint was trained
with.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vg_utils.config import Config, ConfigError, set_fields
from vg_utils.data.examples import DataError
from vg_utils.data.records import parse_json
from vg_utils.files import disk_errors, write_atomically
from vg_utils.models import build_model
from vg_utils.models.backbones import WeightsError
from vg_utils.models.base import GroundingModel
from vg_utils.models.fingerprints import (
    fingerprint,
    fingerprints,
    fingerprints_of,
    full_names,
    omitted,
)
from vg_utils.models.shipped import WEIGHTS_DIR, changed, unpack_tensors
from vg_utils.models.weight_files import read_weights
from vg_utils.pickles import write_pickle

DEFAULT_CHECKPOINT = "photos/dense-grounder"  # the one for photographs
TRAINED_ON = {  # what the shipped checkpoints of a preset have seen
    "photos": "4,067 photographs of COCO and VOC, alone and two in one, with 386,281 phrases made from their "
    "boxes and captions; "
    "no referring expression of a person",
    "scenes": "RefScenes (drawn solids, no photographs)",
}


NO_FILES = ("openai", "imagenet", "shipped", "random")  # what weights may be beside a file


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another model; the message says which and what."""


def save_history(run_dir: Path, history: list[dict]) -> None:
    """The epochs so far, as a pickle and as JSON lines."""
    write_pickle(run_dir / "history.pkl", history)
    lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
    write_atomically(run_dir / "history.jsonl", lines.encode())


def save_checkpoint(
    directory: Path, model: GroundingModel, state: dict, best: bool, average: GroundingModel | None = None
) -> None:
    """Write a checkpoint as one: the directory is filled beside the old one and then takes its place.

    Args:
        directory: `RUN_DIR/checkpoint`.
        state: everything but the weights that a resumed run needs (tensors and plain data).
        best: these weights are the best so far; otherwise the best ones are kept as they are.
        average: the moving average of the model, if there is one; it is what was scored.

    Raises:
        OSError: the disk is full; the checkpoint of before is as it was.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = _beside(directory, "new"), _beside(directory, "old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        with disk_errors():
            _fill(fresh, model, state, average)
            scored = fresh / ("last.safetensors" if average is None else "average.safetensors")
            kept = scored if best else (current(directory) / "model.safetensors")
            shutil.copyfile(kept, fresh / "model.safetensors")  # not a hard link: Colab's Drive has none
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)  # a full disk has room for the next thing then
        raise
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _fill(directory: Path, model: GroundingModel, state: dict, average: GroundingModel | None) -> None:
    """Write what a training goes on from."""
    prints = fingerprints(model)
    save_weights(directory / "last.safetensors", model, prints)
    with (directory / "state.pt").open("wb") as file:  # by its name, torch would not say why it failed
        torch.save(state, file)
    if average is not None:
        save_weights(directory / "average.safetensors", average, prints)  # what is frozen is the same in both


def load_state(directory: Path, model: GroundingModel, average: GroundingModel | None = None) -> dict | None:
    """Put the last saved weights into the model and return the saved state; None if nothing was saved yet."""
    directory = current(directory)
    if not (directory / "state.pt").exists():
        return None
    load_weights(directory / "last.safetensors", model)
    if average is not None:
        load_weights(directory / "average.safetensors", average)
    try:
        state = torch.load(directory / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{directory / 'state.pt'}: expected a training state, got: {reason}") from None
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise CheckpointError(f"{directory / 'state.pt'}: expected a training state, got {kind}")
    return state


def drop_resumable(run_dir: Path) -> None:
    """Remove what only a resumed training needs: two thirds of a checkpoint."""
    for name in ("last.safetensors", "average.safetensors", "state.pt"):
        (run_dir / "checkpoint" / name).unlink(missing_ok=True)


def load_best(run_dir: Path, model: GroundingModel) -> None:
    """Put the weights with the best validation score into the model; raises as `load_weights` does."""
    load_weights(_best_weights(run_dir), model)


def save_weights(path: Path, model: GroundingModel, prints: dict[str, str] | None = None) -> None:
    """Write the model's weights, without what can be had again, whose fingerprints go into the metadata.

    Args:
        path: where to.
        model: whose weights they are.
        prints: the fingerprints, where they are known.
    """
    prints = fingerprints(model) if prints is None else prints
    left_out = full_names(omitted(model))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name not in left_out}
    save_file(tensors, path, metadata={"fingerprints": json.dumps(prints)})


def load_weights(path: Path, model: GroundingModel) -> None:
    """Put weights into the model: every one has to be there and fit, omitted backbones be the same.

    Raises:
        CheckpointError: the file is missing, damaged, or was written for another model or another backbone.
    """
    prints = _read_fingerprints(path)
    try:
        own, packed = model.state_dict(), read_weights(path)
        tensors = unpack_tensors(packed, own)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CheckpointError(f"{path}: {reason}") from None
    if fingerprints_of(model, changed(packed)) != _read_fingerprints(path, "changed"):
        raise CheckpointError(f"{path}: finetuned from other weights than those loaded here")
    backbones, skipped = model.backbones(), omitted(model)
    for name, expected in prints.items():
        if name not in skipped or fingerprint(backbones[name], skipped[name]) != expected:
            raise CheckpointError(
                f"{path}: trained on another {name} than the one loaded here (fingerprint differs)"
            )
    expected_names = set(own) - full_names({name: skipped[name] for name in prints})
    missing, unknown = sorted(expected_names - set(tensors)), sorted(set(tensors) - expected_names)
    if missing or unknown:
        raise CheckpointError(
            f"{path}: not this model's weights: {len(missing)} missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}"
        )
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: {name}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
            )
    model.load_state_dict(own | tensors)


def load_config(directory: Path) -> Config:
    """The settings of a run, with its weight files where they are from here.

    A relative path is inside the run directory, if there is such a file, and has to stay there. Any other
    file was named by whoever trained. Of it only what `load_weights` finds to be what the run was trained
    with, by its fingerprint, gets into the model; all else is in the checkpoint.

    Raises:
        ConfigError: settings that cannot be, or a weight file that leaves the directory.
    """
    config = Config.load(directory / "config.json")
    for part in ("clip", "hrnet"):
        weights = getattr(config.model, part).weights
        if weights in NO_FILES:
            continue
        inside = directory / weights
        if not Path(weights).is_absolute() and os.path.exists(inside):
            if not inside.resolve().is_relative_to(directory.resolve()):
                raise ConfigError(
                    f"{directory / 'config.json'}: model.{part}.weights: expected a file inside of the run's "
                    f"directory, got {weights!r}, which leaves it"
                )
            config = set_fields(config, **{f"model__{part}__weights": str(inside)})
    return config


def load_model(directory: Path) -> tuple[GroundingModel, Config]:
    """The model of a run with its best weights, and its settings, see `load_config`.

    Raises:
        ConfigError: as `load_config`.
        CheckpointError: as `load_weights`, or settings of which no model can be made.
        WeightsError: a backbone that the checkpoint builds on cannot be had.
    """
    config, path = load_config(directory), directory / "config.json"
    try:
        model = build_model(config.model.name, config.model)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except WeightsError:
        raise
    except Exception as error:  # torch's own, of sizes that do not go together
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path}: expected settings of a model, got: {reason}") from None
    load_best(directory, model)
    return model, config


def with_absolute_paths(config: Config) -> Config:
    """The settings with weight files, and the run to start from, found from any working directory."""
    for part in ("clip", "hrnet"):
        weights = getattr(config.model, part).weights
        if weights not in NO_FILES:
            absolute = os.path.abspath(os.path.expanduser(weights))
            config = set_fields(config, **{f"model__{part}__weights": absolute})
    if os.path.isdir(init := os.path.expanduser(config.train.init)):
        config = set_fields(config, train__init=os.path.abspath(init))
    return config


def find_checkpoint(name: str | Path) -> Path:
    """A run directory, or that of a shipped checkpoint by its name (`photos/dense-grounder`).

    Raises:
        CheckpointError: neither; the message lists the shipped ones.
    """
    for directory in (Path(os.path.expanduser(name)), WEIGHTS_DIR / name):
        # Asked of `os`, to which a name that cannot be is one of no file.
        if os.path.isfile(directory / "config.json") and os.path.isdir(_best_weights(directory).parent):
            return directory
    raise CheckpointError(
        f"{name}: expected a run directory (config.json and checkpoint/) or one of the shipped "
        f"checkpoints: {', '.join(shipped_checkpoints()) or 'none'}"
    )


def shipped_checkpoints(data: str = "*") -> list[str]:
    """Names of the checkpoints that come with the package, by default of those for any data set."""
    return sorted(str(p.parent.relative_to(WEIGHTS_DIR)) for p in WEIGHTS_DIR.glob(f"{data}/*/config.json"))


def origin(checkpoint: str | Path) -> str:
    """A line that says which model a checkpoint holds and what it was trained on.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    directory = find_checkpoint(checkpoint)
    config = Config.load(directory / "config.json")
    shipped = directory.resolve().is_relative_to(WEIGHTS_DIR.resolve())
    seen = TRAINED_ON.get(config.preset, config.data.root) if shipped else config.data.root
    return f"{checkpoint}: {config.model.name}, trained on {seen}"


def _read_fingerprints(path: Path, key: str = "fingerprints") -> dict[str, str]:
    """Of a checkpoint's weights: those of the backbones that it builds on, which are not in it.

    With the key "changed": those of the weights whose change is in it.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key, "{}")
        prints = parse_json(text.encode(), f"{path}: {key}", "an object")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected weights, found no such file") from None
    except DataError as error:
        raise CheckpointError(str(error)) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got: {str(error)[:200]}") from None
    if not isinstance(prints, dict) or not all(isinstance(value, str) for value in prints.values()):
        raise CheckpointError(f"{path}: {key}: expected a text for each backbone, got {str(prints)[:80]}")
    return prints


def _beside(directory: Path, suffix: str) -> Path:
    return directory.with_name(f".{directory.name}.{suffix}")


def _best_weights(directory: Path) -> Path:
    """A run's best weights, or the weights of a folder to share (`vg_utils.sharing`), which has but those."""
    shared = directory / "model.safetensors"
    return shared if shared.is_file() else current(directory / "checkpoint") / "model.safetensors"


def current(directory: Path) -> Path:
    """The checkpoint directory, or the old one where a kill came between the two renames of a save."""
    old = _beside(directory, "old")
    return old if old.exists() and not directory.exists() else directory
