"""How long to train: what fills some minutes, by a probe of how fast a model trains on this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from vg_utils.config import Config

EPOCH_SECONDS = 25  # about, of training between two looks at val
PROBED = 24  # batches of a probe, whose second half says how fast a model trains


def length_by_probe(
    config: Config, minutes: float, splits: dict, directory: Path, gpus: int = 1
) -> dict[str, int]:
    """`epochs` and `epoch_images` that fill the minutes, looking at val and saving included.

    Args:
        config: of the training.
        splits: as `fit` takes them.
        directory: for the run that is the probe.
        gpus: that train it together, each of which calls this.
    """
    from vg_utils.training.engine import fit

    images = PROBED // 2 * config.train.batch_images * gpus
    short = replace(config, train=replace(config.train, epochs=2, epoch_images=images))
    ends: list[float] = []

    def clock(_: dict) -> None:
        ends.append(time.perf_counter())

    probe = fit(short, directory, False, progress=False, splits=splits, on_epoch=clock)
    seconds = probe[1]["seconds"]
    between = max(0.0, ends[1] - ends[0] - seconds)  # looking at val, saving
    epochs = max(1, round(minutes * 60 / (EPOCH_SECONDS + between)))
    per_epoch = int((minutes * 60 / epochs - between) * images / seconds)
    per_epoch = max(config.train.batch_images * gpus, per_epoch)
    print(
        f"{images / seconds:.0f} images/s, {between:.1f} s between epochs: {epochs} epochs of {per_epoch}",
        flush=True,
    )
    (length,) = broadcast_object_list([{"epochs": epochs, "epoch_images": per_epoch}])  # one for all
    return length
