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

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vg_utils.config import Config
from vg_utils.files import write_atomically
from vg_utils.models.base import GroundingModel
from vg_utils.models.shipped import WEIGHTS_DIR, pack_tensors, unpack_tensors
from vg_utils.presets import preset

DEFAULT_CHECKPOINT = "photos/dense-grounder"  # the one for photographs
TRAINED_ON = {  # what the shipped checkpoints of a preset have seen
    "photos": "4,067 photographs of COCO and VOC with 52,972 phrases made from their boxes and captions; "
    "no referring expression of a person",
    "scenes": "RefScenes (drawn solids, no photographs)",
}


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another model; the message says which and what."""


def save_pickle(path: Path, value: Any) -> None:
    """Pickle plain data (lists, dicts, pandas frames) for the notebooks."""
    write_atomically(path, pickle.dumps(value))


def save_history(run_dir: Path, history: list[dict]) -> None:
    """The epochs so far, as a pickle and as JSON lines."""
    save_pickle(run_dir / "history.pkl", history)
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
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = _beside(directory, "new"), _beside(directory, "old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    prints = _fingerprints(model)
    save_weights(fresh / "last.safetensors", model, prints)
    torch.save(state, fresh / "state.pt")
    scored = fresh / "last.safetensors"
    if average is not None:
        scored = fresh / "average.safetensors"
        save_weights(scored, average, prints)  # what is frozen is the same in both
    kept = scored if best else (_current(directory) / "model.safetensors")
    shutil.copyfile(kept, fresh / "model.safetensors")  # not a hard link: Colab's Drive has none
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def load_state(directory: Path, model: GroundingModel, average: GroundingModel | None = None) -> dict | None:
    """Put the last saved weights into the model and return the saved state; None if nothing was saved yet."""
    directory = _current(directory)
    if not (directory / "state.pt").exists():
        return None
    load_weights(directory / "last.safetensors", model)
    if average is not None:
        load_weights(directory / "average.safetensors", average)
    try:
        return torch.load(directory / "state.pt", map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{directory / 'state.pt'}: expected a training state, got: {error}") from None


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
    prints = _fingerprints(model) if prints is None else prints
    left_out = _full_names(omitted(model))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name not in left_out}
    save_file(tensors, path, metadata={"fingerprints": json.dumps(prints)})


def ship(run_dir: Path, directory: Path, tokens: Iterable[int] | None = None, smallest: int = 0) -> None:
    """Copy the best weights of a run as they come with the package: small, see `vg_utils.models.shipped`.

    Args:
        run_dir: the run.
        directory: where to, `vg_utils/weights/DATA/MODEL` for `Grounder.load("DATA/MODEL")` to find it.
        tokens: those of the phrases that it shall understand; None: all.
        smallest: matrices of fewer numbers stay as they are, see `shipped.pack_tensors`.
    """
    (directory / "checkpoint").mkdir(parents=True, exist_ok=True)
    with safe_open(_current(run_dir / "checkpoint") / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata()
    packed = pack_tensors(tensors, tokens, smallest)
    save_file(packed, directory / "checkpoint" / "model.safetensors", metadata=metadata)
    config = Config.load(run_dir / "config.json")
    home = preset(config.preset).data  # where the images lay was a matter of the machine that trained
    config = replace(config, data=replace(config.data, root=home.root, features=home.features))
    config.save(directory / "config.json")


def load_weights(path: Path, model: GroundingModel) -> None:
    """Put weights into the model: every one has to be there and fit, omitted backbones be the same.

    Raises:
        CheckpointError: the file is missing, damaged, or was written for another model or another backbone.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            prints = json.loads((file.metadata() or {}).get("fingerprints", "{}"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected weights, found no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got: {error}") from None
    backbones, skipped = model.backbones(), omitted(model)
    for name, expected in prints.items():
        if name not in skipped or fingerprint(backbones[name], skipped[name]) != expected:
            raise CheckpointError(
                f"{path}: trained on another {name} than the one loaded here (fingerprint differs)"
            )
    own = model.state_dict()
    tensors = unpack_tensors(tensors, own)
    expected_names = set(own) - _full_names({name: skipped[name] for name in prints})
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


def omitted(model: GroundingModel) -> dict[str, set[str]]:
    """Of each backbone, the names of its weights that can be had again from where they came.

    They are what is neither random nor trained; running statistics go with the layer that they belong to.
    """
    found = {}
    for name, backbone in model.backbones().items():
        weights = set() if backbone.source == "random" else _frozen(backbone)
        if weights:
            found[name] = weights
    return found


def fingerprint(module: nn.Module, names: set[str] | None = None) -> str:
    """SHA-256 of names, shapes and values (rounded to float16) of `names`, by default of what is frozen.

    Positions of an image's cells are left out: they are interpolated to the size of the input, and the last
    bits of that differ from one torch, or processor, to the next.

    RN50 and HRNet take half a second, and every save asks. So they are hashed again only where torch has
    counted a write to one of the tensors since, as it does for autograd, or one has moved.
    """
    names = _frozen(module) if names is None else names
    names = {name for name in names if not name.endswith(_INTERPOLATED)}
    tensors = {name: value for name, value in sorted(module.state_dict().items()) if name in names}
    if any(value.is_inference() for value in tensors.values()):  # writes to these are not counted
        return _sha256(tensors)
    writes = [(name, value.data_ptr(), value._version) for name, value in tensors.items()]
    if _hashed.get(module, (None, ""))[0] != writes:
        _hashed[module] = (writes, _sha256(tensors))
    return _hashed[module][1]


_INTERPOLATED = ("visual.positional_embedding", "attnpool.positional_embedding")
_hashed: WeakKeyDictionary[nn.Module, tuple[list, str]] = WeakKeyDictionary()


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fingerprints(model: GroundingModel) -> dict[str, str]:
    """Of each backbone, that of the weights that are omitted."""
    backbones = model.backbones()
    return {name: fingerprint(backbones[name], weights) for name, weights in omitted(model).items()}


def find_checkpoint(name: str | Path) -> Path:
    """A run directory, or that of a shipped checkpoint by its name (`photos/dense-grounder`).

    Raises:
        CheckpointError: neither; the message lists the shipped ones.
    """
    for directory in (Path(name).expanduser(), WEIGHTS_DIR / name):
        if (directory / "config.json").is_file() and _best_weights(directory).parent.is_dir():
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


def _beside(directory: Path, suffix: str) -> Path:
    return directory.with_name(f".{directory.name}.{suffix}")


def _best_weights(directory: Path) -> Path:
    """A run's best weights, or the weights of a folder to share (`vg_utils.sharing`), which has but those."""
    shared = directory / "model.safetensors"
    return shared if shared.is_file() else _current(directory / "checkpoint") / "model.safetensors"


def _current(directory: Path) -> Path:
    """The checkpoint directory, or the old one where a kill came between the two renames of a save."""
    old = _beside(directory, "old")
    return old if old.exists() and not directory.exists() else directory


def _frozen(module: nn.Module) -> set[str]:
    """Names of the weights and buffers of the parts of a module that do not train."""
    names = set()
    for path, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        trained = any(parameter.requires_grad for parameter in own.values())
        kept = {name for name, parameter in own.items() if not parameter.requires_grad}
        kept |= set() if trained else {name for name, _ in part.named_buffers(recurse=False)}
        names |= {f"{path}.{name}" if path else name for name in kept}
    return names & set(module.state_dict())


def _full_names(names: dict[str, set[str]]) -> set[str]:
    return {f"{backbone}.{name}" for backbone, inside in names.items() for name in inside}
