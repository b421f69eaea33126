"""Train and score every system on RefScenes: `python -m experiments.run --out runs/study`.

The runs are those of `experiments.plan`. Each is trained into a directory of its own and scored on test and
novel; its results are a pickle. Give the same command again and it goes on where it stopped. How many
images a run sees follows from `--minutes` by the speeds in the plan, so that it is the same for all seeds
and changes of a system, wherever it is trained. With several GPUs, or `--slots` above 1, runs go side by
side, and with `--processors` what trains nothing goes beside them without a GPU. A detector learns
RefScenes, too, for `detector-clip`; and what the package ships is made and scored.

With `--search` it tries the settings that the plan was made with, on fewer images of another seed. With
`--equal` it trains the flagship and the best system of each student project for as many minutes as each
other, by the speed that each shows in a probe.
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing as mp
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.synchronize import Lock
from pathlib import Path

import pandas as pd
import torch

from experiments.lengths import length_by_probe
from experiments.plan import PICTURES_PER_SECOND, SIZE, Run, equal, search, shuffled, study
from experiments.ship import ship_run
from vg_utils.data import GroundingExample, load_examples
from vg_utils.data.resident import ResidentPictures
from vg_utils.data.transforms import EvalTransform
from vg_utils.devices import default_device
from vg_utils.evaluation.metrics import breakdown
from vg_utils.evaluation.runs import evaluate_constant
from vg_utils.models.base import GroundingModel
from vg_utils.models.clip import ClipTokenizer
from vg_utils.pickles import read_pickle, write_pickle
from vg_utils.predictor import Grounder
from vg_utils.refscenes.scenes import write_scenes

# Asks the driver's library whether there is a GPU, without initialising it, which no forked process survives.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

RENDERED = {"train": 50_000, "val": 2_000, "test": 4_000, "novel": 4_000}  # images of the full RefScenes
SEARCH_RENDERED = {"train": 16_000, "val": 500, "test": 50, "novel": 500}  # and those of the search
DRAWN_BY = "spawn"  # how the process begins that draws them, which may touch a GPU
COMMAND = "python -m experiments.run --out runs/study"
EQUAL_COMMAND = "python -m experiments.run --equal --minutes 8.6 --out runs/equal"
SEARCH_COMMAND = "python -m experiments.run --search --out runs/search"
VALIDATED = 500  # images of val by which the best epoch is chosen: proposals take their time
SIMILARITY_IMAGES = 300  # of each split, whose crops CLIP compares
LOOKED_AT = 1_000  # images of each split that is asked what does not train: `detector-clip` takes its time
CHOSEN_ON = 5_000  # training images on which the constant box is chosen
DETECTED_ON = 5_000  # training images that the detector learns from
DETECTOR = "detector.pt"  # in the study's directory
SPLITS = ("test", "novel")


@dataclass
class Job:
    """One run with one seed."""

    run: Run
    seed: int

    @property
    def name(self) -> str:
        return f"{self.run.name}-{self.seed}"


class Pictures:
    """The splits: read and decoded once, before the processes part, and held on a process's own device."""

    def __init__(self, root: Path, size: int, workers: int, shuffle: bool) -> None:
        self.root, self.device = root, "cpu"
        self.held: dict[tuple[str, bool], ResidentPictures] = {}
        for split, examples in read_splits(root, workers).items():
            plain = ResidentPictures(examples, size, ClipTokenizer(), "cpu", workers)
            self.held[split, False] = plain
            if shuffle:
                self.held[split, True] = plain.with_examples(shuffled(plain.examples))

    def on(self, device: str) -> Pictures:
        """The same on a device."""
        moved = copy.copy(self)
        moved.device, moved.held = device, {}
        for (split, shuffle), pictures in self.held.items():
            plain = moved.held.get((split, False))  # comes first; the shuffled share its images
            moved.held[split, shuffle] = pictures.to(device, plain.pictures.images if plain else None)
        return moved


