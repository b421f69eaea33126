"""Images a second of one GPU, and of several that train together on batches of as many images.

    python -m vg_utils benchmark together [--gpus 2] [--images 128] [--plain]
    python -m vg_utils benchmark together --gpus 1 --images 32 --precision fp16 --memory 14

What is timed are epochs of `training.engine.fit` itself: images that each GPU holds, forward, losses,
backward, gradients summed between the GPUs, optimizer. Everything trains, from random weights, at the full
size of RefCOCOg's recipe. Each GPU has a process, as torchrun starts them. Where there are fewer GPUs it is a
small model on processors. The second line tries what a card with 16 GB can do, on one that has more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from accelerate.utils import patch_environment
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
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
DRAWN = 8  # images, which a batch repeats: what they show does not matter to the time


def train(job: dict, drawn: Sequence[GroundingExample]) -> list[dict]:
    """The history of a training, in one of the processes that train together.

    Args:
        job: `model`, `full` (RefCOCOg's size, else that of RefScenes), `images` of a batch of all processes
            together, `processes`, `steps` of an epoch, `epochs`, `graphs`, `precision`, the GiB of `memory`
            that a GPU may be asked for or None, and the `folder` of the run.
        drawn: examples, which are repeated until there are enough.

    Returns:
        see `fit`; on a GPU each epoch also has `peak_gib`, what it was asked for at most.
    """
    processes, images = job["processes"], job["images"]
    config = settings(job["model"], job["full"], tuning="full")
    length = {"epochs": job["epochs"], "epoch_images": images * job["steps"]}
    usual = {"batch_images": images // processes, "similarity_images": 0, "cached": False}
    how = {"graphs": job["graphs"], "precision": job["precision"]}
    trained = replace(config.train, **length, **usual, **how)
    config = replace(config, data=replace(config.data, resident=True), train=trained)
    size, where = config.model.image_size, torch.device("cpu")
    if job["full"]:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if job["memory"]:
            all_of_it = torch.cuda.get_device_properties(where).total_memory
            torch.cuda.set_per_process_memory_fraction(job["memory"] * 2**30 / all_of_it, where)
    examples = [replace(drawn[number % len(drawn)], image_id=number) for number in range(images)]
    tokenizer = build_backbone(config.model.clip, size).tokenizer
    held = ResidentPictures(examples, size, tokenizer, where)
    splits = {"train": held, "val": examples[: 2 * processes]}  # each process has its share of val
    history = fit(config, Path(job["folder"]) / "run", progress=False, splits=splits)
    if processes > 1:
        torch.distributed.destroy_process_group()
    peak = {"peak_gib": torch.cuda.max_memory_reserved(where) / 2**30} if job["full"] else {}
    return [epoch | peak for epoch in history]


def launch(job: dict, drawn: Sequence[GroundingExample]) -> list[dict]:
    """`train` in as many processes as the job asks for, and the history of the first."""
    with tempfile.TemporaryDirectory() as folder, patch_environment(**(CPU if not job["full"] else {})):
        job = job | {"folder": folder}
        if job["processes"] == 1:  # as `train` is without a launcher: nothing is sent, not even to itself
            with ProcessPoolExecutor(1, get_context(START_METHOD)) as alone:
                return alone.submit(train, job, drawn).result()
        one_machine = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
        here = {"max_restarts": 0, "logs_specs": DefaultLogsSpecs(log_dir=f"{folder}/logs")}
        config = LaunchConfig(
            nproc_per_node=job["processes"], start_method=START_METHOD, **one_machine, **here
        )
        return elastic_launch(config, train)(job, drawn)[0]


def measure(job: dict, drawn: Sequence[GroundingExample], gpus: int, rounds: int) -> Report:
    """One process and several, in turns; the first epoch of each warms up."""
    one, several = ("GPU", "GPUs") if job["full"] else ("process", "processes")
    names = {count: f"{count} {one if count == 1 else several}" for count in sorted({1, gpus})}
    seconds = {name: [] for name in names.values()}
    checks = {}
    for _ in range(rounds):
        for count, name in names.items():
            for epoch in launch(job | {"processes": count}, drawn)[1:]:
                seconds[name].append(epoch["seconds"])
                checks[f"training loss of {name}"] = epoch["train_loss"]
                if "peak_gib" in epoch:
                    checks[f"peak_gib of {name}"] = epoch["peak_gib"]
    size = "refcocog" if job["full"] else "scenes"
    limit = f", {job['precision']}, {job['memory']:g} GiB a GPU" if job["memory"] else ""
    title = f"{job['model']}, {size} size, batches of {job['images']} images of all together{limit}"
    work = job["images"] * job["steps"]
    return Report("together", [Comparison(title, names[1], seconds, work, "images/s")], checks)


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("together", "Images a second of one GPU and of several, with batches of the same size.")
    parser.add_argument("--model", default="dense-grounder", help="the system")
    parser.add_argument("--gpus", type=int, default=2, help="that train together")
    parser.add_argument("--images", type=int, help="in a batch of all GPUs together (default: 128, else 8)")
    parser.add_argument("--precision", default="auto", help="train.precision: bf16, fp16, no or auto")
    parser.add_argument("--memory", type=float, help="GiB that a GPU may be asked for (default: all)")
    parser.add_argument("--plain", action="store_true", help="do not record the image encoder (train.graphs)")
    given = parser.parse_args(arguments)
    full = torch.cuda.device_count() >= given.gpus and not given.tiny
    job = {"model": given.model, "full": full, "images": given.images or (128 if full else 8)}
    job |= {"precision": given.precision, "memory": given.memory}
    job |= {"steps": 10 if full else 1, "epochs": 3 if full else 2, "graphs": full and not given.plain}
    with tempfile.TemporaryDirectory() as folder:
        drawn = photographs(Path(folder), min(DRAWN, job["images"]))
        return finish(measure(job, drawn, given.gpus, given.rounds or (3 if full else 1)), given.json)


if __name__ == "__main__":
    main()
