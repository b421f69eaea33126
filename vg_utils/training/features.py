"""The feature cache: what frozen backbones say of a data set, computed once and written to disk.

A head then trains in seconds, because nothing that is frozen runs twice. A cache is a pickled dict of
tensors, read with torch's restricted unpickler, which refuses everything that could run code. Its name is a
hash of all that its content depends on (weights, input size, transform, images, phrases, boxes), so a stale
cache is never found, and a checksum beside it finds a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from vg_utils.config import ConfigError
from vg_utils.data.batches import Batch, GroundingDataset, GroundingLoader, make_loader, whole_batch_loader
from vg_utils.data.examples import DataError
from vg_utils.data.records import LARGEST_SETTINGS, read_json
from vg_utils.files import check_folder, sweep, write_atomically
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.fingerprints import fingerprint

VERSION = 2  # of the content; one more whenever the same inputs would give other features


@dataclass
class CachedBatch(Batch):
    """A batch with features where images were and, if the text encoder is frozen too, where tokens were."""

    images: Features  # each (B, ...), float16, or float32 where a value is beyond its range
    tokens: Tensor | Features  # int64 (N, L), or features, each (N, ...), as those of the images

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CachedBatch:
        """The batch with its tensors on the device, features as float32."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=non_blocking)
            elif isinstance(value, dict):
                moved[field.name] = {name: t.to(device).float() for name, t in value.items()}
        return replace(self, **moved)