def read_splits(root: Path, workers: int) -> dict[str, list[GroundingExample]]:
    """The records of all splits; with workers the small ones are read beside `train`."""
    if not workers:
        return {split: load_examples(root, split) for split in RENDERED}
    with ProcessPoolExecutor(mp_context=mp.get_context("fork")) as others:
        reading = {s: others.submit(load_examples, root, s) for s in RENDERED if s != "train"}
        return {"train": load_examples(root, "train")} | {s: read.result() for s, read in reading.items()}


def do(job: Job, pictures: Pictures, options: argparse.Namespace, learning: Lock) -> dict:
    """Train and score, or score what is there; what comes back is plain data and pandas frames.

    `learning` is held while the detector is being trained.
    """
    run = job.run
    if run.of:
        return ship_and_score(run, pictures, options)
    if not wants_gpu(run):
        examples = {split: pictures.held[split, False].examples[:LOOKED_AT] for split in SPLITS}
        examples["train"] = pictures.held["train", False].examples[:CHOSEN_ON]
        if run.config.model.detector_clip.weights == str(options.out / DETECTOR):
            with learning:  # whoever needs it first trains it
                if not (options.out / DETECTOR).is_file():
                    learn_detector(options)
        return score_untrained(run, examples, COMMAND)
    return train_and_score(job, pictures, options.out, options.minutes)


def wants_gpu(run: Run) -> bool:
    """Whether a run trains, or scores what was trained; the others only look at images one by one."""
    return run.group != "training-free" and run.config.model.name != "constant-box"


def learn_detector(options: argparse.Namespace) -> None:
    """Train the detector in a process of its own, on a GPU if there is one, which this one may not see."""
    command = [sys.executable, "-m", "experiments.detector", "--workers", "6", "--limit", str(DETECTED_ON)]
    command += ["--data", str(options.data), "--out", str(options.out / DETECTOR)]
    shown = {"CUDA_VISIBLE_DEVICES": options.gpus[-1]} if options.gpus else {}
    subprocess.run(command, check=True, env=os.environ | shown)


def train_and_score(job: Job, pictures: Pictures, out: Path, minutes: float) -> dict:
    """Train for about so many minutes, and score the best weights."""
    from vg_utils.training.engine import fit

    run = job.run
    config = replace(run.config, train=replace(run.config.train, seed=job.seed))
    config = replace(config, data=replace(config.data, root=str(pictures.root)))
    splits = {name: pictures.held[name, run.shuffle] for name in ("train", "val")}
    splits["val"] = splits["val"].first(VALIDATED)
    if run.images:
        splits["train"] = splits["train"].first(run.images)
    if run.probed:
        length = length_by_probe(config, minutes, splits, out / "lengths" / f"{job.name}.json")
    else:
        length = length_for(run, minutes, len(splits["train"].examples))
    config = replace(config, train=replace(config.train, **length))
    started = time.perf_counter()
    history = fit(config, out / "runs" / job.name, resume=True, progress=False, splits=splits)
    whole = time.perf_counter() - started
    grounder = Grounder.load(out / "runs" / job.name, pictures.device)
    command = EQUAL_COMMAND if run.probed else SEARCH_COMMAND if run.group == "search" else COMMAND
    found = outcome(run, job.seed, command) | costs(grounder.model, history, whole)
    found |= {"images": len(splits["train"].examples)}
    found = score(found, grounder, run, pictures)
    if run.group == "search":  # on images of its own, which are in no table of the study
        found["search_novel_miou"] = found["results"]["novel"]["miou"]
        found |= {"results": {}, "by": {}, "rows": {}}
    return found


