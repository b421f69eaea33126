"""Images a second of one GPU, and of several that train together on batches of as many images.

    python -m vg_utils benchmark together [--gpus 2] [--images 128] [--plain]

What is timed are epochs of `training.engine.fit` itself: images that each GPU holds, forward, losses,
backward, gradients summed between the GPUs, optimizer. Everything trains, from random weights, at the full
size of RefCOCOg's recipe. Each GPU has a process, as torchrun starts them. Where there are fewer GPUs it is a
small model on processors.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import patch_environment
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks._one_build import settings
from benchmarks._timing import Comparison, Report, finish, options
from benchmarks._work import photographs
from vg_utils.data import GroundingExample
from vg_utils.data.resident import ResidentPictures
from vg_utils.models.backbones import build_backbone
from vg_utils.training.engine import fit

CPU = {"accelerate_use_cpu": "true", "omp_num_threads": "1"}  # variables of processes without a GPU
START_METHOD = "spawn"
DRAWN = 64  # images, which a batch repeats: what they show does not matter to the time


def train(job: dict, drawn: Sequence[GroundingExample]) -> list[dict]:
    """The history of a training, in one of the processes that train together.

    Args:
        job: `model`, `full` (RefCOCOg's size, else that of RefScenes), `images` of a batch of all processes
            together, `processes`, `steps` of an epoch, `epochs`, `graphs`, and the `folder` of the run.
        drawn: examples, which are repeated until there are enough.
    """
    processes, images = job["processes"], job["images"]
    config = settings(job["model"], job["full"], tuning="full")
    length = {"epochs": job["epochs"], "epoch_images": images * job["steps"]}
    usual = {"batch_images": images // processes, "similarity_images": 0, "cached": False}
    trained = replace(config.train, **length, **usual, graphs=job["graphs"])
    config = replace(config, data=replace(config.data, resident=True), train=trained)
    size, where = config.model.image_size, torch.device("cpu")
    if job["full"]:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    examples = [replace(drawn[number % len(drawn)], image_id=number) for number in range(images)]
    tokenizer = build_backbone(config.model.clip, size).tokenizer
    held = ResidentPictures(examples, size, tokenizer, where)
    splits = {"train": held, "val": examples[: 2 * processes]}  # each process has its share of val
    return fit(config, Path(job["folder"]) / "run", progress=False, splits=splits)


def launch(job: dict, drawn: Sequence[GroundingExample]) -> list[dict]:
    """`train` in as many processes as the job asks for, and the history of the first."""
    with tempfile.TemporaryDirectory() as folder, patch_environment(**(CPU if not job["full"] else {})):
        alone = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
        config = LaunchConfig(nproc_per_node=job["processes"], start_method=START_METHOD, **alone)
        return elastic_launch(config, train)(job | {"folder": folder}, drawn)[0]


def measure(job: dict, drawn: Sequence[GroundingExample], gpus: int, rounds: int) -> Report:
    """One process and several, in turns; the first epoch of each warms up."""
    one, several = ("GPU", "GPUs") if job["full"] else ("process", "processes")
    names = {1: f"1 {one}", gpus: f"{gpus} {several}"}
    seconds = {name: [] for name in names.values()}
    losses = {}
    for _ in range(rounds):
        for count, name in names.items():
            for epoch in launch(job | {"processes": count}, drawn)[1:]:
                seconds[name].append(epoch["seconds"])
                losses[f"training loss of {name}"] = epoch["train_loss"]
    size = "refcocog" if job["full"] else "scenes"
    title = f"{job['model']}, {size} size, batches of {job['images']} images of all together"
    work = job["images"] * job["steps"]
    return Report("together", [Comparison(title, names[1], seconds, work, "images/s")], losses)


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("together", "Images a second of one GPU and of several, with batches of the same size.")
    parser.add_argument("--model", default="dense-grounder", help="the system")
    parser.add_argument("--gpus", type=int, default=2, help="that train together")
    parser.add_argument("--images", type=int, help="in a batch of all GPUs together (default: 128, else 8)")
    parser.add_argument("--plain", action="store_true", help="do not record the image encoder (train.graphs)")
    given = parser.parse_args(arguments)
    full = torch.cuda.device_count() >= given.gpus and not given.tiny
    job = {"model": given.model, "full": full, "images": given.images or (128 if full else 8)}
    job |= {"steps": 10 if full else 1, "epochs": 3 if full else 2, "graphs": full and not given.plain}
    with tempfile.TemporaryDirectory() as folder:
        drawn = photographs(Path(folder), min(DRAWN, job["images"]))
        return finish(measure(job, drawn, given.gpus, given.rounds or (3 if full else 1)), given.json)


if __name__ == "__main__":
    main()
