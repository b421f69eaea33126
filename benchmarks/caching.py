"""Seconds of a training epoch from the feature cache, against encoding the images again in each epoch.

    python -m vg_utils benchmark caching [--full]

Both are `vg_utils.training.engine.fit` on the same images, under the same random transforms (the cache
holds a view for each epoch), with the same dropout: the losses agree but for the float16 of the cache. What
building the cache costs, once for each view, is a row of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks._timing import Comparison, Report, device, finish, options, seconds_of
from benchmarks._work import untrained
from vg_utils.config import Config
from vg_utils.data.batches import GroundingDataset
from vg_utils.data.transforms import TrainTransform
from vg_utils.models import build_model
from vg_utils.refscenes.scenes import write_scenes
from vg_utils.training.engine import fit
from vg_utils.training.features import cache_features
from vg_utils.training.loaders import load_split

UNCACHED, CACHED = "an epoch from images", "an epoch from the cache"
BUILDING = "building a view of the cache (once)"


def measure(config: Config, folder: Path, rounds: int) -> Report:
    """Train twice, epoch 1 to warm up; the rounds are the epochs after it."""
    epochs = rounds + 1
    config = replace(
        config,
        data=replace(config.data, features=str(folder / "features"), workers=0),
        train=replace(config.train, epochs=epochs, cache_views=epochs, similarity_images=0),
    )
    histories = {
        name: fit(
            replace(config, train=replace(config.train, cached=name == CACHED)),
            folder / name.replace(" ", "-"),
            progress=False,
        )
        for name in (UNCACHED, CACHED)
    }
    seconds = {name: [epoch["seconds"] for epoch in history[1:]] for name, history in histories.items()}
    seconds[BUILDING] = [building(config, folder / f"built-{number}") for number in range(rounds)]
    pairs = {name: sum(e["pairs_per_second"] * e["seconds"] for e in h) for name, h in histories.items()}
    if round(pairs[UNCACHED]) != round(pairs[CACHED]):
        raise RuntimeError(f"caching: the variants do different work, {pairs}")
    losses = [[epoch["train_loss"] for epoch in history] for history in histories.values()]
    checks = {
        "pairs an epoch of each": round(pairs[CACHED]) / epochs,
        "training loss at the end": losses[0][-1],
        "largest difference of an epoch's training loss": max(
            abs(a - b) for a, b in zip(*losses, strict=True)
        ),
    }
    images = len(load_split(config, "train"))
    title = f"{config.model.name}, {config.preset} size, backbones frozen, {images} images"
    return Report("caching", [Comparison(title, UNCACHED, seconds, 1, "ms")], checks)


def building(config: Config, folder: Path) -> float:
    """Seconds to make one view of the training images."""
    model = build_model(config.model.name, config.model)
    data = config.data
    transform = TrainTransform(config.model.image_size, flip=data.flip, jitter=data.jitter, scale=data.scale)
    examples = load_split(config, "train")
    dataset = GroundingDataset(examples, transform, config.train.seed, data.max_expressions)
    return seconds_of(lambda: cache_features(dataset, model, folder, device(), progress=False))


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("caching", "Seconds of an epoch from the feature cache, against encoding in each epoch.")
    parser.add_argument("--full", action="store_true", help="RN50 and HRNet-W18 at 224, as on RefCOCOg")
    parser.add_argument("--images", type=int, help="training images (default: 48, with --full 16)")
    given = parser.parse_args(arguments)
    images = 6 if given.tiny else given.images or (16 if given.full else 48)
    config = untrained("clip-hrnet", given.full)
    with tempfile.TemporaryDirectory() as folder:
        root = write_scenes(Path(folder) / "scenes", images, config.model.image_size, progress=False)
        train = replace(config.train, batch_images=min(images, 32), epochs=2)
        config = replace(config, data=replace(config.data, root=str(root)), train=train)
        rounds = given.rounds or (1 if given.tiny else 3)
        return finish(measure(config, Path(folder), rounds), given.json)


if __name__ == "__main__":
    main()