def score(found: dict, grounder: Grounder, run: Run, pictures: Pictures) -> dict:
    """Add what a trained model scores on the held-out splits."""
    from vg_utils.evaluation.runs import evaluate

    model, size = grounder.model, grounder.config.model.image_size
    for split in SPLITS:
        held = pictures.held[split, run.shuffle]
        plain = EvalTransform(size)
        batches = held.loader(64, plain, shuffle=False, absent=None if model.learns_presence else 0)
        where = (held.examples, "RefScenes", split)
        rows, results, _ = evaluate(grounder, *where, similarity=False, batches=batches)
        if run.similarity:
            some = held.examples[:SIMILARITY_IMAGES]
            judged = evaluate(grounder, some, "RefScenes", split, workers=2).results
            results |= {k: judged[k] for k in ("semantic_similarity", "text_similarity", "category_recall")}
        add_split(found, split, rows, results)
    return found


def ship_and_score(run: Run, pictures: Pictures, options: argparse.Namespace) -> dict:
    """Make the package's checkpoint of the run's first seed, and score it as it will be loaded."""
    trained = read_pickle(options.out / "results" / f"{run.of}-0.pkl")
    directory = options.out / "shipped" / run.label
    ship_run(options.out / "runs" / f"{run.of}-0", directory)
    found = outcome(run, 0, COMMAND)
    found |= {key: trained[key] for key in ("parameters", "head_parameters", "images")}
    return score(found, Grounder.load(directory, pictures.device), run, pictures)


def score_untrained(run: Run, examples: dict[str, Sequence[GroundingExample]], command: str) -> dict:
    """`detector-clip`, or the one box that is best on `examples["train"]`."""
    from vg_utils.evaluation.runs import evaluate_detector
    from vg_utils.models.detector_clip import build_detector_clip

    evaluate = partial(evaluate_constant, examples["train"])
    if run.group == "training-free":
        detector = build_detector_clip(run.config.model, default_device())
        evaluate = partial(
            evaluate_detector, detector, similarity=False
        )  # CLIP judging its own choice says little for its time
    found = outcome(run, 0, command)
    for split in SPLITS:
        add_split(found, split, *evaluate(examples[split], "RefScenes", split)[:2])
    return found


def outcome(run: Run, seed: int, command: str) -> dict:
    """What a run is, for its scores to be added (see `experiments.results`)."""
    found = {key: getattr(run, key) for key in ("name", "group", "label")}
    found |= {"model": run.config.model.name, "seed": seed, "command": command, "history": []}
    return found | {"results": {}, "by": {}, "rows": {}}


def costs(model: GroundingModel, history: list[dict], seconds: float) -> dict:
    """Parameters, and the time that training took."""
    backbones = {id(p) for b in model.backbones().values() for p in b.parameters()}
    return {
        "train_seconds": sum(epoch["seconds"] for epoch in history),
        "seconds": seconds,
        "pairs_per_second": max(epoch["pairs_per_second"] for epoch in history),
        "val_miou": max(epoch["val_miou"] for epoch in history),
        "parameters": sum(p.numel() for p in model.parameters()),
        "head_parameters": sum(p.numel() for p in model.parameters() if id(p) not in backbones),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "history": history,
    }


def add_split(found: dict, split: str, rows: pd.DataFrame, results: dict) -> None:
    """Put the scores of a split to what is known of a run, the rows in little space."""
    small = {"image_id": "int32", "sent_id": "int32", "family": "category"}
    small |= {"iou": "float16", "score": "float16"}
    found["results"][split] = results
    found["by"][split] = breakdown(rows)
    found["rows"][split] = rows[list(small)].astype(small)


def length_for(run: Run, minutes: float, pictures: int) -> dict[str, int]:
    """`epochs` and `epoch_images` of a run that has so many images, where a system has those minutes."""
    wanted = PICTURES_PER_SECOND[run.config.model.name] * 60 * minutes * run.share
    epochs = max(1, round(wanted / (run.config.train.epoch_images or pictures)))
    return {"epochs": epochs, "epoch_images": max(run.config.train.batch_images, round(wanted / epochs))}


