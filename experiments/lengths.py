"""How long to train: what fills some minutes, by a probe of how fast a model trains on this machine."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from vg_utils.config import Config
from vg_utils.files import write_atomically

EPOCH_SECONDS = 25  # about, of training between two looks at val
PROBED = 24  # batches of a probe, whose second half says how fast a model trains


def length_by_probe(
    config: Config, minutes: float, splits: dict, kept: Path, gpus: int = 1
) -> dict[str, int]:
    """`epochs` and `epoch_images` that fill the minutes, looking at val and saving included.

    A training that goes on where it was stopped has to be as long as when it began: the answer is kept.

    Args:
        config: of the training.
        splits: as `fit` takes them.
        kept: file of the answer, which is given again where it is there.
        gpus: that train it together, each of which calls this.
    """
    from vg_utils.training.engine import fit

    if kept.is_file():
        return json.loads(kept.read_bytes())
    images = PROBED // 2 * config.train.batch_images * gpus
    short = replace(config, train=replace(config.train, epochs=2, epoch_images=images))
    ends: list[float] = []

    def clock(_: dict) -> None:
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        seconds = fit(short, folder, progress=False, splits=splits, on_epoch=clock)[1]["seconds"]
    between = max(0.0, ends[1] - ends[0] - seconds)  # looking at val, saving
    epochs = max(1, round(minutes * 60 / (EPOCH_SECONDS + between)))
    per_epoch = int((minutes * 60 / epochs - between) * images / seconds)
    per_epoch = max(config.train.batch_images * gpus, per_epoch)
    print(
        f"{images / seconds:.0f} images/s, {between:.1f} s between epochs: {epochs} epochs of {per_epoch}",
        flush=True,
    )
    (length,) = broadcast_object_list([{"epochs": epochs, "epoch_images": per_epoch}])  # one for all
    if os.environ.get("RANK", "0") == "0":
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(length).encode())
    return length