class FeatureDataset(Dataset):
    """Cached views of a data set, a file each; epoch e sees view e modulo their number.

    Args:
        paths: the files that `cache_features` wrote.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.views = [torch.load(path, weights_only=True, mmap=True) for path in paths]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.views[0]["image_ids"])

    def __getitems__(self, indices: list[tuple[int, int]]) -> CachedBatch:
        """The batch of these (epoch, image) pairs, all of one epoch."""
        view = self.views[indices[0][0] % len(self.views)]
        pictures = torch.tensor([number for _, number in indices])  # (B,)
        starts, counts = view["starts"][pictures], view["counts"][pictures]
        image_index = torch.arange(len(pictures)).repeat_interleave(counts)  # (N,)
        offsets = torch.cat([torch.arange(n) for n in counts.tolist()])
        rows = starts[image_index] + offsets  # (N,) rows of the expressions
        texts = view["text_features"]
        return CachedBatch(
            images={name: t[pictures] for name, t in view["image_features"].items()},
            tokens={name: t[rows] for name, t in texts.items()} if texts else view["tokens"][rows],
            image_index=image_index,
            target_boxes_cxcywh=view["target_boxes_cxcywh"][rows],
            target_boxes_xyxy=view["target_boxes_xyxy"][rows],
            letterboxes=view["letterboxes"][pictures],
            sizes_wh=view["sizes_wh"][pictures],
            image_ids=[view["image_ids"][i] for i in pictures.tolist()],
            sent_ids=[view["sent_ids"][i] for i in rows.tolist()],
            texts=[view["texts"][i] for i in rows.tolist()],
        )


def feature_loader(
    paths: Sequence[Path],
    batch_images: int,
    shuffle: bool,
    seed: int = 0,
    drop_last: bool = False,
    per_epoch: int = 0,
) -> GroundingLoader:
    """Batches from a cache, in the order that `make_loader` would give the images themselves."""
    return whole_batch_loader(FeatureDataset(paths), batch_images, shuffle, seed, drop_last, per_epoch)


def cache_features(
    dataset: GroundingDataset,
    model: GroundingModel,
    directory: Path | str,
    device: torch.device | str = "cpu",
    views: int = 1,
    batch_images: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> list[Path]:
    """Compute what is not there yet, and return the files, one a view.

    Args:
        dataset: images and expressions under a transform; view v is its epoch v.
        model: its frozen encoders are run; a text encoder that trains is left to do so (tokens are kept).
        directory: where the files go.
        views: number of epochs with different random transforms to keep; 1 for a plain letterbox.

    Raises:
        ConfigError: the model's image encoder is being trained, so its features cannot be kept.
        DataError: a feature that is not finite; the message names it, and whose it is.
        OSError: the directory cannot be written to, or the disk is full.
    """
    model = model.eval().to(device)
    directory = Path(directory)
    check_folder(directory)
    sweep(directory)
    key = _key(dataset, model)
    paths = [directory / f"{key}-{view}.pt" for view in range(views)]
    for view, path in enumerate(paths):
        if not is_intact(path):
            dataset.set_epoch(view)
            loader = make_loader(dataset, model.tokenizer, batch_images, shuffle=False, workers=workers)
            bar = tqdm(loader, desc=f"features, view {view + 1}/{views}", disable=not progress, leave=False)
            content = _encode(model, bar, len(dataset), device)
            write_atomically(path, partial(_save, content))
            checksum = {"sha256": _sha256(path), "bytes": path.stat().st_size}
            write_atomically(_sidecar(path), json.dumps(checksum).encode())
    return paths


def _save(content: dict, path: Path) -> None:
    with path.open("wb") as file:  # by its name, torch would not say why it failed
        torch.save(content, file)


def is_intact(path: Path) -> bool:
    """Whether a cache is there and is what was written; a damaged one is reported and will be made again."""
    if not path.exists() or not _sidecar(path).exists():
        return False
    try:
        checksum = read_json(_sidecar(path), "a checksum", LARGEST_SETTINGS)
        if path.stat().st_size != checksum["bytes"] or _sha256(path) != checksum["sha256"]:
            raise ValueError("checksum differs")
        torch.load(path, weights_only=True, mmap=True)  # refuses what is not tensors and plain data
    except (ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"{path}: the feature cache is damaged ({reason}); making it again", stacklevel=2)
        return False
    return True


@torch.no_grad()
def _encode(model: GroundingModel, batches: Sequence[Batch], count: int, device: torch.device | str) -> dict:
    """All batches of a data set as one dict of tensors and lists (see `FeatureDataset`)."""
    trains_text = _needs_gradient(model, "encode_texts", torch.full((1, 2), 1, device=device))
    images: Features = {}
    parts: dict[str, list] = {name: [] for name in ("tokens", "texts_features", "counts", *_COPIED)}
    done = 0
    for batch in batches:
        moved = batch.to(device)
        for name, value in model.encode_images(moved.images).items():
            value = _compact(value, name, batch.image_ids, "image")
            if name not in images:
                # Filled in place: RefCOCOg's HRNet maps are 4.4 GB, a second copy is too much.
                images[name] = torch.empty((count, *value.shape[1:]), dtype=value.dtype)
            elif value.dtype != images[name].dtype == torch.float16:
                images[name] = images[name].float()
            images[name][done : done + len(value)] = value
        if not trains_text:
            features = model.encode_texts(moved.tokens)
            features = {name: _compact(t, name, batch.texts, "phrase") for name, t in features.items()}
            parts["texts_features"].append(features)
        parts["tokens"].append(batch.tokens)
        parts["counts"].append(torch.bincount(batch.image_index, minlength=len(batch.image_ids)))
        for name in _COPIED:
            parts[name].append(getattr(batch, name))
        done += len(batch.image_ids)
    counts = torch.cat(parts["counts"])
    copied = {
        name: torch.cat(values) if isinstance(values[0], Tensor) else [v for part in values for v in part]
        for name, values in ((name, parts[name]) for name in _COPIED)
    }
    return {
        "image_features": images,
        "text_features": _padded_features(parts["texts_features"]),
        "tokens": _padded(parts["tokens"]),
        "counts": counts,  # (images,) expressions of each image
        "starts": counts.cumsum(0) - counts,  # (images,) row of its first
        **copied,
    }


def _compact(feature: Tensor, name: str, owners: Sequence, kind: str) -> Tensor:
    """A feature on the CPU: float16 where it fits, float32 where a value is beyond float16's range.

    Args:
        feature: (n, ...).
        name: what the model calls it.
        owners: n of them, and `kind` what they are.

    Raises:
        DataError: a value that is not finite, from which a training would learn nothing but NaN.
    """
    finite = feature.isfinite().flatten(1).all(1)
    if not finite.all():
        owner = owners[int((~finite).nonzero()[0])]
        raise DataError(
            f"feature cache: expected finite features, got infinite ones or NaN in {name!r} of {kind} "
            f"{owner!r}: the weights of the backbone are damaged, or too large for the precision that it "
            "runs in"
        )
    fits = feature.abs().max() <= torch.finfo(torch.float16).max
    return feature.to("cpu", torch.float16 if fits else torch.float32)


_COPIED = (
    "target_boxes_cxcywh",
    "target_boxes_xyxy",
    "letterboxes",
    "sizes_wh",
    "image_ids",
    "sent_ids",
    "texts",
)


def _padded(parts: list[Tensor]) -> Tensor:
    """Join (n, L, ...) tensors of different lengths L, filled up with zeros."""
    if parts[0].ndim < 2 or len({part.shape[1] for part in parts}) == 1:
        return torch.cat(parts)
    joined = torch.zeros(
        (sum(map(len, parts)), max(part.shape[1] for part in parts), *parts[0].shape[2:]),
        dtype=reduce(torch.promote_types, (part.dtype for part in parts)),
    )
    start = 0
    for part in parts:
        joined[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return joined


def _padded_features(parts: list[Features]) -> Features:
    return {name: _padded([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _needs_gradient(model: GroundingModel, encode: str, inputs: Tensor) -> bool:
    with torch.enable_grad():
        return any(value.requires_grad for value in getattr(model, encode)(inputs).values())


def _key(dataset: GroundingDataset, model: GroundingModel) -> str:
    """A hash of everything that the features depend on."""
    device = next(model.parameters()).device
    size = dataset.transform.size
    if _needs_gradient(model, "encode_images", torch.zeros((1, 3, size, size), device=device)):
        raise ConfigError(
            "train.cached: the image encoders are trained, so their features cannot be kept; freeze them "
            "(--model.clip.tuning frozen --model.hrnet.tuning frozen) or train without --train.cached"
        )
    with torch.no_grad():  # which features the model wants; a setting of its head can change that
        texts = sorted(model.encode_texts(torch.full((1, 2), 1, device=device)))
    kind = [VERSION, type(model).__name__, texts]
    parts = [*kind, repr(dataset.transform), dataset.seed, dataset.max_expressions, dataset.absent]
    digest = hashlib.sha256(repr(parts).encode())
    for name, backbone in model.backbones().items():
        digest.update(f"{name} {fingerprint(backbone)}".encode())
    for example in dataset.examples:
        digest.update(repr((example.image_id, example.size_wh, example.expressions, example.absent)).encode())
        if isinstance(example.image, Path):
            stat = example.image.stat()
            digest.update(f"{example.image.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
        else:
            digest.update(example.image.tobytes())
    return digest.hexdigest()[:24]


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