def work(
    gpu: str | None, jobs: mp.Queue, pictures: Pictures, options: argparse.Namespace, learning: Lock
) -> None:
    """Take jobs until there are none, on the GPU of that number, or on none."""
    gc.enable()
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu or ""
    threads = (os.cpu_count() or 1) // (2 * max(1, options.processors))  # half of them are for the GPUs' runs
    torch.set_num_threads(1 if gpu else max(1, threads))
    pictures = pictures.on("cpu" if gpu is None else "cuda")
    while (job := jobs.get()) is not None:
        path = options.out / "results" / f"{job.name}.pkl"
        try:
            found = do(job, pictures, options, learning)
            found["device"] = torch.cuda.get_device_name() if gpu is not None else "CPU"
            write_pickle(path, found)
            line = "  ".join(
                f"{s}: {r['miou']:.3f} / {r['acc@0.5']:.3f}" for s, r in found["results"].items()
            )
            searched = {k: round(found[k], 4) for k in ("val_miou", "search_novel_miou") if k in found}
            print(f"{job.name}: {found.get('train_seconds', 0):.0f} s, {line} {searched}", flush=True)
        except Exception:  # one run's failure is not the others'
            print(f"{job.name}: FAILED\n{traceback.format_exc()}", flush=True)


def run_all(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """All runs with their seeds, those that are done already left out."""
    (options.out / "results").mkdir(parents=True, exist_ok=True)
    jobs = [Job(run, seed) for run in runs for seed in range(run.seeds)]
    waiting = [job for job in jobs if not (options.out / "results" / f"{job.name}.pkl").exists()]
    apart = [job for job in waiting if options.processors and not wants_gpu(job.run)]
    options.gpus = visible_gpus()
    # Forked before any of them has touched a GPU: what is read and decoded here is theirs without a copy.
    context = mp.get_context("fork")
    workers = max(1, (os.cpu_count() or 1) - 1) if options.gpus else 0
    gc.disable()  # it would look through a million records again and again while more are read
    pictures = Pictures(options.data, SIZE, workers, any(run.shuffle for run in runs))
    lock, processes = context.Lock(), []
    for some, slots in (
        ([job for job in waiting if job not in apart], (options.gpus or [None]) * options.slots),
        (apart, [None] * options.processors),
    ):
        slots, queue = slots[: len(some)], context.Queue()
        for job in [*some, *[None] * len(slots)]:
            queue.put(job)
        arguments = (queue, pictures, options, lock)
        processes += [context.Process(target=work, args=(gpu, *arguments)) for gpu in slots]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def visible_gpus() -> list[str]:
    """The numbers of the GPUs that may be used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]


def draw(root: Path, images: dict[str, int], seed: int) -> None:
    """Draw RefScenes, in a process of its own: this one has to fork, so it may not touch a GPU."""
    others = {split: count for split, count in images.items() if split != "train"}
    arguments = {"root": root, "images": images["train"], "size": SIZE, "seed": seed, "counts": others}
    process = mp.get_context(DRAWN_BY).Process(target=write_scenes, kwargs=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"drawing RefScenes into {root} failed with exit status {process.exitcode}")


def main() -> None:
    """Draw RefScenes, train and score everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="drawn where it is not there; default: data/refscenes")
    parser.add_argument("--search", action="store_true", help="try settings, on data/refscenes-search")
    parser.add_argument("--equal", action="store_true", help="a few systems, equal minutes by their speeds")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--minutes", type=float, default=4.2, help="of training, of a system on an H200")
    parser.add_argument("--slots", type=int, default=1, help="runs side by side on a GPU")
    parser.add_argument(
        "--processors", type=int, default=0, help="processes beside them for what trains nothing"
    )
    parser.add_argument("--only", nargs="*", help="names of runs; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)  # processes forked from one that had several wait for ever for their own
    options.data = options.data or Path("data/refscenes-search" if options.search else "data/refscenes")
    if options.search:
        draw(options.data, SEARCH_RENDERED, seed=1)
        runs = search()
    else:
        draw(options.data, RENDERED, seed=0)
        runs = equal() if options.equal else study(str(options.out / DETECTOR))
    run_all([run for run in runs if not options.only or run.name in options.only], options)


if __name__ == "__main__":
    main()
